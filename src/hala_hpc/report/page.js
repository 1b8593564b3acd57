const asked = JSON.parse(document.getElementById("plots").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const views = new Map();

async function draw(figure) {
  const place = figure.querySelector(".plot");
  const spec = { ...asked.specs[figure.dataset.plot], width: "container" };
  const options = {
    config: dark.matches ? asked.dark : asked.light,
    renderer: "svg",
    actions: false,
    tooltip: { theme: dark.matches ? "dark" : "light" },
  };
  views.get(figure)?.finalize();
  try {
    views.set(figure, await vegaEmbed(place, spec, options));
  } catch (error) {
    place.textContent = `This plot could not be drawn: ${error}`;
    throw error;
  }
}

async function drawAll() {
  await Promise.all([...document.querySelectorAll("figure[data-plot]")].map(draw));
  document.documentElement.dataset.drawn = views.size;
}

dark.addEventListener("change", drawAll);
await document.fonts.ready;
await drawAll();
