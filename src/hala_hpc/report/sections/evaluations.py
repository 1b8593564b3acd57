"""Evaluations as the papers show them: models by benchmarks, what differs from the base, and the choice."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from hala_hpc.models.location import CHOICE
from hala_hpc.report import table
from hala_hpc.report.runs import DIGEST_SHOWN, ReportedRun
from hala_hpc.report.sections import evaluation_plots
from hala_hpc.report.table import Cell, Example, Section, Table, isolated
from hala_hpc.run.files import read_json
from hala_hpc.tasks.evaluate import results, statistics
from hala_hpc.tasks.evaluate.choose import AVERAGE, PERCENT, Answered, Evaluations
from hala_hpc.tasks.evaluate.statistics import Mean

SIGNIFICANT: Final = 0.05
MARK: Final = "*"
MOST_NAMED: Final = 3

PValues = dict[tuple[str, str], float]
"""By model and benchmark."""


def section(evaluations: Evaluations, examples: int) -> Section:
    """Scores, differences and what was evaluated; ``examples`` answers that changed from the base, each way."""
    adjusted = _adjusted(evaluations)
    compared = (_scores(evaluations, adjusted), _differences(evaluations, adjusted))
    tables = (*compared, _tasks(evaluations), _evaluated(evaluations))
    drawn = (evaluation_plots.scores(evaluations), *evaluation_plots.differences(evaluations))
    says = (
        "Scores in percent with standard errors. A benchmark is the unweighted mean of its tasks, the average that of "
        f"the benchmarks. {MARK} differs from {isolated(evaluations.base)} (paired test, {SIGNIFICANT:.0%} after Holm)."
    )
    shown = tuple(changed(evaluations, examples))
    return Section("scores", "Scores", (says, *_warnings(evaluations)), tables, drawn, shown)


def _scores(evaluations: Evaluations, adjusted: PValues) -> Table:
    means = {model: evaluations.means(model) for model in evaluations.models}
    best = [max((mean.value for mean in column if mean), default=None) for column in zip(*means.values(), strict=True)]
    rows: list[table.Row] = []
    for model, row in means.items():
        marks = [MARK if adjusted.get((model, column), 1.0) < SIGNIFICANT else "" for column in evaluations.columns]
        cells = [_percent(mean, mark, top) for mean, mark, top in zip(row, marks, best, strict=True)]
        gap = evaluations.differences.get((model, AVERAGE))
        rows.append([model, *cells, Cell(gap.value * PERCENT, signed=True) if gap else None])
    return table.of("scores", "Scores", ["model", *evaluations.columns, f"to {evaluations.base}"], rows)


def _percent(mean: Mean | None, mark: str = "", top: float | None = None) -> Cell:
    if mean is None:
        return Cell(None)
    return Cell(mean.value * PERCENT, mean.error * PERCENT, best=mean.value == top, mark=mark)


def _differences(evaluations: Evaluations, adjusted: PValues) -> Table:
    columns = ["model", "benchmark", "difference", "from", "to", "p", "p (Holm)", "better", "worse", "questions"]
    rows: list[table.Row] = [
        [
            model,
            benchmark,
            Cell(gap.value * PERCENT, gap.error * PERCENT, signed=True),
            *(Cell(bound * PERCENT, signed=True) for bound in gap.interval),
            *(Cell(p, digits=4) for p in (gap.p, adjusted[model, benchmark])),
            *(gap.better, gap.worse, gap.questions),
        ]
        for (model, benchmark), gap in evaluations.differences.items()
    ]
    note = (
        f"Paired with {evaluations.base} question by question, in points of percent; from and to: 95 % by the normal "
        f"distribution. p: two-sided, {statistics.ROUNDS:,} random sign flips, seed {statistics.SEED}; "
        "Holm's is over the models that are compared on one benchmark."
    )
    return table.of("differences", f"Differences to {evaluations.base}", columns, rows, note)


def _adjusted(evaluations: Evaluations) -> PValues:
    """The p-values, adjusted over the models that are compared on one benchmark."""
    adjusted: PValues = {}
    for column in evaluations.columns:
        gaps = {key: gap for key, gap in evaluations.differences.items() if key[1] == column}
        adjusted |= zip(gaps, statistics.holm([gap.p for gap in gaps.values()]), strict=True)
    return adjusted


def _cells(evaluations: Evaluations, benchmark: str) -> list[Answered]:
    """The answers to a benchmark of each model that has it."""
    cells = (evaluations.cells.get((model, benchmark)) for model in evaluations.models)
    return [cell for cell in cells if cell]


def _tasks(evaluations: Evaluations) -> Table:
    rows: list[table.Row] = []
    for benchmark in evaluations.benchmarks:
        for task in dict.fromkeys(task for cell in _cells(evaluations, benchmark) for task in cell.scores):
            cells = (evaluations.cells.get((model, benchmark)) for model in evaluations.models)
            scores = [cell.scores.get(task) if cell else None for cell in cells]
            means = [None if answers is None else statistics.mean(answers) for answers in scores]
            questions = max(mean.questions for mean in means if mean)
            rows.append([benchmark, task, questions, *map(_percent, means)])
    columns = ["benchmark", "task", "questions", *evaluations.models]
    return table.of("tasks", "Scores by task", columns, rows, folded=True)


def _evaluated(evaluations: Evaluations) -> Table:
    columns = ["model", "weights", "benchmark", "harness", "few-shot", "chat", "limit", "questions", "questions/s"]
    rows: list[table.Row] = []
    for (model, benchmark), cell in evaluations.cells.items():
        result = cell.result
        versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
        shots, limit = ("" if number is None else str(number) for number in (result.few_shot, result.limit))
        how = (f"{result.harness} ({versions})", shots, "yes" if result.chat_template else "no", limit)
        counts = (result.questions, result.questions_per_second)
        rows.append([model, result.weights[:DIGEST_SHOWN], benchmark, *how, *counts])
    note = "Weights: the first characters of the digest over the model's files."
    return table.of("evaluated", "What was evaluated", columns, rows, note, folded=True)


def _warnings(evaluations: Evaluations) -> list[str]:
    warnings = _limits(evaluations)
    warnings += [
        f"{isolated(model)} has no {', '.join(lacking)}, so it has no average."
        for model in evaluations.models
        if (lacking := [name for name in evaluations.benchmarks if (model, name) not in evaluations.cells])
    ]
    for benchmark in evaluations.benchmarks:
        cells = _cells(evaluations, benchmark)
        answered = [cell.result for cell in cells]
        said = []
        if len({cell.questions for cell in cells}) > 1:
            said.append("not all models were asked the same questions; those are not compared.")
        if len({(result.few_shot, result.chat_template, result.harness) for result in answered}) > 1:
            said.append("not all models were asked in the same way (see what was evaluated).")
        if cut := [result.truncated for result in answered if result.truncated]:
            count = f"{min(cut):,}" if len(set(cut)) == 1 else f"{min(cut):,} to {max(cut):,}"
            whose = f"each of {len(cut)} models" if len(cut) > 1 else "one model"
            said.append(f"{count} prompts of {whose} were too long and lost their beginning.")
        if missing := sorted({task for result in answered for task in result.missing}):
            named = ", ".join(missing[:MOST_NAMED]) + (" …" if len(missing) > MOST_NAMED else "")
            said.append(f"the data lack {len(missing)} of its tasks ({named}); its score is over the others.")
        warnings += [f"{benchmark}: {text}" for text in said]
    return warnings


def _limits(evaluations: Evaluations) -> list[str]:
    """Which benchmarks were tries on the first questions of each task."""
    by_count: dict[str, list[str]] = {}
    for benchmark in evaluations.benchmarks:
        counts = {cell.result.limit for cell in _cells(evaluations, benchmark) if cell.result.limit is not None}
        if counts:
            by_count.setdefault(" or ".join(map(str, sorted(counts))), []).append(benchmark)
    return [
        f"A try: of {'every benchmark' if len(named) == len(evaluations.benchmarks) else ', '.join(named)} only the "
        f"first {count} questions of each task were asked."
        for count, named in by_count.items()
    ]


def changed(evaluations: Evaluations, count: int) -> list[Example]:
    """Questions that the model with the largest difference to the base answered otherwise than the base."""
    gaps = {model: gap.value for (model, column), gap in evaluations.differences.items() if column == AVERAGE}
    if not gaps or not count:
        return []
    names = max(gaps, key=gaps.__getitem__), evaluations.base
    return [example for name in evaluations.benchmarks for example in _changed(evaluations, name, names, count)]


def _changed(evaluations: Evaluations, benchmark: str, names: tuple[str, str], count: int) -> list[Example]:
    """The first ``count`` answers of a model that are better than the base's, and as many that are worse."""
    mine, base = (evaluations.cells[name, benchmark].result.folder for name in names)
    before = {(row["task"], row["index"]): row for row in results.samples(base).to_pylist()}
    pairs = [(row, before[row["task"], row["index"]]) for row in results.samples(mine).to_pylist()]
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
                (names[0], _answer(row)),
                (names[1], _answer(other)),
            ),
        )
        for change, changes in (("better", better), ("worse", worse))
        for row, other in changes
    ]


def _answer(row: dict[str, object]) -> str:
    choices, answer = row["choices"], row["answer"]
    if isinstance(choices, Sequence) and isinstance(answer, int) and 0 <= answer < len(choices):
        return str(choices[answer])
    return str(row["text"])


def choice(run: ReportedRun) -> Section | None:
    """Which model was chosen, by what, from which table; None where nothing was, or its record cannot be read."""
    record = read_json(run.path / CHOICE)
    try:
        share, benchmarks = record["split"]["share"], ", ".join(record["benchmarks"])
        by = "all questions" if share == 1 else f"{share:.0%} of the questions (seed {record['split']['seed']})"
        text = (
            f"Chosen: {isolated(record['model'])}, by the rule {record['rule']['name']}: {record['rule']['says']}. "
            f"It was applied to {by} of {benchmarks}."
        )
        rows = [_candidate(record["model"], candidate) for candidate in record["candidates"]]
    except (ValueError, KeyError, TypeError):
        return None
    name = f"chosen-{run.name}"
    columns = ["model", "chosen by", "held out", "fits the rule", "weights"]
    note = (
        "Averages in percent with standard errors. What is held out had no say, so it shows what the choice is worth."
    )
    shown = table.of(name, "Candidates", columns, rows, note)
    return Section(name, f"Choice from {isolated(run.name)}", (text,), (shown,))


def _candidate(chosen: str, candidate: Mapping[str, Any]) -> table.Row:
    cells = []
    for mean in (candidate["chosen_by"], candidate["held_out"]):
        error = None if not mean or mean["error"] is None else mean["error"] * PERCENT
        cells.append(Cell(mean["value"] * PERCENT, error, best=candidate["model"] == chosen) if mean else None)
    return [candidate["model"], *cells, "yes" if candidate["fits"] else "no", candidate["weights"][:DIGEST_SHOWN]]
