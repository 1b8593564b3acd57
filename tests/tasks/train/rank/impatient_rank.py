"""A real rank that waits for its storage for two seconds: ``python -m tests.tasks.train.rank.impatient_rank RUN``."""

import runpy

from hala_hpc.worker import storage

storage.PATIENCE_SECONDS = 2.0
runpy.run_module("hala_hpc.tasks.train.rank", run_name="__main__", alter_sys=True)
