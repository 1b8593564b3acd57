"""A folder that ``hala collect`` made, checked by itself: the run may be gone."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from hala_hpc.config.words import plural
from hala_hpc.data.shards import ROW
from hala_hpc.run import seal

CARD = "README.md"
QUARANTINE = "quarantine.parquet"
_NAME = re.compile(r"train-([0-9]+)-of-([0-9]+)\.parquet")
_ROWS = re.compile(r"^\| rows \| ([0-9,]+) of ", re.MULTILINE)
_HELD = re.compile(r"^\| in quarantine: .* \| ([0-9,]+) \|$", re.MULTILINE)
_SEALED = re.compile(r"^\| sealed files \| ([0-9,]+) \|$", re.MULTILINE)


@dataclass
class FolderVerdict:
    """What is in a folder, and what is wrong with it. ``unsealed`` counts files written before there were seals."""

    path: str
    files: int = 0
    rows: int = 0
    quarantined: int = 0
    unsealed: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def proven(self) -> bool:
        """Every byte of the data is what was written, and as many rows as the card says."""
        return not self.problems and not self.unsealed


def is_collected(folder: Path) -> bool:
    """Whether ``hala collect`` made this folder of a run of rows."""
    return not (folder / "manifest.parquet").exists() and (
        any((folder / "data").glob("train-*.parquet")) or (folder / QUARANTINE).exists()
    )


def verify(folder: Path) -> FolderVerdict:
    """Check the seal of every file, that none is missing and no row stands twice, and the counts of the card."""
    verdict = FolderVerdict(str(folder))
    card = _card(verdict, folder)
    sealed = _SEALED.search(card)
    data = sorted((folder / "data").glob("*.parquet"))
    _check_names(verdict, data)
    last = -1
    for path in data:
        numbers = _row_numbers(verdict, folder, path, sealed is not None)
        if numbers != sorted(set(numbers)) or (numbers and numbers[0] <= last):
            verdict.problems.append(f"data/{path.name}: its rows stand twice or are out of order")
        last = max([last, *numbers[-1:]])
        verdict.rows += len(numbers)
    if (folder / QUARANTINE).exists():
        verdict.quarantined = len(_row_numbers(verdict, folder, folder / QUARANTINE, sealed is not None))
    if not verdict.problems:  # counts of what could not be read would only repeat it
        _check_counts(verdict, card)
    return verdict


def _card(verdict: FolderVerdict, folder: Path) -> str:
    try:
        return (folder / CARD).read_text("utf-8")
    except (OSError, ValueError) as error:
        verdict.problems.append(f"{CARD}: cannot be read ({error}), so nothing says how many rows there should be")
        return ""


def _row_numbers(verdict: FolderVerdict, folder: Path, path: Path, must_be_sealed: bool) -> list[int]:
    name = path.relative_to(folder)
    verdict.files += 1
    try:
        table, sealed = seal.read(path)
        if must_be_sealed and not sealed:
            raise seal.Damaged("is damaged: its seal is gone")
        if ROW not in table.column_names:
            raise seal.Damaged(f"lacks the column {ROW}")
    except seal.Damaged as error:
        verdict.problems.append(f"{name}: {error}")
        return []
    verdict.unsealed += not sealed
    return [number for number in table[ROW].to_pylist() if number is not None]


def _check_names(verdict: FolderVerdict, data: list[Path]) -> None:
    named = [found for path in data if (found := _NAME.fullmatch(path.name))]
    strange = [path.name for path in data if not _NAME.fullmatch(path.name)]
    verdict.problems += [f"data/{name}: not made by hala collect" for name in strange]
    counts = {int(found[2]) for found in named}
    if named and {int(found[1]) for found in named} != set(range(max(counts))):
        verdict.problems.append(f"data/: {plural(len(named), 'file')}, and their names say {max(counts)}")


def _check_counts(verdict: FolderVerdict, card: str) -> None:
    """The card says how many rows there are, and since there are seals, how many files bear one."""
    rows, sealed = _ROWS.search(card), _SEALED.search(card)
    if rows is None:
        verdict.problems.append(f"{CARD}: does not say how many rows there should be")
    elif _number(rows[1]) != verdict.rows:
        verdict.problems.append(f"data/: {plural(verdict.rows, 'row')}, and the card says {rows[1]}")
    if (held := sum(_number(found) for found in _HELD.findall(card))) != verdict.quarantined:
        verdict.problems.append(f"{QUARANTINE}: {plural(verdict.quarantined, 'row')}, and the card says {held:,}")
    if sealed is not None and _number(sealed[1]) != verdict.files:
        verdict.problems.append(f"data/: {plural(verdict.files, 'file')}, and the card says {sealed[1]}")


def _number(text: str) -> int:
    return int(text.replace(",", ""))
