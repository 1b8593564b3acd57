"""Control tokens in data are text; those that a chat template writes stay tokens; other texts are encoded as ever."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from hala_hpc.text.prompts import ControlWords
from tests.data.tokenizer_kinds import KINDS

TEXTS = ["the quick brown fox jumps over a lazy dog. </s> ends it"] * 3


def unigram() -> Tokenizer:
    """Llama 2's and T5's way: a word mark before the first word only, control tokens that are pieces themselves."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    alphabet = list("abcdefghijklmnopqrstuvwxyz<>/|?. ")
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>", initial_alphabet=alphabet
    )
    made.train_from_iterator(TEXTS, trainer)
    made.add_tokens([AddedToken("<think>", special=False)])
    made.add_special_tokens([AddedToken("<|end|>", special=True, rstrip=True)])
    template: Any = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    made.post_processor = template
    return made


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    name: lambda make=make: make(TEXTS).tokenizer.backend_tokenizer for name, make in KINDS.items()
} | {"unigram": unigram}


@pytest.fixture(params=list(MAKERS))
def backend(request: pytest.FixtureRequest) -> Tokenizer:
    return MAKERS[request.param]()


def special(backend: Tokenizer) -> set[int]:
    """Control tokens, without those that stand for a byte, and for what is in no vocabulary."""
    return {backend.token_to_id(word) for word in ControlWords(backend).words - {"<unk>"}}


def test_words_of_the_data_are_text_and_those_of_the_template_tokens(backend: Tokenizer) -> None:
    words = ControlWords(backend)
    end = next(word for word in sorted(words.words) if "end" in word or word == "</s>")
    data = f"what does {end} mean? {end}"
    said = words.hide({"content": data, "more": [data, 1, None]})
    assert words.restore(said["content"]) == data
    assert said["more"][1:] == [1, None]
    assert not words.held(said["content"])
    before, after = f"{end}the ", f" fox{end}"
    rendered = before + said["content"] + after
    found = words.encode(rendered, [(len(before), len(rendered))])
    id = backend.token_to_id(end)
    places = [place for place, token in enumerate(found.ids) if token in special(backend)]
    assert [found.ids[place] for place in places] == [id, id]
    assert places == [0, len(found.ids) - 1]
    (span,) = found.spans
    inside = [token for token, (_, stop) in zip(found.ids, found.offsets, strict=True) if stop > span[0]]
    assert backend.decode(inside[:-1], skip_special_tokens=False).strip() == f"{data} fox"
    assert inside[-1] == id


def test_the_whole_is_what_the_tokenizer_makes_of_text_that_only_looks_so(backend: Tokenizer) -> None:
    """Its own switch for that knows no exceptions, so it can be the judge where no template writes anything."""
    words = ControlWords(backend)
    data = " ".join(f"the fox{word} and {word}" for word in sorted(words.words))
    found = words.encode(words.hide(data))
    assert not special(backend) & set(found.ids)
    if not isinstance(backend.model, models.Unigram):
        backend.encode_special_tokens = True
        assert found.ids == backend.encode(data, add_special_tokens=False).ids


def test_what_goes_around_a_text_goes_around_this_one(backend: Tokenizer) -> None:
    words = ControlWords(backend)
    word = sorted(words.words)[0]
    plain = backend.encode("the fox").ids
    assert words.encode("the fox", add_special_tokens=True).ids == plain
    around = len(plain) - len(backend.encode("the fox", add_special_tokens=False).ids)
    hidden = words.hide(f"the {word} fox")
    found = words.encode(hidden, add_special_tokens=True)
    assert len(found.ids) == len(found.offsets) == len(words.encode(hidden).ids) + around
    assert found.ids[0] == plain[0]


def test_words_that_are_allowed_stay_tokens(backend: Tokenizer) -> None:
    first, second = sorted(ControlWords(backend).words)[:2]
    words = ControlWords(backend, allowed=[first])
    assert not words.held(first)
    assert words.held([{"a": second}])
    ids = words.encode(words.hide(first + second)).ids
    assert backend.token_to_id(first) in ids
    assert backend.token_to_id(second) not in ids


def test_words_that_are_not_special_are_tokens_as_ever() -> None:
    backend = unigram()
    words = ControlWords(backend)
    assert not words.held("<think>")
    ids = words.encode(words.hide("<think> the </s>")).ids
    assert ids[0] == backend.token_to_id("<think>")
    assert backend.token_to_id("</s>") not in ids


MADE = {name: make() for name, make in MAKERS.items()}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=8) | st.integers(0, 5), max_size=8), st.sampled_from(sorted(MADE)))
def test_no_text_can_write_a_control_token(parts: list[str | int], name: str) -> None:
    """Words in any text, at its borders too, beside letters and spaces of any kind."""
    backend = MADE[name]
    words = ControlWords(backend)
    known = sorted(words.words)
    data = "".join(known[part % len(known)] if isinstance(part, int) else part for part in parts)
    hidden = words.hide(data)
    assert words.restore(hidden) == data
    assert not special(backend) & set(words.encode(hidden).ids)
    if not words.held(data):
        assert words.encode(hidden).ids == backend.encode(data, add_special_tokens=False).ids
