"""Scores of a model for its card: from evaluation runs, and of exactly these weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from hala_hpc.config.errors import HalaError
from hala_hpc.config.words import plural
from hala_hpc.models.card import read_json
from hala_hpc.run import status
from hala_hpc.tasks.evaluate import results, statistics
from hala_hpc.tasks.evaluate.results import Result

BEST: Final = "best.json"
"""The file in an evaluation's run with the choice of `hala best`."""


@dataclass(frozen=True)
class Line:
    """One benchmark. ``scores`` by model: score and standard error (NaN: unknown), of the mean over its tasks.

    ``metric`` is that of its tasks. ``notes``: what a reader must know to compare it. ``whole``: of all its questions.
    """

    benchmark: str
    few_shot: int | None
    questions: int
    metric: str
    scores: dict[str, tuple[float, float]]
    notes: tuple[str, ...] = ()
    whole: bool = True


@dataclass(frozen=True)
class Scores:
    """``own`` is the label under which the model was evaluated; the others of the same runs stand beside it.

    ``choices`` say how the model was chosen from others by such scores, where it was.
    """

    own: str
    models: tuple[str, ...]
    lines: tuple[Line, ...]
    choices: tuple[str, ...] = ()

    def average(self, model: str) -> float | None:
        """Mean of the benchmarks' scores; None where the model lacks one."""
        if any(model not in line.scores for line in self.lines):
            return None
        return fmean(line.scores[model][0] for line in self.lines)


def of(runs: Sequence[Path], weights: str) -> Scores:
    """The scores in evaluation runs of the model whose files have the digest ``weights``.

    Raises HalaError where no result is of these weights, whatever its label, or a run is not finished.
    """
    for run in runs:
        if missing := status.missing(run):
            raise HalaError(
                f"--scores {run.name}: {plural(len(missing), 'shard')} not finished", f"`hala resume {run}`"
            )
    evaluated = [result for run in runs for result in results.read(run)]
    own = [result for result in evaluated if result.weights == weights]
    if not own:
        labels = ", ".join(sorted({f"{result.model} ({result.weights[:8]})" for result in evaluated})) or "nothing"
        raise HalaError(
            f"--scores: no result is of these weights ({weights[:8]})", f"they are of {labels}; evaluate the model"
        )
    if len(labels_of_own := {result.model for result in own}) > 1:
        raise HalaError(f"--scores: these weights were evaluated as {' and as '.join(sorted(labels_of_own))}")
    label = own[0].model
    others = dict.fromkeys(result.model for result in evaluated if result.model != label)
    lines = tuple(_line(result, evaluated) for result in own)
    if len({line.benchmark for line in lines}) < len(lines):
        raise HalaError("--scores: a benchmark was run twice for these weights", "give one evaluation run of each")
    choices = (_choice(read_json(run / BEST), weights) for run in runs)
    return Scores(label, (label, *others), lines, tuple(filter(None, choices)))


def _choice(record: dict[str, Any], weights: str) -> str:
    """What `hala best` wrote down, in a sentence; '' where it chose other weights, or nothing."""
    if record.get("weights") != weights:
        return ""
    names = [candidate["model"] for candidate in record["candidates"]]
    share = float(record["split"]["share"])
    by = f"{share:.0%} of the questions, drawn by a hash of their names" if share < 1 else "all of the questions"
    sentence = f"Chosen among {', '.join(names)} by {by}: {record['rule']['says']}."
    own = next((candidate for candidate in record["candidates"] if candidate["weights"] == weights), None)
    if own and (held_out := own["held_out"]):
        error = f" ± {held_out['error'] * 100:.2f}" if held_out["error"] is not None else ""
        sentence += f" On the other questions its average is {held_out['value'] * 100:.2f}{error}."
    return sentence


def _line(own: Result, evaluated: Sequence[Result]) -> Line:
    """One benchmark of our model, with the others that were asked the same questions in the same way."""
    alike = [result for result in evaluated if result.benchmark == own.benchmark and _way(result) == _way(own)]
    notes = [f"at most {own.limit} questions of each task"] if own.limit is not None else []
    notes += [f"without {len(own.missing)} of its tasks"] if own.missing else []
    notes += ["with the chat template"] if own.chat_template else []
    scores = {result.model: (result.score, _mean(result).error) for result in alike}
    metric = ", ".join(sorted({task.metric for task in own.tasks.values()}))
    return Line(
        own.benchmark, own.few_shot, own.questions, metric, scores, tuple(notes), own.limit is None and not own.missing
    )


def _mean(result: Result) -> statistics.Mean:
    return statistics.mean_of([task.mean for task in result.tasks.values()])


def _way(result: Result) -> tuple[object, ...]:
    return result.harness, result.few_shot, result.limit, result.chat_template, result.questions, tuple(result.tasks)
