"""Run in the serve environment: one model asked by our harness and by lm-eval's own transformers backend.

Arguments: a folder with task files and data, where to write what both said (JSON), and model folders.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Model, Recipe
from hala_hpc.engines.vllm import Options
from hala_hpc.models import card
from hala_hpc.tasks.evaluate import benchmarks, lm_eval
from hala_hpc.tasks.evaluate.scorer import Attempt, Scorer

ROOT = Path(__file__).parents[3]
ENGINE = Options(
    dtype="float32",
    enforce_eager=True,
    max_num_seqs=64,
    arguments={"distributed_executor_backend": "uni"},
)


def asked(folder: Path, **more: Any) -> dict[str, Any]:
    """A shard's item, as ``tasks.evaluate.task`` makes it."""
    plain = {"benchmark": "test", "few_shot": None, "limit": None, "chat_template": False, "data": None, "seed": 0}
    return plain | {"options": {"task_files": [str(folder)]}} | more


def cases(folder: Path) -> dict[str, dict[str, Any]]:
    """Every kind of request: choices of a letter and a text, with and without chat, sentences, and written answers."""
    mmlu = {"tasks": ["mmlu_csv"], "data": str(folder / "mmlu"), "limit": 8}
    return {
        "letters": asked(folder, few_shot=3, **mmlu),
        "letters_chat": asked(folder, few_shot=3, chat_template=True, **mmlu),
        "texts": asked(folder, tasks=["texts"], data=str(folder / "mmlu"), few_shot=1, limit=8),
        "sentences": asked(folder, tasks=["bl2mp"], data=str(folder / "pairs"), few_shot=5),
        "sentences_chat": asked(folder, tasks=["bl2mp"], data=str(folder / "pairs"), chat_template=True),
        "written": asked(folder, tasks=["written"], data=str(folder / "mmlu"), few_shot=1, limit=6),
        "written_chat": asked(folder, tasks=["written"], data=str(folder / "mmlu"), limit=6, chat_template=True),
        "inputs": asked(folder, tasks=["inputs"], data=str(folder / "mmlu"), limit=3),
        "mass": asked(folder, tasks=["mass"], data=str(folder / "mmlu"), limit=3),
        "group": asked(folder, tasks=["basqbbq"], data=str(folder / "bbq"), few_shot=4, limit=1, chat_template=True),
        "bertaqa": asked(folder, tasks=["bertaqa_eu_local"], data=str(folder / "bertaqa"), few_shot=2, limit=3),
        "mmlu_eu": asked(folder, tasks=["mmlu_eu"], data=str(folder / "mmlu_eu"), few_shot=2),
        "mgsm": asked(folder, tasks=["mgsm_native_cot_eu"], data=str(folder / "mgsm"), few_shot=1, chat_template=True),
    }


BRIEF = ("letters_chat", "texts", "sentences", "written")
"""What every model is asked; the first of them is asked everything."""


def reference(model: Any, one: dict[str, Any]) -> dict[str, Any]:
    """What lm-eval's own command computes with its own model."""
    import lm_eval as theirs
    from lm_eval import evaluator

    evaluator.add_env_info = lambda _: None  # asks pip and others about this machine, for a quarter of a minute
    tasks = lm_eval.load(one["tasks"], one["options"]["task_files"], one["data"])
    found = theirs.simple_evaluate(
        model=model,
        tasks=list(tasks.values()),
        task_manager=lm_eval._manager(False, *one["options"]["task_files"]),  # else it lists all of its own again
        num_fewshot=one["few_shot"],
        limit=one["limit"],
        apply_chat_template=one["chat_template"],
        fewshot_as_multiturn=one["chat_template"],
        bootstrap_iters=0,
    )
    return {name.replace("::", ":"): rows for name, rows in found["samples"].items()} | {
        "results": {name.replace("::", ":"): numbers for name, numbers in found["results"].items()}
    }


def ask(model: Path, folder: Path, chosen: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Through our harness and one engine."""
    from hala_hpc.tasks.evaluate.lm_eval_model import LmEvalScorer

    scorer = Scorer(Recipe("test", None, engine=ENGINE, model=Model(str(model))))
    kept = folder / "kept" / model.name
    found = {}
    for name, one in chosen.items():
        (kept / name).mkdir(parents=True)
        found[name] = [asdict(sample) for sample in lm_eval.evaluate(scorer, one, Attempt(kept / name))]
    before = scorer.counts.requests
    again = lm_eval.evaluate(scorer, chosen["texts"], Attempt(kept / "texts"))
    told = {
        "ours": found,
        "repeated": [asdict(sample) for sample in again] == found["texts"],
        "asked_again": scorer.counts.requests - before,
        "refused": dict(refused(scorer, folder, kept)) if len(chosen) > len(BRIEF) else {},
        "rolling": rolling(LmEvalScorer(scorer, Attempt())),
        "versions": card.versions(lm_eval.PACKAGES),
    }
    scorer.close()
    return told


def refused(scorer: Scorer, folder: Path, kept: Path) -> Iterator[tuple[str, str]]:
    letters = cases(folder)["letters"]
    for case, bad in {
        "unknown": asked(folder, tasks=["mmlu_cvs"]),
        "no data": letters | {"data": str(folder / "nothing")},
        "empty data": letters | {"data": str(folder / "empty")},
        "no mean": letters | {"tasks": ["weighted"], "limit": 2},
        "filter": letters | {"options": {"task_files": [str(folder)], "filter": "none_such"}},
        "metric": letters | {"options": {"task_files": [str(folder)], "metric": "bleu"}},
        "examples": letters | {"few_shot": 1000},
    }.items():
        try:
            lm_eval.evaluate(scorer, bad, Attempt(kept))
        except HalaError as error:
            yield case, str(error)


def names() -> dict[str, Any]:
    """Of Latxa's benchmarks: those that nobody has a task for, and ours of names that the harness has too."""
    files = [str(ROOT / "jobs" / "tasks")]
    theirs = lm_eval._manager(True, str(ROOT / "jobs" / "tasks" / "local")).task_index
    ours = lm_eval._manager(False, *files).task_index
    return {
        "lacking": [name for name in benchmarks.LATXA if name not in (ours if name in benchmarks.OURS else theirs)],
        "hub": {
            name: sorted(
                {(cfg["dataset_path"], cfg.get("dataset_name")) for cfg in _configs(name, ours, theirs)}, key=str
            )
            for name in benchmarks.LATXA
            if name not in ("bl2mp", "bbq", "basqbbq")  # a function of theirs reads the data
        },
        "needless": sorted(name for name in benchmarks.OURS if name in theirs),
    }


def _configs(name: str, ours: Any, theirs: Any) -> list[dict[str, Any]]:
    index = ours if name in benchmarks.OURS else theirs
    entry = index[name]
    return [index[one].cfg for one in entry.tags] if entry.kind.name == "TAG" else [entry.cfg]


def main(folder: Path, out: Path, *models: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    told = {}
    for model in models:
        chosen = {name: one for name, one in cases(folder).items() if model is models[0] or name in BRIEF}
        told[model.name] = ask(model, folder, chosen)
        plain = HFLM(pretrained=str(model), dtype="float32", batch_size=8, device="cpu")
        told[model.name]["theirs"] = {name: reference(plain, one) for name, one in chosen.items()}
        told[model.name]["rolling"] = [told[model.name]["rolling"], rolling(plain)]
    told["names"] = names()
    out.write_text(json.dumps(told, default=str))


TEXTS = ["Bilbo eta Donostia.", "The quick brown fox. " * 400]


def rolling(model: Any) -> list[float]:
    """The second text is several windows long."""
    from lm_eval.api.instance import Instance

    asked = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in TEXTS]
    return list(model.loglikelihood_rolling(asked))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
