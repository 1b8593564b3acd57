"""What a judged row can hold, with the wordings and verdicts that go with it: all of them ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hala_hpc.text import rules

_DEGREES: Final = {"1": 0.0, "2": 0.25, "3": 0.5, "4": 0.75, "5": 1.0}
PAIR: Final = """\
Here is a text in {source} and a translation of it into {target}.

{source}:
{original}

{target}:
{translation}

How good is the translation?
1: it is wrong, or of another text.
2: much of the meaning is lost or changed.
3: the meaning is mostly there, with clear mistakes.
4: the meaning is right, with small mistakes.
5: it says exactly what the text says, in natural {target}.
Answer with the digit alone."""
PAIR_AGAIN: Final = """\
Rate a translation from {source} into {target} on a scale from 1 (unrelated or unusable) to 5 (complete, correct and
fluent). Nothing may be left out, added or changed.

Text:
{original}

Translation:
{translation}

Answer with one digit, from 1 to 5."""
ANSWER: Final = """\
Here is an instruction and an answer to it, both in {target}.

Instruction:
{instruction}

Answer:
{response}

How good is the answer?
1: it does not answer, or cannot be understood.
2: it answers badly, or in broken {target}.
3: it is partly right, with clear mistakes.
4: it is right, in good {target}, with small flaws.
5: it is right and complete, and written as a native speaker writes.
Answer with the digit alone."""
ANSWER_AGAIN: Final = """\
Rate the {target} of this instruction and its answer, and whether the answer does what is asked, on a scale from 1
(unusable) to 5 (helpful and fluent).

Instruction:
{instruction}

Answer:
{response}

Answer with one digit, from 1 to 5."""
BETTER: Final = """\
Here is a text in {source} and two translations of it into {target}.

Text:
{original}

Translation 1:
{first}

Translation 2:
{second}

Which translation is better: which one says more exactly what the text says, in more natural {target}?
Answer with 1 or 2 alone."""


@dataclass(frozen=True)
class Form:
    """What ``task.rows`` stands for.

    Parameters
    ----------
    columns : where its texts usually stand; none: the recipe names them.
    names : of its texts, as prompts have them.
    rules : those that hold where the recipe names none.
    more : others that it may name.
    prompts : wordings.
    verdicts : words that a model answers with, and what each is worth.
    """

    columns: Sequence[str]
    names: Sequence[str]
    rules: Sequence[str]
    more: Sequence[str]
    prompts: Sequence[str]
    verdicts: Mapping[str, float]


FORMS: Final[dict[str, Form]] = {
    "pairs": Form(
        ("source", "target"), ("original", "translation"), rules.PAIRS, rules.MORE, (PAIR, PAIR_AGAIN), _DEGREES
    ),
    "instructions": Form(
        ("instruction", "response"), ("instruction", "response"), rules.ANSWERS, (), (ANSWER, ANSWER_AGAIN), _DEGREES
    ),
    "candidates": Form((), ("original", "first", "second"), rules.PAIRS, rules.MORE, (BETTER,), {"1": 1.0, "2": 0.0}),
}
"""The values of ``task.rows``. In ``candidates`` a verdict is worth what it says of the first of two."""
