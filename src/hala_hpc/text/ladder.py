"""How the texts of a row are translated so that their shape survives: asked for in segments, checked, and asked again.

A segment climbs a ladder: it is asked for together with others of its row, with markers; again by itself, with other
random numbers; its parts alone; and at last apart from what is protected, which no model can spoil any more. Only
segments that failed climb, and the best answer is kept. Pure functions: whoever drives ``translation`` sends its asks
to a model and brings the answers.
"""

import re
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice
from typing import Final

from hala_hpc.text import checks, protection
from hala_hpc.text.checks import Checks, Pair
from hala_hpc.text.forms import Form, Marked
from hala_hpc.text.glossary import Glossary
from hala_hpc.text.patterns import Kind
from hala_hpc.text.protection import Damage, Masked
from hala_hpc.text.segments import Count, Part, Segment, segments
from hala_hpc.text.skeleton import Skeleton, Span, shape_faults, skeleton


class Rung(IntEnum):
    """How far a segment climbed."""

    TOGETHER = 0
    AGAIN = 1
    ALONE = 2
    APART = 3


RUNGS: Final = (Rung.AGAIN, Rung.ALONE, Rung.APART)
"""What follows by default where an answer fails a check."""


@dataclass(frozen=True)
class Manner:
    """How texts are cut, protected, asked for and checked.

    Parameters
    ----------
    pair : the languages.
    count : how many tokens a text has.
    tokens : the most tokens of what is asked for at once.
    rungs : what follows where an answer fails a check, in this order; ``AGAIN`` may be there more than once.
    only_flag : checks for which no answer is asked for again.
    together : whether texts of a row share a request where all of them fit.
    with_context : whether each segment is asked for with the one before it and its translation.
    form : how the texts of a request are written.
    glossary : terms that have a fixed translation.
    phrases : of the prompt, which no translation has.
    apart : kinds of spans that are left out from the beginning, instead of marked.
    own : further patterns to protect.
    inside : blocks whose words are translated (``inside.CHOICES``): values of JSON, comments of code.
    """

    pair: Pair
    count: Count
    tokens: int = 400
    rungs: Sequence[Rung] = RUNGS
    only_flag: frozenset[str] = frozenset()
    together: bool = True
    with_context: bool = False
    form: Form = field(default_factory=Marked)
    glossary: Glossary = field(default_factory=lambda: Glossary({}))
    phrases: Sequence[str] = ()
    apart: frozenset[Kind] = frozenset()
    own: Sequence[re.Pattern[str]] = ()
    inside: frozenset[str] = frozenset()

    def skeleton(self, text: str) -> Skeleton:
        """What of a text is translated, and what stays."""
        return skeleton(text, self.own, self.inside)

    def shape_faults(self, source: Skeleton, text: str) -> list[str]:
        """In what a translation has another shape than its source."""
        return shape_faults(source, text, self.own, self.inside)


Place = tuple[int, int, int]
"""Which of a row's texts, and its characters there, from and to."""


@dataclass
class Ask:
    """One request.

    Parameters
    ----------
    texts : to be translated, as the model is to see them, with markers.
    roles : of each text, who speaks or which column it is.
    places : of each text, where it is in the row.
    rung : why it is asked for.
    attempt : at each a model is to write with other random numbers.
    before : a source and its translation that stand before the text.
    terms : of the glossary, those that are in the texts.
    outcome : what became of the answer, filled in when it is there: damage, or flags; empty where it was good.
    """

    texts: tuple[str, ...]
    roles: tuple[str, ...]
    places: tuple[Place, ...]
    rung: Rung
    attempt: int = 0
    before: tuple[str, str] | None = None
    terms: Mapping[str, str] = field(default_factory=dict)
    outcome: str = ""


@dataclass(frozen=True)
class Answer:
    """What a model wrote; ``truncated``: it had more to say, but no more tokens. ``error``: why it cannot answer."""

    text: str
    truncated: bool = False
    error: str = ""


@dataclass
class Translation:
    """The translated texts of a row, or why there are none.

    Parameters
    ----------
    sources : the skeletons of the texts.
    texts : None where a segment has no answer that could be put together, for the reason in ``error``.
    rung : the highest that a segment climbed to.
    asks : the requests that it took, in their order.
    flags : checks that segments did not pass, with how many; ``shape`` where a whole text did not.
    numbers : of all segments.
    """

    sources: list[Skeleton]
    texts: list[str] | None = None
    error: str = ""
    rung: Rung = Rung.TOGETHER
    asks: list[Ask] = field(default_factory=list)
    flags: Counter[str] = field(default_factory=Counter)
    numbers: list[Checks] = field(default_factory=list)


Asking = Generator[list[Ask], list[Answer], None]
"""Yields what to ask, takes the answers in the same order."""


@dataclass(eq=False)
class _Candidate:
    """A segment that is not yet well translated: its best answer so far, by the number of flags."""

    number: int  # of its text in the row
    role: str
    source: Skeleton
    segment: Segment
    is_apart: bool = False
    was_alone: bool = False  # asked for as it is, in a request of its own
    texts: list[str] | None = None
    flags: list[str] = field(default_factory=list)
    numbers: Checks | None = None
    error: str = ""

    @property
    def place(self) -> Place:
        return self.number, self.segment.start, self.segment.end

    def offer(self, texts: list[str], prose: str, written: str, truncated: bool, manner: Manner) -> str:
        """Take an answer where it is better than the one that is here. Returns the answer's flags."""
        numbers = checks.checks(prose, written, manner.pair, manner.glossary, manner.phrases)
        flags = ["truncated"] * truncated + checks.flags(numbers)
        if self.texts is None or len(flags) < len(self.flags):
            self.texts, self.flags, self.numbers = texts, flags, numbers
        return ", ".join(flags)

    def has_passed(self, manner: Manner) -> bool:
        """Whether there is an answer for which nothing more is to be asked."""
        return self.texts is not None and set(self.flags) <= manner.only_flag


def translation(
    texts: Sequence[str], manner: Manner, roles: Sequence[str] = ()
) -> Generator[list[Ask], list[Answer], Translation]:
    """Yields what to ask, takes the answers in the same order, returns the translation of a row's texts.

    Nothing is asked for texts that have no prose.
    """
    result = Translation([manner.skeleton(text) for text in texts])
    packs = _packs(result.sources, roles or ["text"] * len(texts), manner)
    climb = _Climb(manner, result, [{} for _ in texts])
    for wave in ([pack] for pack in packs) if manner.with_context else filter(None, [packs]):
        yield from climb.wave(wave)
        if result.error:
            return result
    result.texts = [protection.assembled(source, own) for source, own in zip(result.sources, climb.done, strict=True)]
    is_other = [bool(manner.shape_faults(*pair)) for pair in zip(result.sources, result.texts, strict=True)]
    result.flags.update(["shape"] * sum(is_other))
    return result


def _packs(sources: Sequence[Skeleton], roles: Sequence[str], manner: Manner) -> list[list[_Candidate]]:
    """The segments of all texts, those that share a request side by side."""
    packs: list[list[_Candidate]] = []
    room = 0
    for number, (source, role) in enumerate(zip(sources, roles, strict=True)):
        own = segments(source, manner.tokens, manner.count)
        for segment in own:
            candidate = _Candidate(number, role, source, segment)
            if manner.apart and any(span.kind in manner.apart for span in source.spans(segment.start, segment.end)):
                parts = list(_alone(candidate))
                for part in parts:
                    held = source.spans(part.segment.start, part.segment.end)
                    part.is_apart = any(span.kind in manner.apart for span in held)
                packs += [[part] for part in parts]
                room = 0
                continue
            tokens = segment.tokens + manner.form.overhead
            if manner.together and len(own) == 1 and tokens <= room:
                packs[-1].append(candidate)
                room -= tokens
            else:
                packs.append([candidate])
                room = manner.tokens - tokens if len(own) == 1 else 0
    return packs


def _alone(candidate: _Candidate) -> Iterator[_Candidate]:
    """The parts of a segment, with what they have of its answer."""
    parts = candidate.segment.parts
    texts: Sequence[list[str] | None] = [[text] for text in candidate.texts] if candidate.texts else [None] * len(parts)
    for part, text in zip(parts, texts, strict=True):
        yield _Candidate(
            candidate.number,
            candidate.role,
            candidate.source,
            Segment((part,)),
            candidate.is_apart,
            candidate.was_alone and len(parts) == 1,
            text,
            candidate.flags,
            candidate.numbers,
            candidate.error,
        )


class _Climb:
    """The way up of some segments; what is done goes into ``result`` and, by text and part, into ``done``."""

    def __init__(self, manner: Manner, result: Translation, done: list[dict[Part, str]]) -> None:
        self.done = done
        self._manner, self._result = manner, result
        self._rung, self._attempt = Rung.TOGETHER, 0
        self._before: tuple[int, str, str] | None = None
        """The last segment: which text it is of, its source and its translation."""

    def wave(self, packs: list[list[_Candidate]]) -> Asking:
        """Ask until each candidate has passed or is at the top; where there is none, ``result`` has an error."""
        open_ = [candidate for pack in packs for candidate in pack]
        first, last = open_[0], open_[-1]
        if self._before is not None and self._before[0] != first.number:
            self._before = None
        for attempt, rung in enumerate((Rung.TOGETHER, *self._manner.rungs)):
            self._attempt, self._rung = attempt, rung
            waiting: list[_Candidate] = []
            if rung >= Rung.ALONE:
                if rung is Rung.ALONE:
                    waiting = [c for c in open_ if c.was_alone and len(c.segment.parts) == 1]
                open_ = [part for candidate in open_ if candidate not in waiting for part in _alone(candidate)]
            is_top = rung is Rung.APART
            marked = [[candidate] for candidate in open_] if rung else packs
            yield from self._with_markers([pack for pack in marked if not (is_top or pack[0].is_apart)])
            yield from self._apart([candidate for candidate in open_ if is_top or candidate.is_apart])
            self._keep(candidate for candidate in open_ if candidate.has_passed(self._manner))
            open_ = waiting + [candidate for candidate in open_ if not candidate.has_passed(self._manner)]
            if not open_:
                break
        self._keep(candidate for candidate in open_ if candidate.texts is not None)
        self._result.error = next((candidate.error for candidate in open_ if candidate.texts is None), "")
        written = (self.done[last.number].get(part, "") for part in last.segment.parts)
        self._before = last.number, last.source.text[last.segment.start : last.segment.end], " ".join(written)

    def _keep(self, candidates: Iterable[_Candidate]) -> None:
        for candidate in candidates:
            self.done[candidate.number].update(zip(candidate.segment.parts, candidate.texts or (), strict=True))
            self._result.flags.update(candidate.flags)
            self._result.numbers += [candidate.numbers] if candidate.numbers else []

    def _ask(
        self, candidates: Sequence[_Candidate], texts: tuple[str, ...], places: Sequence[Place], rung: Rung
    ) -> Ask:
        self._result.rung = max(self._result.rung, rung)
        roles = tuple(candidate.role for candidate in candidates)
        before = self._before[1:] if self._before else None
        terms = self._manner.glossary.terms_in(texts)
        ask = Ask(texts, roles, tuple(places), rung, self._attempt, before, terms)
        self._result.asks.append(ask)
        return ask

    def _with_markers(self, packs: Iterable[Sequence[_Candidate]]) -> Asking:
        """Ask for segments as they are, those of a pack in one request."""
        requests: list[tuple[list[tuple[_Candidate, Masked]], Ask]] = []
        for pack in packs:
            held = []
            for candidate in pack:
                try:
                    held.append((candidate, protection.masked(candidate.source, candidate.segment)))
                except Damage as error:
                    candidate.error = str(error)
            if held:
                held[0][0].was_alone |= len(held) == 1
                texts = tuple(masked.text for _, masked in held)
                own = [candidate for candidate, _ in held]
                requests.append((held, self._ask(own, texts, [candidate.place for candidate in own], self._rung)))
        if not requests:
            return
        answers = yield [ask for _, ask in requests]
        for (held, ask), answer in zip(requests, answers, strict=True):
            try:
                written = self._texts_of(answer, ask)
            except Damage as error:
                ask.outcome = str(error)
                for candidate, _ in held:
                    candidate.error = str(error)
                continue
            outcomes = [self._offered(*pair, text, answer.truncated) for pair, text in zip(held, written, strict=True)]
            ask.outcome = "; ".join(filter(None, outcomes))

    def _offered(self, candidate: _Candidate, masked: Masked, text: str, truncated: bool) -> str:
        """Give a candidate its answer. Returns what is wrong with it."""
        try:
            texts = protection.restored(masked, text)
        except Damage as error:
            candidate.error = _reason(error, truncated)
            return candidate.error
        prose, written = (protection.unmarked(t, masked.brackets) for t in (masked.text, text))
        return candidate.offer(texts, prose, written, truncated, self._manner)

    def _apart(self, candidates: Sequence[_Candidate]) -> Asking:
        """Ask for the prose between protected spans, each stretch for itself."""
        asks: list[list[Ask]] = []
        for candidate in candidates:
            spans = _stretches(candidate)
            texts = [candidate.source.text_of(span) for span in spans]
            places = [(candidate.number, span.start, span.end) for span in spans]
            asks.append(
                [self._ask([candidate], (text,), [at], Rung.APART) for text, at in zip(texts, places, strict=True)]
            )
        if not candidates:
            return
        answers = iter((yield [ask for own in asks for ask in own]))
        for candidate, own in zip(candidates, asks, strict=True):
            given = list(islice(answers, len(own)))
            (part,) = candidate.segment.parts
            try:
                written = [t for answer, ask in zip(given, own, strict=True) for t in self._texts_of(answer, ask)]
                joined = protection.joined(candidate.source, part, written)
            except Damage as error:
                candidate.error = own[-1].outcome = str(error)
                continue
            truncated = any(answer.truncated for answer in given)
            prose = " ".join(ask.texts[0] for ask in own)
            own[-1].outcome = candidate.offer([joined], prose, " ".join(written), truncated, self._manner)

    def _texts_of(self, answer: Answer, ask: Ask) -> list[str]:
        """The translations in an answer. Raises Damage where there is none."""
        if answer.error:
            raise Damage(answer.error)
        try:
            return self._manner.form.read(answer.text, ask.texts, ask.roles)
        except Damage as error:
            raise Damage(_reason(error, answer.truncated)) from error


def asked(
    sources: Sequence[Skeleton], roles: Sequence[str], places: Sequence[Place], rung: Rung, manner: Manner
) -> Ask:
    """What was asked for some places of a row's texts, as ``translation`` asked for it."""
    texts = []
    for number, start, end in places:
        source = sources[number]
        parts = (
            Part(at, max(start, unit.start), min(end, unit.end))
            for at, unit in enumerate(source.units)
            if unit.start < end and start < unit.end
        )
        is_apart = rung is Rung.APART
        texts.append(source.text[start:end] if is_apart else protection.masked(source, Segment(tuple(parts))).text)
    terms = manner.glossary.terms_in(texts)
    return Ask(tuple(texts), tuple(roles[number] for number, _, _ in places), tuple(places), rung, terms=terms)


def _reason(error: Damage, truncated: bool) -> str:
    """Why an answer is none: of one that was cut off, that comes first, for more tokens would mend it."""
    return f"truncated: max_tokens cut the answer off ({error})" if truncated else str(error)


def _stretches(candidate: _Candidate) -> list[Span]:
    (part,) = candidate.segment.parts
    return protection.stretches(candidate.source, part)
