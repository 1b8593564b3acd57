"""Whole workers, stopped beyond their lease, told to stop, and killed: the result is that of an unbroken run."""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from hala_hpc.run import status
from tests.worker.helpers import events, finish, plan, rows, start, texts, unbroken

ROWS, WORKERS, LEASE, DISTURBANCES = 200, 3, 1.0, 7


def test_chaos_changes_nothing(tmp_path: Path, hala: Any) -> None:
    run = plan(tmp_path, texts(ROWS), capacity=3, seconds=0.1, run={"lease_seconds": LEASE, "attempts": 50})
    chance = random.Random(int(os.environ.get("HALA_CHAOS_SEEDS", "1").split(",")[0]))
    workers = [start(run) for _ in range(WORKERS)]
    asleep: list[tuple[float, Any]] = []
    complaints = []
    kinds: Counter[str] = Counter()
    deadline = time.monotonic() + 90
    try:
        while status.missing(run):
            assert time.monotonic() < deadline
            for until, process in list(asleep):
                if until < time.monotonic():
                    asleep.remove((until, process))
                    process.send_signal(signal.SIGCONT)
            for process in [one for one in workers if one.poll() is not None]:
                workers[workers.index(process)] = start(run)
                _, said = process.communicate()
                if process.returncode not in (0, 85, -9):
                    complaints.append(said)
            victim, kind = chance.choice(workers), chance.choice(["stop", "stop", "kill", "terminate"])
            kind = kind if kinds else "stop"
            at_work = any(event["pid"] == victim.pid for event in events(run, "started"))
            if kinds.total() < DISTURBANCES and at_work and victim not in [process for _, process in asleep]:
                kinds[kind] += 1
                if kind == "stop":
                    victim.send_signal(signal.SIGSTOP)
                    asleep.append((time.monotonic() + chance.uniform(0.5, 2.5) * LEASE, victim))
                else:
                    getattr(victim, kind)()
            time.sleep(0.25)
        for _, process in asleep:
            process.send_signal(signal.SIGCONT)
        for process in workers:
            _, said = process.communicate(timeout=60)
            if process.returncode not in (0, 85, -9):
                complaints.append(said)
    finally:
        for process in workers:
            process.kill()
            process.communicate()
    assert complaints == []
    assert kinds["stop"] > 0
    finish(run)
    verdict = hala.json("verify", run)
    assert verdict["proven"]
    assert verdict["done"] == ROWS
    assert rows(run) == unbroken(ROWS)
    assert [shard for shard, count in Counter(e["shard"] for e in events(run, "published")).items() if count > 1] == []
