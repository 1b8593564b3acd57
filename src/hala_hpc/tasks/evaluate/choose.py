"""The choice between models by a rule that is stated before, on a split of the questions that is stated too.

Whoever picks the best of several by a score and then reports that score reports too much: part of it is luck. So a
choice is made on one part of the questions, and the other part tells what it is worth.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from hala_hpc.config.errors import HalaError
from hala_hpc.config.words import known
from hala_hpc.tasks.evaluate.scores import AVERAGE, Answered, Evaluations
from hala_hpc.tasks.evaluate.statistics import NORMAL_95, Difference, Mean

RULES: Final[dict[str, str]] = {
    "average": "the highest average of benchmarks; of equal ones the first in the recipe",
    "one-se": "the first in the recipe that is within one standard error of the difference from the highest average",
    "no-loss": "the highest average among models that are on no benchmark below the base by a 95 % interval",
}
"""What each rule says. one-se is that of Breiman et al. (1984): among equals the nearest to the base."""
TIE: Final = 1e-12
"""Averages nearer than this are equal: they are sums of floats."""


@dataclass(frozen=True)
class Split:
    """Which questions choose: all, or by a hash of each question's name about ``share`` of them.

    The rest is held out. The hash depends on ``seed``, benchmark, task and number, so it is the same for every model.
    """

    share: float = 0.5
    seed: int = 0
    by: str = "hash of the question's name"

    def chooses(self, benchmark: str, task: str, number: int) -> bool:
        name = f"{self.seed}\0{benchmark}\0{task}\0{number}".encode()
        drawn = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")
        return drawn < self.share * 2**64


@dataclass(frozen=True)
class Candidate:
    """One model: its average on the questions that choose, and on those held out (None where there are none).

    ``scores`` are those of benchmarks, over all questions.
    """

    model: str
    fits: bool
    chosen_by: Mean
    held_out: Mean | None
    path: str
    weights: str
    scores: dict[str, float]


@dataclass(frozen=True)
class Lead:
    """How far the chosen model is ahead of the best of the others, ``over``: on the questions that chose, and on those
    held out (None where there are none).
    """

    over: str
    chosen_by: Difference
    held_out: Difference | None

    @property
    def fair(self) -> Difference:
        """The lead on questions that had no say, if there are any: on the others it is ahead because it was chosen."""
        return self.held_out or self.chosen_by


@dataclass(frozen=True)
class Choice:
    """The chosen model with its folder and weights, by what, and the table it was chosen from: as ``best.json`` has it.

    ``benchmarks`` has a digest of the questions of each, ``limit`` is the most questions of a task, if not all.
    ``lead`` is None where there was no other model.
    """

    model: str
    path: str
    weights: str
    rule: dict[str, str]  # its name, and what it says
    split: Split
    base: str
    benchmarks: dict[str, str]
    limit: int | None
    lead: Lead | None
    candidates: list[Candidate]


def choose(evaluations: Evaluations, rule: str, split: Split, with_base: bool = False) -> Choice:
    """Pick a model; the base is a candidate only ``with_base``.

    Raises HalaError where a candidate lacks a benchmark or was asked other questions, no model fits the rule, or the
    rule looks at standard errors that are unknown, since a task has a single question.
    """
    models = [model for model in evaluations.models if with_base or model != evaluations.base]
    _refuse_unequal(evaluations, models)
    part = _part(evaluations, split, True)
    rest = _part(evaluations, split, False) if split.share < 1 else None
    averages = {model: mean for model in models if (mean := part.average(model)) is not None}
    fitting = _fitting(part, models, averages, rule)
    if not fitting:
        raise HalaError(f"no model fits the rule {rule}", RULES[rule])
    highest = max(averages[model].value for model in fitting)
    ranked = fitting if rule == "one-se" else [model for model in fitting if averages[model].value >= highest - TIE]
    candidates = []
    for model in models:
        cells = {name: evaluations.cells[model, name] for name in evaluations.benchmarks}
        result, scores = next(iter(cells.values())).result, {name: cell.mean.value for name, cell in cells.items()}
        held_out = rest.average(model) if rest else None
        fits = model in fitting
        candidates.append(Candidate(model, fits, averages[model], held_out, result.path, result.weights, scores))
    chosen = next(candidate for candidate in candidates if candidate.model == ranked[0])
    cells = {name: evaluations.cells[chosen.model, name] for name in evaluations.benchmarks}
    return Choice(
        model=chosen.model,
        path=chosen.path,
        weights=chosen.weights,
        rule={"name": rule, "says": RULES[rule]},
        split=split,
        base=evaluations.base,
        benchmarks={name: cell.questions for name, cell in cells.items()},
        limit=max((cell.result.limit for cell in cells.values() if cell.result.limit is not None), default=None),
        lead=_lead(chosen.model, averages, part, rest),
        candidates=candidates,
    )


def _lead(model: str, averages: dict[str, Mean], part: Evaluations, rest: Evaluations | None) -> Lead | None:
    others = [other for other in averages if other != model]
    if not others:
        return None
    over = max(others, key=lambda other: averages[other].value)
    chosen_by = part.difference(model, base=over)
    assert chosen_by is not None  # unequal questions were refused
    return Lead(over, chosen_by, rest.difference(model, base=over) if rest else None)


def _fitting(part: Evaluations, models: Sequence[str], averages: dict[str, Mean], rule: str) -> list[str]:
    if rule == "average":
        return list(models)
    if any(math.isnan(averages[model].error) for model in models):
        raise HalaError(
            f"--rule {rule}: a task has a single question to choose by, so no standard error is known",
            "--rule average, --split all, or leave its benchmark out by --benchmarks",
        )
    if rule == "one-se":
        top = max(models, key=lambda model: averages[model].value)
        to_top = {model: part.difference(model, base=top) for model in models}
        return [model for model, gap in to_top.items() if gap is None or gap.value >= -gap.error - TIE]
    gaps = {key: gap for key, gap in part.differences.items() if key[1] != AVERAGE}
    lost = {model for (model, _), gap in gaps.items() if gap.value + NORMAL_95 * gap.error < 0}
    return [model for model in models if model not in lost]


def _refuse_unequal(evaluations: Evaluations, models: Sequence[str]) -> None:
    if not models:
        raise HalaError("no model to choose from", "name the base with --base, or take it too: --with-base")
    for benchmark in evaluations.benchmarks:
        cells = {model: evaluations.cells.get((model, benchmark)) for model in {*models, evaluations.base}}
        if lacking := sorted(model for model, cell in cells.items() if cell is None):
            raise HalaError(f"{lacking[0]} has no result of {benchmark}", "wait for it, or leave out by --benchmarks")
        if len({cell.questions for cell in cells.values() if cell is not None}) > 1:
            raise HalaError(f"{benchmark}: not all models were asked the same questions", "the same limit for all")


def _part(evaluations: Evaluations, split: Split, chooses: bool) -> Evaluations:
    """The evaluations on the questions that choose, or on the others. Raises HalaError where a benchmark has none."""

    def taken(benchmark: str, cell: Answered) -> Answered:
        scores = {}
        for task, numbers in cell.index.items():
            keep = np.array([split.chooses(benchmark, task, int(number)) == chooses for number in numbers], bool)
            if keep.any():  # a task of few questions may be all on one side
                scores[task] = cell.scores[task][keep]
        if not scores:
            side = "choose by" if chooses else "hold out"
            raise HalaError(f"{benchmark}: too few questions to {side}", "--split all, or another --share or --seed")
        return replace(cell, scores=scores)

    cells = {key: taken(key[1], cell) for key, cell in evaluations.cells.items()}
    return Evaluations(evaluations.models, evaluations.benchmarks, cells, evaluations.base)


def as_json(choice: Choice) -> dict[str, Any]:
    """The fields of a choice; standard errors that are unknown are None."""
    return {name: _plain(value) for name, value in asdict(choice).items()}


def _plain(value: object) -> object:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {name: _plain(item) for name, item in value.items()} if isinstance(value, dict) else known(value)
