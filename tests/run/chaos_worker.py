"""One worker of the chaos test: the real lease, finder, heartbeat and publish around a pretended piece of work.

python chaos_worker.py RUN SHARDS TTL SUFFIX NAME
"""

import random
import sys
import time
from pathlib import Path

from hala_hpc.run import appending
from hala_hpc.run.finder import Finder
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.lease import Heartbeat, Leases
from hala_hpc.run.ledger import Ledger
from hala_hpc.run.publishing import publish

PIECES = 6


def do_shard(temporary: Path, name: str, chance: random.Random) -> None:
    """Write a file (or, without a suffix, a folder of files) in pieces, slowly."""
    if not temporary.suffix.startswith(".txt"):
        temporary.mkdir()
    for piece in range(PIECES):
        line = f"{name} {piece}\n"
        if temporary.is_dir():
            (temporary / f"{piece}.txt").write_text(line)
        else:
            with temporary.open("a") as file:
                file.write(line)
        time.sleep(chance.uniform(0.0, 0.03))


def main() -> None:
    path, shards, ttl, suffix, name = sys.argv[1:]
    run = RunDirectory(Path(path), suffix)
    chance = random.Random(name)
    leases = Leases(run, name, float(ttl), attempts=30)
    history = Ledger(run.ledger / f"{name}.jsonl")
    finder = Finder(leases, int(shards), seed=name)
    with Heartbeat(leases, lambda: None):
        while True:
            lease = finder.next()
            if lease is None:
                if (seconds := finder.wait_for()) is None:
                    break
                time.sleep(min(seconds, 0.05) + 0.01)
                continue
            temporary = appending.temporary_output(run, lease.shard, name)
            try:
                do_shard(temporary, name, chance)
            except FileNotFoundError:  # whoever published it swept our folder away while we slept
                assert run.shard_output(lease.shard).exists()
            if publish(run, lease.shard, temporary):
                history.write("published", shard=lease.shard)
            else:
                history.write("lost", shard=lease.shard)
            appending.drop(run, lease.shard)
            leases.clear(lease.shard)
    leases.close()


main()
