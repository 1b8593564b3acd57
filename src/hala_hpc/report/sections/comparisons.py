"""Models held against a base on the same texts: a quantized model against the one it was made from."""

from collections.abc import Mapping
from typing import Any, Final

from hala_hpc.report.page import plots, table
from hala_hpc.report.page.plots import Plot
from hala_hpc.report.page.table import Cell, Section, Value, isolated
from hala_hpc.report.runs import Run

GIGA: Final = 1e9
PERCENT: Final = 100.0
NUMBERS: Final = {
    "log_probability": "log-probability",
    "difference": "difference",
    "absolute_difference": "absolute",
    "largest_difference": "largest",
    "divergence": "divergence",
    "same_first": "same first",
}
"""Keys of what ``tasks.compare.task`` measured, and their columns."""
NOTE: Final = (
    "Log-probabilities are natural and per token; differences are to the base's: their mean, their mean size, and that "
    "of one token. Divergence from the base is Kullback and Leibler's, at least so much; same first is how often, in "
    "percent, both would write the same token."
)


def section(run: Run, told: Mapping[str, Any]) -> Section:
    """The comparison that a run wrote down (``final/report.json`` with kind ``compare``)."""
    name, models = f"report-{run.name}", told["models"]
    tables = (_models(name, models), _texts(name, models))
    text = f"{len(models)} models on {told.get('tokens', 0):,} tokens of text, against {isolated(str(told['base']))}."
    return Section(name, f"Comparison of {isolated(run.name)}", (text,), tables, tuple(_plots(name, models)))


def _models(name: str, models: Mapping[str, Any]) -> table.Table:
    columns = ["model", "GB", "to the base", "output tokens/s", "to the base's", *NUMBERS.values()]
    rows: list[list[Cell | Value]] = [
        [
            model,
            Cell(told["bytes"] / GIGA, digits=3),
            Cell(told.get("size_ratio"), digits=3),
            Cell(told.get("throughput", {}).get("output_tokens_per_second"), digits=1),
            Cell(told.get("throughput_ratio"), digits=3),
            *_numbers({"log_probability": told.get("log_probability"), **(told.get("against_base") or {})}),
        ]
        for model, told in models.items()
    ]
    return table.of(name, "Models", columns, rows, NOTE)


def _texts(name: str, models: Mapping[str, Any]) -> table.Table:
    rows: list[list[Cell | Value]] = [
        [model, text, told["tokens"], *_numbers(told)] for model, text, told in _by_text(models)
    ]
    return table.of(f"{name}-texts", "By text", ["model", "text", "tokens", *NUMBERS.values()], rows)


def _plots(name: str, models: Mapping[str, Any]) -> list[Plot]:
    rows: list[dict[str, Any]] = [
        {"text": text, "model": model, "divergence": told["divergence"], "low": 0.0, "high": told["divergence"]}
        for model, text, told in _by_text(models)
        if told.get("divergence") is not None
    ]
    if not rows:
        return []
    says = f"Divergence from the base by text and model, largest {max(row['divergence'] for row in rows):.4g}"
    beside = ("model", list(dict.fromkeys(row["model"] for row in rows)))
    spec = plots.bars(rows, "text", "divergence", beside, "divergence from the base, nats a token")
    return [Plot(f"{name}-divergence", "Divergence from the base", says, spec)]


def _by_text(models: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    return [
        (model, text, numbers)
        for model, told in models.items()
        for text, numbers in ((told.get("against_base") or {}).get("by_text") or {}).items()
    ]


def _numbers(told: Mapping[str, Any]) -> list[Cell | Value]:
    """In the order of NUMBERS; what was not measured stays empty."""
    return [
        Cell(value * PERCENT, digits=1) if key == "same_first" and value is not None else Cell(value, digits=4)
        for key in NUMBERS
        for value in [told.get(key)]
    ]
