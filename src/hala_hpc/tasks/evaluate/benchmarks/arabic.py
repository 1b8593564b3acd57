"""The six Arabic benchmarks of Hala's evaluation in LightEval: 117 tasks, no examples, choices by log-likelihood.

Static, because planning happens where LightEval is not; a test holds it against LightEval's own table. ArabicMMLU's
task ``All`` is left out: it is all the others once more.
"""

from typing import Final

from hala_hpc.tasks.evaluate.harness import Benchmark

MODULE: Final = "lighteval.tasks.multilingual.tasks.arabic"

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
_ARATRUST: Final = """
Trustfulness; MentalHealth; PhysicalHealth; Offensive; Ethics; Privacy; Unfairness; Illegal;
"""
_ALGHAFA: Final = """
mcq_exams_test_ar; meta_ar_dialects; meta_ar_msa; multiple_choice_facts_truefalse_balanced_task;
multiple_choice_grounded_statement_soqal_task; multiple_choice_grounded_statement_xglue_mlqa_task;
multiple_choice_rating_sentiment_no_neutral_task; multiple_choice_rating_sentiment_task;
multiple_choice_sentiment_task;
"""
_MADINAH: Final = """
Arabic Language (General); Arabic Language (Grammar);
"""


def _benchmark(name: str, hub: str, subsets: str, columns: str, split: str = "test") -> Benchmark:
    names = [subset for part in subsets.split(";") if (subset := " ".join(part.split()))]
    tasks = tuple(f"{name}:{subset}" for subset in names) or (name,)
    named = tuple(part.strip() for part in columns.split(","))
    return Benchmark(name, "lighteval", tasks, 0, None, hub, split, named, options={"module": MODULE})


BENCHMARKS: Final = {
    benchmark.name: benchmark
    for benchmark in (
        _benchmark("alghafa", "OALL/AlGhafa-Arabic-LLM-Benchmark-Native", _ALGHAFA, "query, label, sol1, sol2"),
        _benchmark("aratrust", "asas-ai/AraTrust-categorized", _ARATRUST, "Question, A, B, C, Answer", "train"),
        _benchmark("arabic_mmlu", "MBZUAI/ArabicMMLU", _ARABIC_MMLU, "Question, Answer Key, Option 1, Option 2"),
        _benchmark("arabic_mmlu_ht", "MBZUAI/human_translated_arabic_mmlu", _ARABIC_MMLU_HT, "question, choices"),
        _benchmark("arabic_exams", "OALL/Arabic_EXAMS", "", "subject, question, A, B, C, D, answer"),
        _benchmark("madinah_qa", "MBZUAI/MadinahQA", _MADINAH, "Question, Context, Answer Key, Option 1, Option 2"),
    )
}
"""By name, in the order of the paper's table."""
