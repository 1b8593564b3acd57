"""What a training uses of its data: the table of ``hala plan``, and loud lines where it is little."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any


def read(runs: Iterable[tuple[str, Path]]) -> list[dict[str, Any]]:
    """Of each dataset, given with the run that makes its tokens: name, rows, and what they will come to."""
    from hala_hpc.run import manifest
    from hala_hpc.training import expected

    found = []
    for name, run in runs:
        facts = manifest.read(run / "manifest.parquet").facts
        one = expected.of(facts)
        sources = [source["original"] for source in facts.sources]
        found.append({"name": name, **asdict(one), "used": one.used, "is_loud": one.is_loud, "sources": sources})
    return found


def loud(datasets: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each dataset of which a large part is dropped."""
    return [
        f"dataset {each['name']}: only {each['used']:,} of {each['rows']:,} rows are used ({_reasons(each)})"
        for each in datasets
        if each["is_loud"]
    ]


def table(datasets: Sequence[Mapping[str, Any]]) -> Any:
    """Rows used, dropped and why, of each dataset."""
    from rich.markup import escape
    from rich.table import Table

    found = Table(box=None, pad_edge=False)
    for name in ("dataset", "kind", "rows", "used", "times", "tokens", "dropped, cut", "from"):
        found.add_column(name, no_wrap=True, justify="right" if name in ("rows", "used", "times", "tokens") else "left")
    for each in datasets:
        more = f" and {len(each['sources']) - 1} more" if len(each["sources"]) > 1 else ""
        color = "[red]" if each["is_loud"] else "[default]"
        found.add_row(
            escape(each["name"]),
            each["kind"],
            f"{each['rows']:,}",
            f"{color}{each['used']:,}[/]",
            f"{each['weight']:g}",
            f"{'' if each['is_exact'] else 'about '}{each['tokens']:,}",
            f"{color}{_reasons(each) or '-'}[/]",
            f"[dim]{escape(str(each['sources'][0]))}{more}[/]",
        )
    return found


def _reasons(each: Mapping[str, Any]) -> str:
    parts = [f"{count:,} {reason}" for reason, count in sorted(each["dropped"].items())]
    return ", ".join([*parts, *([f"{each['truncated']:,} truncated"] if each["truncated"] else [])])
