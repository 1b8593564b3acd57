"""How texts are translated: the recipe's ``task:`` section for ``kind: translate``, and what it means for ``text``."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal

from hala_hpc.config.errors import HalaError, did_you_mean
from hala_hpc.config.schema import Recipe, TaskOptions
from hala_hpc.data.cut import estimated_tokens
from hala_hpc.text import checks, inside, ladder, prompts
from hala_hpc.text.checks import Pair
from hala_hpc.text.forms import FORMS
from hala_hpc.text.glossary import Glossary
from hala_hpc.text.ladder import Manner
from hala_hpc.text.languages import language
from hala_hpc.text.patterns import Kind

CONTEXT: Final = "{context}"
GLOSSARY: Final = "{glossary}"
"""Places that a prompt may have beside ``{text}``."""
PLACES: Final = (CONTEXT.strip("{}"), GLOSSARY.strip("{}"))
LEAST_TOKENS: Final = 16
"""Of a segment, however little room a model's context leaves (ours)."""
GATE: Final = {"shape": "quarantine", "loops": "quarantine", "truncated": "quarantine"}
"""What follows where a check fails, of those that are not ``ask``."""
ACTIONS: Final = ("flag", "ask", "quarantine")
RUNGS: Final = {rung.name.lower(): rung for rung in ladder.RUNGS}


@dataclass
class Segments:
    """How texts are cut, protected, asked for and checked."""

    tokens: int = 400  # most of what is asked for at once; ours. 0: each text is asked for whole, as it is, unchecked
    together: bool = True  # texts of a row share a request where all of them fit (paper: arXiv 2404.16257)
    form: Literal["marked", "json"] = "marked"  # how the texts of a request are written
    rungs: list[str] = field(default_factory=lambda: list(RUNGS))  # what follows where a check fails; again may repeat
    warmer: float = 0.3  # temperature of those, where the recipe's is lower: at 0 the answer would be the same; ours
    gate: dict[str, str] = field(default_factory=dict)  # by check: flag, ask (again, then flag) or quarantine (at last)
    patterns: list[str] = field(default_factory=list)  # of one's own, regular expressions, to stay as they are
    apart: list[str] = field(default_factory=list)  # kinds of spans that are left out, not marked
    inside: list[str] = field(default_factory=list)  # json, comments: blocks whose words are translated


@dataclass
class Options(TaskOptions):
    """The recipe's ``task:`` section for ``kind: translate``."""

    kind: str = "translate"
    source: str = "English"
    target: str = "Arabic"
    suffix: str = "_ar"  # instruction becomes instruction_ar
    prompt: str = "Translate everything that follows into {target}:\n\n{text}"  # observed (Hala's light translator)
    system: str | None = None
    chat: bool = True  # false: the prompt is given to the model bare, without its chat template
    roles: list[str] = field(default_factory=lambda: ["user", "assistant"])  # turns of others are kept as they are
    truncated: Literal["quarantine", "keep"] = "quarantine"  # a text that max_tokens cut off is spoiled
    segments: Segments = field(default_factory=Segments)
    context: str = "Before it stands:\n{source_before}\n\nwhich is translated as:\n{translation_before}\n\n"  # ours
    hints: str = "Translate these terms as given: {terms}\n\n"  # ours; both where the prompt has {context}, {glossary}
    glossary: dict[str, str] = field(default_factory=dict)  # terms and their translations

    BEFORE: ClassVar[Mapping[str, Any]] = {"segments": {"tokens": 0}}
    """What runs did that were planned before there was such a key (see ``config.compose.thaw``)."""


def manner_of(recipe: Recipe) -> Manner:
    """How the texts of a recipe are translated. Raises HalaError for languages, patterns and checks that cannot be."""
    options: Options = recipe.task
    try:
        pair = Pair(language(options.source), language(options.target))
    except LookupError as error:
        raise HalaError(
            f"task: no language is called '{error.args[0]}'",
            "its English name or code; what else a model is to be told stands in task.prompt",
        ) from error
    try:
        own = tuple(map(re.compile, options.segments.patterns))
    except re.error as error:
        raise HalaError(f"task.segments.patterns: {error.pattern!r}: {error}", "a regular expression") from error
    segments = options.segments
    _refuse_unknown("gate", segments.gate, ["shape", "truncated", *checks.BOUNDS])
    _refuse_unknown("gate", segments.gate.values(), ACTIONS)
    _refuse_unknown("rungs", segments.rungs, RUNGS)
    _refuse_unknown("apart", segments.apart, [kind for kind in Kind if kind not in (Kind.PROSE, Kind.LAYOUT)])
    _refuse_unknown("inside", segments.inside, inside.CHOICES)
    tokens, context = segments.tokens, getattr(recipe.engine, "max_model_len", None)
    if context:  # prompt, segment and answer share it
        around = estimated_tokens(options.prompt + (options.system or ""))
        room = context - around - (recipe.sampling.max_tokens or context // 2)
        tokens = max(LEAST_TOKENS, min(tokens, room))
    return Manner(
        pair,
        estimated_tokens,
        tokens,
        rungs=[RUNGS[rung] for rung in segments.rungs],
        only_flag=frozenset(check for check, action in segments.gate.items() if action == "flag"),
        together=segments.together,
        with_context=CONTEXT in options.prompt,
        form=FORMS[segments.form],
        glossary=Glossary(options.glossary),
        phrases=prompts.phrases(options.prompt, {"source": options.source, "target": options.target}),
        apart=frozenset(map(Kind, segments.apart)),
        own=own,
        inside=frozenset(segments.inside),
    )


def _refuse_unknown(key: str, words: Iterable[str], known: Iterable[str]) -> None:
    if unknown := sorted(set(words) - set(known)):
        raise HalaError(f"task.segments.{key}: there is no '{unknown[0]}'", did_you_mean(unknown[0], known))
