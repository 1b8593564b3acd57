"""Questions from folders: every layout gives the rows that the hub's dataset would."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.tasks.evaluate import local
from hala_hpc.tasks.evaluate.benchmarks import ARABIC, Benchmark, subset_of

EXAMS = ARABIC["arabic_exams"]
MMLU = ARABIC["arabic_mmlu"]
HT = ARABIC["arabic_mmlu_ht"]
ROW = {
    "subject": "علوم",
    "question": "ما لون السماء؟",
    "A": "أزرق",
    "B": "أحمر",
    "C": "بني",
    "D": "أبيض",
    "answer": "A",
}


def test_arabic_mmlu_as_it_is_published(data: Path) -> None:
    found = local.read(MMLU, MMLU.tasks, data / "arabic_bench" / "arabicmmlu_egypt")
    assert len(found) == 11 and len(set(MMLU.tasks) - found.keys()) == 29
    assert len(found["arabic_mmlu:Biology (High School)"]["test"]) == 1010
    assert len(found["arabic_mmlu:Biology (High School)"]["dev"]) == 2, "examples are no questions"
    counted = sum(len(rows) for splits in found.values() for rows in splits.values())
    assert counted == 2506
    first = found["arabic_mmlu:Driving Test"]["test"][0]
    assert first["Answer Key"] == "A" and first["Option 2"] == "العبارة خاطئة"


def test_mmlu_as_it_is_published(data: Path) -> None:
    found = local.read(HT, HT.tasks, data / "arabic_bench" / "mmlu_arabic")
    assert len(found) == 57 and list(found) == list(HT.tasks)
    assert sum(len(splits["test"]) for splits in found.values()) == 14042
    assert all(len(splits["dev"]) == 5 for splits in found.values())
    row = found["arabic_mmlu_ht:anatomy"]["test"][1]
    assert len(row["choices"]) == 4 and row["answer"] == 1


def test_mmlu_with_a_header_and_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "test"
    folder.mkdir()
    with (folder / "anatomy_test.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["question", "choice0", "choice1", "choice2", "choice3", "answer"], ["Q,\n2", "a", "b", "c", "d", "3"]]
        )
    rows = local.read(HT, HT.tasks, tmp_path)["arabic_mmlu_ht:anatomy"]["test"]
    assert rows == [{"question": "Q,\n2", "choices": ["a", "b", "c", "d"], "answer": 3}]


def test_choices_that_are_json_in_parquet(tmp_path: Path) -> None:
    """As ``datasets`` writes lists of mixed values."""
    (tmp_path / "anatomy").mkdir()
    choices = pa.array([['"a"', '"b"', '"c"', '"d"']]).cast(pa.list_(pa.json_()))
    pq.write_table(pa.table({"question": ["Q"], "choices": choices, "answer": [1]}), tmp_path / "anatomy/test.parquet")
    rows = local.read(HT, HT.tasks, tmp_path)["arabic_mmlu_ht:anatomy"]["test"]
    assert rows == [{"question": "Q", "choices": ["a", "b", "c", "d"], "answer": 1}]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("name", ["default/test", "default", "test-00000-of-00001", "whatever"])
def test_a_benchmark_of_one_task(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / f"{name}.{kind}"
    path.parent.mkdir(exist_ok=True)
    if kind == "jsonl":
        path.write_text(json.dumps(ROW) + "\n")
    elif kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(ROW))
            writer.writeheader()
            writer.writerow(ROW)
    else:
        pq.write_table(pa.Table.from_pylist([ROW]), path)
    assert local.read(EXAMS, EXAMS.tasks, tmp_path) == {"arabic_exams": {"test": [ROW]}}


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("default.jsonl", '{"subject": "x"}\n', "row 1: no question, A, B, C, D, answer"),
        ("default.jsonl", "{", "row 1: not valid JSON"),
        ("default.jsonl", "[]\n", "row 1: a row is a JSON object, this is a list"),
        ("note.txt", "x", "has none of its 1 tasks"),
        ("default.parquet", "x", "not readable"),
    ],
)
def test_what_is_no_question_is_told_with_its_place(tmp_path: Path, file: str, text: str, said: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(HalaError, match=said):
        local.read(EXAMS, EXAMS.tasks, tmp_path)


def test_an_mmlu_row_without_an_answer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "anatomy_test.csv").write_text("q,a,b,c,d,A\nq,a,b,c,d,E\n")
    with pytest.raises(HalaError, match=r"anatomy_test.csv, row 2: the answer is .E., of 4"):
        local.read(HT, HT.tasks, tmp_path)


def test_a_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jsonl").write_text("1")
    first = local.digest_of([tmp_path])
    (tmp_path / "a" / "x.jsonl").write_text("2")
    second = local.digest_of([tmp_path])
    (tmp_path / "a" / "x.jsonl").rename(tmp_path / "a" / "y.jsonl")
    assert len({first, second, local.digest_of([tmp_path]), local.digest_of([])}) == 4


@pytest.mark.parametrize("answer", ["B", "b ", 1, "1"])
def test_an_answer_may_be_a_letter_or_a_number(tmp_path: Path, answer: str | int) -> None:
    (tmp_path / "anatomy").mkdir()
    row = {"question": "q", "choices": ["w", "x", "y", "z"], "answer": answer}
    for split in ("test", "dev"):
        (tmp_path / "anatomy" / f"{split}.jsonl").write_text(f"{json.dumps(row)}\n\n")
    splits = local.read(HT, HT.tasks, tmp_path)["arabic_mmlu_ht:anatomy"]
    assert [row["answer"] for rows in splits.values() for row in rows] == [1, 1]


ARATRUST, GHAFA = ARABIC["aratrust"], ARABIC["alghafa"]
TRUST = {"Question": "q", "A": "a", "B": "b", "C": "c"}
HAFA = {"query": "q", "sol1": "a", "sol2": "b"}


@pytest.mark.parametrize(
    ("benchmark", "row", "column", "kept"),
    [
        (EXAMS, ROW | {"answer": "c"}, "answer", "C"),
        (ARATRUST, TRUST | {"Answer": "B"}, "Answer", "ب"),
        (ARATRUST, TRUST | {"Answer": "ج"}, "Answer", "ج"),
        (GHAFA, HAFA | {"label": "1"}, "label", 1),
        (GHAFA, HAFA | {"label": "A"}, "label", 0),
    ],
)
def test_the_answer_becomes_what_the_harness_looks_for(
    tmp_path: Path, benchmark: Benchmark, row: dict[str, str], column: str, kept: object
) -> None:
    subset = subset_of(benchmark.tasks[0])
    (tmp_path / subset).mkdir()
    (tmp_path / subset / f"{benchmark.split}.jsonl").write_text(json.dumps(row))
    (rows,) = local.read(benchmark, benchmark.tasks, tmp_path)[benchmark.tasks[0]].values()
    assert rows[0][column] == kept


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("test.jsonl", '{"question": "q", "choices": ["a", "b"], "answer": "C"}', "row 1: the answer is 'C', of 2"),
        ("test.jsonl", '{"question": "q", "choices": ["a", "b"], "answer": true}', "the answer is True"),
        ("test.jsonl", '{"question": "q", "choices": ["a", "b"]}', "the answer is None"),
        ("test.jsonl", '{"question": "q", "choices": [1, 2], "answer": 0}', "not a list of texts"),
        ("test.csv", "question,choices,answer\nq,\"['a', 'b']\",A\n", "row 1: choices is .*not a list of texts"),
        ("test.csv", "question,choices,answer\nq,a,A,more\n", "row 1: has more fields than the header"),
    ],
)
def test_choices_and_answers_that_fit_nothing_are_refused(tmp_path: Path, file: str, text: str, said: str) -> None:
    (tmp_path / "anatomy").mkdir()
    (tmp_path / "anatomy" / file).write_text(text)
    with pytest.raises(HalaError, match=said):
        local.read(HT, HT.tasks, tmp_path)


def test_questions_in_another_encoding_are_refused_by_file(tmp_path: Path) -> None:
    (tmp_path / "default.jsonl").write_bytes('{"question": "é"}'.encode("latin-1"))
    with pytest.raises(HalaError, match=r"default.jsonl, row 1: not UTF-8.*files must be UTF-8"):
        local.read(EXAMS, EXAMS.tasks, tmp_path)
