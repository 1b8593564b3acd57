"""Cards: what a model or dataset is, where it comes from, under which licences, what it cost, and a model's scores.

Scores are from evaluation runs, and of exactly these weights.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from hala_hpc.config.errors import HalaError, plural, within
from hala_hpc.data.outputs.diff import Diff, markdown
from hala_hpc.models import card
from hala_hpc.models.location import CHOICE
from hala_hpc.publish.content import Content
from hala_hpc.publish.licences import ON_THE_HUB, UNKNOWN, Decision, Origin, normal
from hala_hpc.run import status
from hala_hpc.run.digests import CARD
from hala_hpc.run.files import read_json
from hala_hpc.run.history import WorkTotals
from hala_hpc.tasks.evaluate import results
from hala_hpc.tasks.evaluate.results import Result
from hala_hpc.tasks.mix import card as mix
from hala_hpc.tasks.mix import counts

TAG: Final = "hala-hpc"
"""On the hub; by it a card of ours is known."""


@dataclass(frozen=True)
class Scores:
    """``models``: first the label under which ours was evaluated, then the others of the same runs.

    ``lines``: for each benchmark of ours, by model, the results of the same questions, asked in the same way; ours too.
    ``choices`` say how the model was chosen from others by such scores, where it was.
    """

    models: tuple[str, ...]
    lines: tuple[dict[str, Result], ...]
    choices: tuple[str, ...] = ()

    @property
    def own(self) -> list[Result]:
        return [line[self.models[0]] for line in self.lines]

    def average(self, model: str) -> float | None:
        """Mean of the benchmarks' scores; None where the model lacks one."""
        if any(model not in line for line in self.lines):
            return None
        return fmean(line[model].score for line in self.lines)


def scores_of(runs: Sequence[Path], weights: str) -> Scores:
    """The scores in evaluation runs of the model whose files have the digest ``weights``.

    Raises HalaError where no result is of these weights, whatever its label, or a run is not finished.
    """
    for run in runs:
        if missing := status.missing(run):
            raise HalaError(
                f"--scores {run.name}: {plural(len(missing), 'shard')} not finished", f"`hala resume {run}`"
            )
    evaluated = [result for run in runs for result in results.read(run)]
    own = [result for result in evaluated if result.weights == weights]
    if not own:
        labels = ", ".join(sorted({f"{result.model} ({result.weights[:8]})" for result in evaluated})) or "nothing"
        raise HalaError(
            f"--scores: no result is of these weights ({weights[:8]})", f"they are of {labels}; evaluate the model"
        )
    if len(labels_of_own := {result.model for result in own}) > 1:
        raise HalaError(f"--scores: these weights were evaluated as {' and as '.join(sorted(labels_of_own))}")
    label = own[0].model
    others = dict.fromkeys(result.model for result in evaluated if result.model != label)
    if len({result.benchmark for result in own}) < len(own):
        raise HalaError("--scores: a benchmark was run twice for these weights", "give one evaluation run of each")
    lines = (  # ours is last: other weights may have been evaluated under its label
        {result.model: result for result in (*evaluated, mine) if _way(result) == _way(mine)} for mine in own
    )
    choices = (_choice(read_json(run / CHOICE), weights) for run in runs)
    return Scores((label, *others), tuple(lines), tuple(filter(None, choices)))


def _choice(record: dict[str, Any], weights: str) -> str:
    """What `hala best` wrote down, in a sentence; '' where it chose other weights, or nothing."""
    if record.get("weights") != weights:
        return ""
    names = [candidate["model"] for candidate in record["candidates"]]
    share = float(record["split"]["share"])
    by = f"{share:.0%} of the questions, drawn by a hash of their names" if share < 1 else "all of the questions"
    sentence = f"Chosen among {', '.join(names)} by {by}: {record['rule']['says']}."
    own = next((candidate for candidate in record["candidates"] if candidate["weights"] == weights), None)
    if own and (held_out := own["held_out"]):
        error = f" ± {held_out['error'] * 100:.2f}" if held_out["error"] is not None else ""
        sentence += f" On the other questions its average is {held_out['value'] * 100:.2f}{error}."
    return sentence


def _way(result: Result) -> tuple[object, ...]:
    """What must be the same of two results whose scores stand side by side."""
    how = result.harness, result.few_shot, result.limit, result.chat_template
    return result.benchmark, *how, result.questions, tuple(result.tasks)


NAME: Final = re.compile(r"([\w.-]{1,96}/)?[\w.-]{1,96}")
"""A dataset or a model on the hub."""
TAKEN: Final = {
    "language": (re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|multilingual|code"), "ar"),  # ISO 639 codes, not names
    "datasets": (NAME, "org/name"),
    "base_model": (NAME, "org/name"),
    "tags": (re.compile(r"(?s).*"), "arabic"),
}
"""What the hub takes under a key of the metadata, and an example of it."""
MEND: Final = "mend the README.md of the model"

Metadata = dict[str, object]
"""A card's front matter, which may be anybody's."""


def split(text: str) -> tuple[Metadata, str]:
    """The metadata of a card, as the hub finds them, and the text after them.

    Raises HalaError where the metadata are not a YAML mapping.
    """
    import yaml
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    block = REGEX_YAML_BLOCK.search(text)
    if block is None:
        return {}, text
    try:
        metadata = yaml.safe_load(block[2]) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 2}: " if mark is not None else ""
        raise HalaError(f"the card's metadata are not YAML: {where}{getattr(error, 'problem', error)}", MEND) from error
    if not isinstance(metadata, dict):
        raise HalaError("the card's metadata are not a YAML mapping", MEND)
    return metadata, text[block.end() :].strip() + "\n"


def refuse_odd(text: str) -> None:
    """Refuse metadata that the hub would refuse, after everything else was sent. Raises HalaError naming the key."""
    metadata, _ = split(text)
    for key, (pattern, example) in TAKEN.items():
        for value in _listed(metadata.get(key)):
            if not isinstance(value, str) or not pattern.fullmatch(value):
                raise HalaError(f"the card's {key}: the hub does not take {value!r}", f"for example {example}; {MEND}")


def _listed(value: object) -> list[object]:
    """What a card has under a key that takes one value or several."""
    return value if isinstance(value, list) else [] if value is None else [value]


def join(metadata: Metadata, text: str) -> str:
    """A card; metadata without a value are left out."""
    known = {key: value for key, value in metadata.items() if value not in (None, "", [], {})}
    return f"---\n{card.yaml_of(known)}\n---\n{text.rstrip()}\n"


def licences_in(path: Path) -> list[str]:
    """The licences that a card names, as the hub writes them; none where there is no card or it names none."""
    try:
        metadata, _ = split(path.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError, HalaError):  # somebody else's card: its licence is not known then
        return []
    names = [normal(str(name)) for name in _listed(metadata.get("license")) if name]
    if set(names) <= UNKNOWN and metadata.get("license_name"):
        names = [normal(str(metadata["license_name"]))]
    return [name for name in names if name not in UNKNOWN]


def licence_metadata(licence: str | None, link: str | None = None) -> Metadata:
    """How a card's metadata name a licence. ``link``: the text of one that the hub does not know."""
    if licence is None or licence in ON_THE_HUB:
        return {"license": licence}
    return {"license": "other", "license_name": licence, "license_link": link}


LANGUAGES: Final = {
    "arabic": "ar", "english": "en", "basque": "eu", "spanish": "es", "french": "fr", "german": "de", "italian": "it",
    "portuguese": "pt", "catalan": "ca", "galician": "gl", "turkish": "tr", "persian": "fa", "urdu": "ur",
    "hebrew": "he", "hindi": "hi", "chinese": "zh", "japanese": "ja", "korean": "ko", "russian": "ru", "dutch": "nl",
    "indonesian": "id", "swahili": "sw", "amharic": "am", "somali": "so", "pashto": "ps", "kurdish": "ku",
    "welsh": "cy", "irish": "ga", "polish": "pl", "ukrainian": "uk",
}  # fmt: skip
"""Names of languages as recipes have them, by which the hub's codes (ISO 639-1) are found."""
SIZES: Final = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "n>1B")
ROLES: Final = {"data": "data", "model": "model", "writer": "model that wrote it"}
LLAMA: Final = "llama3"
"""How the names of licences begin that ask for "Built with Llama" beside what was made with the model, and for Llama in
front of its name (1.b.i).
"""
RELATIONS: Final = {"train": "finetune", "export": "finetune", "merge": "merge", "quantize": "quantized"}
"""The hub's base_model_relation, by what made the model."""
SAID: Final = ("name", "task", "data", "model", "sampling")
"""Sections of a recipe that say something of the data; an engine's may name hosts, a site's people and folders."""


@dataclass(frozen=True)
class CardFacts:
    """Everything that a card says besides what is published. ``about`` is a person's own words, Markdown."""

    run: str
    recipe: Mapping[str, Any]
    made_by: Mapping[str, str]
    sources: Sequence[Origin]
    decision: Decision
    work: WorkTotals
    scores: Scores | None = None
    about: str = ""
    licence_file: str | None = None
    redone: Diff | None = None


def model(content: Content, facts: CardFacts) -> str:
    """A model's card: the one that it got when it was made, with licence, sources, scores and what it cost."""
    with within(str(content.folder / CARD)):
        try:
            metadata, text = split((content.folder / CARD).read_text("utf-8-sig"))
        except OSError:
            metadata, text = {}, f"# {facts.run}\n"
        except UnicodeDecodeError as error:
            raise HalaError("not UTF-8", MEND) from error
    kind = str(facts.recipe["task"].get("kind", ""))
    metadata |= licence_metadata(facts.decision.licence, facts.licence_file)
    metadata |= {"base_model_relation": RELATIONS.get(kind)} if metadata.get("base_model") else {}
    more = {"datasets": _datasets_on_hub(facts), "tags": [TAG, *filter(None, [kind])]}
    for key, names in more.items():
        values = [*_listed(metadata.get(key)), *names]  # of any kind, until they are refused
        metadata[key] = [value for at, value in enumerate(values) if value not in values[:at]]
    metadata["model-index"] = _model_index(facts.run, facts.scores) if facts.scores else []
    ours = [*_about(facts), *_scores(facts.scores), *_licences(facts)]
    ours += [] if content.has_hours else _work(facts.work)
    head, mark, rest = text.partition("\n## ")
    return join(metadata, "\n".join([head.rstrip(), "", *ours]) + mark + rest)


def dataset(content: Content, facts: CardFacts) -> str:
    """A dataset's card."""
    task = facts.recipe["task"]
    is_translated = task.get("kind") == "translate"
    how = f"Translated from {task.get('source')} into {task.get('target')}" if is_translated else ""
    mixed = counts.read(content.folder)
    how = how or ("Conversations made up by a model, filtered" if task.get("kind") == "generate" else "")
    how = how or (f"Mixed of {len(mixed)} sources" if mixed else f"Made (task: {task.get('kind')})")
    languages = [LANGUAGES.get(str(task.get(key, "")).lower()) for key in ("target", "source", "language")]
    metadata = licence_metadata(facts.decision.licence, facts.licence_file) | {
        "language": [code for code in languages if code],
        "size_categories": [SIZES[min(max(0, len(str(content.rows)) - 3), len(SIZES) - 1)]],
        "task_categories": ["translation" if is_translated else "text-generation"],
        "tags": [TAG, "synthetic"],
        "source_datasets": [f"extended|{name}" for name in _datasets_on_hub(facts)],
        "configs": [{"config_name": "default", "data_files": "data/*.parquet"}],
    }
    lines = [f"# {facts.run}", "", f"{how} by hala_hpc.", "", *_about(facts)]
    lines += [*card.table(("", ""), _dataset_facts(content, facts)), ""]
    columns = ((f"`{name}`", f"`{kind.replace('|', '/')}`") for name, kind in content.columns)
    lines += ["## Columns", "", *card.table(("column", "type"), columns), ""]
    lines += [*mix.sources(mixed), ""] if mixed else []
    lines += [*markdown(facts.redone), *_licences(facts), *_work(facts.work)]
    recipe = card.without_folders({key: facts.recipe[key] for key in SAID if facts.recipe.get(key)})
    lines += ["## Recipe", "", "```yaml", card.yaml_of(recipe), "```"]
    return join(metadata, "\n".join(lines))


def _datasets_on_hub(facts: CardFacts) -> list[str]:
    return sorted({source.name for source in facts.sources if source.role == "data" and source.on_hub})


def _dataset_facts(content: Content, facts: CardFacts) -> Iterator[tuple[str, str]]:
    yield "rows", f"{content.rows:,}"
    yield from ((f"left out: {_plain(why)}", f"{count:,}") for why, count in sorted(content.quarantined.items()))
    yield from ((_plain(name), _plain(value)) for name, value in content.judgements.items())
    if engine := (facts.recipe.get("engine") or {}).get("kind"):
        yield "engine", str(engine)
    yield from ((key.replace("_", " "), value) for key, value in facts.made_by.items())


def _about(facts: CardFacts) -> list[str]:
    return [facts.about.strip(), ""] if facts.about.strip() else []


def _scores(scores: Scores | None) -> list[str]:
    """Benchmarks by models, this one first. Scores in hundredths, with their standard error."""
    if scores is None:
        return []
    header = ["benchmark", "shots", "questions", "**this model**", *map(_plain, scores.models[1:])]
    rows = []
    for own, line in zip(scores.own, scores.lines, strict=True):
        shots = "" if own.few_shot is None else str(own.few_shot)
        shown = (_percent(line.get(model)) for model in scores.models)
        rows.append([_plain(own.benchmark), shots, f"{own.questions:,}", *shown])
    averages = [scores.average(model) for model in scores.models]
    last = ("" if average is None else f"{average * 100:.2f}" for average in averages)
    lines = ["## Scores", "", *card.table(header, [*rows, ["average of benchmarks", "", "", *last]]), ""]
    lines += [f"- {_plain(own.benchmark)}: {', '.join(notes)}" for own in scores.own if (notes := _notes(own))]
    how = " ".join(["Evaluated on exactly these weights; ± is one standard error.", *map(_plain, scores.choices)])
    return [*lines, "", how, ""]


def _notes(own: Result) -> list[str]:
    """What a reader must know to compare a benchmark."""
    notes = [f"at most {own.limit} questions of each task"] if own.limit is not None else []
    notes += [f"without {len(own.missing)} of its tasks"] if own.missing else []
    return notes + (["with the chat template"] if own.chat_template else [])


def _licences(facts: CardFacts) -> list[str]:
    """Every source with its licence, how ours was come by, and in what it contradicts them."""
    lines = ["## Sources and licences", ""]
    columns = ("source", "used as", "rows", "licence", "named by", "went into")
    lines += [*card.table(columns, map(_source_cells, facts.sources)), ""] if facts.sources else []
    licence = facts.decision.licence
    if licence is not None:
        how = ", the only one of its sources' that contradicts none of them" if facts.decision.carried else ""
        lines += [f"Published under {licence}{how}.", ""]
    if any((source.licence or "").startswith(LLAMA) for source in facts.sources):
        lines += ["Built with Llama.", ""]
    if conflicts := [f"- {_plain(conflict)}" for conflict in facts.decision.conflicts]:
        known = "Known contradictions between this licence and the sources:"
        lines += ["Not published yet:" if licence is None else known, "", *conflicts, ""]
    return lines


def _source_cells(source: Origin) -> tuple[str, ...]:
    place, name = "datasets/" if source.role == "data" else "", _plain(source.name)
    shown = f"[{name}](https://huggingface.co/{place}{name})" if source.on_hub else f"`{name}`"
    shown += f" at `{_plain(source.revision)}`" if source.revision else ""
    licence = _plain(source.licence or "not known")
    return shown, ROLES[source.role], card.number(source.rows), licence, source.named_by, _plain(source.made)


def _work(work: WorkTotals) -> list[str]:
    if not work.workers:
        return []
    rows = [("workers", f"{work.workers:,}"), ("hours of all workers", f"{work.hours:.4g}")]
    rows += [("GPU-hours", f"{work.gpu_hours:.4g}")] if work.gpu_hours else []
    rows += [("hours from first to last", f"{work.elapsed_hours:.4g}")]
    if work.output_tokens:
        rows += [("tokens read", f"{work.prompt_tokens:,}"), ("tokens written", f"{work.output_tokens:,}")]
    rows += [("answers whose thinking is left out", f"{work.thoughts:,}")] if work.thoughts else []
    rows += [("prompts with names of control tokens, sent as text", f"{work.escaped:,}")] if work.escaped else []
    return ["## What it cost", "", *card.table(("", ""), rows), ""]


def _percent(result: Result | None) -> str:
    """A score with its standard error, which is left out where it is unknown (NaN)."""
    if result is None:
        return ""
    error = result.mean.error
    return f"{result.score * 100:.2f}" + ("" if math.isnan(error) else f" ± {error * 100:.2f}")


def _model_index(name: str, scores: Scores) -> list[object]:
    """Scores as the hub's own field has them: there they stand without notes, so tries on a few questions do not."""
    from huggingface_hub.repocard_data import EvalResult, eval_results_to_model_index

    results = []
    for own in scores.own:
        if own.limit is not None or own.missing:
            continue
        metric = ", ".join(sorted({task.metric for task in own.tasks.values()}))
        results.append(EvalResult("text-generation", own.benchmark, own.benchmark, metric, round(own.score, 6)))
    return list(eval_results_to_model_index(name, results)) if results else []


def _plain(text: str) -> str:
    """Text in a cell of a table: no bars, no new lines, and nothing that a browser would take for a tag."""
    return re.sub(r"\s+", " ", text).replace("|", "/").replace("<", "&lt;")
