"""The run directory under load: status of many shards, many processes claiming and publishing."""

import argparse
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

from common import HALA, quiet, report, seconds, title

from hala_hpc.run import ledger, manifest
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.lease import Finder, Heartbeat, Leases
from hala_hpc.run.manifest import Facts, Shard
from hala_hpc.run.publishing import publish

RECIPE = "task: {kind: translate, segments: {tokens: 0}}\nrun: {root: runs, lease_seconds: 120.0, attempts: 5}\n"


def make_run(path: Path, shards: int) -> RunDirectory:
    run = RunDirectory(path)
    path.mkdir()
    run.create_folders(shards)
    rows = [Shard(i, "translate", "rows.jsonl", 0, i, 1, 1, 1, "") for i in range(shards)]
    manifest.write(run.manifest, rows, Facts(".parquet", shards, shards, shards, shards))
    run.recipe.write_text(RECIPE)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=32)
    parser.add_argument("--dir", type=Path, help="where: a local disk, or a shared file system to measure")
    arguments = parser.parse_args()
    title("runstate")
    with tempfile.TemporaryDirectory(dir=arguments.dir) as folder:
        path = Path(folder, "run")
        run = make_run(path, arguments.shards)
        out: multiprocessing.Queue[int] = multiprocessing.Queue()
        go = multiprocessing.Event()
        processes = [
            multiprocessing.Process(target=work, args=(path, arguments.shards, number, go, out))
            for number in range(arguments.processes)
        ]
        for process in processes:
            process.start()
        for _ in processes:
            out.get()
        began = time.perf_counter()
        go.set()
        published = sum(out.get() for _ in processes)
        rate = arguments.shards / (time.perf_counter() - began)
        for process in processes:
            process.join()
        stand = sum(1 for _ in run.shards.glob("*/*.parquet"))
        if not published == stand == arguments.shards:
            sys.exit(f"{published} published, {stand} stand, of {arguments.shards}: not exactly once")
        report(f"{arguments.processes} processes claim and publish", rate, "shards/s", "2,000 shards/s", rate >= 2000)
        report("shards published twice", published - stand, "", "0", published == stand)
        taken = seconds(lambda: quiet(*HALA, "status", path), 5)
        report(f"hala status of {arguments.shards:,} shards", taken, "s", "under 2 s", taken < 2)


if __name__ == "__main__":
    main()
