"""What a benchmark is: a set of tasks of one harness."""

from dataclasses import dataclass, field
from typing import Any


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
