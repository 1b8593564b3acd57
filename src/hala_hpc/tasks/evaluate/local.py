"""Questions from a folder instead of the hub: the layouts in which benchmarks are handed around, read to rows.

- ``SUBSET/SPLIT.jsonl`` (or .csv, .parquet) with the hub dataset's columns; ``SUBSET.jsonl`` is a test split;
- MMLU's: ``SPLIT/SUBJECT_SPLIT.csv`` of a question, four choices and the letter (or number) of the right one;
- ArabicMMLU's: CSV files whose rows name their Subject and Level, and whether they are examples (``is_few_shot``).
"""

import csv
import hashlib
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Final

from hala_hpc.config.errors import HalaError
from hala_hpc.data.files import readers
from hala_hpc.data.schema import Row
from hala_hpc.tasks.evaluate.benchmarks import Benchmark, subset_of

SPLITS: Final = ("test", "dev", "validation", "train")
KINDS: Final = (".jsonl", ".csv", ".parquet")
LEVELS: Final = {
    "Primary": "Primary School",
    "Middle": "Middle School",
    "High": "High School",
    "Univ": "University",
    "Prof": "Professional",
}
"""ArabicMMLU's levels in its CSV file, and in the names of its subsets on the hub."""
LETTERS: Final = "ABCDE"
ARABIC_LETTERS: Final = ("أ", "ب", "ج", "د", "هـ")
"""Letters of choices as AraTrust has them (LightEval's ``LETTER_INDICES_AR``)."""
MOST_SHOWN: Final = 60
"""Characters of a value in an error."""

Splits = dict[str, list[Row]]
Located = tuple[str, Row]
"""A row, and where it was read from, for errors."""


def read(benchmark: Benchmark, tasks: Sequence[str], folder: Path) -> dict[str, Splits]:
    """The rows of ``tasks`` that are in ``folder``, by task and split, in the order and with the values of its files.

    Raises HalaError where nothing of the benchmark is there, or a row lacks a column, with file and row.
    """
    if not folder.exists():
        raise HalaError(f"{benchmark.name}: {folder} does not exist", "a folder or a file with its questions")
    files = sorted(file for file in folder.rglob("*") if file.suffix in KINDS) if folder.is_dir() else [folder]
    subsets: dict[str, dict[str, list[Located]]] = {}
    for file in files:
        for subset, split, row in _rows(file, folder):
            subsets.setdefault(subset, {}).setdefault(split, []).append(row)
    by_task = {task: subsets[subset_of(task)] for task in tasks if benchmark.split in subsets.get(subset_of(task), {})}
    if not by_task and len(tasks) == 1 and len(subsets) == 1:  # whatever its file is called
        by_task = {tasks[0]: next(iter(subsets.values()))}
    if not by_task:
        there = f"it holds {', '.join(sorted(subsets)[:12])}" if subsets else f"it has no file {', '.join(KINDS)}"
        wanted = ", ".join(subset_of(task) for task in tasks[:12]) + (", …" if len(tasks) > 12 else "")
        raise HalaError(f"{benchmark.name}: {folder} has none of its {len(tasks)} tasks; {there}", f"wanted: {wanted}")
    return {
        task: {
            split: [_checked(row, where, benchmark, is_question=split == benchmark.split) for where, row in rows]
            for split, rows in splits.items()
        }
        for task, splits in by_task.items()
    }


def digest_of(folders: Sequence[str | Path]) -> str:
    """Digest of all files in some folders (or of some files): their names and contents. Empty without folders.

    Raises HalaError where one is missing.
    """
    hashed = hashlib.blake2b(digest_size=16)
    for folder in map(Path, folders):
        if not folder.exists():
            raise HalaError(f"{folder} does not exist", "a folder or a file with questions")
        files = sorted(file for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else [folder]
        for file in files:
            with file.open("rb") as opened:
                content = hashlib.file_digest(opened, hashlib.blake2b).digest()
            hashed.update(f"{file.relative_to(folder)}\0".encode() + content)
    return hashed.hexdigest() if folders else ""


def _rows(file: Path, folder: Path) -> Iterator[tuple[str, str, Located]]:
    """Subset, split and row."""
    parent, stem, is_csv = file.parent.name, file.stem, file.suffix == ".csv"
    if is_csv and {"Subject", "Answer Key"} <= set(next(_cells(file), [])):
        for where, row in _csv_rows(file):
            yield _arabic_subset(row), "dev" if row.get("is_few_shot") == "1" else "test", (where, row)
    elif is_csv and parent in SPLITS and stem.endswith(f"_{parent}"):
        for located in _mmlu_rows(file):
            yield stem.removesuffix(f"_{parent}"), parent, located
    else:
        split = stem.partition("-")[0]
        subset, split = (parent if file.parent != folder else "default", split) if split in SPLITS else (stem, "test")
        for located in _csv_rows(file) if is_csv else _json_rows(file):
            yield subset, split, located


def _arabic_subset(row: Row) -> str:
    level = str(row.get("Level") or "").strip()
    return f"{row['Subject']} ({LEVELS.get(level, level)})" if level else str(row["Subject"])


def _cells(file: Path) -> Iterator[list[str]]:
    """Lines of a CSV file. Raises HalaError where it is not UTF-8, or not CSV."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            yield from filter(None, csv.reader(lines))
    except UnicodeDecodeError as error:
        raise HalaError(f"{file}: not UTF-8: {error.reason}", "convert it: iconv -t UTF-8") from error
    except csv.Error as error:
        raise HalaError(f"{file}: not valid CSV: {error}") from error
    except OSError as error:
        raise HalaError(f"{file} cannot be read: {error.strerror}") from error


def _csv_rows(file: Path) -> Iterator[Located]:
    lines = _cells(file)
    header = next(lines, [])
    for number, cells in enumerate(lines, 1):
        if len(cells) > len(header):
            raise HalaError(f"{file}, row {number}: has more fields than the header")
        yield f"{file}, row {number}", dict(zip_longest(header, cells))


def _mmlu_rows(file: Path) -> Iterator[Located]:
    """Without a header, or with one: then its last column is ``answer``."""
    for number, cells in enumerate(_cells(file), 1):
        where = f"{file}, row {number}"
        if number == 1 and cells[-1] == "answer":
            continue
        if len(cells) != 6:
            raise HalaError(f"{where}: needs a question, four choices and an answer A to D")
        yield where, {"question": cells[0], "choices": cells[1:5], "answer": _number_of(cells[5], 4, where)}


def _json_rows(file: Path) -> Iterator[Located]:
    """Rows of JSON lines or Parquet."""

    def refuse(number: int, _: int, error: HalaError) -> None:
        raise HalaError(f"{file}, row {number}: {error.message}", "mend the row; files must be UTF-8") from error

    for chunk in readers.chunks(file, manner=readers.Manner(on_bad=refuse)):
        for number, row in zip(chunk.numbers, chunk.rows, strict=True):
            yield f"{file}, row {number}", row


def _checked(row: Row, where: str, benchmark: Benchmark, is_question: bool) -> Row:
    """The row, its right answer (of an example too) as the harness looks for it.

    Raises HalaError for a question that cannot be asked.
    """
    lacking = [column for column in benchmark.columns if row.get(column) in (None, "", [])]
    if is_question and lacking:
        raise HalaError(f"{where}: no {', '.join(lacking)}", f"{benchmark.name} needs {', '.join(benchmark.columns)}")
    if lacking or not (column := _answer_column(benchmark)):
        return row
    if column == "answer" and "choices" in benchmark.columns:
        return row | {column: _number_of(row.get(column), _choices(row["choices"], where), where)}
    if column == "label":
        count = sum(row.get(f"sol{number}") not in (None, "") for number in range(1, len(LETTERS) + 1))
        return row | {column: _number_of(row[column], count, where)}
    number = _number_of(row[column], len(LETTERS), where, digits=False)
    option = f"Option {number + 1}" if column == "Answer Key" else LETTERS[number]
    if row.get(option) in (None, ""):
        raise HalaError(f"{where}: the answer is {row[column]!r}, and there is no such option")
    return row | {column: (ARABIC_LETTERS if column == "Answer" else LETTERS)[number]}


def _answer_column(benchmark: Benchmark) -> str:
    """The column that says which choice is right; '' for a benchmark whose harness looks after itself."""
    if "choices" in benchmark.columns:
        return "answer"
    return next((name for name in ("Answer Key", "Answer", "answer", "label") if name in benchmark.columns), "")


def _choices(value: object, where: str) -> int:
    """How many there are. Raises HalaError for what is no list of texts, as a CSV file would have it."""
    if not isinstance(value, list) or not all(isinstance(choice, str) for choice in value):
        shown = value if len(str(value)) <= MOST_SHOWN else f"{str(value)[:MOST_SHOWN]}…"
        raise HalaError(f"{where}: choices is {shown!r}, not a list of texts", "JSON lines, Parquet, or MMLU's own CSV")
    return len(value)


def _number_of(answer: object, choices: int, where: str, digits: bool = True) -> int:
    """The right choice, counted from 0: from a letter of either alphabet or, where they are used, a number."""
    text = str(answer).strip()
    number = int(text) if digits and text.isdecimal() else -1
    for letters in (LETTERS, ARABIC_LETTERS):
        if text.upper() in tuple(letters):
            number = letters.index(text.upper())
    if isinstance(answer, bool) or not 0 <= number < choices:
        others = ", or a number from 0" if digits else ""
        raise HalaError(f"{where}: the answer is {answer!r}, of {choices} choices", f"a letter from A{others}")
    return number
