"""The 29 benchmarks of Latxa-Instruct (arXiv 2506.07597) in lm-evaluation-harness, as its published tables list them.

Static, because planning happens where the harness is not. Those in ``OURS`` have task files in ``jobs/tasks/latxa``:
the harness has none of that name, or one that asks otherwise than the authors did.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Data
from hala_hpc.tasks.evaluate.harness import Benchmark

LAST_NUMBER: Final = "flexible-extract"
"""The harness's filter that takes the last number of a text: the one whose scores the published tables have."""

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
"""Worked examples where it is not five: paper; for bl2mp as in BLiMP, after which it was made (ours)."""
OURS: Final = frozenset(
    {"bertaqa_eu_global", "bertaqa_eu_local", "bertaqa_en_global", "bertaqa_en_local", "bl2mp", "mgsm_native_cot_eu"}
    | {"mmlu_eu", "mmlu_en", "mmlu_es", "bbq", "basqbbq"}
)


def require_task_files(name: str, folders: Sequence[str]) -> None:
    """Refuse one of ``OURS`` without its task file: the harness may have another task of its name. Raises HalaError."""
    if name in OURS and not any(next(Path(folder).rglob(f"{name}.yaml"), None) for folder in folders):
        raise HalaError(f"{name}: its task file is not there", "task.task_files: [the folder jobs/tasks/latxa]")


def hub_data(benchmark: Benchmark) -> list[Data]:
    """The datasets on the hub that one of these benchmarks reads, each with all its splits."""
    configs: list[str | None] = [f"eu_{exam}" for exam in _EXAMS.split()]
    if benchmark.name != "eus_exams_eu":
        configs = [_CONFIGS[benchmark.name]]
    return [Data(hub=benchmark.hub, hub_config=config, split="all") for config in configs] if benchmark.hub else []


def _benchmark(name: str, questions: str, hub: str = "", *_: str) -> Benchmark:
    return Benchmark(
        name,
        "lm_eval",
        tasks=(name,),
        few_shot=FEW_SHOT.get(name, 5),
        hub=hub,
        questions=int(questions),  # of the published results, else of the data's papers
        options={"filter": LAST_NUMBER} if name.startswith("mgsm") else {},
    )


_TABLE: Final = {
    language: [entry.split() for entry in table.split(";")]
    for language, table in {"eu": _BASQUE, "en": _ENGLISH, "es": _SPANISH}.items()
}
_CONFIGS: Final = {row[0]: row[3] if len(row) > 3 else None for rows in _TABLE.values() for row in rows}
BENCHMARKS: Final = {row[0]: _benchmark(*row) for rows in _TABLE.values() for row in rows}
"""By name, in the order of the published tables: Basque, English, Spanish."""
SUITES: Final = {"latxa": tuple(BENCHMARKS)} | {
    f"latxa_{language}": tuple(row[0] for row in rows) for language, rows in _TABLE.items()
}
"""Names that stand for several benchmarks: all, and those of one language."""
