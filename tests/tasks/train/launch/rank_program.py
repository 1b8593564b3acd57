"""A rank that takes orders: the launcher's tests need ranks that hang, crash and stop at a known moment.

It keeps the contract of the real one (beacon, metrics, checkpoints, exit codes) and trains nothing. ``RUN/orders.json``
says how many ``steps`` of how many ``seconds``, and by rank what happens ``at`` a step: an exit code, or ``hang``. It
happens once, unless ``again`` is true.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from hala_hpc.run.files import write_durably
from hala_hpc.tasks.train import metrics, paths

run = Path(sys.argv[1])
orders = json.loads((run / "orders.json").read_text())
rank, world, launch = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), os.environ["HALA_LAUNCH"]
checkpoints = run / paths.CHECKPOINTS
asked: list[int] = []
for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda received, _: asked.append(received))


def beacon(step: int, phase: str) -> None:
    told = {"rank": rank, "host": "here", "pid": os.getpid(), "step": step, "phase": phase, "time": time.time()}
    folder = run / paths.RANKS / launch
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / f"{rank}.json", json.dumps(told).encode())


def done() -> int:
    return max((int(path.parent.name[11:]) for path in checkpoints.glob("checkpoint-*/complete.json")), default=0)


def all_are_at(step: int) -> bool:
    """A checkpoint is made together: there is none of a step that another rank has not done."""
    files = [run / paths.RANKS / launch / f"{number}.json" for number in range(world)]
    return all(file.exists() and json.loads(file.read_text())["step"] >= step for file in files)


def save(step: int) -> None:
    if rank == 0:
        folder = checkpoints / f"checkpoint-{step}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "complete.json").write_text("{}")


(run / "environment").mkdir(exist_ok=True)
(run / "environment" / f"{launch}.{rank}.json").write_text(json.dumps(dict(os.environ)))
writer = metrics.Writer(run, launch, [], "test") if rank == 0 else None
for step in range(done() + 1, orders["steps"] + 1):
    beacon(step - 1, "forward and backward")
    time.sleep(orders["seconds"])
    happens = orders.get("at", {}).get(str(rank), {}).get(str(step))
    marker = run / f"happened-{rank}-{step}"
    if happens is not None and (orders.get("again") or not marker.exists()):
        marker.touch()
        while happens == "hang":
            time.sleep(0.2)
            beacon(step - 1, "data")
        if happens < 0:
            os.kill(os.getpid(), -happens)
        sys.exit(happens)
    if writer is not None:
        writer.write(step=step, loss=1.0, seconds=orders["seconds"])
    beacon(step, "optimizer")
    if asked:
        save(step)
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        time.sleep(0.3 * rank)  # ranks do not end at the same moment
        sys.exit(85)
    if step % orders.get("save", 10**9) == 0:
        while rank == 0 and not asked and not all_are_at(step):
            time.sleep(0.05)
        if not asked:
            save(step)
if rank == 0:
    (run / paths.EXPORTED).mkdir(parents=True)
    (run / paths.EXPORTED / "config.json").write_text("{}")
