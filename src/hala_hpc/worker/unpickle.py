"""``python -m hala_hpc.worker.unpickle LOGS``: an array task of submitit's, which loads no pickle that others wrote."""

import os
import pkgutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hala_hpc.config.errors import HalaError
from hala_hpc.run.layout import PIPELINE
from hala_hpc.slurm import pickles, record
from hala_hpc.slurm.script import TOKEN

JOBS: Final = {
    record.WORKERS: "hala_hpc.worker.array:ArrayWorker",
    record.STEWARD: "hala_hpc.pipeline.steward:Steward",
}
"""What the jobs of each kind of submission do."""
CONDUCTOR: Final = "hala_hpc.pipeline.conductor:Conductor"
"""And those of a pipeline, of any kind."""
LATE_SECONDS: Final = 15.0
"""For the pickle, which whoever submits a job writes as soon as sbatch has answered (ours)."""


def main(arguments: Sequence[str]) -> int:
    """Run the task. Exit code 2 where its pickle is refused."""
    from submitit.core.submission import process_job

    pickles.guard()
    _take_up(Path(arguments[0]))
    try:
        process_job(arguments[0])
    except HalaError as error:  # a worker's own end it by themselves
        sys.stderr.write(f"hala: error: {error}\n")
        return 2
    return 0


def _take_up(logs: Path) -> None:
    """Write our own pickle where who submitted us did not live to, by what was intended."""
    from submitit.core.utils import JobPaths

    from hala_hpc.worker.job import job_name

    if not (token := os.environ.get(TOKEN)) or not (job := job_name()):
        return
    until = time.monotonic() + LATE_SECONDS
    while not JobPaths(logs, job_id=job).submitted_pickle.exists():
        if time.monotonic() > until:
            is_pipeline = (logs.parent / PIPELINE).is_file()
            jobs = {kind: CONDUCTOR if is_pipeline else name for kind, name in JOBS.items()}
            record.take_up(logs.parent, token, job, {kind: pkgutil.resolve_name(name) for kind, name in jobs.items()})
            return
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
