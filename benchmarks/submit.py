"""Submitting: 10,000 shards, 1,000 workers, on the real test cluster."""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from common import HALA, ROOT, quiet, report, title

sys.path.insert(0, str(ROOT))

COUNTING = """#!/bin/sh
echo "$@" >>"$BENCHMARK_CALLS"
exec {sbatch} "$@"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=1_000)
    arguments = parser.parse_args()
    title("submit")
    from tests.minislurm.cluster import Cluster, missing

    if reason := missing():
        sys.exit(f"no Slurm: {reason}")
    cluster = Cluster().start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), dict(cluster.env), arguments.shards, arguments.workers)
    finally:
        cluster.stop()
        shutil.rmtree(cluster.dir, ignore_errors=True)


def measure(folder: Path, env: dict[str, str], shards: int, workers: int) -> None:
    calls = folder / "calls"
    sbatch = folder / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(COUNTING.format(sbatch=shutil.which("sbatch")))
    sbatch.chmod(0o755)
    env |= {"PATH": f"{sbatch.parent}:{env['PATH']}", "BENCHMARK_CALLS": str(calls)}
    (folder / "rows.jsonl").write_text("".join(f'{{"text": "line {i}"}}\n' for i in range(shards)))
    (folder / "r.yaml").write_text(
        "name: r\ntask: {kind: translate}\ndata: {path: rows.jsonl}\nengine: {kind: echo}\n"
        f"run: {{shard_rows: 1, workers: {workers}}}\n"
        "site: {executor: slurm, slurm: {cpus_per_worker: 1, extra: {hold: true}}}\n"  # held: the jobs need not run
    )
    raw = folder / "raw.sbatch"
    raw.write_text("#!/bin/sh\nsrun true\n")
    began = time.perf_counter()
    quiet("sbatch", "--hold", f"--array=0-{workers - 1}", raw, env=env)
    bare = time.perf_counter() - began
    began = time.perf_counter()
    quiet(*HALA, "plan", "r.yaml", "--create", env=env, cwd=folder)
    planned = time.perf_counter() - began
    calls.unlink()

    began = time.perf_counter()
    quiet(*HALA, "resume", "runs/r", env=env, cwd=folder)
    took = time.perf_counter() - began
    made = len(calls.read_text().splitlines())
    queued = len(quiet("squeue", "-h", "-r", "-n", "hala-r", env=env).splitlines())
    quiet("scancel", "-u", "root", env=env)
    if queued != workers:
        sys.exit(f"{queued} workers are in the queue, not {workers}")
    report(f"plan of {shards:,} shards, process included", planned, "s", "", True)
    report(f"sbatch calls for {workers:,} workers", made, "", "at most 2", made <= 2)
    report(f"submission of {workers:,} workers, process included", took, "s", "at most 2 s", took <= 2)
    report("one bare sbatch of the same array (the limit)", bare, "s", "", True)


if __name__ == "__main__":
    main()
