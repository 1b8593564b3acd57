"""Mixing: rows/s with exact and near duplicates taken out, against rensa alone over the same texts, and peak memory."""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import HALA, data, environment, quiet, report, title

from hala_hpc.tasks.mix.near import SEED, normal, shingles
from hala_hpc.tasks.mix.options import Duplicates

BAR = 0.5
"""Of rensa's rows/s: the mix also reads, checks, forms, normalises, counts, shuffles and writes."""
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
        began = time.perf_counter()
        quiet(*HALA, "plan", "mix.yaml", "--create", "--site", "local", env=environment(), cwd=folder)
        planned = time.perf_counter() - began
        run = folder / "runs" / "mix"
        seconds, memory = _worker(run, "one")
        line = json.loads((run / "final" / "report.json").read_text())["sources"][0]
    what = f"{len(texts):,} rows"
    kept = line["taken"] + line["exact duplicates"]
    report(f"{what}: rensa alone, one process", len(texts) / alone["seconds"], "rows/s", "", True)
    report(f"{what}: mix, one process, start included", len(texts) / seconds, "rows/s", "", True)
    ratio = alone["seconds"] / seconds
    report("mix / rensa alone", ratio, "", f"at least {BAR}", ratio >= BAR)
    report("plan, process included", len(texts) / planned, "rows/s", "", True)
    report("peak memory: rensa alone", alone["bytes"] / 1e9, "GB", "", True)
    report("peak memory: mix", memory / 1e9, "GB", "under 1 GB", memory < 1e9)
    report("exact and near duplicates left out", line["exact duplicates"] + line["near duplicates"], "rows", "", True)
    same = line["near duplicates"] + line["exact duplicates"] == alone["duplicates"]
    report("rensa leaves out", alone["duplicates"], "rows", "as many", same)
    del kept


def raw(path: Path) -> dict[str, Any]:
    """Shingles, signatures and index over texts that are in memory, as a script would do it that needs nothing else."""
    from rensa import RMinHash, RMinHashDeduplicator

    texts = json.loads(path.read_text())
    began = time.perf_counter()
    index = RMinHashDeduplicator(OPTIONS.near, OPTIONS.permutations, True, OPTIONS.bands, SEED)
    kept = 0
    for at in range(0, len(texts), BATCH):
        sets = [shingles(text, OPTIONS.shingle) for text in texts[at : at + BATCH]]
        hashed = RMinHash.from_token_sets(sets, OPTIONS.permutations, SEED)
        kept += sum(index.add_pairs([(str(at + number), one) for number, one in enumerate(hashed)]))
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "duplicates": len(texts) - kept, "bytes": _peak(resource.RUSAGE_SELF)}


def _worker(run: Path, name: str) -> tuple[float, int]:
    """Seconds and peak memory of one process that does all of a run."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "hala_hpc.worker", str(run), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=_one_thread(),
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"the worker ended with {status}")
    return time.perf_counter() - began, usage.ru_maxrss * 1024


def _one_thread() -> dict[str, str]:
    return environment() | dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS"), "1")


def _peak(who: int) -> int:
    return resource.getrusage(who).ru_maxrss * 1024


def _write(rows: Path, texts: Path, count: int) -> list[str]:
    """Rows of Alpaca, then of each its twin: the same, nearly the same, or another one made of its words."""
    said = []
    with rows.open("w") as file:
        for number, row in zip(range(count), _rows(), strict=False):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            said.append(normal(f"user {row['instruction']}\n\n{row['input']} {row['output']}"))
            del number
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
