"""Small trainings without a launcher: a run planned and prepared here, its ranks started as plain processes."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hala_hpc.config.compose import thaw
from hala_hpc.pipeline import lookup
from hala_hpc.tasks.train import metrics, paths
from hala_hpc.tasks.train import task as train
from hala_hpc.tasks.train.order import index
from hala_hpc.tasks.train.order.packing import Prepared
from hala_hpc.worker import registry
from tests.conftest import Hala

RANK = "hala_hpc.tasks.train.rank"


def plan(hala: Hala, model: Path, datasets: dict[str, Any], name: str = "tiny", **task: Any) -> Path:
    """A planned and prepared training with its index, everything but the ranks."""
    options = {"kind": "train", "datasets": datasets, "precision": "float32", "report_to": [], "loader_workers": 0}
    options |= {"sequence_length": 256, "too_long": "drop"}
    recipe = hala.folder / f"{name}.yaml"
    recipe.write_text(json.dumps({"name": name, "task": options | task, "model": {"name": str(model)}}))
    hala("plan", recipe, "--create")
    run = hala.folder / "runs" / name
    for one in train.prepare_runs(run, thaw(run / "recipe.yaml", registry.options_of)):
        if not lookup.state_of(one).finished:  # else another training of ``prepared`` did it
            subprocess.run([sys.executable, "-m", "hala_hpc.worker", one], check=True)
    build_index(run)
    return run


def build_index(run: Path) -> dict[str, Any]:
    """Decide the order of a prepared run; its report."""
    asked = thaw(run / "recipe.yaml", registry.options_of)
    order = index.build(Prepared(train.prepare_runs(run, asked)), asked.task, True, run / paths.INDEX)
    return order.report


def one_step_an_epoch(run: Path, epochs: int) -> int:
    """Make the batch of a run whose ``batch.sequences`` is 1 as large as an epoch; how many sequences that is."""
    sequences = json.loads((run / paths.INDEX / "report.json").read_text())["sequences"] // epochs
    text = (run / "recipe.yaml").read_text()
    assert "sequences: 1\n" in text
    (run / "recipe.yaml").write_text(text.replace("sequences: 1\n", f"sequences: {sequences}\n"))
    shutil.rmtree(run / paths.INDEX)
    build_index(run)
    return int(sequences)


def start(python: Path, run: Path, world: int, launch: str) -> list["subprocess.Popen[bytes]"]:
    """Start all ranks; what they print goes to RUN/logs/LAUNCH.RANK.log."""
    port = str(random.randrange(20_000, 32_000))
    common = {**os.environ, "HALA_LAUNCH": launch, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"WORLD_SIZE": str(world)}
    ranks = []
    for rank in range(world):
        with (run / "logs" / f"{launch}.{rank}.log").open("wb") as log:
            variables = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            words = [python, "-m", RANK, run]
            ranks.append(subprocess.Popen(words, env=variables, stdout=log, stderr=log))
    return ranks


def wait(ranks: Sequence["subprocess.Popen[bytes]"], seconds: float = 280) -> list[int]:
    """Exit codes; all are killed where one does not end in time."""
    try:
        return [rank.wait(seconds) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


def train_whole(python: Path, run: Path, world: int, launch: str = "whole") -> list[float]:
    """Run all ranks to their end; the losses."""
    codes = wait(start(python, run, world, launch))
    assert codes == [0] * world, (run / "logs" / f"{launch}.0.log").read_text()[-3000:]
    return losses(run, launch)


def export(hala: Hala, python: Path, run: Path, **task: Any) -> Path:
    """A finished run with the checkpoints of a training as models."""
    recipe = hala.folder / f"export-{run.name}.yaml"
    recipe.write_text(json.dumps({"name": recipe.stem, "task": {"kind": "export"} | task, "model": {"name": str(run)}}))
    hala("plan", recipe, "--create")
    exported = hala.folder / "runs" / recipe.stem
    subprocess.run([python, "-m", "hala_hpc.worker", exported], check=True)
    hala("verify", exported)
    return exported


def losses(run: Path, launch: str) -> list[float]:
    """The losses that one launch wrote, step by step."""
    written = metrics.lines((run / metrics.FOLDER / f"{launch}.jsonl").read_bytes())
    return [line["loss"] for line in written if "loss" in line]
