"""From what a recipe says to what is asked of each model: benchmarks by name, sets of them, and tasks of one's own."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from hala_hpc.config.errors import HalaError, did_you_mean
from hala_hpc.config.schema import PATH, Data
from hala_hpc.tasks.evaluate.benchmarks import arabic, latxa, local
from hala_hpc.tasks.evaluate.harness import HARNESSES, Benchmark

KNOWN: Final = arabic.BENCHMARKS | latxa.BENCHMARKS
SETS: Final = {"arabic": tuple(arabic.BENCHMARKS)} | latxa.SUITES
"""Names that stand for several benchmarks."""
NAME: Final = re.compile(r"[\w-][\w.-]{0,99}")


@dataclass
class Setting:
    """What a recipe says of one benchmark beyond its name. Null: as the benchmark says, or the recipe for all."""

    harness: str | None = None  # lighteval or lm_eval; null for a name that is not known here: lm_eval
    tasks: list[str] = field(default_factory=list)  # of the harness; none: all of the benchmark, or one of its name
    few_shot: int | None = None
    limit: int | None = None
    chat_template: bool | None = None
    data: str | None = field(default=None, metadata=PATH)  # a folder with its questions, instead of the hub
    task_files: list[str] = field(default_factory=list, metadata=PATH)  # lm-eval: folders, besides the recipe's for all
    metric: str | None = None  # lm-eval: of the task's metrics the one that counts, and of its filters
    filter: str | None = None
    module: str | None = None  # LightEval: its module that has the tasks


def find(names: Sequence[str], settings: Mapping[str, Setting], task_files: Sequence[str] = ()) -> list[Benchmark]:
    """The benchmarks that a recipe names, in its order, with its settings. ``task_files`` are folders for lm-eval.

    Raises HalaError for none, one twice, an unknown harness, or settings of one that is not asked for.
    """
    wanted = [each for name in names for each in SETS.get(name, (name,))]
    if not wanted:
        raise HalaError("task.benchmarks: nothing to ask", f"for example {', '.join(SETS)}, {', '.join(KNOWN)}")
    if twice := [name for name in wanted if wanted.count(name) > 1]:
        raise HalaError(f"task.benchmarks: '{twice[0]}' is there twice")
    if strange := sorted(set(settings) - set(wanted)):
        raise HalaError(
            f"task.settings.{strange[0]}: that benchmark is not asked for", did_you_mean(strange[0], wanted)
        )
    return [_with(name, settings.get(name) or Setting(), task_files) for name in wanted]


def hub_data(benchmark: Benchmark) -> list[Data]:
    """The datasets on the hub that a benchmark reads; those of other tasks of lm-eval only its task files know."""
    if benchmark.name in latxa.BENCHMARKS:
        return latxa.hub_data(benchmark)
    if benchmark.harness != "lighteval" or not benchmark.hub:
        return []
    return [
        Data(hub=benchmark.hub, hub_config=local.subset_of(task), split=benchmark.split) for task in benchmark.tasks
    ]


def _with(name: str, setting: Setting, task_files: Sequence[str]) -> Benchmark:
    where = f"task.settings.{name}"
    if not NAME.fullmatch(name):
        raise HalaError(f"task.benchmarks: {name!r} cannot be a benchmark's name", "letters, digits, - _ and .")
    harness = setting.harness or (KNOWN[name].harness if name in KNOWN else "lm_eval")
    if harness not in HARNESSES:
        raise HalaError(f"{where}.harness: no harness '{harness}'", did_you_mean(harness, HARNESSES))
    for key in ("limit", "few_shot"):
        number = getattr(setting, key)
        if number is not None and number < (key == "limit"):
            raise HalaError(f"{where}.{key}: {number}: must be at least {int(key == 'limit')}")
    known = KNOWN.get(name) or Benchmark(name, harness, (name,))
    if harness != known.harness:
        known = Benchmark(name, harness, (name,))
    options: dict[str, Any] = dict(known.options)
    options |= {key: value for key in ("metric", "filter", "module") if (value := getattr(setting, key)) is not None}
    if harness == "lm_eval" and (folders := [*setting.task_files, *task_files]):
        options["task_files"] = folders
    if harness == "lm_eval" and not setting.tasks:
        latxa.require_task_files(name, options.get("task_files", ()))
    changes: dict[str, Any] = {
        key: value for key in ("few_shot", "chat_template") if (value := getattr(setting, key)) is not None
    }
    if setting.tasks:
        if (
            known.harness == "lighteval"
            and (strange := sorted(set(setting.tasks) - set(known.tasks)))
            and name in KNOWN
        ):
            raise HalaError(f"{where}.tasks: no task '{strange[0]}'", did_you_mean(strange[0], known.tasks))
        changes["tasks"] = tuple(setting.tasks)
    return replace(known, options=options, **changes)
