"""``python -m hala_hpc.tasks.train.rank RUN``: one rank. See ``main`` for its exit codes."""

import os
import sys
from pathlib import Path

from hala_hpc.config.imports import heavy_imports
from hala_hpc.tasks.train import paths
from hala_hpc.tasks.train.launch import signs

if __name__ == "__main__":
    run, here = Path(sys.argv[1]), signs.place()
    if not here.is_first:  # before anything heavy, so that all that goes wrong is in the rank's own log
        log = run / paths.RANK_LOGS / f"{here.launch}.{here.rank}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
    try:
        with heavy_imports():
            from hala_hpc.tasks.train.rank.main import main

        sys.exit(main(run.resolve(), here))
    except Exception as error:
        signs.write_error(run, here.launch, here.rank, error)
        raise
