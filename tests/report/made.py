"""Runs as evaluations leave them, written by the modules that write real ones; only the answers are drawn by chance."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hala_hpc.run import manifest
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.ledger import Ledger
from hala_hpc.run.manifest import Facts, Shard
from hala_hpc.tasks.evaluate import results
from hala_hpc.tasks.evaluate.results import Sample

QUESTION = "ما هي عاصمة مصر؟ اختر الإجابة الصحيحة (سؤال {number})"
CHOICES = ["القاهرة", "الإسكندرية", "أسوان", "Luxor"]
BENCHMARKS = {"arabic_mmlu": ["history", "law", "biology"], "aratrust": ["ethics", "privacy"], "arabic_exams": ["all"]}

SETTINGS = {"lease_seconds": 120, "attempts": 5}


@dataclass(frozen=True)
class Model:
    """``skill``: how likely an answer is right, on average."""

    label: str
    skill: float
    path: str = "/models/none"

    @property
    def weights(self) -> str:
        return hashlib.blake2b(f"{self.label}{self.path}".encode(), digest_size=16).hexdigest()


def samples(model: Model, task: str, questions: int) -> list[Sample]:
    """Answers to one task. How hard a question is does not depend on the model, so that models can be compared."""
    hard = np.random.default_rng([ord(letter) for letter in task]).random(questions)
    luck = np.random.default_rng([ord(letter) for letter in task + model.label]).random(questions)
    found = []
    for number in range(questions):
        gold = number % len(CHOICES)
        right = 0.6 * hard[number] + 0.4 * luck[number] < model.skill
        answer = gold if right else (gold + 1) % len(CHOICES)
        likely = [-1.0 if place == answer else -2.0 for place in range(len(CHOICES))]
        question = QUESTION.format(number=number)
        sample = Sample(task, number, question, CHOICES, [gold], float(right), "acc", answer, "", likely, likely)
        found.append(sample)
    return found


def evaluation(
    run: Path,
    models: Sequence[Model],
    benchmarks: Mapping[str, Sequence[str]] = BENCHMARKS,
    questions: int = 40,
    skip: Sequence[tuple[str, str]] = (),
    **told: Any,
) -> Path:
    """An evaluation of all models on all benchmarks but those to ``skip``, with a ledger of two workers."""
    cells = [(model, benchmark) for model in models for benchmark in benchmarks]
    shards = [
        Shard(number, "evaluate", model.path, 0, number, 1, 0, questions, f"{number:032x}")
        for number, (model, _) in enumerate(cells)
    ]
    items = [{"name": f"{model.label}-{benchmark}", "model": model.label} for model, benchmark in cells]
    facts = Facts("", len(shards), 0, 0, questions * len(shards), unit="benchmarks", items=items)
    recipe = {"name": run.name, "task": {"kind": "evaluate"}, "run": dict(SETTINGS)}
    made = manifest.create(run, json.dumps(recipe), lambda folder: (shards, facts))
    for shard, (model, benchmark) in zip(shards, cells, strict=True):
        if (model.label, benchmark) not in skip:
            answers = [each for task in benchmarks[benchmark] for each in samples(model, task, questions)]
            results.write(made.shard_output(shard.id), answers, summary(model, benchmark, **told))
    work(made, [shard.id for shard, (model, one) in zip(shards, cells, strict=True) if (model.label, one) not in skip])
    return run


def merge_report(folder: Path, name: str, t: float, base: str, other: str, **cell: Any) -> Path:
    """What stands in the folder of a merged model beside its weights, as ``tasks.merge.merging`` writes it."""
    tensors = [
        {
            "name": f"model.layers.{layer}.{part}.weight",
            "cosine": {"tuned": 1 - 0.001 * (layer + 1) * (2 if "mlp" in part else 1)},
        }
        for layer in range(4)
        for part in ("self_attn.q_proj", "mlp.up_proj")
    ]
    report = {
        "kind": "merge",
        "name": name,
        "method": "slerp",
        "cell": {"model": "tuned", "t": t, **cell},
        "models": {"base": {"name": "base", "digest": base}, "tuned": {"name": "tuned", "digest": other}},
        "summary": {"tensors": 8, "slerp": 8, "lerp": 0, "least_cosine": 0.992, "median_cosine": 0.997},
        "tensors": tensors,
    }
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def by_hand(run: Path) -> dict[tuple[str, str], list[list[float]]]:
    """Scores of each model and benchmark, task by task, read from the per-sample files without our own code."""
    import pyarrow.parquet as pq

    found: dict[tuple[str, str], list[list[float]]] = {}
    for folder in sorted((run / "shards" / "000").iterdir()):
        model = json.loads((folder / "result.json").read_text())["model"]
        rows = pq.ParquetFile(folder / "samples.parquet").read().to_pylist()
        tasks = list(dict.fromkeys(row["task"] for row in rows))
        scores = [[row["score"] for row in rows if row["task"] == task] for task in tasks]
        found[model, rows[0]["benchmark"]] = scores
    return found


def summary(model: Model, benchmark: str, **told: Any) -> dict[str, Any]:
    """What ``results.write`` is told of an evaluation besides its samples."""
    found = {
        "model": model.label,
        "path": model.path,
        "weights": model.weights,
        "benchmark": benchmark,
        "harness": "lighteval",
        "versions": {"lighteval": "0.13.0"},
        "few_shot": 0,
        "limit": None,
        "seconds": 12.5,
        "questions_per_second": 8.0,
        "engine": {},
    }
    return found | told


def work(run: RunDirectory, done: Sequence[int]) -> None:
    """Two workers that did the shards in turn; the second failed at its first, and was killed at the end."""
    for number in (0, 1):
        ledger = Ledger(run.ledger / f"worker-{number}.jsonl", host=f"n{number}", executor="slurm", job=f"7_{number}")
        mine = done[number::2]
        if number and mine:
            ledger.write("claimed", shard=mine[0], attempt=1)
            ledger.write("failed", shard=mine[0], attempt=1, error="OSError: /data/x.csv: no such file 17")
        for count, shard in enumerate(mine, 1):
            ledger.write("claimed", shard=shard, attempt=1)
            ledger.write("published", shard=shard, attempt=1, done=1, errors=0, seconds=1.0)
            ledger.write(
                "progress", rows=count, quarantined=0, prompt_tokens=900 * count, output_tokens=0, working_on={}
            )
        ledger.write("ended", outcome="finished") if not number else ledger.write("claimed", shard=99, attempt=1)
        ledger.close()
    _spread(run)


def _spread(run: RunDirectory) -> None:
    """Ten seconds between any two events of a worker, which took microseconds."""
    for path in run.ledger.glob("*.jsonl"):
        events = [json.loads(line) for line in path.read_text().splitlines()]
        for number, event in enumerate(events):
            event["time"] = events[0]["time"] // 1 + 10.0 * number
        path.write_text("".join(json.dumps(event) + "\n" for event in events))
