"""lm-evaluation-harness with an engine of ours: its tasks, prompts and metrics, and log-probabilities from vLLM."""

import logging
import os
import random
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from hala_hpc.config.errors import HalaError
from hala_hpc.tasks.evaluate.harness import Sample
from hala_hpc.tasks.evaluate.lm_eval import tasks as lm_eval_tasks
from hala_hpc.tasks.evaluate.lm_eval.model import make_model
from hala_hpc.tasks.evaluate.lm_eval.samples import samples_of
from hala_hpc.tasks.evaluate.scorer import Scorer

RANDOM_SEED: Final = 0
FEWSHOT_SEED: Final = 1234
"""The harness's own seeds, so that a recipe's seed 0 draws the examples that its command line draws."""


class LmEval:
    """See ``harness.Harness``.

    ``asked["options"]`` may name a ``metric`` and a ``filter`` of the tasks, and ``task_files``, folders with task
    files. Worked examples are turns of the conversation where a chat template is used.
    """

    def evaluate(
        self,
        scorer: Scorer,
        asked: dict[str, Any],
        kept: Path,
        check_stop: Callable[[], None],
        tell: Callable[[str], None],
    ) -> list[Sample]:
        os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported: a log is no place for its bars
        from lm_eval import evaluator

        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of each of a thousand tasks

        options = asked.get("options") or {}
        check_stop()
        tell("reading tasks")
        tasks = lm_eval_tasks.load(asked["tasks"], options.get("task_files") or [], asked.get("data"))
        check_stop()
        seed = int(asked.get("seed") or 0)
        _prepare(tasks, asked.get("few_shot"), seed)
        tell("making prompts")
        chat = bool(asked.get("chat_template"))
        try:
            found = evaluator.evaluate(
                lm=make_model(scorer, kept, check_stop, tell, seed),
                task_dict={"tasks": tasks, "groups": {}},
                limit=asked.get("limit"),
                bootstrap_iters=0,
                system_instruction=asked.get("system_prompt"),
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
            )
        except (ValueError, AssertionError) as error:  # images, code to run, more examples than there are
            raise HalaError(f"{asked['benchmark']}: the harness refuses: {error}") from error
        metric, chosen = str(options.get("metric") or ""), str(options.get("filter") or "")
        return [
            sample
            for name, task in tasks.items()
            for sample in samples_of(_short(name), task, found["samples"][name], metric, chosen)
        ]

    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in ("lm_eval", "transformers", "datasets")}


def create() -> LmEval:
    """The harness."""
    return LmEval()


def _prepare(tasks: dict[str, Any], few_shot: int | None, seed: int) -> None:
    """Seeds and examples as the harness's own command sets them: a task that says 0 stays without."""
    import numpy as np

    random.seed(RANDOM_SEED + seed)
    np.random.seed(FEWSHOT_SEED + seed)
    for task in tasks.values():
        own = task.get_config("num_fewshot")
        if few_shot is not None and own != 0:
            task.set_config(key="num_fewshot", value=few_shot)
        elif own is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED + seed)


def _short(name: str) -> str:
    """A group's member is named ``group::member`` by the harness."""
    return name.replace("::", ":")
