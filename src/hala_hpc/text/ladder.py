"""How a text is translated so that its shape survives: asked for in segments, checked, and where it failed asked again.

A segment climbs a ladder: it is asked for with markers; again, with other random numbers; its parts alone; and at last
apart from what is protected, which no model can spoil any more. Only segments that failed climb, and the best answer is
kept. Pure functions: whoever drives ``translation`` sends its asks to a model and brings the answers.
"""

import re
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice

from hala_hpc.text import checks, protection
from hala_hpc.text.checks import Checks, Pair
from hala_hpc.text.protection import Damage, Masked
from hala_hpc.text.segments import Count, Part, Segment, segments
from hala_hpc.text.skeleton import Skeleton, Span, shape_faults, skeleton


class Rung(IntEnum):
    """How far a segment climbed."""

    TOGETHER = 0
    AGAIN = 1
    ALONE = 2
    APART = 3


@dataclass(frozen=True)
class Ask:
    """A text to be translated; at each ``attempt`` a model is to write with other random numbers."""

    text: str
    attempt: int = 0


@dataclass(frozen=True)
class Answer:
    """What a model wrote; ``truncated``: it had more to say, but no more tokens. ``error``: why it cannot answer."""

    text: str
    truncated: bool = False
    error: str = ""


@dataclass(frozen=True)
class Manner:
    """How texts are cut, protected and checked.

    Parameters
    ----------
    pair : the languages.
    count : how many tokens a text has.
    tokens : the most tokens of a segment.
    again : how often a segment is asked for once more as it is, before its parts are asked for alone.
    own : further patterns to protect.
    """

    pair: Pair
    count: Count
    tokens: int = 400
    again: int = 1
    own: Sequence[re.Pattern[str]] = ()


@dataclass
class Translation:
    """A translated text, or why there is none.

    Parameters
    ----------
    source : the text's skeleton.
    text : None where a segment has no answer that could be put together, for the reason in ``error``.
    rung : the highest that a segment climbed to.
    asks : how many requests it took.
    flags : checks that segments did not pass, with how many; ``shape`` where the whole text did not.
    numbers : of all its segments.
    """

    source: Skeleton
    text: str | None = None
    error: str = ""
    rung: Rung = Rung.TOGETHER
    asks: int = 0
    flags: Counter[str] = field(default_factory=Counter)
    numbers: list[Checks] = field(default_factory=list)


Steps = Generator[list[Ask], list[Answer], "list[Translation]"]
"""Yields what to ask, takes the answers in the same order."""


@dataclass
class _Candidate:
    """A segment that is not yet well translated: its best answer so far, by the number of flags."""

    segment: Segment
    texts: list[str] | None = None
    flags: list[str] = field(default_factory=list)
    numbers: Checks | None = None
    error: str = ""

    def offer(self, texts: list[str], prose: str, written: str, truncated: bool, pair: Pair) -> None:
        """Take an answer where it is better than the one that is here."""
        numbers = checks.checks(prose, written, pair)
        flags = ["truncated"] * truncated + checks.flags(numbers)
        if self.texts is None or len(flags) < len(self.flags):
            self.texts, self.flags, self.numbers = texts, flags, numbers


def translation(text: str, manner: Manner) -> Generator[list[Ask], list[Answer], Translation]:
    """Yields what to ask, takes the answers in the same order, returns the translation. Nothing is asked for a text
    that has no prose.
    """
    source = skeleton(text, manner.own)
    result = Translation(source)
    open_ = [_Candidate(segment) for segment in segments(source, manner.tokens, manner.count)]
    done: dict[Part, str] = {}
    steps = [Rung.TOGETHER, *[Rung.AGAIN] * manner.again, Rung.ALONE, Rung.APART]
    for attempt, rung in enumerate(steps):
        if not open_:
            break
        waiting = []
        if rung is Rung.ALONE:  # a single part has been asked for alone
            waiting = [candidate for candidate in open_ if len(candidate.segment.parts) == 1]
            open_ = [part for candidate in open_ if candidate not in waiting for part in _alone(candidate)]
        climb = _apart if rung is Rung.APART else _with_markers
        if open_:
            result.rung = rung
            result.asks += yield from climb(source, open_, manner, attempt)
        for candidate in open_:
            if candidate.texts is not None and (not candidate.flags or rung is Rung.APART):
                done.update(zip(candidate.segment.parts, candidate.texts, strict=True))
                result.flags.update(candidate.flags)
                result.numbers += [candidate.numbers] if candidate.numbers else []
        open_ = waiting + [candidate for candidate in open_ if candidate.texts is None or candidate.flags]
    if lost := next((candidate.error for candidate in open_ if candidate.texts is None), ""):
        result.error = lost
        return result
    result.text = protection.assembled(source, done)
    if shape_faults(source, result.text, manner.own):
        result.flags["shape"] += 1
    return result


def _alone(candidate: _Candidate) -> list[_Candidate]:
    """The parts of a segment, with what they have of its answer."""
    parts = candidate.segment.parts
    texts: Sequence[list[str] | None] = [[text] for text in candidate.texts] if candidate.texts else [None] * len(parts)
    return [
        _Candidate(Segment((part,)), text, candidate.flags, candidate.numbers, candidate.error)
        for part, text in zip(parts, texts, strict=True)
    ]


def _with_markers(
    source: Skeleton, candidates: Sequence[_Candidate], manner: Manner, attempt: int
) -> Generator[list[Ask], list[Answer], int]:
    """Ask for segments as they are. Returns how many asks that were."""
    requests: list[tuple[_Candidate, Masked]] = []
    for candidate in candidates:
        try:
            requests.append((candidate, protection.masked(source, candidate.segment)))
        except Damage as error:
            candidate.error = str(error)
    if not requests:
        return 0
    answers = yield [Ask(request.text, attempt) for _, request in requests]
    for (candidate, request), answer in zip(requests, answers, strict=True):
        try:
            text = _text_of(answer, request.text)
            texts = protection.restored(request, text)
        except Damage as error:
            candidate.error = str(error)
            continue
        prose, written = (protection.unmarked(t, request.brackets) for t in (request.text, text))
        candidate.offer(texts, prose, written, answer.truncated, manner.pair)
    return len(requests)


def _apart(
    source: Skeleton, candidates: Sequence[_Candidate], manner: Manner, attempt: int
) -> Generator[list[Ask], list[Answer], int]:
    """Ask for the prose between protected spans. Returns how many asks that were."""
    texts = [[source.text_of(span) for span in _stretches(source, candidate)] for candidate in candidates]
    answers = iter((yield [Ask(text, attempt) for own in texts for text in own]))
    for candidate, stretches in zip(candidates, texts, strict=True):
        own = list(islice(answers, len(stretches)))
        (part,) = candidate.segment.parts
        try:
            written = [_text_of(answer, text) for answer, text in zip(own, stretches, strict=True)]
            joined = protection.joined(source, part, written)
        except Damage as error:
            candidate.error = str(error)
            continue
        truncated = any(answer.truncated for answer in own)
        candidate.offer([joined], " ".join(stretches), " ".join(written), truncated, manner.pair)
    return sum(map(len, texts))


def _stretches(source: Skeleton, candidate: _Candidate) -> list[Span]:
    (part,) = candidate.segment.parts
    return protection.stretches(source, part)


def _text_of(answer: Answer, prompt: str) -> str:
    """The translation in an answer. Raises Damage where there is none."""
    if answer.error:
        raise Damage(answer.error)
    return protection.without_chatter(answer.text, prompt)


def abreast(climbs: Sequence[Generator[list[Ask], list[Answer], Translation]]) -> Steps:
    """Several texts at once: in each round all asks of those that are not done yet."""
    done: list[Translation | None] = [None] * len(climbs)
    asks: dict[int, list[Ask]] = {}
    answers: dict[int, list[Answer] | None] = dict.fromkeys(range(len(climbs)))
    while answers:
        asks = {}
        for number, own in answers.items():
            try:
                asks[number] = next(climbs[number]) if own is None else climbs[number].send(own)
            except StopIteration as end:
                done[number] = end.value
        if not asks:
            break
        together = iter((yield [ask for own in asks.values() for ask in own]))
        answers = {number: list(islice(together, len(own))) for number, own in asks.items()}
    return [translation for translation in done if translation is not None]
