"""Mixing: rows/s with exact and near duplicates taken out, against rensa alone over the same texts, and peak memory.

Seconds are of one core's time, so that others at work on this machine change little.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from common import HALA, data, environment, quiet, report, title

from hala_hpc.tasks.mix.near import SEED, normal, shingles
from hala_hpc.tasks.mix.options import Duplicates

BAR = 0.4
"""Of rensa's rows/s: a mix also starts, reads, checks, normalises, counts, shuffles and writes what it keeps."""
OPTIONS = Duplicates()
BATCH = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--raw", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.raw is not None:
        print(json.dumps(raw(arguments.raw)))
        return
    title("mix")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = _write(folder / "rows.jsonl", folder / "texts.json", arguments.rows)
        alone = json.loads(quiet(sys.executable, __file__, "--raw", folder / "texts.json", env=_one_thread()))
        task = {"kind": "mix", "sources": {"rows": {"path": "rows.jsonl"}}}
        (folder / "mix.yaml").write_text(json.dumps({"name": "mix", "task": task}))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        quiet(*HALA, "plan", "mix.yaml", "--create", "--site", "local", env=environment(), cwd=folder)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        planned = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        run = folder / "runs" / "mix"
        seconds, memory = _worker(run)
        line = json.loads((run / "final" / "report.json").read_text())["sources"][0]
    what = f"{len(texts):,} rows"
    report(f"{what}: rensa alone, one process", len(texts) / alone["seconds"], "rows/s", "", True)
    report(f"{what}: mix, one process", len(texts) / seconds, "rows/s", "", True)
    ratio = alone["seconds"] / seconds
    report("mix / rensa alone", ratio, "", f"at least {BAR}", ratio >= BAR)
    report("plan, process included", len(texts) / planned, "rows/s", "", True)
    report("peak memory: rensa alone", alone["bytes"] / 1e9, "GB", "", True)
    report("peak memory: mix", memory / 1e9, "GB", "under 1 GB", memory < 1e9)
    duplicates = line["exact duplicates"] + line["near duplicates"]
    report("duplicates left out: mix", duplicates, "rows", "", True)
    report("duplicates left out: rensa", alone["duplicates"], "rows", "as many", duplicates == alone["duplicates"])


def raw(path: Path) -> dict[str, Any]:
    """Shingles, signatures and index over texts that are in memory, as a script would do it that needs nothing else."""
    from rensa import RMinHash, RMinHashDeduplicator

    texts = json.loads(path.read_text())
    began = time.process_time()
    index = RMinHashDeduplicator(OPTIONS.near, OPTIONS.permutations, True, OPTIONS.bands, SEED)
    kept = 0
    for at in range(0, len(texts), BATCH):
        sets = [shingles(text, OPTIONS.shingle) for text in texts[at : at + BATCH]]
        hashed = RMinHash.from_token_sets(sets, OPTIONS.permutations, SEED)
        kept += sum(index.add_pairs([(str(at + number), one) for number, one in enumerate(hashed)]))
    seconds = time.process_time() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "duplicates": len(texts) - kept, "bytes": memory}


def _worker(run: Path) -> tuple[float, int]:
    """Seconds and peak memory of one process that does all of a run, its start included."""
    process = subprocess.Popen(
        [sys.executable, "-m", "hala_hpc.worker", str(run), "one"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=_one_thread(),
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"the worker ended with {status}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def _one_thread() -> dict[str, str]:
    return environment() | dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS"), "1")


def _write(rows: Path, texts: Path, count: int) -> list[str]:
    """Rows of Alpaca, then of each its twin: the same, nearly the same, or another one made of its words."""
    said = []
    with rows.open("w") as file:
        for row in islice(_rows(), count):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            said.append(normal(f"user {row['instruction']}\n\n{row['input']} {row['output']}"))
    texts.write_text(json.dumps(said))
    return said


def _rows() -> Iterator[dict[str, str]]:
    files = sorted(data("instructions", "alpaca_52k").glob("*.json"))
    alpaca = [row for file in files for row in json.loads(file.read_text()) if row["output"].strip()]
    yield from alpaca
    for number, row in enumerate(alpaca):
        if number % 4 == 1:
            yield row | {"output": f"{row['output']} Yes."}
        elif number % 4:
            yield row | {"output": " ".join(reversed(row["output"].split())) + f" {number}"}
        else:
            yield row


if __name__ == "__main__":
    main()
