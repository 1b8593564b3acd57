"""Evaluation: questions a second through our model against the harnesses by hand, and one engine against one each.

LightEval 0.13's vLLM backend refuses the present vLLM, so what it does is done by hand here, on the same engine: every
choice of a question is a prompt whose log-probabilities are asked for. lm-evaluation-harness's own vLLM model is asked
as it is, on the same engine too. All run the harnesses' tasks, prompts and metrics; ours also keeps its answers durably
and writes the result.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import ROOT, SERVE, data, quiet, report, title

TASKS = {
    "arabic_mmlu": ("arabicmmlu_egypt", ["Biology (High School)", "History (High School)", "Driving Test"]),
    "arabic_mmlu_ht": ("mmlu_arabic", ["anatomy", "astronomy", "nutrition"]),
    "mmlu_again": ("mmlu_arabic", ["virology", "sociology", "marketing"]),
}
SHOTS = 5
"""Worked examples of lm-eval's task, as Latxa has them."""
TOLD = {"benchmark": "b", "model": "m", "path": "", "weights": "", "harness": "h", "versions": {}, "engine": {}}
TOLD |= {"few_shot": 0, "seconds": 0.0}

Ask = Callable[[int], int]
"""Ask so many questions of each task; how many that were."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=25, help="of each task")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--architecture", default="llama")
    parser.add_argument("--inner", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inner:
        inner(arguments.inner, arguments.questions, arguments.times)
        return
    title("models_evaluation")
    measure(arguments.questions, arguments.times, arguments.architecture)


def measure(questions: int, times: int, architecture: str = "llama") -> None:
    """Print the figures; the work is done in the serve environment."""
    if not SERVE.is_file():
        sys.exit("no serve environment: make serve")
    data("arabic_bench")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        quiet(SERVE, ROOT / "jobs" / "demo" / "tiny_model.py", model, "--architecture", architecture)
        environment = os.environ | {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "HF_HUB_OFFLINE": "1",
        }
        command = [SERVE, __file__, "--inner", folder, "--questions", questions, "--times", times]
        said = quiet(*command, env=environment)
        shown = [line for line in said.splitlines() if "bar: " in line or line.startswith("by ")]
        print("\n".join(shown), flush=True)


class ByHand:
    """Answers as LightEval's vLLM backend does: each choice a prompt, all in one call of ``LLM.generate``."""

    def __init__(self, scorer: Any) -> None:
        self.llm = scorer._engine._llm
        self.tokenizer, self.max_length = scorer.tokenizer, scorer.max_length

    def log_probabilities(self, pairs: Sequence[Any], *_: Any) -> list[Any]:
        from vllm import SamplingParams, TokensPrompt

        from hala_hpc.tasks.evaluate.scorer import Scored

        inputs = [(list(context) + list(follow))[-self.max_length :] for context, follow in pairs]
        params = SamplingParams(temperature=0, prompt_logprobs=1, max_tokens=1, detokenize=False)
        outputs = self.llm.generate([TokensPrompt(prompt_token_ids=one) for one in inputs], params, use_tqdm=False)
        found = []
        for (_, follow), output in zip(pairs, outputs, strict=True):
            told = [place[token] for token, place in zip(follow[::-1], output.prompt_logprobs[::-1], strict=False)]
            found.append(Scored(sum(each.logprob for each in told), all(each.rank == 1 for each in told)))
        return found


def inner(folder: Path, questions: int, times: int) -> None:
    """In the serve environment."""
    from hala_hpc.config.schema import Model, Recipe
    from hala_hpc.engines import vllm
    from hala_hpc.tasks.evaluate.scorer import Scorer

    options = vllm.Options(
        dtype="float32",
        max_model_len=2048,
        max_num_seqs=64,
        enforce_eager=True,
        arguments={"distributed_executor_backend": "uni"},
    )

    def engine() -> Any:
        return Scorer(Recipe("bench", None, engine=options, model=Model(str(folder / "model"))))

    scorer = engine()
    by_hand = ByHand(scorer)
    pairs: dict[str, tuple[Ask, Ask]] = {
        "LightEval": (
            lambda limit: evaluated(scorer, "arabic_mmlu", limit, folder),
            lambda limit: evaluated(by_hand, "arabic_mmlu", limit, folder),
        ),
        "lm-eval": lm_eval_pair(scorer, folder),
    }
    for name, pair in pairs.items():
        compared(name, pair, questions, times, by_hand.llm.reset_prefix_cache)
    scorer.close()
    engines(engine, folder, questions)


def compared(name: str, pair: tuple[Ask, Ask], questions: int, times: int, forget: Callable[[], Any]) -> None:
    """Both in turns, after a warm-up; nothing is in the prefix cache when one begins."""
    rates: list[list[float]] = [[], []]
    for ask in pair:
        ask(4)
    for _ in range(times):
        for ask, found in zip(pair, rates, strict=True):
            forget()
            began = time.perf_counter()
            found.append(ask(questions) / (time.perf_counter() - began))
    ratio = statistics.median(ours / hand for ours, hand in zip(*rates, strict=True))
    for who, found in zip(("through hala_hpc", "by hand"), rates, strict=True):
        report(f"{name}, {who}", statistics.median(found), "questions/s", "", True)
        print(f"by pair: {', '.join(f'{rate:.1f}' for rate in found)}")
    report(f"{name}, hala_hpc / by hand, median of {times}", ratio, "", "at least 0.95", ratio >= 0.95)


def lm_eval_pair(scorer: Any, folder: Path) -> tuple[Ask, Ask]:
    """Ours, and ``lm_eval.models.vllm_causallms.VLLM`` with our engine in the place of the one that it would start."""
    import logging
    from unittest import mock

    from lm_eval import evaluator
    from lm_eval.models import vllm_causallms

    from hala_hpc.tasks.evaluate import lm_eval, results
    from hala_hpc.tasks.evaluate.scorer import Attempt

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    source, rows = data("arabic_bench", "mmlu_english", "test"), folder / "mmlu" / "test"
    rows.mkdir(parents=True)
    for subject in ("anatomy", "astronomy", "nutrition"):
        shutil.copy(source / f"{subject}_test.csv", rows / f"{subject}.csv")
    files = [str(ROOT / "jobs" / "tasks" / "local")]
    with mock.patch.object(vllm_causallms, "LLM", lambda **_: scorer._engine._llm):
        theirs = vllm_causallms.VLLM(pretrained=str(folder / "model"), max_model_len=scorer.max_length + 1)

    def ours(limit: int) -> int:
        asked = {"benchmark": "mmlu", "tasks": ["mmlu_csv"], "few_shot": SHOTS, "limit": 3 * limit, "seed": 0}
        asked |= {"data": str(rows.parent), "chat_template": False, "options": {"task_files": files}}
        found = lm_eval.evaluate(scorer, asked, Attempt(Path(tempfile.mkdtemp(dir=folder))))
        results.write(folder / "result", found, TOLD | {"limit": limit, "questions_per_second": 0.0})
        shutil.rmtree(folder / "result")
        return len(found)

    def by_hand(limit: int) -> int:
        tasks = lm_eval.load(["mmlu_csv"], files, str(rows.parent))
        lm_eval.prepare(tasks, SHOTS, 0)
        asked = {"tasks": tasks, "groups": {}}
        found = evaluator.evaluate(lm=theirs, task_dict=asked, limit=3 * limit, bootstrap_iters=0)
        return len(found["samples"]["mmlu_csv"])

    return ours, by_hand


def engines(engine: Any, folder: Path, questions: int) -> None:
    """One engine for all benchmarks against an engine each."""
    began = time.perf_counter()
    scorer = engine()
    for name in TASKS:
        evaluated(scorer, name, questions, folder)
    scorer.close()
    one = time.perf_counter() - began
    began = time.perf_counter()
    for name in TASKS:
        scorer = engine()
        evaluated(scorer, name, questions, folder)
        scorer.close()
    each = time.perf_counter() - began
    report(f"{len(TASKS)} benchmarks with one engine", one, "s", "", True)
    report(f"{len(TASKS)} benchmarks with an engine each", each, "s", "", True)
    report("one engine / an engine each", one / each, "", "below 1", one < each)


def evaluated(scorer: Any, name: str, limit: int, folder: Path) -> int:
    """Ask a benchmark and write its result; the number of questions."""
    from hala_hpc.tasks.evaluate import lighteval, results
    from hala_hpc.tasks.evaluate.benchmarks import LIGHTEVAL_MODULE
    from hala_hpc.tasks.evaluate.scorer import Attempt

    where, subsets = TASKS[name]
    base = "arabic_mmlu" if name == "arabic_mmlu" else "arabic_mmlu_ht"
    asked = {
        "benchmark": name,
        "tasks": [f"{base}:{subset}" for subset in subsets],
        "few_shot": 0,
        "limit": limit,
        "chat_template": False,
        "data": str(data("arabic_bench", where)),
        "options": {"module": LIGHTEVAL_MODULE},
    }
    kept = Path(tempfile.mkdtemp(dir=folder))
    found = lighteval.evaluate(scorer, asked, Attempt(kept))
    results.write(folder / "result", found, TOLD | {"limit": limit, "questions_per_second": 0.0})
    shutil.rmtree(folder / "result")
    return len(found)


if __name__ == "__main__":
    main()
