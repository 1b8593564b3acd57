"""What a mix is made of: directions, conditions, duplicates, sampling, order; all counted, whoever did it."""

import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hala_hpc.config.errors import HalaError
from hala_hpc.data.schema import to_rows
from hala_hpc.tasks.mix import assemble
from hala_hpc.tasks.mix.assemble import copies, drawn
from hala_hpc.tasks.mix.near import NearDuplicates, first_of_each, normal, shingles, signatures
from hala_hpc.tasks.mix.options import Duplicates, Source
from tests.tasks.mix.mixes import (
    LANGUAGES,
    NO_DUPLICATES,
    PAIRS,
    chats,
    counts,
    data_bytes,
    finished,
    made,
    pairs,
    plan,
    rows,
    turns,
)
from tests.worker.helpers import proof

# --- forms ------------------------------------------------------------------------------------------------------------


def test_pairs_are_asked_for_in_both_directions(tmp_path: Path) -> None:
    given = [{"en": "One {target}.", "ar": "واحد."}, {"en": "Two.", "ar": "  "}, {"en": None, "ar": "ثلاثة."}]
    run = finished(plan(tmp_path, {"tatoeba": {"rows": given, **PAIRS}}, **LANGUAGES))
    by_direction = {row.pop("hala_direction"): row for row in rows(run)}
    instruction = "Translate everything that follows into"
    forward, backward = by_direction["forward"]["messages"], by_direction["backward"]["messages"]
    assert forward == turns(f"{instruction} Arabic:\n\nOne {{target}}.", "واحد.")["messages"]
    assert backward == turns(f"{instruction} English:\n\nواحد.", "One {target}.")["messages"]
    assert all((row["hala_source"], row["hala_source_row"]) == ("tatoeba", 0) for row in by_direction.values())
    assert counts(run)["tatoeba"] == {
        "rows": 3, "empty": 2, "exact duplicates": 0, "near duplicates": 0, "not drawn": 0, "taken": 1, "written": 2,
    }  # fmt: skip


@pytest.mark.parametrize(("direction", "answers"), [("forward", {"ar"}), ("backward", {"en"})])
def test_a_source_may_have_a_direction_and_a_prompt_of_its_own(
    tmp_path: Path, direction: str, answers: set[str]
) -> None:
    own = {"direction": direction, "prompt": "{source}>{target} {text}", "source": "eu", "target": "fr"}
    sources = {"opus": {"rows": [{"translation": {"en": "en x", "ar": "ar y"}}], **PAIRS, **own}}
    sources["opus"]["columns"] = ["translation.en", "translation.ar"]
    (row,) = made(tmp_path, sources, **LANGUAGES)
    user, assistant = row["messages"]
    assert assistant["content"][:2] in answers
    assert user["content"].startswith("eu>fr en" if direction == "forward" else "fr>eu ar")


def test_instructions_and_conversations_become_messages(tmp_path: Path) -> None:
    alpaca = [
        {"instruction": "Add.", "input": "2, 3", "output": "5"},
        {"instruction": "Say.", "input": "", "output": ""},
    ]
    talk = [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}]
    questions = [{"question": "Why?", "response": "So."}]
    sources: dict[str, Any] = {"alpaca": {"rows": alpaca}, "hermes": {"rows": talk}}
    sources["orca"] = {"rows": questions, "columns": ["question", "response"]}
    run = finished(plan(tmp_path, sources))
    by_source = {row["hala_source"]: row["messages"] for row in rows(run)}
    assert by_source["alpaca"] == turns("Add.\n\n2, 3", "5")["messages"]
    assert by_source["hermes"] == turns("Hi", "Hello")["messages"]
    assert by_source["orca"] == turns("Why?", "So.")["messages"]
    assert all(row["hala_direction"] is None for row in rows(run))
    assert counts(run)["alpaca"]["empty"] == 1


def test_turns_with_keys_of_their_own_keep_them(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {"a": 1}}]}
    talk = [{"messages": [{"role": "user", "content": "1+1"}, call], "tools": [{"name": "add"}]}]
    skipped = [{"role": "assistant", "content": "no", "weight": 0}, {"role": "user", "content": "?"}]
    talk += [{"messages": [{"role": "user", "content": "x"}, *skipped, {"role": "assistant", "content": "yes"}]}]
    run = finished(plan(tmp_path, {"tools": {"rows": talk}, "plain": {"rows": chats(1)}}))
    (file,) = (run / "final" / "data").iterdir()
    by_row = {(row["hala_source"], row["hala_source_row"]): row for row in to_rows(pq.ParquetFile(file).read())}
    assert by_row["tools", 0]["messages"][1] == call and by_row["tools", 0]["tools"] == [{"name": "add"}]
    assert by_row["tools", 1]["messages"][1] == {"role": "assistant", "content": "no", "weight": 0}
    assert by_row["plain", 0]["messages"] == chats(1)[0]["messages"]


# --- conditions -------------------------------------------------------------------------------------------------------


def test_where_filters_by_any_column(tmp_path: Path) -> None:
    judged = [row | {"hala_judge": n / 10, "hala_verdict": {"keep": n > 4}} for n, row in enumerate(pairs(10))]
    sources = {"judged": {"rows": judged, "where": "hala_verdict.keep and judge < 0.8", **PAIRS}}
    run = finished(plan(tmp_path, sources, direction="forward", **LANGUAGES))
    assert sorted(row["hala_source_row"] for row in rows(run)) == [5, 6, 7]
    assert counts(run)["judged"]["where"] == 7


def test_a_chunk_may_be_left_out_as_a_whole(tmp_path: Path) -> None:
    given = [row | {"number": n} for n, row in enumerate(chats(30))]
    run = finished(plan(tmp_path, {"a": {"rows": given, "where": "number > 19"}}, run={"shard_rows": 10}))
    assert sorted(row["hala_source_row"] for row in rows(run)) == [*range(20, 30)]
    assert counts(run)["a"]["where"] == 20 and proof(run).proven


def test_defects_of_a_translation_can_be_left_out(tmp_path: Path) -> None:
    bad = [turns("a", r"one\ntwo"), turns("b", "one<br>two"), turns("c", "one\ntwo")]
    given = [row | {"text": row["messages"][1]["content"]} for row in bad]
    where = r"""not matches(text, '\\\\n|<br>')"""
    (row,) = made(tmp_path, {"hala": {"rows": given, "where": where}})
    assert row["hala_source_row"] == 2


# --- duplicates -------------------------------------------------------------------------------------------------------


def test_the_same_text_stays_once_where_it_comes_first(tmp_path: Path) -> None:
    once = turns("What is  it?", "A ﬁsh.")
    again = [turns("what is it?", "a fish."), turns("What is it?", "A bird."), once]
    run = finished(plan(tmp_path, {"one": {"rows": again}, "two": {"rows": [once, turns("Else", "x")]}}))
    assert sorted((row["hala_source"], row["hala_source_row"]) for row in rows(run)) == [
        ("one", 0), ("one", 1), ("two", 1),
    ]  # fmt: skip
    assert (counts(run)["one"]["exact duplicates"], counts(run)["two"]["exact duplicates"]) == (1, 1)
    assert normal("ＡﬁＢ \n\tC") == "afib c" == normal(unicodedata.normalize("NFD", "aFIb  c"))


def test_by_prompt_one_answer_stays(tmp_path: Path) -> None:
    conversations = [turns("What?", "One."), turns("what?", "Two."), turns("Who?", "One.")]
    translated = [{"en": "Hello there.", "ar": "مرحبا."}, {"en": "hello  there.", "ar": "أهلا."}]
    sources = {"asked": {"rows": conversations}, "pairs": {"rows": translated, **PAIRS}}
    run = finished(plan(tmp_path, sources, duplicates={"by": "prompt"}, **LANGUAGES))
    assert [counts(run)[name]["exact duplicates"] for name in ("asked", "pairs")] == [1, 1]
    assert counts(run)["pairs"]["written"] == 2, "both directions of the pair that stays"
    (tmp_path / "whole").mkdir()
    whole = finished(plan(tmp_path / "whole", sources, **LANGUAGES))
    assert not any(line["exact duplicates"] for line in counts(whole).values())


def jaccard(text: str, other: str) -> float:
    first, second = set(shingles(text, 5)), set(shingles(other, 5))
    return len(first & second) / len(first | second)


def test_near_duplicates_are_those_of_a_known_similarity(tmp_path: Path) -> None:
    """200 originals, each with a copy whose similarity is known: far above the threshold of 0.7, or far below."""
    words = np.random.default_rng(1).integers(10**6, 10**7, (200, 40)).astype(str)
    texts = [" ".join(line) for line in words]
    alike = [" ".join([*line[:-1], "end"]) for line in words[:100]]
    unlike = [" ".join([*line[:26], *reversed([word[::-1] for word in line[26:]])]) for line in words[100:]]
    assert min(map(jaccard, texts, alike)) > 0.93
    assert 0.4 < max(jaccard(text, other) for text, other in zip(texts[100:], unlike, strict=True)) < 0.5
    given = [turns(text, "ok") for text in [*texts, *alike, *unlike]]
    run = finished(plan(tmp_path, {"all": {"rows": given}}, duplicates={"near": 0.7, "exact": False}))
    assert {row["hala_source_row"] for row in rows(run)} == {*range(200), *range(300, 400)}
    assert counts(run)["all"]["near duplicates"] == 100


@given(st.lists(st.text("abcde ", min_size=20, max_size=60), min_size=2, max_size=30))
@settings(deadline=None, max_examples=50)
def test_what_is_left_out_is_like_something_that_stays(texts: list[str]) -> None:
    options = Duplicates(near=0.8)
    kept = NearDuplicates(options).kept(signatures([(text, b"") for text in texts], options))
    assert kept[0]
    stay = [text for text, stays in zip(texts, kept, strict=True) if stays]
    for text, stays in zip(texts, kept, strict=True):
        if not stays:  # the estimate of 128 permutations is off by 0.25 once in a hundred million
            assert max(jaccard(text, other) for other in stay) > 0.55


@given(st.lists(st.integers(0, 5), max_size=50))
def test_the_first_of_each_digest_stays(numbers: list[int]) -> None:
    keys = np.array([[number % 2, number] for number in numbers], np.uint64).reshape(-1, 2)
    seen: set[int] = set()
    assert list(first_of_each(keys)) == [number not in seen and not seen.add(number) for number in numbers]  # type: ignore[func-returns-value]


# --- sampling ---------------------------------------------------------------------------------------------------------


@given(
    rows=st.integers(1, 300),
    weight=st.floats(0.01, 4),
    sample=st.none() | st.integers(1, 400),
    seed=st.integers(0, 5),
    data=st.data(),
)
@settings(deadline=None)
def test_sampling_depends_on_seed_source_and_row_alone(
    rows: int, weight: float, sample: int | None, seed: int, data: st.DataObject
) -> None:
    which = np.array(sorted(data.draw(st.sets(st.integers(0, rows - 1), min_size=1))))
    source = Source(weight=weight, sample=sample)
    times = copies(which, rows, seed, "name", source)
    drawn_rows = min(sample or len(which), len(which))
    assert times.sum() == int(weight) * drawn_rows + int((weight - int(weight)) * drawn_rows + 0.5)
    assert times.max() <= int(weight) + 1
    shuffled = data.draw(st.permutations(range(len(which))))
    assert (copies(which[shuffled], rows, seed, "name", source) == times[shuffled]).all()


def test_a_larger_sample_holds_the_smaller_one_and_seeds_differ() -> None:
    which = np.arange(1000)
    few, many = (copies(which, 1000, 1, "a", Source(sample=count)) > 0 for count in (100, 300))
    assert (few & many).sum() == 100
    other, elsewhere = (copies(which, 1000, seed, name, Source(sample=100)) > 0 for seed, name in ((2, "a"), (1, "b")))
    assert (few & other).sum() < 40 and (few & elsewhere).sum() < 40
    assert list(np.flatnonzero(few)[:10]) != list(range(10)), "at random, not the first"


def test_numbers_are_a_function_of_the_row() -> None:
    assert (drawn(10, 1, "a") == drawn(1000, 1, "a")[:10]).all()


def test_weights_and_samples_are_exact_and_counted(tmp_path: Path) -> None:
    sources: dict[str, dict[str, Any]] = {
        "twice": {"rows": chats(10), "weight": 2.0},
        "half": {"rows": chats(11, "b"), "weight": 0.5},
        "some": {"rows": pairs(40), **PAIRS, "sample": 7, "weight": 1.5},
    }
    run = finished(plan(tmp_path, sources, duplicates=NO_DUPLICATES, **LANGUAGES))
    written = Counter((row["hala_source"], row["hala_source_row"], row["hala_direction"]) for row in rows(run))
    assert [sum(count for key, count in written.items() if key[0] == name) for name in sources] == [20, 6, 2 * 11]
    assert set(Counter(key[0] for key in written).items()) == {("twice", 10), ("half", 6), ("some", 14)}
    table = counts(run)
    assert [table[name]["not drawn"] for name in sources] == [0, 5, 33]
    assert all(line["rows"] == line["not drawn"] + line["taken"] for line in table.values())


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    run = plan(tmp_path, {"one": {"rows": chats(1), "weight": 0.1}})
    with pytest.raises(HalaError, match="nothing is left of all sources"):
        finished(run)


# --- order and files --------------------------------------------------------------------------------------------------


def test_the_order_is_shuffled_by_the_seed_and_by_nothing_else(tmp_path: Path) -> None:
    sources = {"a": {"rows": chats(60)}, "b": {"rows": pairs(60), **PAIRS}}
    first = made(tmp_path, sources, **LANGUAGES)
    assert [row["hala_row"] for row in first] == list(range(180))
    names = "".join(row["hala_source"] for row in first)
    assert "aa" in names and "ba" in names[:30] and "a" in names[-20:]
    order = [(row["hala_source"], row["hala_source_row"], row["hala_direction"]) for row in first]
    assert order != sorted(order, key=str)
    cut_otherwise = made(tmp_path, sources, "other", run={"shard_rows": 7}, **LANGUAGES)
    assert cut_otherwise == first
    reseeded = made(tmp_path, sources, "seed", seed=1, **LANGUAGES)
    key = str
    assert reseeded != first
    assert sorted((row["messages"] for row in reseeded), key=key) == sorted((row["messages"] for row in first), key=key)


def test_large_mixes_are_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {"a": {"rows": chats(500)}, "b": {"rows": pairs(100), **PAIRS}}
    alone = finished(plan(tmp_path, sources, "one", **LANGUAGES))
    monkeypatch.setattr(assemble, "FILE_BYTES", 10_000)
    many = finished(plan(tmp_path, sources, "many", **LANGUAGES))
    assert len(data_bytes(alone)) == 1 < 4 < len(data_bytes(many))
    assert rows(alone) == rows(many)
    assert not (many / "final" / ".parts").exists()
    assert proof(many).proven
