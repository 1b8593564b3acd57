"""Training, the whole of it from `hala submit` on, against a plain TRL script: same model, rows and settings, in turn.

Both train a small random model on Alpaca rows on this machine's CPU, in float32. See train_shapes.py for a GPU.
"""

import argparse
import itertools
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import HALA, ROOT, data, environment, quiet, report, title
from train_trl import WARM_STEPS, rates

from hala_hpc.tasks.train import metrics, paths

WORK = ROOT / ".envs" / "work-cpu" / "bin" / "python"
SEQUENCES = 8
SAVE_SECONDS = 6.0
"""Between checkpoints, where a kill is measured."""
PATIENCE = 1200.0


@dataclass(frozen=True)
class Bench:
    """What all measurements share."""

    folder: Path
    model: Path
    rows: Path
    steps: int
    length: int

    def submit(self, name: str, **task: Any) -> Path:
        """Submit a training to this machine; its run directory."""
        options = {
            "kind": "train",
            "datasets": {"alpaca": {"path": str(self.rows), "kind": "chat"}},
            "sequence_length": self.length,
            "too_long": "drop",
            "tokens": self.steps * SEQUENCES * self.length,
            "batch": {"sequences": SEQUENCES, "per_device": 1},
            "precision": "float32",
            "loader_workers": 0,
            "watch": {"preflight": False},
        }
        slurm = {"cpus_per_worker": os.cpu_count()}
        recipe = {"name": name, "model": {"name": str(self.model)}, "task": options | task, "site": {"slurm": slurm}}
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(recipe))
        quiet(*HALA, "submit", path, "--site", "local-cpu", cwd=self.folder, env=environment())
        return self.folder / "runs" / name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--rows", type=int, default=3_000)
    parser.add_argument("--architecture", default="llama")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--only", choices=("start", "trl", "kill"), help="one of the three measurements")
    arguments = parser.parse_args()
    title("train")
    if not WORK.is_file():
        sys.exit("no work environment: make work")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            Path(folder), Path(folder, "model"), Path(folder, "rows.jsonl"), arguments.steps, arguments.length
        )
        build = [WORK, ROOT / "jobs" / "demo" / "tiny_model.py", bench.model]
        quiet(*build, "--architecture", arguments.architecture, "--hidden", arguments.hidden, "--layers", 4)
        bench.rows.write_text("".join(json.dumps(row) + "\n" for row in chats(arguments.rows)))
        if arguments.only in (None, "start"):
            first_step(bench)
        if arguments.only in (None, "trl"):
            against_trl(bench, arguments.times)
        if arguments.only in (None, "kill"):
            lost_at_a_kill(bench)


def chats(limit: int) -> Iterator[dict[str, Any]]:
    """Alpaca rows as both sides read them."""
    rows = [
        row
        for path in sorted(data("instructions", "alpaca_52k").glob("*.json"))
        for row in json.loads(path.read_text())
    ]
    for row in rows[:limit]:
        asked = "\n\n".join(filter(None, (row["instruction"], row["input"])))
        turns = (("user", asked), ("assistant", row["output"]))
        yield {"messages": [{"role": role, "content": content} for role, content in turns]}


def first_step(bench: Bench) -> None:
    """A run from nothing: seconds to its first step, and what they went to."""
    began = time.time()
    run = bench.submit("first", tokens=None)
    submitted = time.time()
    waited_for(run, lambda: bool(steps_of(run)))
    stop(run)
    prepared = (run / paths.INDEX / "report.json").stat().st_mtime
    first = steps_of(run)[0]["time"]
    padding = json.loads((run / paths.INDEX / "report.json").read_text())["padding_share"]
    report("padding share of packed Alpaca rows", 100 * padding, "%", "at most 2 %", padding <= 0.02)
    report("from submit to the end of the first step", first - began, "s", "", True)
    report("… hala submit (every row is looked at)", submitted - began, "s", "", True)
    report("… the data are prepared", prepared - submitted, "s", "", True)
    report("… ranks start, the model loads, the step", first - prepared, "s", "", True)


def against_trl(bench: Bench, times: int) -> None:
    """Packed against packed at one sequence a forward pass; packed against not packed at eight."""
    seen: dict[str, list[dict[str, float]]] = {"packed": [], "TRL packed": [], "packed of 8": [], "TRL of 8": []}
    for number in range(times):
        seen["packed"].append(ours(bench, f"one{number}", 1))
        seen["TRL packed"].append(theirs(bench, f"one{number}", 1, packing=True))
        seen["packed of 8"].append(ours(bench, f"eight{number}", SEQUENCES))
        seen["TRL of 8"].append(theirs(bench, f"eight{number}", SEQUENCES, packing=False))
    for name, found in seen.items():
        print(f"{name}:", *(f"{rate['tokens']:,.0f}" for rate in found), "tokens/s", flush=True)
    ratio = median_ratio(seen["packed"], seen["TRL packed"], "tokens")
    useful = median_ratio(seen["packed of 8"], seen["TRL of 8"], "useful")
    report("tokens/s, hala / TRL, both packed, median of pairs", ratio, "", "at least 1.0", ratio >= 1.0)
    report("useful tokens/s, hala packed / TRL not packed", useful, "", "at least 1.5", useful >= 1.5)


def ours(bench: Bench, name: str, per_device: int) -> dict[str, float]:
    batch = {"sequences": SEQUENCES, "per_device": per_device}
    run = bench.submit(name, batch=batch, prepared=str(bench.folder / "prepared"))
    waited_for(run, lambda: len(steps_of(run)) == bench.steps)
    stop(run)
    lines = steps_of(run)
    return rates(
        [
            [line["tokens"], line["useful_tokens"], line["time"] - before["time"]]  # from step to step, as TRL's are
            for before, line in itertools.pairwise(lines)
        ]
    )


def theirs(bench: Bench, name: str, per_device: int, packing: bool) -> dict[str, float]:
    asked = {
        "model": str(bench.model),
        "data": str(bench.rows),
        "scratch": str(bench.folder / "trl"),
        "steps": bench.steps,
    }
    asked |= {"sequence_length": bench.length, "packing": packing, "per_device": per_device, "sequences": SEQUENCES}
    words, out = bench.folder / f"trl-{name}.json", bench.folder / f"trl-{name}.out"
    words.write_text(json.dumps(asked))
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))}  # as our launcher has it
    quiet(WORK, ROOT / "benchmarks" / "train_trl.py", words, out, env=environment() | threads)
    found: dict[str, float] = json.loads(out.read_text())
    return found


def lost_at_a_kill(bench: Bench) -> None:
    """Kill the rank between two checkpoints; count the work that had to be done again."""
    run = bench.submit("killed", tokens=None, epochs=20.0, save={"minutes": SAVE_SECONDS / 60})
    waited_for(run, lambda: checkpoints(run) >= 1 and len(steps_of(run)) > WARM_STEPS)
    time.sleep(0.8 * SAVE_SECONDS)
    beacon = json.loads(max((run / paths.RANKS).glob("*/0.json")).read_text())
    killed = time.time()
    os.kill(beacon["pid"], signal.SIGKILL)
    waited_for(run, lambda: len(metrics.files(run)) > 1 and len(launches(run)[1]) > 0)
    stop(run)
    before, after = launches(run)
    again = [line for line in before if line["step"] >= after[0]["step"]]
    kept = [line for line in before if line["step"] < after[0]["step"]]
    lost = killed - kept[-1]["time"]
    bar = SAVE_SECONDS + 2 * statistics.median(line["seconds"] for line in before)
    # A save waits for the end of a step, and the kill falls into one.
    report("work lost at a kill (a save every 6 s and 2 steps)", lost, "s", f"at most {bar:.1f} s", lost <= bar)
    report("… steps done again", len(again), "", "", True)
    report("… from the kill to the end of the first step after it", after[0]["time"] - killed, "s", "", True)


def launches(run: Path) -> list[list[dict[str, Any]]]:
    """The steps of each launch."""
    found = [metrics.lines(path.read_bytes()) for path in metrics.files(run)]
    return [[line for line in lines if "loss" in line] for lines in found]


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [line for line in metrics.read(run) if "loss" in line]


def stop(run: Path) -> None:
    """What was to be seen was seen: what is measured next has the machine to itself."""
    quiet(*HALA, "cancel", run, env=environment())
    waited_for(run, lambda: not any((run / "leases" / "workers").iterdir()))


def checkpoints(run: Path) -> int:
    return sum(1 for _ in (run / paths.CHECKPOINTS).glob("checkpoint-*/complete.json"))


def waited_for(run: Path, done: Callable[[], bool]) -> None:
    if reason := given_up(run, done):
        sys.exit(reason)


def given_up(run: Path, done: Callable[[], bool]) -> str:
    """Wait until ``done()``; why it never will be, where nobody works on the run any more or PATIENCE is over."""
    began = time.monotonic()
    while not done():
        time.sleep(0.2)
        waited = time.monotonic() - began
        if waited > PATIENCE or (waited > 60 and not any((run / "leases" / "workers").iterdir()) and not done()):
            return f"{run.name} did not end well:\n{logs(run)}"
    return ""


def logs(run: Path) -> str:
    return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted((run / "logs").glob("*.out")))


def median_ratio(ours: list[dict[str, float]], theirs: list[dict[str, float]], key: str) -> float:
    return statistics.median(one[key] / other[key] for one, other in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    main()
