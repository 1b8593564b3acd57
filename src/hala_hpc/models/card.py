"""What every model card says, whatever made the model: gathered from the run, kept in ``hala.json``, in Markdown."""

import platform
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from hala_hpc import __version__
from hala_hpc.config import frozen
from hala_hpc.run import manifest

SHARD: Final = re.compile(r"/shards/\d+/(\d+)$")
"""The end of a path of a shard's folder (``run.layout``)."""
PUBLISHED: Final = ("name", "task", "model")
"""Sections of the recipe that describe the model; the others name a site, accounts and folders."""


def provenance(run: Path, packages: Sequence[str]) -> dict[str, Any]:
    """The run, the model that it began from, the recipe, and versions of ``packages`` where they are installed."""
    recipe = frozen.read(run)
    base = str(recipe["model"]["name"])
    return {
        "run": run.name,
        **manifest.read(run / "manifest.parquet").facts.made_by,
        "exported_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "base_model": without_folders(base),
        "base_is_local": is_local(base),
        "base_revision": recipe["model"]["revision"],
        "versions": {"hala_hpc": __version__, "python": platform.python_version()} | versions(packages),
        "recipe": without_folders({section: recipe[section] for section in PUBLISHED}),
    }


def is_local(name: str) -> bool:
    """Whether a model's name in a frozen recipe is a folder, which the hub does not know."""
    return name.startswith("/")


def page(
    record: Mapping[str, Any],
    said: str,
    facts: Iterable[tuple[str, str]],
    body: Iterable[str],
    title: str | None = None,
    bases: Sequence[str] | None = None,
    **front: Any,
) -> str:
    """A model's card: what it is, a table of facts, the lines of ``body``, the recipe and the versions.

    Parameters
    ----------
    record : what ``provenance`` gathered, or ``hala.json`` holds.
    title : the run's name, unless another is given.
    bases : models on the hub that it was made from; None: the recipe's, where the hub has it.
    front : more for the front matter.
    """
    if bases is None:
        bases = [] if record["base_is_local"] else [record["base_model"]]
    matter: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    matter |= {"base_model": bases[0] if len(bases) == 1 else list(bases)} if bases else {}
    made_by = ("recipe_digest", "git_commit", "planned_at", "exported_at")
    origin = [(name.replace("_", " "), str(record[name])) for name in made_by if name in record]
    lines = ["---", yaml_of(matter | front), "---", f"# {title or record['run']}", "", said, ""]
    lines += [*table(("", ""), [*facts, *origin]), *body]
    lines += ["", "## Recipe", "", "```yaml", yaml_of(record["recipe"]), "```", "", "## Versions", ""]
    return "\n".join([*lines, *(f"- {name} {version}" for name, version in record["versions"].items()), ""])


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(cells)} |" if any(cells) else f"|{' |' * len(cells)}" for cells in lines]


def name_of(folder: Path) -> str:
    """A folder's public name: its own; of a model in a run, the run's, and the item's where the run made several."""
    shard = SHARD.search(str(folder))
    run = folder.parents[2] if shard else folder.parent
    if not (run / "manifest.parquet").is_file():
        return folder.name
    items = manifest.read(run / "manifest.parquet").facts.items
    if shard is None or len(items) < 2:
        return run.name
    return f"{run.name}-{items[int(shard[1])]['name']}"


def without_folders(value: Any) -> Any:
    """Replace paths by their names alone: a card is published, and a path may show who worked where."""
    if isinstance(value, dict):
        return {key: without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_folders(inner) for inner in value]
    return name_of(Path(value)) if isinstance(value, str) and is_local(value) else value


def number(value: Any) -> str:
    """A number as a card shows it; '' for None."""
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def yaml_of(value: Any) -> str:
    """YAML in the order of ``value``."""
    import yaml

    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True)).rstrip()


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of those packages that are installed."""
    installed: dict[str, str] = {}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed
