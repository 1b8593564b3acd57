"""The job of a launcher whose ranks take orders; unpickled in environments that have no pytest."""

from dataclasses import dataclass

from hala_hpc.worker.array import ArrayWorker


@dataclass(frozen=True)
class WithOrders(ArrayWorker):
    """The real launcher, with the ranks of ``tests/tasks/train/launch/rank_program.py``."""

    def __call__(self) -> str:
        from hala_hpc.tasks.train.launch import launcher

        launcher.RANK = "tests.tasks.train.launch.rank_program"  # type: ignore[misc]
        return super().__call__()
