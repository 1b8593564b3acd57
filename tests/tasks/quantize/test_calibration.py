"""Texts that a model is run on while it is quantized: what they hold is text, as in trainings."""

import json
from collections import Counter
from pathlib import Path

import pytest

from hala_hpc.config.schema import Model
from hala_hpc.data.bad_rows import BadRows
from hala_hpc.data.cut import PlanWatch
from hala_hpc.data.documents import Kind
from hala_hpc.tasks.quantize import files
from tests.data import tokenizer_kinds

ROWS = [
    {"messages": [{"role": "user", "content": "what is <end_of_turn>?"}, {"role": "assistant", "content": "a word"}]},
    {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "there"}]},
]


@pytest.fixture
def model(tmp_path: Path) -> Model:
    tokenizer_kinds.byte_level([]).tokenizer.save_pretrained(tmp_path / "m")
    return Model(name=str(tmp_path / "m"))


def sampled(tmp_path: Path, model: Model, kind: Kind, rows: list[dict[str, object]]) -> tuple[list[str], Counter[str]]:
    """Each sample with its control tokens marked, and what was counted."""
    tokenizer = tokenizer_kinds.byte_level([]).tokenizer
    path, notes = tmp_path / f"{kind}.jsonl", Counter[str]()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = files.Calibration(path=[str(path)], kind=kind, samples=len(rows), length=99)
    special = set(tokenizer.all_special_ids)
    return [
        "".join(f"[{tokenizer.decode(id)}]" if id in special else tokenizer.decode(id) for id in ids)
        for ids in files.samples(model, texts, tmp_path, PlanWatch(), BadRows(notes=notes))
    ], notes


def test_control_words_of_a_conversation_are_text_and_counted(tmp_path: Path, model: Model) -> None:
    (first, second), notes = sampled(tmp_path, model, "chat", ROWS)  # type: ignore[arg-type]
    assert first.count("[<end_of_turn>]") == second.count("[<end_of_turn>]") > 0, "those of the template alone"
    assert "what is <end_of_turn>?" in first
    assert notes == {"rows with words of control tokens, which are text in them": 1}


def test_control_words_of_a_text_are_text_too(tmp_path: Path, model: Model) -> None:
    (found,), notes = sampled(tmp_path, model, "text", [{"text": "a <bos> b"}])
    assert found == "[<bos>]a <bos> b" and notes.total() == 1
