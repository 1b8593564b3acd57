"""Scores of a model for its card: from evaluation runs, and of exactly these weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hala_hpc.config.errors import HalaError
from hala_hpc.config.words import plural
from hala_hpc.models.card import read_json
from hala_hpc.run import status
from hala_hpc.tasks.evaluate import results
from hala_hpc.tasks.evaluate.results import Result

BEST: Final = "best.json"
"""In an evaluation's run: what `hala best` chose."""


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

    ``choices`` tell how the model was chosen from others by such scores, where it was.
    """

    own: str
    models: tuple[str, ...]
    lines: tuple[Line, ...]
    choices: tuple[str, ...] = ()

    def average(self, model: str) -> float | None:
        """Mean of the benchmarks' scores; None where the model lacks one."""
        if any(model not in line.scores for line in self.lines):
            return None
        return results.mean(line.scores[model][0] for line in self.lines)


def of(runs: Sequence[Path], weights: str) -> Scores:
    """The scores in evaluation runs of the model whose files have the digest ``weights``.

    Raises HalaError where none of them is of these weights, whatever it is called, or one is not finished.
    """
    for run in runs:
        if missing := status.missing(run):
            raise HalaError(
                f"--scores {run.name}: {plural(len(missing), 'shard')} not finished", f"`hala resume {run}`"
            )
    found = [result for run in runs for result in results.read(run)]
    own = [result for result in found if result.weights == weights]
    if not own:
        labels = ", ".join(sorted({f"{result.model} ({result.weights[:8]})" for result in found})) or "nothing"
        raise HalaError(
            f"--scores: none of them is of these weights ({weights[:8]})", f"they are of {labels}; evaluate the model"
        )
    if len(labels_of_own := {result.model for result in own}) > 1:
        raise HalaError(f"--scores: these weights were evaluated as {' and as '.join(sorted(labels_of_own))}")
    label = own[0].model
    others = dict.fromkeys(result.model for result in found if result.model != label)
    lines = tuple(_line(result, found) for result in own)
    if len({line.benchmark for line in lines}) < len(lines):
        raise HalaError("--scores: a benchmark was run twice for these weights", "give one evaluation run of each")
    choices = (_choice(read_json(run / BEST), weights) for run in runs)
    return Scores(label, (label, *others), lines, tuple(filter(None, choices)))


def _choice(told: dict[str, Any], weights: str) -> str:
    """What `hala best` wrote down, in a sentence; '' where it chose other weights, or nothing."""
    if told.get("weights") != weights:
        return ""
    names = [str(one["model"]) for one in told["candidates"]]
    share = float(told["split"]["share"])
    by = f"{share:.0%} of the questions, drawn by a hash of their names" if share < 1 else "all of the questions"
    said = f"Chosen among {', '.join(names)} by {by}: {told['rule']['says']}."
    own: dict[str, Any] = next((one for one in told["candidates"] if one["weights"] == weights), {})
    if held := own.get("held_out"):
        error = f" ± {held['error'] * 100:.2f}" if held["error"] is not None else ""
        said += f" On the other questions its average is {held['value'] * 100:.2f}{error}."
    return said


def _line(own: Result, found: Sequence[Result]) -> Line:
    """One benchmark of ours, and of others where they were asked the same questions in the same way."""
    alike = [result for result in found if result.benchmark == own.benchmark and _way(result) == _way(own)]
    notes = [f"at most {own.limit} questions of each task"] if own.limit is not None else []
    notes += [f"without {len(own.missing)} of its tasks"] if own.missing else []
    notes += ["with the chat template"] if own.chat_template else []
    scores = {result.model: (result.score, _error(result)) for result in alike}
    metric = ", ".join(sorted({task.metric for task in own.tasks.values()}))
    return Line(
        own.benchmark, own.few_shot, own.questions, metric, scores, tuple(notes), own.limit is None and not own.missing
    )


def _error(result: Result) -> float:
    return results.standard_error_of_means([task.stderr for task in result.tasks.values()])


def _way(result: Result) -> tuple[object, ...]:
    return result.harness, result.few_shot, result.limit, result.chat_template, result.questions, tuple(result.tasks)
