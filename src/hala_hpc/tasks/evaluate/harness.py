"""What lies between this project and an evaluation harness: what a benchmark is, questions in, answered samples out."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from hala_hpc.tasks.evaluate.scorer import Scorer

HARNESSES: Final = ("lighteval", "lm_eval")
"""Names of harnesses in recipes; the module of each is ``evaluation.<name>_harness``, with ``create()``."""


@dataclass(frozen=True)
class Sample:
    """One question and what a model answered.

    ``index`` is the question's place in its task's data, so that models can be compared question by question.
    Of a choice question, ``gold`` holds the right choices and ``answer`` the model's (both count from 0), and
    ``log_probabilities`` and ``normalised`` hold one number a choice, natural logarithms: the answer is the choice
    with the largest ``normalised`` (the first of equals). Where nothing is to choose from ``answer`` is -1 and
    ``text`` what the model wrote; ``choices`` may then hold the references. ``score`` is that of ``metric``; the mean
    over a task's samples is the task's score. ``metrics`` holds further ones by name.
    """

    task: str
    index: int
    question: str
    choices: list[str]
    gold: list[int]
    score: float
    metric: str
    answer: int = -1
    text: str = ""
    log_probabilities: list[float] = field(default_factory=list)
    normalised: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


class Harness(Protocol):
    """One evaluation harness, driven with an engine of ours."""

    def evaluate(
        self,
        scorer: Scorer,
        asked: dict[str, Any],
        kept: Path,
        check_stop: Callable[[], None],
        tell: Callable[[str], None],
    ) -> list[Sample]:
        """Ask a model one benchmark.

        ``asked`` is the shard's item (see ``tasks.evaluate.task``): benchmark, harness, tasks (names), few_shot, limit,
        chat_template, data (a local folder or None), seed. ``kept`` is for the scorer's answers, ``check_stop`` and
        ``tell`` are those of ``worker.items.task.Item``. Samples come task by task, by index within one.

        Raises HalaError for what another attempt would not change: an unknown task, missing data.
        """

    def versions(self) -> dict[str, str]:
        """Names and versions of what the numbers depend on."""


@dataclass(frozen=True)
class Benchmark:
    """A set of tasks that is reported as one number: the mean of its tasks' scores.

    Names of tasks are those of the harness. ``few_shot`` None: what the harness says; ``chat_template`` None: where the
    model has one. ``hub`` names the dataset and ``split`` the part that is asked; a task's configuration there is what
    its name has after a colon, or ``default``. ``columns`` must be there, and filled, in each row of a local copy.
    ``questions`` is about how many a task has, 0 where nobody knows; ``options`` are the harness's own.
    """

    name: str
    harness: str
    tasks: tuple[str, ...]
    few_shot: int | None = None
    chat_template: bool | None = None
    hub: str = ""
    split: str = "test"
    columns: tuple[str, ...] = ()
    questions: int = 0
    options: dict[str, Any] = field(default_factory=dict)
