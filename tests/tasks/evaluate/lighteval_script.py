"""Runs in the serve environment: one benchmark through our model and through LightEval's own pipeline; see the test."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from hala_hpc.config.schema import Model, Recipe
from hala_hpc.engines import vllm
from hala_hpc.tasks.evaluate import lighteval, local
from hala_hpc.tasks.evaluate.benchmarks import ARABIC, LIGHTEVAL_MODULE
from hala_hpc.tasks.evaluate.scorer import Attempt, Scored, Scorer

LIMIT = 4
FEW_SHOT = 2
TASKS = {
    "arabic_mmlu": ["Accounting (University)", "Economics (University)", "Biology (High School)"],
    "arabic_mmlu_ht": ["anatomy", "global_facts"],
}
FOLDERS = {"arabic_mmlu": "arabicmmlu_egypt", "arabic_mmlu_ht": "mmlu_arabic"}
OPTIONS = vllm.Options(
    dtype="float32",
    max_model_len=2048,
    max_num_seqs=4,
    enforce_eager=True,
    arguments={"distributed_executor_backend": "uni"},
)
MODULE = """
import copy
from lighteval.tasks.multilingual.tasks import arabic

TASKS_TABLE = []
for config in arabic.TASKS_TABLE:
    folder = {folders!r}.get(config.name)
    if folder:
        config = copy.deepcopy(config)
        config.hf_repo = folder
        if config.few_shots_split:
            config.few_shots_split = "dev"  # a list, as it stands there, is refused by LightEval itself
        TASKS_TABLE.append(config)
"""


def asked_of(benchmark: str, bench: Path, chat: bool) -> dict[str, Any]:
    return {
        "benchmark": benchmark,
        "tasks": [f"{benchmark}:{subset}" for subset in TASKS[benchmark]],
        "few_shot": FEW_SHOT if benchmark == "arabic_mmlu" else 0,
        "limit": LIMIT,
        "chat_template": chat,
        "data": str(bench / FOLDERS[benchmark]),
        "options": {"module": LIGHTEVAL_MODULE},
    }


def ours(scorer: Scorer, asked: dict[str, Any], kept: Path | None = None) -> dict[str, Any]:
    found = lighteval.evaluate(scorer, asked, Attempt(kept))  # type: ignore[arg-type]
    return {
        f"{sample.task} {sample.index}": [sample.answer, sample.log_probabilities, sample.score] for sample in found
    }


def copied(asked: list[dict[str, Any]], folder: Path) -> Path:
    """The same questions as LightEval itself reads them, JSONL with a README that names configurations; its module."""
    folders: dict[str, str] = {}
    for each in asked:
        rows = local.read(ARABIC[each["benchmark"]], each["tasks"], Path(each["data"]))
        place, configs = folder / each["benchmark"], []
        for task, splits in rows.items():
            subset = task.partition(":")[2]
            (place / subset).mkdir(parents=True)
            for split in ("test", "dev"):
                lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in splits[split])
                (place / subset / f"{split}.jsonl").write_text(lines)
            paths = [f"\n      - split: {split}\n        path: '{subset}/{split}.jsonl'" for split in ("test", "dev")]
            configs.append(f"  - config_name: '{subset}'\n    data_files:{''.join(paths)}")
            folders[task] = str(place)
        (place / "README.md").write_text("---\nconfigs:\n" + "\n".join(configs) + "\n---\n")
    module = folder / "custom_tasks.py"
    module.write_text(MODULE.format(folders=folders))
    return module


def theirs(model: str, chat: bool, asked: list[dict[str, Any]], module: Path, out: Path) -> dict[str, Any]:
    """LightEval's own pipeline with its transformers backend: details and scores."""
    from lighteval.logging.evaluation_tracker import EvaluationTracker
    from lighteval.models.transformers.transformers_model import TransformersModelConfig
    from lighteval.pipeline import ParallelismManager, Pipeline, PipelineParameters

    config = TransformersModelConfig(
        model_name=model,
        dtype="float32",
        batch_size=4,
        add_special_tokens=not chat,
        override_chat_template=chat,
        cache_dir=str(out / "cache"),
        max_length=OPTIONS.max_model_len,
    )
    pipeline = Pipeline(
        tasks=",".join(f"{task}|{each['few_shot']}" for each in asked for task in each["tasks"]),
        pipeline_parameters=PipelineParameters(
            launcher_type=ParallelismManager.ACCELERATE, custom_tasks_directory=str(module), max_samples=LIMIT
        ),
        evaluation_tracker=EvaluationTracker(output_dir=str(out)),
        model_config=config,
    )
    pipeline.evaluate()
    found = {}
    for name, details in pipeline.get_details().items():
        for each in details:
            answer = list(each.model_response.logprobs)
            score = next(iter(each.metric.values()))
            found[f"{name.partition('|')[0]} {each.doc.id}"] = [answer, score]
    scores = {
        name.partition("|")[0]: next(iter(each.values())) for name, each in pipeline.get_results()["results"].items()
    }
    return {"samples": found, "scores": scores}


class Stop(Exception):
    """As the worker's, on its signal."""


def resumed(scorer: Scorer, asked: dict[str, Any], kept: Path) -> dict[str, Any]:
    """A benchmark that is stopped after some answers and taken up again, and an engine that is free of the first."""
    kept.mkdir()
    before = scorer.counts.requests

    def stop() -> None:
        if scorer.counts.requests > before:
            raise Stop

    with contextlib.suppress(Stop):
        lighteval.evaluate(scorer, asked, Attempt(kept, stop))  # type: ignore[arg-type]
    first = scorer.counts.requests - before
    again = ours(scorer, asked, kept)
    return {"first": first, "second": scorer.counts.requests - before - first, "samples": again}


def two_beginnings(model: str, out: Path) -> dict[str, Any]:
    """Tokens of a prompt where the tokenizer adds a beginning of text by itself, as those of real models do."""
    import shutil

    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    folder = shutil.copytree(model, out / "bos")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos[0]} $A", pair=f"{bos[0]} $A $B", special_tokens=[bos]
    )
    tokenizer.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    class Asked:
        """Takes the place of the engine: only the tokens are looked at."""

        max_length = 1024
        tokens: list[list[int]]

        def log_probabilities(self, pairs: Any, _: Attempt) -> list[Scored]:
            self.tokens = [list(context) + list(follow) for context, follow in pairs]
            return [Scored(-1.0, False) for _ in pairs]

        def generate(self, prompts: Any, _: Attempt) -> list[str]:
            return [
                f"{tokenizer.decode(prompt[-1])} {decoding.max_tokens} {''.join(decoding.stop)}"
                for prompt, decoding in prompts
            ]

    from lighteval.tasks.requests import Doc

    seen: dict[str, Any] = {"bos": bos[1], "adds": tokenizer.encode("x")[0] == bos[1]}
    for chat in (False, True):
        engine = Asked()
        engine.tokenizer = tokenizer  # type: ignore[attr-defined]
        model_of = lighteval.LightevalScorer(engine, chat, None, Attempt())  # type: ignore[arg-type]
        model_of.loglikelihood([Doc(query="سؤال", choices=["أ", "ب"], gold_index=0)])
        seen["chat" if chat else "plain"] = engine.tokens
        docs = [
            Doc(query=query, choices=[], gold_index=0, generation_size=size, stop_sequences=["\n"])
            for query, size in (("a", 3), ("b", None), ("c", 3))
        ]
        if not chat:
            seen["texts"] = [response.text for response in model_of.greedy_until(docs)]
    return seen


def main(out: Path, bench: Path, *models: str) -> None:
    seen: dict[str, Any] = {"two beginnings": two_beginnings(models[0], out)}
    for model, chat in zip(models, (False, True), strict=True):
        name = Path(model).name
        asked = [asked_of(benchmark, bench, chat) for benchmark in TASKS]
        scorer = Scorer(Recipe("test", None, engine=OPTIONS, model=Model(model)))
        case = seen[name] = {"ours": {}}
        for each in asked:
            before = scorer.counts.requests
            case["ours"] |= ours(scorer, each)
            case["requests"] = scorer.counts.requests - before
        case["truncated"] = scorer.counts.truncated
        case["resumed"] = resumed(scorer, asked[-1], out / f"{name} kept")
        scorer.close()
        case["theirs"] = theirs(model, chat, asked, copied(asked, out / name), out / name)
    from lighteval.tasks.multilingual.tasks.arabic import TASKS_TABLE

    seen["table"] = {
        config.name: [config.hf_repo, config.hf_subset, *config.evaluation_splits] for config in TASKS_TABLE
    }
    (out / "seen.json").write_text(json.dumps(seen, ensure_ascii=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
