"""Small results for tests, as an evaluation would leave them."""

from pathlib import Path
from typing import Any

from hala_hpc.tasks.evaluate import results
from hala_hpc.tasks.evaluate.results import Sample

TOLD: dict[str, Any] = {
    "model": "one",
    "path": "/models/one",
    "weights": "d1",
    "benchmark": "arabic_mmlu",
    "harness": "lighteval",
    "versions": {"lighteval": "0.13.0"},
    "few_shot": 0,
    "limit": None,
    "seconds": 2.0,
    "questions_per_second": 1.5,
    "engine": {"kind": "vllm"},
}


def choice(task: str, index: int, likely: list[float], gold: int) -> Sample:
    """A choice question that is answered by the likeliest choice."""
    best = likely.index(max(likely))
    return Sample(
        task=task,
        index=index,
        question=f"سؤال {index}",
        choices=[f"{number}" for number in range(len(likely))],
        gold=[gold],
        score=float(best == gold),
        metric="acc_norm",
        answer=best,
        log_probabilities=likely,
        normalised=likely,
        metrics={"acc_norm": float(best == gold)},
    )


SAMPLES = [
    choice("arabic_mmlu:a", 0, [-1.0, -2.0], 0),
    choice("arabic_mmlu:a", 1, [-1.0, -2.0], 1),
    choice("arabic_mmlu:a", 2, [-3.0, -2.0, -9.0], 1),
    choice("arabic_mmlu:a", 3, [-3.0, -2.0], 1),
    choice("arabic_mmlu:b", 0, [-3.0, -2.0], 0),
]


def written(folder: Path, samples: list[Sample] = SAMPLES, **told: Any) -> results.Result:
    return results.write(folder, samples, TOLD | told)
