"""``python -m hala_hpc.worker.unpickle LOGS``: an array task of submitit's, which loads no pickle that others wrote."""

import sys
from collections.abc import Sequence

from hala_hpc.config.errors import HalaError
from hala_hpc.slurm import pickles


def main(arguments: Sequence[str]) -> int:
    """Run the task. Exit code 2 where its pickle is refused."""
    from submitit.core.submission import process_job

    pickles.guard()
    try:
        process_job(arguments[0])
    except HalaError as error:  # a worker's own end it by themselves
        sys.stderr.write(f"hala: error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
