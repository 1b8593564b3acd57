"""What conversations are made of: the recipe's ``task:`` section for ``kind: generate``, and what cannot be."""

import re
from dataclasses import dataclass, field, fields
from typing import Final, Literal

from hala_hpc import engines
from hala_hpc.config.errors import HalaError, refuse_odd_name
from hala_hpc.config.schema import Data, Recipe, Sampling, TaskOptions
from hala_hpc.text.filters import Filters, Looking
from hala_hpc.text.languages import Language, language

PLACE: Final = re.compile(r"\{(\w+)\}")
"""Where a template has the text of a column."""
EXAMPLE: Final = "for example: Ask a question that this text answers:\n\n{text}"
OF_ROWS: Final = ("kinds",)
OF_TEMPLATES: Final = ("template_is", "system")
"""Keys that mean nothing without ``task.rows``, and without ``task.template``."""


@dataclass
class TaskKind:
    """A kind of task that instructions are about: what the model is told before it writes a user's turn."""

    system: str | None = None
    weight: float = 1.0  # how many of the rows, compared with the other kinds
    any_language: bool = False  # its turns need not be in task.language, as those of translations


@dataclass
class Drawing:
    """How users' turns are drawn; answers are drawn as the recipe's ``sampling`` says, whose seed is for both."""

    temperature: float = 1.0  # observed (Magpie's own script)
    top_p: float = 1.0  # observed (Magpie)
    top_k: int = 0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = 1024  # observed (Magpie's script for Llama 3.1 8B)
    stop: list[str] = field(default_factory=list)  # texts that end a user's turn, besides the model's own tokens


@dataclass
class Options(TaskOptions):
    """The recipe's ``task:`` section for ``kind: generate``.

    Either ``rows`` and ``kinds``, or ``data`` and ``template``.
    """

    kind: str = "generate"
    rows: int | None = None  # so many conversations from nothing but the model
    kinds: dict[str, TaskKind] = field(default_factory=dict)  # by name; {}: general alone, without a system prompt
    template: str | None = None  # over the columns of data: {text}
    template_is: Literal["request", "instruction"] = "request"  # it asks for the instruction, or is it
    system: str | None = None  # before the request that a template makes
    turns: int = 1  # of the user, each answered
    language: str | None = "English"  # of all turns; null: any
    suffix: str = ""  # messages becomes messages_new
    instructions: Drawing = field(default_factory=Drawing)
    filters: Filters = field(default_factory=Filters)


@dataclass(frozen=True)
class Manner:
    """How the conversations of a recipe are made. ``kinds`` is empty where they come from rows."""

    kinds: dict[str, TaskKind]
    instructions: Sampling
    language: Language | None
    looking: Looking


def manner_of(recipe: Recipe) -> Manner:
    """Raises HalaError for options that cannot be."""
    options: Options = recipe.task
    has_data = bool(recipe.data.path or recipe.data.hub)
    _refuse_mixed(recipe, has_data)
    if options.turns < 1:
        raise HalaError(f"task.turns: {options.turns}: must be at least 1")
    if (options.turns > 1 or not has_data) and not engines.abilities(recipe.engine.kind).writes_users:
        able = " or ".join(kind for kind in engines.KINDS.names() if engines.abilities(kind).writes_users)
        raise HalaError(
            f"engine.kind: {recipe.engine.kind} cannot begin a user's turn, only answer one",
            f"engine.kind={able}; or data with task.template, and task.turns=1",
        )
    instructions = Sampling(**vars(options.instructions), seed=recipe.sampling.seed)
    engines.check_sampling(instructions, "task.instructions")
    context, most = getattr(recipe.engine, "max_model_len", None), instructions.max_tokens
    if context is not None and most is not None and most >= context:
        raise HalaError(
            f"task.instructions.max_tokens: {most} leaves no room for a prompt in a context of {context}",
            "a smaller one, or a larger engine.max_model_len",
        )
    kinds = {} if has_data else (options.kinds or {"general": TaskKind()})
    for name, kind in kinds.items():
        refuse_odd_name("task.kinds", name, "a kind's name")
        if kind.weight <= 0:
            raise HalaError(f"task.kinds.{name}.weight: must be more than 0", "leave the kind out instead")
    try:
        spoken = language(options.language) if options.language is not None else None
    except LookupError as error:
        raise HalaError(
            f"task.language: no language is called '{error.args[0]}'", "its English name or code; null: any"
        ) from error
    try:
        looking = Looking(options.filters, spoken)
    except re.error as error:
        raise HalaError(f"task.filters.patterns: {error.pattern!r}: {error}", "a regular expression") from error
    return Manner(kinds, instructions, spoken, looking)


def _refuse_mixed(recipe: Recipe, has_data: bool) -> None:
    """Raises HalaError where it is not said, or said twice, what the conversations begin with."""
    options: Options = recipe.task
    if not has_data:
        if options.rows is None:
            raise HalaError("task.rows is missing", "how many conversations; or data and task.template")
        if options.rows < 1:
            raise HalaError(f"task.rows: {options.rows}: must be at least 1")
        if odd := next(
            (key.name for key in fields(Data) if getattr(recipe.data, key.name) != _default(key.name)), None
        ):
            raise HalaError(f"data.{odd}: task.rows makes its own rows", "data.path or data.hub reads some instead")
        if options.template is not None:
            raise HalaError("task.template: there are no rows to fill it with", "data.path or data.hub")
        _refuse_set(options, OF_TEMPLATES, "is for task.template")
        return
    if options.rows is not None:
        raise HalaError("task.rows: data says how many there are", "data.limit takes the first so many; or no data")
    if options.template is None or not PLACE.search(options.template):
        raise HalaError("task.template: has no place for the text of a column", EXAMPLE)
    _refuse_set(options, OF_ROWS, "is for task.rows")
    if options.template_is == "instruction" and options.system is not None:
        raise HalaError("task.system: nobody is asked for an instruction that a template makes", "leave it out")
    if recipe.data.columns or recipe.data.shape != "auto":
        key = "columns" if recipe.data.columns else "shape"
        raise HalaError(f"data.{key}: task.template names the columns", "leave it out")


def _default(key: str) -> object:
    return getattr(Data(), key)


def _refuse_set(options: Options, keys: tuple[str, ...], why: str) -> None:
    if odd := next((key for key in keys if getattr(options, key) != getattr(Options(), key)), None):
        raise HalaError(f"task.{odd}: {why}", "leave it out")
