"""Hala in miniature, from one command to its figures: `make mini` calls this.

Called again it goes on where it was ended, and does nothing that is done. It ends with 1 where a figure is too low.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.table import Table

from hala_hpc.tasks.evaluate import results

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "demo"))

from typed import HALA, ROOT, SERVE, console, run, say, watch  # noqa: E402 (it lies beside the demo)

PIPELINE = ROOT / "runs" / "mini"
MOST_BEFORE, LEAST_AFTER, LEAST_EXACT = 5.0, 90.0, 0.9
"""BLEU of the base and of the translator on the sentences that it learned, and the share of exact texts (ours)."""


@dataclass(frozen=True)
class Figures:
    """What came of it: BLEU from 0 to 100, how many texts came out letter by letter, accuracies (0 to 1) by model."""

    bleu_before: float
    bleu_after: float
    texts: int
    exact: int
    accuracies: dict[str, float]
    chosen: str

    @property
    def hold(self) -> bool:
        """Whether the models learned what they are to know by heart."""
        has_learned = self.bleu_before <= MOST_BEFORE and self.bleu_after >= LEAST_AFTER
        return has_learned and self.exact >= LEAST_EXACT * self.texts


def figures(stages: list[dict[str, Any]]) -> Figures:
    """The figures of a finished pipeline, from what `hala status --json` says of its stages."""
    places = {stage["stage"]: Path(stage["path"]) for stage in stages if "path" in stage}
    answers = {stage["stage"]: stage["answer"] for stage in stages if "answer" in stage}
    systems = json.loads((places["score"] / "final" / "scores.json").read_text("utf-8"))["systems"]
    bleu = {name: system["scores"]["bleu"]["score"] for name, system in systems.items()}
    texts = [pair for name in ("world", "things") for pair in _translated(places[f"translate-{name}"])]
    right = {pair["en"]: pair["ar"] for pair in _pairs() if pair["good"]}
    accuracies = {result.model: result.score for result in results.read(places["evaluate"])}
    exact = sum(right[english] == arabic for english, arabic in texts)
    return Figures(bleu["before"], bleu["after"], len(texts), exact, accuracies, answers["best"]["model"])


def _pairs() -> list[dict[str, Any]]:
    lines = (HERE / "data" / "pairs.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _translated(path: Path) -> list[tuple[str, str]]:
    """English texts of a set of instructions, each with its translation; nothing is left out."""
    rows = pq.read_table(path / "final" / "data").to_pylist()
    return [(row[column], row[f"{column}_ar"]) for row in rows for column in ("instruction", "output")]


def _shown(reached: Figures) -> Table:
    """The figures beside what they must reach."""
    table = Table("figure", "measured", "must be", box=None)
    table.add_row("BLEU on its own sentences, before", f"{reached.bleu_before:.2f}", f"at most {MOST_BEFORE:.0f}")
    table.add_row("BLEU on its own sentences, after", f"{reached.bleu_after:.2f}", f"at least {LEAST_AFTER:.0f}")
    exact = f"{reached.exact} of {reached.texts}"
    table.add_row("texts of the instructions that are exact", exact, f"at least {LEAST_EXACT:.0%}")
    for model, accuracy in reached.accuracies.items():
        note = "chosen, published" if model == reached.chosen else ""
        table.add_row(f"questions that {model} answers right", f"{accuracy:.0%}", note)
    return table


def status() -> dict[str, Any]:
    done = subprocess.run([HALA, "status", PIPELINE, "--json"], check=True, capture_output=True, text=True)
    state: dict[str, Any] = json.loads(done.stdout)
    return state


def main() -> None:
    began = time.monotonic()
    say("Models of two million parameters with random weights, made on the spot")
    run(SERVE, HERE / "models.py")
    say("Submit: all of Hala as one file. The models overfit on purpose: they learn 320 sentences by heart")
    run(HALA, "submit", HERE / "mini.yaml", "--site", "local-cpu", f"run.root={PIPELINE.parent}")
    watch(HALA, "status", PIPELINE, "--watch")
    state = status()
    if not state["finished"]:
        sys.exit(f"not finished: look at `hala status {PIPELINE}`; `make mini` goes on")
    say("What it learned")
    reached = figures(state["stages"])
    console.print(_shown(reached))
    say(f"{time.monotonic() - began:.0f} s. The page: runs/mini/report/report.html; the model: runs/mini/published")
    if not reached.hold:
        sys.exit("a figure is too low")


if __name__ == "__main__":
    main()
