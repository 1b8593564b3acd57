"""Benchmarks: what one is, which are known by name, what a recipe makes of them, and who asks them.

Tables are static, because planning happens where the harnesses are not; tests hold them against the harnesses' own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NotRequired, Protocol, TypedDict, cast

from hala_hpc.config.errors import HalaError, did_you_mean, refuse_odd_name
from hala_hpc.config.schema import PATH, Data
from hala_hpc.tasks.evaluate.results import Sample
from hala_hpc.tasks.evaluate.scorer import Attempt, Scorer

HARNESSES: Final = ("lighteval", "lm_eval")
"""Names of harnesses in recipes, and of the modules beside this one that fulfil ``Harness``."""
LIGHTEVAL_MODULE: Final = "lighteval.tasks.multilingual.tasks.arabic"
LAST_NUMBER: Final = "flexible-extract"
"""The filter of lm-eval that takes the last number of a text: the published tables have its scores."""


class HarnessOptions(TypedDict, total=False):
    """A harness's own options: LightEval's ``module`` with the tasks; of lm-eval's tasks the metric and the filter that
    count, and folders of task files.
    """

    module: str
    metric: str
    filter: str
    task_files: list[str]


@dataclass(frozen=True)
class Benchmark:
    """A set of tasks that is reported as one number: the mean of its tasks' scores.

    Tasks have the harness's names. ``few_shot`` None: as the harness says; ``chat_template`` None: where the model has
    one. ``hub`` names the dataset, ``split`` its part that is read, and ``configs`` its configurations, if they are not
    what tasks have after a colon. ``columns`` must be there, and filled, in each row of a local copy. ``questions`` is
    about how many a task has, 0 where nobody knows.
    """

    name: str
    harness: str
    tasks: tuple[str, ...]
    few_shot: int | None = None
    chat_template: bool | None = None
    hub: str = ""
    split: str = "test"
    configs: tuple[str | None, ...] = ()
    columns: tuple[str, ...] = ()
    questions: int = 0
    options: HarnessOptions = field(default_factory=HarnessOptions)


class BenchmarkItem(TypedDict):
    """One benchmark of one model, as the plan has it: a shard's item.

    ``missing`` are tasks that the local data lacks; ``data`` is its folder. ``files_digest`` is that of local data and
    task files, ``weights`` that of the model's files.
    """

    name: NotRequired[str]
    model: NotRequired[str]
    path: NotRequired[str]
    weights: NotRequired[str]
    benchmark: str
    harness: NotRequired[str]
    tasks: list[str]
    missing: NotRequired[list[str]]
    few_shot: int | None
    limit: int | None
    chat_template: bool | None
    system_prompt: NotRequired[str | None]
    data: str | None
    seed: NotRequired[int]
    options: HarnessOptions
    files_digest: NotRequired[str]


class Harness(Protocol):
    """A module that drives one evaluation harness with an engine of ours."""

    PACKAGES: tuple[str, ...]
    """What the numbers depend on: results name their versions."""

    def evaluate(self, scorer: Scorer, item: BenchmarkItem, attempt: Attempt) -> list[Sample]:
        """Ask a model one benchmark. Samples come task by task, by index within one.

        Raises HalaError for what another attempt would not change: an unknown task, missing data.
        """


_ARABIC_MMLU: Final = """
Islamic Studies; Islamic Studies (Middle School); Islamic Studies (Primary School);
Islamic Studies (High School); Driving Test; Natural Science (Middle School); Natural Science (Primary School);
History (Middle School); History (Primary School); History (High School); General Knowledge;
General Knowledge (Middle School); General Knowledge (Primary School); Law (Professional);
Physics (High School); Social Science (Middle School); Social Science (Primary School); Management (University);
Arabic Language (Middle School); Arabic Language (Primary School); Arabic Language (High School);
Political Science (University); Philosophy (High School); Accounting (University);
Computer Science (Middle School); Computer Science (Primary School); Computer Science (High School);
Computer Science (University); Geography (Middle School); Geography (Primary School); Geography (High School);
Math (Primary School); Biology (High School); Economics (Middle School); Economics (High School);
Economics (University); Arabic Language (General); Arabic Language (Grammar); Civics (Middle School);
Civics (High School);
"""
_ARABIC_MMLU_HT: Final = """
abstract_algebra; anatomy; astronomy; business_ethics; clinical_knowledge; college_biology; college_chemistry;
college_computer_science; college_mathematics; college_medicine; college_physics; computer_security;
conceptual_physics; econometrics; electrical_engineering; elementary_mathematics; formal_logic; global_facts;
high_school_biology; high_school_chemistry; high_school_computer_science; high_school_european_history;
high_school_geography; high_school_government_and_politics; high_school_macroeconomics; high_school_mathematics;
high_school_microeconomics; high_school_physics; high_school_psychology; high_school_statistics;
high_school_us_history; high_school_world_history; human_aging; human_sexuality; international_law;
jurisprudence; logical_fallacies; machine_learning; management; marketing; medical_genetics; miscellaneous;
moral_disputes; moral_scenarios; nutrition; philosophy; prehistory; professional_accounting; professional_law;
professional_medicine; professional_psychology; public_relations; security_studies; sociology;
us_foreign_policy; virology; world_religions;
"""
_ARATRUST: Final = "Trustfulness; MentalHealth; PhysicalHealth; Offensive; Ethics; Privacy; Unfairness; Illegal"
_ALGHAFA: Final = """
mcq_exams_test_ar; meta_ar_dialects; meta_ar_msa; multiple_choice_facts_truefalse_balanced_task;
multiple_choice_grounded_statement_soqal_task; multiple_choice_grounded_statement_xglue_mlqa_task;
multiple_choice_rating_sentiment_no_neutral_task; multiple_choice_rating_sentiment_task;
multiple_choice_sentiment_task;
"""
_MADINAH: Final = "Arabic Language (General); Arabic Language (Grammar)"


def subset_of(task: str) -> str:
    """A task's configuration on the hub."""
    return task.partition(":")[2] or "default"


def _arabic(name: str, hub: str, subsets: str, columns: str, split: str = "test") -> Benchmark:
    names = [subset for part in subsets.split(";") if (subset := " ".join(part.split()))]
    tasks = tuple(f"{name}:{subset}" for subset in names) or (name,)
    module: HarnessOptions = {"module": LIGHTEVAL_MODULE}
    return Benchmark(
        name, "lighteval", tasks, 0, hub=hub, split=split, columns=tuple(columns.split(", ")), options=module
    )


ARABIC: Final = {
    benchmark.name: benchmark
    for benchmark in (
        _arabic("alghafa", "OALL/AlGhafa-Arabic-LLM-Benchmark-Native", _ALGHAFA, "query, label, sol1, sol2"),
        _arabic("aratrust", "asas-ai/AraTrust-categorized", _ARATRUST, "Question, A, B, C, Answer", "train"),
        _arabic("arabic_mmlu", "MBZUAI/ArabicMMLU", _ARABIC_MMLU, "Question, Answer Key, Option 1, Option 2"),
        _arabic("arabic_mmlu_ht", "MBZUAI/human_translated_arabic_mmlu", _ARABIC_MMLU_HT, "question, choices"),
        _arabic("arabic_exams", "OALL/Arabic_EXAMS", "", "subject, question, A, B, C, D, answer"),
        _arabic("madinah_qa", "MBZUAI/MadinahQA", _MADINAH, "Question, Context, Answer Key, Option 1, Option 2"),
    )
}
"""The six Arabic benchmarks of Hala's evaluation in LightEval, in the order of the paper's table: 117 tasks, no
examples, choices by log-likelihood. ArabicMMLU's task ``All`` is left out: it is all the others once more."""

_BASQUE: Final = """
arc_eu_challenge 1172 HiTZ/ARC-eu ARC-Challenge; arc_eu_easy 2376 HiTZ/ARC-eu ARC-Easy;
belebele_eus_Latn 900 facebook/belebele eus_Latn; bertaqa_eu_global 2392 HiTZ/BertaQA eu;
bertaqa_eu_local 2364 HiTZ/BertaQA eu; bl2mp 1800 orai-nlp/bl2mp; eus_exams_eu 16774 HiTZ/EusExams exams;
eus_proficiency 5169 HiTZ/EusProficiency default; eus_reading 352 HiTZ/EusReading default;
eus_trivia 1715 HiTZ/EusTrivia default; mgsm_native_cot_eu 250 HiTZ/MGSM-eu;
mmlu_eu 270 orai-nlp/MMLU_HT_eu_sample eu; piqa_eu 1838 HiTZ/PIQA-eu; xstorycloze_eu 1511 juletxara/xstory_cloze eu;
basqbbq 43240
"""
_ENGLISH: Final = """
arc_challenge 1172 allenai/ai2_arc ARC-Challenge; arc_easy 2376 allenai/ai2_arc ARC-Easy;
belebele_eng_Latn 900 facebook/belebele eng_Latn; bertaqa_en_global 2392 HiTZ/BertaQA en;
bertaqa_en_local 2364 HiTZ/BertaQA en; mgsm_native_cot_en 250 juletxara/mgsm en;
mmlu_en 270 orai-nlp/MMLU_HT_eu_sample en; piqa 1838 baber/piqa; xstorycloze_en 1511 juletxara/xstory_cloze en;
bbq 31372 oskarvanderwal/bbq All
"""
_SPANISH: Final = """
belebele_spa_Latn 900 facebook/belebele spa_Latn; mgsm_native_cot_es 250 juletxara/mgsm es;
mmlu_es 270 HiTZ/MMLU_HT_es_sample es; xstorycloze_es 1511 juletxara/xstory_cloze es
"""
_EXAMS: Final = """
ejadministrari ejlaguntza ejlaguntzaile ejteknikari opebilbaoeu opeehuadmineu opeehuauxeu opeehubiblioeu
opeehuderechoeu opeehueconomicaseu opeehuempresarialeseu opeehusubalternoeu opeehutecnicoeu opeehuteknikarib
opegasteizkoudala opeosakiadmineu opeosakiauxenfeu opeosakiauxeu opeosakiceladoreu opeosakienfeu opeosakioperarioeu
opeosakitecnicoeu opeosakivarioseu osakidetza1e osakidetza2e osakidetza3e osakidetza5e osakidetza6e osakidetza7e
"""
FEW_SHOT: Final = {"bbq": 4, "basqbbq": 4, "bl2mp": 0}
"""Worked examples where there are not five: paper; for bl2mp as in BLiMP, after which it was made (ours)."""
OURS: Final = frozenset(
    {"bertaqa_eu_global", "bertaqa_eu_local", "bertaqa_en_global", "bertaqa_en_local", "bl2mp", "mgsm_native_cot_eu"}
    | {"mmlu_eu", "mmlu_en", "mmlu_es", "bbq", "basqbbq"}
)
"""Benchmarks with task files in ``jobs/tasks/latxa``: the harness has no task of that name, or one that asks otherwise
than the authors did."""


def _latxa(name: str, questions: str, hub: str = "", config: str | None = None) -> Benchmark:
    return Benchmark(
        name,
        "lm_eval",
        tasks=(name,),
        few_shot=FEW_SHOT.get(name, 5),
        hub=hub,
        split="all",
        configs=tuple(f"eu_{exam}" for exam in _EXAMS.split()) if config == "exams" else (config,),
        questions=int(questions),  # of the published results, else of the data's papers
        options={"filter": LAST_NUMBER} if name.startswith("mgsm") else {},
    )


_LANGUAGES: Final = {
    f"latxa_{language}": [_latxa(*entry.split()) for entry in table.split(";")]
    for language, table in {"eu": _BASQUE, "en": _ENGLISH, "es": _SPANISH}.items()
}
LATXA: Final = {benchmark.name: benchmark for benchmarks in _LANGUAGES.values() for benchmark in benchmarks}
"""The 29 benchmarks of Latxa-Instruct (arXiv 2506.07597) in lm-evaluation-harness, as its published tables list them:
Basque, English, Spanish."""
KNOWN: Final = ARABIC | LATXA
SETS: Final = {"arabic": tuple(ARABIC), "latxa": tuple(LATXA)} | {
    name: tuple(benchmark.name for benchmark in benchmarks) for name, benchmarks in _LANGUAGES.items()
}
"""Names that stand for several benchmarks."""


@dataclass
class Setting:
    """What a recipe says of one benchmark beyond its name. Null: as the recipe says for all, or the benchmark."""

    harness: str | None = None  # lighteval or lm_eval; null for a name that is not known here: lm_eval
    tasks: list[str] = field(
        default_factory=list
    )  # names of the harness; empty: all of the benchmark, or one of its name
    few_shot: int | None = None
    limit: int | None = None
    chat_template: bool | None = None
    data: str | None = field(default=None, metadata=PATH)  # a folder with its questions, instead of the hub
    task_files: list[str] = field(default_factory=list, metadata=PATH)  # lm-eval: folders, besides the recipe's for all
    metric: str | None = None  # lm-eval: which of the task's metrics counts, and which filter
    filter: str | None = None
    module: str | None = None  # LightEval: its module with the tasks


def find(names: Sequence[str], settings: Mapping[str, Setting], task_files: Sequence[str] = ()) -> list[Benchmark]:
    """The benchmarks that a recipe names, in its order, with its settings. ``task_files`` are folders for lm-eval.

    Raises HalaError for an empty list, a name twice, an unknown harness, or settings of an unnamed benchmark.
    """
    wanted = [benchmark for name in names for benchmark in SETS.get(name, (name,))]
    if not wanted:
        raise HalaError("task.benchmarks: nothing to ask", f"for example {', '.join(SETS)}, {', '.join(KNOWN)}")
    if twice := [name for name in wanted if wanted.count(name) > 1]:
        raise HalaError(f"task.benchmarks: '{twice[0]}' is there twice")
    if strange := sorted(set(settings) - set(wanted)):
        raise HalaError(f"task.settings.{strange[0]}: not in task.benchmarks", did_you_mean(strange[0], wanted))
    return [_with(name, settings.get(name) or Setting(), task_files) for name in wanted]


def _with(name: str, setting: Setting, task_files: Sequence[str]) -> Benchmark:
    """A benchmark with the settings that are its harness's business."""
    where = f"task.settings.{name}"
    refuse_odd_name("task.benchmarks", name, "a benchmark's name")
    known = KNOWN.get(name) or Benchmark(name, "lm_eval", (name,))
    harness = setting.harness or known.harness
    if harness not in HARNESSES:
        raise HalaError(f"{where}.harness: no harness '{harness}'", did_you_mean(harness, HARNESSES))
    refuse_small(where, setting.limit, setting.few_shot)
    if known.harness != harness:
        known = Benchmark(name, harness, (name,))
    given = {key: value for key in ("metric", "filter", "module") if (value := getattr(setting, key)) is not None}
    options = cast("HarnessOptions", known.options | given)
    if harness == "lm_eval" and (folders := [*setting.task_files, *task_files]):
        options["task_files"] = folders
    if harness == "lm_eval" and not setting.tasks:
        require_task_files(name, options.get("task_files", ()))
    if harness == "lighteval" and name in KNOWN and (strange := sorted(set(setting.tasks) - set(known.tasks))):
        raise HalaError(f"{where}.tasks: no task '{strange[0]}'", did_you_mean(strange[0], known.tasks))
    return replace(known, options=options, tasks=tuple(setting.tasks) or known.tasks)


def refuse_small(where: str, limit: int | None, few_shot: int | None) -> None:
    """Raises HalaError for a limit below 1 or a negative number of examples."""
    for key, number, least in (("limit", limit, 1), ("few_shot", few_shot, 0)):
        if number is not None and number < least:
            raise HalaError(f"{where}.{key}: {number}: must be at least {least}")


def require_task_files(name: str, folders: Sequence[str]) -> None:
    """Refuse one of ``OURS`` without its task file: the harness may have another task of its name. Raises HalaError."""
    if name in OURS and not any(next(Path(folder).rglob(f"{name}.yaml"), None) for folder in folders):
        raise HalaError(f"{name}: its task file is not there", "task.task_files: [the folder jobs/tasks/latxa]")


def hub_data(benchmark: Benchmark) -> list[Data]:
    """The datasets on the hub that a benchmark reads; those of other tasks of lm-eval only its task files know."""
    if not benchmark.hub:
        return []
    configs = benchmark.configs or [subset_of(task) for task in benchmark.tasks]
    return [Data(hub=benchmark.hub, hub_config=config, split=benchmark.split) for config in configs]
