"""``python -m hala_hpc.tasks.train.rank RUN``: one rank. See ``main`` for its exit codes."""

import os
import sys

from hala_hpc.tasks.train.launch.signs import place

if __name__ == "__main__":
    here = place()
    if not here.is_first:  # before anything heavy, so that all that goes wrong is in the rank's own log
        log = os.path.join(sys.argv[1], "logs", "ranks", f"{here.launch}.{here.rank}.log")  # noqa: PTH118
        os.makedirs(os.path.dirname(log), exist_ok=True)  # noqa: PTH103, PTH120
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
    try:
        from hala_hpc.tasks.train.rank.main import main

        sys.exit(main(sys.argv[1], here))
    except Exception as error:
        from pathlib import Path

        from hala_hpc.tasks.train.launch import signs

        signs.write_error(Path(sys.argv[1]), here.launch, here.rank, error)
        raise
