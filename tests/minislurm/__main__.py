"""``python -m tests.minislurm start|stop|status``, from the repository's root."""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from .cluster import Cluster
from .daemon import alive, start_time


def main() -> int:
    args = _parser().parse_args()
    if args.command == "start":
        return start(Cluster(args.dir, accounting=not args.no_accounting, limits=args.limits))
    cluster = Cluster(_find(args.dir))
    if args.command == "stop":
        return stop(cluster, args.keep)
    return status(cluster) if args.command == "status" else guard(cluster, args.pid)


def start(cluster: Cluster) -> int:
    began = time.monotonic()
    print(f"# starting Slurm in {cluster.dir}", flush=True)
    try:
        cluster.start()
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        print("\n".join([str(error), *getattr(error, "__notes__", [])]), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"# up in {time.monotonic() - began:.1f} s; end it with: python -m tests.minislurm stop --dir {cluster.dir}")
    print(f"export SLURM_CONF={cluster.conf}")
    return 0


def stop(cluster: Cluster, keep: bool) -> int:
    began = time.monotonic()
    cluster.stop()
    if not keep:
        shutil.rmtree(cluster.dir)
    print(f"# stopped in {time.monotonic() - began:.1f} s")
    return 0


def status(cluster: Cluster) -> int:
    """Prints each daemon; the exit status is 1 when one of them has ended."""
    names = cluster.daemons.names()
    for name in names:
        process = cluster.daemons.process(name)
        print(f"{name:10} {process[0] if process else '-':>8} {'up' if cluster.daemons.alive(name) else 'ended'}")
    if cluster.daemons.alive("slurmctld"):
        print(cluster.run("sinfo").stdout + cluster.run("squeue").stdout, end="")
    return 0 if names and all(map(cluster.daemons.alive, names)) else 1


def guard(cluster: Cluster, pid: int) -> int:
    """Wait for the end of ``pid``, then stop the cluster and delete its directory."""
    started = start_time(pid)
    while started and alive((pid, started)):
        time.sleep(0.5)
    return stop(cluster, keep=False)


def _find(given: str | None) -> Path:
    """``--dir``, or the directory of the cluster that SLURM_CONF names; it must be a minislurm's."""
    path = Path(given) if given else Path(os.environ.get("SLURM_CONF", "")).parent
    if not (path / "run").is_dir() or not (path / "slurm.conf").exists():
        sys.exit(f"{path}: no minislurm here; give --dir, or set SLURM_CONF as `start` printed it")
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.minislurm", description="A real Slurm on one machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    parsers = {name: commands.add_parser(name) for name in ("start", "stop", "status", "guard")}
    for each in parsers.values():
        each.add_argument("--dir", help="the cluster's directory (start: a new one in /tmp by default)")
    parsers["start"].add_argument("--no-accounting", action="store_true", help="no slurmdbd and no sacct: quicker")
    parsers["start"].add_argument("--limits", action="store_true", help="enforce the limits of accounts and QOS")
    parsers["stop"].add_argument("--keep", action="store_true", help="keep the directory, with its logs")
    parsers["guard"].add_argument("--pid", type=int, required=True, help="stop when this process has ended")
    return parser


if __name__ == "__main__":
    sys.exit(main())
