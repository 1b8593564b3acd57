"""``hala score`` on files: sacrebleu's own command line to the last digit, columns and runs, and what is refused."""

import csv
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import Hala

ROWS = 600


def damaged(text: str, share: float, seed: int) -> str:
    """A text without some of its words, some of the others in another order."""
    chance = random.Random(f"{seed} {text}")
    words = [word for word in text.split() if chance.random() > share]
    if chance.random() < share:
        chance.shuffle(words)
    return " ".join(words)


@pytest.fixture
def pairs(data: Path, tmp_path: Path) -> Path:
    """References and two systems, a text a line: the Arabic of MMLU's questions."""
    files = sorted((data / "arabic_bench" / "mmlu_arabic" / "test").glob("*.csv"))
    texts = [" ".join(row[0].split()) for path in files for row in csv.reader(path.open(encoding="utf-8"))]
    texts = random.Random(1).sample(texts, ROWS)
    lines = {"ref.ar": texts, "one": [damaged(text, 0.2, 1) for text in texts]}
    lines["two"] = [damaged(text, 0.22, 2) for text in texts]
    for name, own in lines.items():
        (tmp_path / name).write_text("".join(f"{text}\n" for text in own), "utf-8")
    return tmp_path


def sacrebleu(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "sacrebleu", "ref.ar", "-m", "bleu", "chrf", "--chrf-word-order", "2", "-w", "10"]
    return subprocess.run([*command, *words], cwd=folder, capture_output=True, text=True, check=True).stdout


def test_one_system_is_sacrebleus_to_the_last_digit(hala: Hala, pairs: Path) -> None:
    expected = {one["name"]: one for one in json.loads(sacrebleu(pairs, "-i", "one", "--confidence"))}
    result = hala.json("score", "ref.ar", "one", "--confidence")
    assert result["rows"] == ROWS and result["resamples"] == 1000 and result["baseline"] is None
    for name, label in (("bleu", "BLEU"), ("chrf", "chrF2++")):
        score, wanted = result["systems"]["one"]["scores"][name], expected[label]
        assert [f"{score[key]:.10f}" for key in ("score", "mean", "half")] == [
            f"{wanted[key]:.10f}" for key in ("score", "confidence_mean", "confidence_var")
        ]
        assert result["signatures"][name] == wanted["signature"]
    plain = {one["name"]: one for one in json.loads(sacrebleu(pairs, "-i", "one"))}
    assert hala.json("score", "ref.ar", "one")["signatures"]["bleu"] == plain["BLEU"]["signature"]


def test_a_paired_test_is_sacrebleus_to_the_last_digit(hala: Hala, pairs: Path) -> None:
    """Its JSON of a paired test fails with numpy 2, so its table is read."""
    expected = sacrebleu(pairs, "-i", "one", "two", "--paired-bs", "--format", "text")
    result = hala.json("score", "ref.ar", "one", "two", "--paired")
    scores = [result["systems"][name]["scores"][metric] for name in ("one", "two") for metric in ("bleu", "chrf")]
    shown = [tuple(f"{score[key]:.10f}" for key in ("score", "mean", "half")) for score in scores]
    assert shown == re.findall(r"(\d+\.\d+) \((\d+\.\d+) ± (\d+\.\d+)\)", expected)
    assert [f"{score['p']:.4f}" for score in scores[2:]] == re.findall(r"\(p = (\d+\.\d+)\)", expected)
    assert all(signature in expected for signature in (result["signatures"][name] for name in ("bleu", "chrf")))


def test_people_see_scores_signatures_and_what_is_empty(hala: Hala, pairs: Path) -> None:
    lines = (pairs / "one").read_text().splitlines()
    (pairs / "one").write_text("".join(f"{line}\n" for line in ["", *lines[1:]]))
    said = hala("score", "ref.ar", "one", "two", "--paired", "--baseline", "two", "--metrics", "all").stdout
    assert re.search(r"BLEU +one +\d+\.\d\d +\d+\.\d\d +[01]\.\d{4}", said)
    assert re.search(r"BLEU +two +\d+\.\d\d +\d+\.\d\d$", said, re.MULTILINE)
    assert "chrF++: nrefs:1|bs:1000|seed:12345" in said and "TreeSim" in said
    assert "one: 1 empty text, 0 of them missing in the data" in said
    assert f"{ROWS} rows; * differs from two" in said


def test_columns_of_other_formats_score_as_lines_do(hala: Hala, pairs: Path) -> None:
    human, mine = ((pairs / name).read_text().splitlines() for name in ("ref.ar", "one"))
    expected = hala.json("score", "ref.ar", "one")["systems"]["one"]
    pq.write_table(pa.table({"human": human, "deep": [{"ar": text} for text in mine]}), pairs / "x.parquet")
    with (pairs / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("human",), *((text,) for text in human)])
    rows = (json.dumps({"deep": {"ar": text}}) for text in mine)
    (pairs / "x.jsonl").write_text("".join(f"{row}\n" for row in rows))
    for references, system, *named in (
        ("x.parquet", "x.jsonl", "--reference-column", "human"),
        ("x.csv", "x.parquet", "--reference-column", "human"),
        ("ref.ar", "x.jsonl"),
    ):
        named += ["--column", "deep.ar"]
        assert hala.json("score", references, system, *named)["systems"][system] == expected


def test_a_run_and_its_rows_in_quarantine(hala: Hala, write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    rows = [
        {"text": f"word{number} it", "human": f"Translate everything that follows into Arabic: word{number} it"}
        for number in range(20)
    ]
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    engine = {"kind": "echo", "fail_on": "word7"}
    hala("plan", write_recipe("t", data={"path": "in.jsonl", "columns": ["text"]}, engine=engine), "--create")
    assert "1 shard not finished (`hala resume" in hala("score", "in.jsonl", "run:t", "--column", "text", code=2).stderr
    hala("worker", "t")
    result = hala.json("score", "in.jsonl", "run:t", "--reference-column", "human", "--column", "text_ar")
    system = result["systems"]["run:t"]
    assert (system["missing"], system["empty"]) == (1, 1)
    assert system["scores"]["rouge_l"]["score"] == pytest.approx(19 / 20)


def test_what_cannot_be_scored_is_refused(hala: Hala, pairs: Path) -> None:
    (pairs / "short").write_text("واحد\n")
    (pairs / "x.jsonl").write_text('{"a": "b", "n": 1}\n')
    (pairs / "bad").write_bytes(b"\xe9\n")
    for words, wanted in (
        (("ref.ar", "short"), f"short: 1 row, and the references have {ROWS}"),
        (("ref.ar", "absent"), "absent: no such file"),
        (("ref.ar", "x.jsonl"), "x.jsonl: which column?"),
        (("x.jsonl", "x.jsonl", "--column", "b"), "x.jsonl: there is no column 'b'"),
        (("x.jsonl", "x.jsonl", "--column", "n"), "x.jsonl: column 'n' holds a number in row 0, not a text"),
        (("ref.ar", "one", "--metrics", "blue"), "no metric 'blue' (did you mean 'bleu'?"),
        (("ref.ar", "one", "--metrics", ","), "--metrics: is empty"),
        (("ref.ar", "one", "--paired"), "name two or more"),
        (("ref.ar", "one", "one"), "one is named twice"),
        (("ref.ar", "one", "two", "--baseline", "two"), "add --paired"),
        (("ref.ar", "one", "two", "--paired", "--baseline", "three"), "none of the systems"),
        (("bad", "bad"), "bad: not UTF-8"),
        (("ref.ar", "run:none"), "no run 'none'"),
        (("ref.ar", "one", "--column", "text"), "--column: no side has columns"),
        (("ref.ar", "x.jsonl", "--column", "a", "--source-column", "a"), "--source-column: no side has columns"),
    ):
        assert wanted in hala("score", *words, code=2).stderr, words
