"""The options of a mix (the ``task:`` section of ``kind: mix``), and which of them cannot be."""

from dataclasses import dataclass, field, fields
from typing import Final, Literal

from hala_hpc.config.errors import HalaError, refuse_odd_name
from hala_hpc.config.schema import Data, Recipe, TaskOptions
from hala_hpc.data import shapes
from hala_hpc.text import prompts
from hala_hpc.text.languages import language

PAIRS: Final = "pairs"
"""The shape of rows that hold a text and its translation, in two columns."""
FORWARD: Final = "forward"
BACKWARD: Final = "backward"
OF_PAIRS: Final = ("direction", "prompt", "source", "target")
"""Keys of pairs alone, of the task and of a source."""
Direction = Literal["forward", "backward", "both"]


@dataclass
class Source(Data):
    """One source: rows as ``data`` names them. Keys that are null are as the task has them.

    Rows of ``shape: pairs`` (``columns``: text, translation) become a prompt with its answer in each direction; rows
    of any other shape are read as a training reads rows of ``kind: chat``.
    """

    sample: int | None = None  # so many rows, drawn by the seed; null: all
    weight: float = 1.0  # how often each row is taken: 2 twice, 0.5 half of them
    direction: Direction | None = None
    prompt: str | None = None
    source: str | None = None
    target: str | None = None


@dataclass
class Duplicates:
    """Which rows are left out because an earlier one, of any source, says the same."""

    by: Literal["whole", "prompt"] = "whole"  # prompt: without the last answer; of pairs the text
    exact: bool = True  # the same once case, width and spaces are made alike
    near: float | None = 0.8  # estimated Jaccard similarity of shingles from which two are alike; null: not looked for
    shingle: int = 5  # characters of a shingle (ours: as good for a line of Arabic as for a page of English)
    permutations: int = 128  # of MinHash: the standard error at similarity s is sqrt(s (1 - s) / 128)
    bands: int = 16  # of its index: two rows of similarity s meet in it with 1 - (1 - s ** (128 / 16)) ** 16


@dataclass
class Options(TaskOptions):
    """The recipe's ``task:`` section for ``kind: mix``. Of two duplicates the one of the source further up stays."""

    kind: str = "mix"
    sources: dict[str, Source] = field(default_factory=dict)
    source: str | None = None  # of pairs: the language of the first column, and of the second
    target: str | None = None
    direction: Direction = "both"  # forward: the translation is learned; backward: the text is
    prompt: str = "Translate everything that follows into {target}:\n\n{text}"  # observed (Hala's light translator)
    duplicates: Duplicates = field(default_factory=Duplicates)
    seed: int = 0  # of what is drawn and of the order

    def of(self, name: str) -> Source:
        """A source with the task's own values where it has none."""
        given = self.sources[name]
        values = {each.name: getattr(given, each.name) for each in fields(Source)}
        values |= {key: getattr(self, key) for key in OF_PAIRS if not values[key]}
        return Source(**values)


def check(recipe: Recipe) -> None:
    """Raises HalaError for options that cannot be, before any data is read."""
    options: Options = recipe.task
    if not options.sources:
        raise HalaError("task.sources is missing", "task.sources.NAME.path=FILE, or .hub=ORG/NAME")
    if recipe.data.path or recipe.data.hub:
        raise HalaError("data: a mix reads task.sources alone", "task.sources.NAME.path or .hub")
    for name in options.sources:
        refuse_odd_name("task.sources", name, "a source's name")
        _check_source(f"task.sources.{name}", options.of(name), options.sources[name])
    _check_duplicates(options.duplicates)


def _check_source(where: str, source: Source, given: Source) -> None:
    shapes.check(source)
    if source.weight <= 0:
        raise HalaError(f"{where}.weight: must be more than 0", "leave the source out instead")
    for key, value in (("sample", source.sample), ("limit", source.limit)):
        if value is not None and value < 1:
            raise HalaError(f"{where}.{key}: must be at least 1, not {value}", "null takes all rows")
    if source.shape != PAIRS:
        if odd := [key for key in OF_PAIRS if getattr(given, key)]:
            raise HalaError(f"{where}.{odd[0]}: only pairs have it", f"shape: {PAIRS} and columns: [TEXT, TRANSLATION]")
        return
    if len(source.columns) != 2 or len(set(source.columns)) != 2:
        raise HalaError(f"{where}.columns: pairs are in two columns", "columns: [TEXT, TRANSLATION]")
    if problem := prompts.problem_of(str(source.prompt)):
        raise HalaError(f"{where}.prompt: {problem}", "for example: Translate into {target}: {text}")
    named = [key for key in ("source", "target") if f"{{{key}}}" in str(source.prompt)]
    if source.direction != FORWARD:
        if not named:
            hint = "with {target} in the prompt, or direction: forward"
            raise HalaError(f"{where}.prompt: names no language, and direction is {source.direction}", hint)
        named = ["source", "target"]
    if lacking := [key for key in named if not getattr(source, key)]:
        raise HalaError(f"{where}.{lacking[0]}: no language, and the prompt names one", "English, Arabic, …")
    try:
        codes = [language(getattr(source, key)).code for key in named]
    except LookupError as error:
        raise HalaError(f"{where}: no language is called '{error.args[0]}'", "its English name or code") from error
    if len(set(codes)) < len(codes):
        raise HalaError(f"{where}: source and target are one language", "name two")


def _check_duplicates(duplicates: Duplicates) -> None:
    where = "task.duplicates"
    if duplicates.near is not None and not 0 < duplicates.near <= 1:
        raise HalaError(f"{where}.near: {duplicates.near} is no similarity", "above 0, at most 1; null: not looked for")
    for key in ("shingle", "permutations", "bands"):
        if getattr(duplicates, key) < 1:
            raise HalaError(f"{where}.{key}: must be at least 1")
    if duplicates.permutations % duplicates.bands:
        raise HalaError(
            f"{where}.bands: {duplicates.permutations} permutations are not so many bands", "for example 16"
        )
