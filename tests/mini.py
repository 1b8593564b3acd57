"""Hala in miniature in a folder of a test's own, and the figures that it must reach."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, Hala

sys.path.insert(0, str(ROOT / "jobs" / "mini"))

from run_mini import Figures, figures

PIPELINE = "jobs/mini/mini.yaml"
SECTIONS = {
    *("scores", "curve", "chosen-evaluate", "runs", "training", "scores-score", "merge-merge", "verdicts-judge"),
    *("report-quantize", "report-compare", "report-mix-pairs", "report-mix-instructions"),
    *("rows-judge", "rows-translate-world", "rows-translate-things"),
}
"""Of the page, by the stages that they show."""


def lay_out(folder: Path, serve_python: Path) -> None:
    """The recipes as they are shipped, with their models made."""
    shutil.copytree(ROOT / "jobs", folder / "jobs", ignore=shutil.ignore_patterns("model", "models", "__pycache__"))
    subprocess.run([serve_python, folder / "jobs" / "mini" / "models.py"], check=True, capture_output=True)


def reached(hala: Hala) -> Figures:
    """Its figures, once it has finished and all of it is proven."""
    stages = hala.json("status", "mini")["stages"]
    assert {stage["state"] for stage in stages} == {"done"}
    assert hala.json("verify", "mini")["proven"]
    return figures(stages)


def assert_learned(measured: Figures) -> None:
    assert measured.bleu_before <= 5 and measured.bleu_after >= 90
    assert measured.texts == 224 and measured.exact >= 0.9 * measured.texts
    assert measured.accuracies.keys() == {"base", "chat", "merged-t0.50", "merged-t0.75", "merged-t0.90"}
    assert measured.chosen.startswith("merged-")
    assert measured.accuracies["chat"] >= 0.9 > 0.5 > measured.accuracies["base"], "four choices a question"


def assert_shown(folder: Path) -> None:
    """The page has a section for each kind of stage, and the model is published with its card."""
    page: dict[str, Any] = json.loads((folder / "report" / "report.json").read_text("utf-8"))
    assert page["sections"].keys() >= SECTIONS
    assert (folder / "report" / "report.html").stat().st_size > 10_000
    assert (folder / "published" / "model.safetensors").is_file()
    assert "merged" in (folder / "published" / "README.md").read_text("utf-8").lower()
