"""What a run wrote down of itself in ``final/report.json``: a quantized model as plain tables; a comparison of models
with a base on the same texts, for example of a quantized model with the one that it was made from.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from hala_hpc.report import plots, table
from hala_hpc.report.plots import Plot
from hala_hpc.report.runs import ReportedRun
from hala_hpc.report.table import Cell, Section, Table, isolated
from hala_hpc.run.files import read_json
from hala_hpc.tasks.evaluate.choose import PERCENT

REPORT: Final = "report.json"
MOST_ROWS: Final = 200
DIGITS: Final = 4

OwnReport = Mapping[str, Any]
"""JSON that the run's task wrote: each has a form of its own."""


def section(run: ReportedRun) -> Section | None:
    """The run's own report; None where it has none."""
    report, name = read_json(run.path / "final" / REPORT), f"report-{run.name}"
    if report.get("kind") == "compare":
        return _comparison(run, name, report)
    tables = tuple(tables_of(report, name))
    return Section(name, f"Report of {isolated(run.name)}", tables=tables) if tables else None


def tables_of(report: OwnReport, name: str) -> Iterator[Table]:
    """Plain data as tables: single values are one, each list and each group of similar things is one of its own."""
    if single := {_words(key): value for key, value in report.items() if not isinstance(value, list | dict)}:
        yield _facts(single, name, "Facts")
    for key, value in report.items():
        if isinstance(value, list | dict) and value:
            safe = "".join(character if character.isalnum() else "-" for character in key)
            yield _grouped(value, f"{name}-{safe}", _words(key).capitalize())


def _grouped(value: list[object] | dict[str, object], name: str, title: str) -> Table:
    """A list of things, or things by name, each a row; or one thing, with a row for each fact."""
    if isinstance(value, list):
        things = [_flat(item) for item in value if isinstance(item, dict)]
    else:
        things = [_flat({"": key, **item}) for key, item in value.items() if isinstance(item, dict)]
    if len(things) < len(value):
        facts = {str(at): str(item) for at, item in enumerate(value, 1)} if isinstance(value, list) else _flat(value)
        return _facts(facts, name, title)
    columns = list(dict.fromkeys(key for thing in things for key in thing))
    rows = [[_cell(thing.get(key)) for key in columns] for thing in things[:MOST_ROWS]]
    note = f"The first {MOST_ROWS} of {len(things):,}." if len(things) > MOST_ROWS else ""
    return table.of(name, title, columns, rows, note)


def _facts(facts: OwnReport, name: str, title: str) -> Table:
    return table.of(name, title, ["", "value"], [[key, _cell(value)] for key, value in facts.items()])


def _flat(value: OwnReport, before: str = "") -> dict[str, object]:
    """Nested facts side by side."""
    facts: dict[str, object] = {}
    for key, inner in value.items():
        name = f"{before}{_words(key)}"
        facts |= _flat(inner, f"{name} ") if isinstance(inner, dict) else {name: inner}
    return facts


def _cell(value: Any) -> Cell:
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, list):
        return Cell(", ".join(map(str, value)))
    if isinstance(value, str) and value.startswith("/"):
        return Cell(Path(value).name)  # a report is shown to others: a folder may say who worked where
    return Cell(value, digits=DIGITS)


def _words(key: str) -> str:
    return str(key).replace("_", " ")


NUMBERS: Final = {
    "log_probability": "log-probability",
    "difference": "difference",
    "absolute_difference": "absolute",
    "largest_difference": "largest",
    "divergence": "divergence",
    "same_first": "same first",
}
"""Keys of what ``tasks.compare`` measured, and their columns."""
NOTE: Final = (
    "Log-probabilities are natural and per token; differences are to the base's: their mean, their mean size, and that "
    "of one token. Divergence from the base is Kullback and Leibler's, at least so much; same first is how often, in "
    "percent, both would write the same token."
)


def _comparison(run: ReportedRun, name: str, report: OwnReport) -> Section:
    """What ``tasks.compare.measure`` reports: ``against_base`` of a model is None for the base itself."""
    models: Mapping[str, OwnReport] = report["models"]
    by_text: list[tuple[str, str, OwnReport]] = [
        (label, text, numbers)
        for label, model in models.items()
        for text, numbers in ((model.get("against_base") or {}).get("by_text") or {}).items()
    ]
    rows = [[label, text, numbers["tokens"], *_numbers(numbers)] for label, text, numbers in by_text]
    texts = table.of(f"{name}-texts", "By text", ["model", "text", "tokens", *NUMBERS.values()], rows)
    said = f"{len(models)} models on {report.get('tokens', 0):,} tokens of text, against {isolated(report['base'])}."
    tables = (_models(name, models), texts)
    return Section(name, f"Comparison of {isolated(run.name)}", (said,), tables, tuple(_divergence(name, by_text)))


def _models(name: str, models: Mapping[str, OwnReport]) -> Table:
    columns = ["model", "GB", "to the base", "output tokens/s", "to the base's", *NUMBERS.values()]
    rows: list[table.Row] = [
        [
            label,
            Cell(model["bytes"] / 1e9, digits=3),
            Cell(model.get("size_ratio"), digits=3),
            Cell(model.get("throughput", {}).get("output_tokens_per_second"), digits=1),
            Cell(model.get("throughput_ratio"), digits=3),
            *_numbers({"log_probability": model.get("log_probability"), **(model.get("against_base") or {})}),
        ]
        for label, model in models.items()
    ]
    return table.of(name, "Models", columns, rows, NOTE)


def _divergence(name: str, by_text: Sequence[tuple[str, str, OwnReport]]) -> list[Plot]:
    rows = [
        {"text": text, "model": label, "divergence": value, "low": 0.0, "high": value}
        for label, text, numbers in by_text
        if (value := numbers.get("divergence")) is not None
    ]
    if not rows:
        return []
    says = f"Divergence from the base by text and model, largest {max(row['divergence'] for row in rows):.4g}"
    colours = ("model", list(dict.fromkeys(row["model"] for row in rows)))
    drawing = plots.bars(rows, "text", "divergence", colours, "divergence from the base, nats a token")
    return [Plot(f"{name}-divergence", "Divergence from the base", says, drawing)]


def _numbers(numbers: OwnReport) -> list[Cell]:
    """In the order of NUMBERS; what was not measured stays empty."""
    known = {key: numbers.get(key) for key in NUMBERS}
    return [
        Cell(value * PERCENT, digits=1) if key == "same_first" and value is not None else Cell(value, digits=4)
        for key, value in known.items()
    ]
