"""Questions that one model answered otherwise than another, to look at."""

from collections.abc import Sequence

from hala_hpc.report.page.section import Example, isolated
from hala_hpc.tasks.evaluate import results
from hala_hpc.tasks.evaluate.scores import AVERAGE, Answered, Evaluations


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
