"""The card of a mix: how many rows there are, of which sources, and what was left out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from hala_hpc.models.card import number, table, yaml_of
from hala_hpc.tasks.mix import counts
from hala_hpc.tasks.mix.counts import Counts, Line
from hala_hpc.tasks.mix.options import Options


@dataclass(frozen=True)
class Made:
    """The run, what made it, what the plan noted, and what its rows are, in words."""

    run: str
    made_by: Mapping[str, str]
    notes: Mapping[str, int]
    form: str


def card(made: Made, of_sources: Sequence[Counts], options: Options, files: int) -> str:
    """As Markdown. `hala verify` reads its counts of rows and sealed files."""
    written, rows = (sum(getattr(each, key) for each in of_sources) for key in ("written", "rows"))
    lines = ["---", "configs:", "- config_name: default", "  data_files: data/*.parquet", "---", f"# {made.run}", ""]
    lines += [f"Made by hala_hpc from the run `{made.run}`: {len(of_sources)} sources, in one order.", ""]
    facts = [
        ("rows", f"{written:,} of {rows:,}"),
        ("form", made.form),
        ("sealed files", str(files)),
        ("seed", str(options.seed)),
    ]
    facts += [("note", f"{count:,} {note}") for note, count in made.notes.items()]
    facts += [(key.replace("_", " "), value) for key, value in made.made_by.items()]
    lines += [*table(("", ""), facts), "", *sources([each.line() for each in of_sources])]
    lines += ["", "`hala_source` and `hala_source_row` say where a row is from, `hala_row` is its place here."]
    lines += ["", "## Duplicates", "", "```yaml", yaml_of(asdict(options.duplicates)), "```"]
    return "\n".join([*lines, ""])


def sources(lines: Sequence[Line]) -> list[str]:
    """The table of sources, with its heading."""
    names = counts.columns(lines)
    cells = [[_cell(line.get(name, 0)) for name in names] for line in [*lines, counts.total(lines)]]
    return ["## Sources", "", *table(names, cells)]


def _cell(value: str | int) -> str:
    return value if isinstance(value, str) else number(value)
