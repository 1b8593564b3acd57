"""Evaluations as the papers show them: models by benchmarks, what differs from the base, and the choice."""

import json
from collections.abc import Sequence
from typing import Any, Final

from hala_hpc.report.page import table
from hala_hpc.report.page.table import Cell, Example, Section, Table, Value, isolated
from hala_hpc.report.runs import Run
from hala_hpc.report.sections import evaluation_plots
from hala_hpc.tasks.evaluate import results
from hala_hpc.tasks.evaluate import statistics as paired
from hala_hpc.tasks.evaluate.scores import AVERAGE, PERCENT, Answered, Evaluations
from hala_hpc.tasks.evaluate.statistics import Mean


def changed(found: Evaluations, count: int) -> list[Example]:
    """Questions that the model with the largest difference to the base answered otherwise than the base."""
    gaps = {model: gap for (model, benchmark), gap in found.differences.items() if benchmark == AVERAGE}
    if not gaps or not count:
        return []
    model = max(gaps, key=lambda one: gaps[one].value)
    shown: list[Example] = []
    for benchmark in found.benchmarks:
        mine, base = found.cells[model, benchmark], found.cells[found.base, benchmark]
        shown += _between(benchmark, (model, found.base), mine, base, count)
    return shown


def _between(benchmark: str, names: tuple[str, str], mine: Answered, base: Answered, count: int) -> list[Example]:
    """The first ``count`` that became better, and as many that became worse."""
    tables = [results.samples(each.result.folder).to_pylist() for each in (mine, base)]
    before = {(row["task"], row["index"]): row for row in tables[1]}
    pairs = [(row, before[row["task"], row["index"]]) for row in tables[0]]
    better = [pair for pair in pairs if pair[0]["score"] > pair[1]["score"]][:count]
    worse = [pair for pair in pairs if pair[0]["score"] < pair[1]["score"]][:count]
    return [
        Example(
            f"{benchmark}: {isolated(names[0])} is {change} than {isolated(names[1])}",
            (
                ("question", row["question"]),
                *(
                    ("choice" + (" (right)" if place in row["gold"] else ""), choice)
                    for place, choice in enumerate(row["choices"])
                ),
                (names[0], _said(row)),
                (names[1], _said(other)),
            ),
        )
        for change, found in (("better", better), ("worse", worse))
        for row, other in found
    ]


def _said(row: dict[str, object]) -> str:
    choices, answer = row["choices"], row["answer"]
    if isinstance(choices, Sequence) and isinstance(answer, int) and 0 <= answer < len(choices):
        return str(choices[answer])
    return str(row["text"])


RECORD = "best.json"
"""In the folder of the evaluation's run."""


def choice(run: Run) -> Section | None:
    """Which model was chosen, by what, from which table; None where nothing was, or its record cannot be read."""
    try:
        told: dict[str, Any] = json.loads((run.path / RECORD).read_text("utf-8"))
        share, benchmarks = told["split"]["share"], ", ".join(told["benchmarks"])
        by = "all questions" if share == 1 else f"{share:.0%} of the questions (seed {told['split']['seed']})"
        text = (
            f"Chosen: {isolated(told['model'])}, by the rule {told['rule']['name']}: {told['rule']['says']}. "
            f"It was applied to {by} of {benchmarks}."
        )
        rows = [_row(told["model"], candidate) for candidate in told["candidates"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    name = f"chosen-{run.name}"
    columns = ["model", "chosen by", "held out", "fits the rule", "weights"]
    note = (
        "Averages in percent with standard errors. What is held out had no say, so it tells what the choice is worth."
    )
    shown = table.of(name, "Candidates", columns, rows, note)
    return Section(name, f"Choice from {isolated(run.name)}", (text,), (shown,))


def _row(chosen: str, candidate: dict[str, Any]) -> list[Cell | Value]:
    cells = [
        Cell(mean["value"] * PERCENT, _as_percent(mean["error"]), best=candidate["model"] == chosen) if mean else None
        for mean in (candidate["chosen_by"], candidate["held_out"])
    ]
    return [candidate["model"], *cells, "yes" if candidate["fits"] else "no", candidate["weights"][:12]]


def _as_percent(error: float | None) -> float | None:
    return None if error is None else error * PERCENT


SIGNIFICANT: Final = 0.05
MARK: Final = "*"
WEIGHTS_SHOWN: Final = 12
MOST_NAMED: Final = 3

Row = list[Cell | Value]


def section(found: Evaluations, examples: int) -> Section:
    """Scores, differences and what was evaluated; ``examples`` answers that changed from the base, each way."""
    adjusted = _adjusted(found)
    tables = (_scores(found, adjusted), _differences(found, adjusted), _tasks(found), _asked(found))
    drawn = (evaluation_plots.scores(found), *evaluation_plots.differences(found))
    says = (
        "Scores in percent with standard errors. A benchmark is the unweighted mean of its tasks, the average that of "
        f"the benchmarks. {MARK} differs from {isolated(found.base)} (paired test, {SIGNIFICANT:.0%} after Holm)."
    )
    shown = tuple(changed(found, examples))
    return Section("scores", "Scores", (says, *_warnings(found)), tables, drawn, shown)


def _scores(found: Evaluations, adjusted: dict[tuple[str, str], float]) -> Table:
    columns = ["model", *found.benchmarks, AVERAGE, f"to {found.base}"]
    means = {model: [found.mean(model, one) for one in (*found.benchmarks, AVERAGE)] for model in found.models}
    best = [max((mean.value for mean in column if mean), default=None) for column in zip(*means.values(), strict=True)]
    rows: list[Row] = []
    for model, row in means.items():
        marks = [MARK if adjusted.get((model, one), 1.0) < SIGNIFICANT else "" for one in (*found.benchmarks, AVERAGE)]
        cells = [_percent(mean, mark, top) for mean, mark, top in zip(row, marks, best, strict=True)]
        gap = found.differences.get((model, AVERAGE))
        rows.append([model, *cells, Cell(gap.value * PERCENT, signed=True) if gap else None])
    return table.of("scores", "Scores", columns, rows)


def _percent(mean: Mean | None, mark: str, top: float | None) -> Cell:
    if mean is None:
        return Cell(None)
    return Cell(mean.value * PERCENT, mean.error * PERCENT, best=mean.value == top, mark=mark)


def _differences(found: Evaluations, adjusted: dict[tuple[str, str], float]) -> Table:
    columns = ["model", "benchmark", "difference", "from", "to", "p", "p (Holm)", "better", "worse", "questions"]
    rows: list[Row] = []
    for (model, benchmark), gap in found.differences.items():
        low, high = (Cell(bound * PERCENT, signed=True) for bound in gap.interval)
        value = Cell(gap.value * PERCENT, gap.error * PERCENT, signed=True)
        numbers = (
            Cell(gap.p, digits=4),
            Cell(adjusted[model, benchmark], digits=4),
            gap.better,
            gap.worse,
            gap.questions,
        )
        rows.append([model, benchmark, value, low, high, *numbers])
    note = (
        f"Paired with {found.base} question by question, in points of percent; from and to: 95 % by the normal "
        f"distribution. p: two-sided, {paired.ROUNDS:,} random sign flips, seed {paired.SEED}; "
        "Holm's is over the models that are compared on one benchmark."
    )
    return table.of("differences", f"Differences to {found.base}", columns, rows, note)


def _adjusted(found: Evaluations) -> dict[tuple[str, str], float]:
    """P by model and benchmark, adjusted over the models that are compared on one benchmark."""
    adjusted: dict[tuple[str, str], float] = {}
    for benchmark in (*found.benchmarks, AVERAGE):
        keys = [key for key in found.differences if key[1] == benchmark]
        adjusted |= zip(keys, paired.holm([found.differences[key].p for key in keys]), strict=True)
    return adjusted


def _tasks(found: Evaluations) -> Table:
    names = [(one, task) for one in found.benchmarks for task in _tasks_of(found, one)]
    rows: list[Row] = []
    for benchmark, task in names:
        cells = [found.cells.get((model, benchmark)) for model in found.models]
        scores = [cell.scores.get(task) if cell else None for cell in cells]
        questions = max(len(each) for each in scores if each is not None)
        means = [paired.mean(each) if each is not None else None for each in scores]
        rows.append([benchmark, task, questions, *(_percent(mean, "", None) for mean in means)])
    columns = ["benchmark", "task", "questions", *found.models]
    return table.of("tasks", "Scores by task", columns, rows, folded=True)


def _tasks_of(found: Evaluations, benchmark: str) -> list[str]:
    cells = [found.cells[model, benchmark] for model in found.models if (model, benchmark) in found.cells]
    return list(dict.fromkeys(task for cell in cells for task in cell.scores))


def _asked(found: Evaluations) -> Table:
    columns = ["model", "weights", "benchmark", "harness", "few-shot", "chat", "limit", "questions", "questions/s"]
    rows: list[Row] = []
    for (model, benchmark), cell in found.cells.items():
        told = cell.result
        versions = ", ".join(f"{name} {version}" for name, version in told.versions.items())
        few = "" if told.few_shot is None else str(told.few_shot)
        limit = "" if told.limit is None else str(told.limit)
        chat = "yes" if told.chat_template else "no"
        rows.append(
            [
                model,
                told.weights[:WEIGHTS_SHOWN],
                benchmark,
                f"{told.harness} ({versions})",
                few,
                chat,
                limit,
                told.questions,
                told.questions_per_second,
            ]
        )
    note = "Weights: the first characters of the digest over the model's files."
    return table.of("evaluated", "What was evaluated", columns, rows, note, folded=True)


def _warnings(found: Evaluations) -> list[str]:
    told = []
    told += _limits(found)
    told += [
        f"{isolated(model)} has no {', '.join(lacking)}, so it has no average."
        for model in found.models
        if (lacking := [one for one in found.benchmarks if (model, one) not in found.cells])
    ]
    for benchmark in found.benchmarks:
        cells = [found.cells[model, benchmark] for model in found.models if (model, benchmark) in found.cells]
        if len({cell.questions for cell in cells}) > 1:
            told.append(f"{benchmark}: not all models were asked the same questions; those are not compared.")
        if len({(cell.result.few_shot, cell.result.chat_template, cell.result.harness) for cell in cells}) > 1:
            told.append(f"{benchmark}: not all models were asked in the same way (see what was evaluated).")
        if cut := {cell.result.truncated for cell in cells} - {0}:
            count = f"{min(cut):,}" if len(cut) == 1 else f"{min(cut):,} to {max(cut):,}"
            models = sum(cell.result.truncated > 0 for cell in cells)
            told.append(
                f"{benchmark}: {count} prompts of each of {models} models were too long and lost their beginning."
                if models > 1
                else f"{benchmark}: {count} prompts of one model were too long and lost their beginning."
            )
        if missing := sorted({task for cell in cells for task in cell.result.missing}):
            named = ", ".join(missing[:MOST_NAMED]) + (" …" if len(missing) > MOST_NAMED else "")
            told.append(
                f"{benchmark}: the data lack {len(missing)} of its tasks ({named}); its score is over the others."
            )
    return told


def _limits(found: Evaluations) -> list[str]:
    """Which benchmarks were tries on the first questions of each task."""
    limits: dict[str, set[int]] = {}
    for (_, benchmark), cell in found.cells.items():
        if cell.result.limit is not None:
            limits.setdefault(benchmark, set()).add(cell.result.limit)
    by_count: dict[str, list[str]] = {}
    for benchmark, counts in limits.items():
        by_count.setdefault(" or ".join(map(str, sorted(counts))), []).append(benchmark)
    return [
        f"A try: of {'every benchmark' if len(named) == len(found.benchmarks) else ', '.join(named)} only the first "
        f"{count} questions of each task were asked."
        for count, named in by_count.items()
    ]
