"""The run directory under load: status of many shards, many processes claiming and publishing."""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import HALA, quiet, report, seconds, title

from hala_hpc.run import ledger, manifest
from hala_hpc.run.endings import ERRONEOUS, SHARDS
from hala_hpc.run.finder import Finder
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.lease import Heartbeat, Leases
from hala_hpc.run.manifest import Facts, Shard
from hala_hpc.run.publishing import publish

CLAIMED = 100_000
"""Shards that processes claim and publish at most (ours): a million took them 19 minutes on a busy machine.

A run of more is laid out beside, as one that is finished.
"""
RECIPE = "task: {kind: translate, segments: {tokens: 0}}\nrun: {root: runs, lease_seconds: 120.0, attempts: 5}\n"


def make_run(path: Path, shards: int) -> RunDirectory:
    run = RunDirectory(path)
    path.mkdir()
    run.create_folders(shards)
    rows = [Shard(i, "translate", "rows.jsonl", 0, i, 1, 1, 1, "") for i in range(shards)]
    manifest.write(run.manifest, rows, Facts(".parquet", shards, shards, shards, shards))
    run.recipe.write_text(RECIPE)
    return run


def laid_out(path: Path, shards: int) -> RunDirectory:
    """A run whose shards are all published: their outputs' names are what a status and a worker look at."""
    run = make_run(path, shards)
    for shard in range(shards):
        os.close(os.open(run.shard_output(shard), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    return run


def work(
    path: Path, shards: int, number: int, go: "multiprocessing.synchronize.Event", out: "multiprocessing.Queue[int]"
) -> None:
    """Claim and publish until nothing is left, as a worker does, with shards that hold nothing."""
    run = RunDirectory(path)
    leases = Leases(run, f"worker-{number}", ttl=120, attempts=5)
    history = ledger.Ledger(run.ledger / f"worker-{number}.jsonl", host="here", job="", pid=0)
    finder = Finder(leases, shards, seed=f"worker-{number}")
    out.put(-1)
    go.wait()
    published = 0
    with Heartbeat(leases, lambda: None):
        while lease := finder.next():
            temporary = run.partial_folder(lease.shard) / f"{lease.shard:06d}.{number}.tmp.parquet"
            temporary.touch()
            history.write("claimed", shard=lease.shard, attempt=lease.attempt)
            if publish(run, lease.shard, temporary):
                history.write("published", shard=lease.shard, rows=published, output_tokens=0, prompt_tokens=0)
                published += 1
            leases.clear(lease.shard)
    out.put(published)


def histories(run: RunDirectory, shards: int, workers: int) -> None:
    """The ledgers of so many workers that did the shards for an hour and a half, in the place of those of the test."""
    for file in run.ledger.glob("*.jsonl"):
        file.unlink()
    now, lines = time.time(), 1000
    for number in range(workers):
        mine = range(number, shards, workers)
        with (run.ledger / f"w{number}.jsonl").open("wb") as file:
            at = {"time": now - 5 * lines}
            file.write(ledger.line("started", {"host": "here", "job": f"7_{number}", "pid": 0} | at))
            for step in range(1, lines + 1):
                at = {"time": now - 5 * (lines - step)}
                done = len(mine) * step // lines
                for index in range(len(mine) * (step - 1) // lines, done):
                    sums = {SHARDS: index + 1, ERRONEOUS: 0}
                    file.write(ledger.line("claimed", {"shard": mine[index], "attempt": 1, "taken_up": 0} | at))
                    file.write(ledger.line("published", {"shard": mine[index], "done": 1, "errors": 0} | sums | at))
                sums = {"rows": done, "prompt_tokens": done, "output_tokens": done, SHARDS: done, ERRONEOUS: 0}
                file.write(ledger.line("progress", sums | {"working_on": {}, "doing": "", "busy": 4.9 * step} | at))
        (run.workers / f"w{number}").touch()


def idle_listings(run: RunDirectory, shards: int) -> int:
    """How many folders a worker lists, that has looked before, beyond those with a shard that another holds."""
    last = shards - 1
    run.shard_output(last).unlink()
    holder = Leases(run, "holder", ttl=120, attempts=5)
    lease = holder.claim(last)
    finder = Finder(Leases(run, "idle", ttl=120, attempts=5), shards, seed="idle")
    finder.next()
    counts = dict.fromkeys(("listdir", "scandir"), 0)

    def counted(name: str, call: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def through(folder: Path) -> Any:
            counts[name] += 1
            return call(folder)

        return through

    calls = {name: getattr(os, name) for name in counts}
    for name, call in calls.items():
        setattr(os, name, counted(name, call))
    try:
        if lease is None or finder.next() is not None or finder.wait_for() is None:
            sys.exit("a shard that another holds was not seen as such")
    finally:
        for name, call in calls.items():
            setattr(os, name, call)
    return sum(counts.values()) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1000, help="whose ledgers status reads")
    parser.add_argument("--dir", type=Path, help="where: a local disk, or a shared file system to measure")
    arguments = parser.parse_args()
    title("runstate")
    claimed = min(arguments.shards, CLAIMED)
    with tempfile.TemporaryDirectory(dir=arguments.dir) as folder:
        path = Path(folder, "run")
        run = make_run(path, claimed)
        out: multiprocessing.Queue[int] = multiprocessing.Queue()
        go = multiprocessing.Event()
        processes = [
            multiprocessing.Process(target=work, args=(path, claimed, number, go, out))
            for number in range(arguments.processes)
        ]
        for process in processes:
            process.start()
        for _ in processes:
            out.get()
        began = time.perf_counter()
        go.set()
        published = sum(out.get() for _ in processes)
        rate = claimed / (time.perf_counter() - began)
        for process in processes:
            process.join()
        stand = sum(1 for _ in run.shards.glob("*/*.parquet"))
        if not published == stand == claimed:
            sys.exit(f"{published} published, {stand} stand, of {claimed}: not exactly once")
        label = f"{arguments.processes} processes claim and publish {claimed:,}"
        report(label, rate, "shards/s", "2,000 shards/s", rate >= 2000)
        report("shards published twice", published - stand, "", "0", published == stand)
        if arguments.shards > claimed:
            run = laid_out(Path(folder, "large"), arguments.shards)
        histories(run, arguments.shards, arguments.workers)
        most = 5.0 if arguments.shards > 100_000 else 2.0
        taken = seconds(lambda: quiet(*HALA, "status", run.path), 5)
        label = f"hala status of {arguments.shards:,} shards, {arguments.workers:,} workers"
        report(label, taken, "s", f"under {most:.0f} s", taken < most)
        more = idle_listings(run, arguments.shards)
        report("an idle worker's look: listings beyond unfinished folders", more, "", "at most 10", more <= 10)


if __name__ == "__main__":
    main()
