"""Tasks of lm-evaluation-harness by name: its own and those of our files, with their data from the hub or a folder.

``python -m hala_hpc.tasks.evaluate.lm_eval.tasks NAME… [--task-files DIR]`` downloads what tasks read.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from hala_hpc.config.errors import HalaError
from hala_hpc.tasks.evaluate.benchmarks import latxa

FORMATS: Final = ("csv", "json", "parquet", "text", "arrow")
"""Readers of ``datasets`` that a task names instead of a dataset."""


def load(names: Sequence[str], folders: Sequence[str], data: str | None) -> dict[str, Any]:
    """The harness's task objects by name, those of groups and tags each on its own, their data read.

    ``folders`` hold task files; one of a name that the harness knows takes its place. ``data`` is a folder to read
    instead of what the tasks name. Raises HalaError for unknown names and for data that is not there.
    """
    manager = _manager_of(names, folders)
    found: dict[str, Any] = {}
    for name in names:
        latxa.require_task_files(name, folders)
        changed = _local(_config(manager, name), Path(data)) if data else {}
        try:
            found |= _made(manager, name, changed)
        except Exception as error:
            if isinstance(error, ConnectionError | TimeoutError) and os.environ.get("HF_DATASETS_OFFLINE") != "1":
                raise  # the next attempt may reach the hub
            hint = "is it in the folder?" if data else "`hala prefetch RECIPE` where there is a network, or `data`"
            raise HalaError(f"{name}: cannot be made ready: {type(error).__name__}: {error}", hint) from error
    return found


def _manager_of(names: Sequence[str], folders: Sequence[str]) -> Any:
    """One that knows all names: of our files alone where that will do, else of the harness's 14,000 as well."""
    if missing := [folder for folder in folders if not Path(folder).is_dir()]:
        raise HalaError(f"{missing[0]}: no folder with task files")
    ours = _manager(False, *folders)
    manager = ours if all(name in ours.task_index for name in names) else _manager(True, *folders)
    if unknown := [name for name in names if name not in manager.task_index]:
        near = difflib.get_close_matches(unknown[0], manager.all_tasks, 3)
        raise HalaError(
            f"lm-evaluation-harness has no task '{unknown[0]}', and no task file names it",
            f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists its own",
        )
    return manager


@lru_cache(maxsize=4)
def _manager(has_defaults: bool, *folders: str) -> Any:
    """Kept for the worker's life: to list the harness's own tasks takes ten seconds and more."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=list(folders), include_defaults=has_defaults)


def _made(manager: Any, name: str, changed: dict[str, Any]) -> dict[str, Any]:
    """Tasks of a name. ``TaskManager.load`` itself takes changes only for tasks that no file names."""
    index = manager.task_index
    made = manager._factory.build(index[name], overrides=changed, registry=index)
    tasks: dict[str, Any] = manager.load(made if isinstance(made, list) else [made])["tasks"]
    return tasks


def _config(manager: Any, name: str) -> dict[str, Any]:
    """What a task's file says; of a tag, the file of its first task. Raises HalaError for groups of other tasks."""
    entry = manager.task_index[name]
    if entry.kind.name == "TAG":
        return _config(manager, min(entry.tags))
    members = (entry.cfg or {}).get("task")
    if isinstance(members, list) and any(
        (member if isinstance(member, str) else member.get("task")) in manager.task_index for member in members
    ):
        raise HalaError(f"{name} is a group of tasks: local data is given to one task at a time", "name its tasks")
    return dict(entry.cfg or {})


def _local(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What to change in a task's configuration so that it reads a folder. Raises HalaError where there is none."""
    if not folder.is_dir():
        raise HalaError(f"{folder}: no such folder")
    if "custom_dataset" in config:
        return {"metadata": {**config.get("metadata", {}), "data_dir": str(folder)}}
    if config.get("dataset_path") in FORMATS:
        return {"dataset_kwargs": {**(config.get("dataset_kwargs") or {}), "data_dir": str(folder)}}
    own = folder / str(config.get("dataset_name") or "")
    if not own.is_dir():
        raise HalaError(f"{folder}: no folder {own.name} in it", "the dataset's configuration that the task asks for")
    return {"dataset_path": str(own), "dataset_name": None}


def main() -> int:
    """Fetch; 1 where a task is unknown or its data cannot be had, with the reason."""
    parser = argparse.ArgumentParser(description="Download the data of lm-evaluation-harness tasks.")
    parser.add_argument("names", nargs="+")
    parser.add_argument("--task-files", action="append", default=[], help="a folder of task files")
    asked = parser.parse_args()
    try:
        for name, task in load(asked.names, asked.task_files, None).items():
            print(f"{name}: {len(task.eval_docs)} questions", flush=True)  # noqa: T201
    except HalaError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
