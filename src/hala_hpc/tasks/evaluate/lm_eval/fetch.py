"""``python -m hala_hpc.tasks.evaluate.lm_eval.fetch NAME… [--task-files DIR]``: download what tasks read.

Only the harness knows which datasets a task names and how it prepares them, so this runs where the harness is: in the
serve environment, on a machine with a network. Prints a line a task with its number of questions.
"""

import argparse
import sys

from hala_hpc.config.errors import HalaError
from hala_hpc.tasks.evaluate.lm_eval import tasks


def main() -> int:
    """Fetch; 1 where a task is unknown or its data cannot be had, with the reason."""
    parser = argparse.ArgumentParser(description="Download the data of lm-evaluation-harness tasks.")
    parser.add_argument("names", nargs="+")
    parser.add_argument("--task-files", action="append", default=[], help="a folder of task files")
    asked = parser.parse_args()
    try:
        for name, task in tasks.load(asked.names, asked.task_files, None).items():
            print(f"{name}: {len(task.eval_docs)} questions", flush=True)  # noqa: T201
    except HalaError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
