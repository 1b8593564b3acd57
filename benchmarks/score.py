"""`hala score` beside sacrebleu's own command line, on questions of MMLU in Arabic: time, memory and the numbers."""

import argparse
import csv
import json
import random
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

from common import HALA, data, environment, quiet, report, title

SACREBLEU = [sys.executable, "-m", "sacrebleu"]
SYSTEMS = ("one", "two")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=14_042)
    parser.add_argument("--times", type=int, default=3)
    arguments = parser.parse_args()
    title("score")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = pairs(folder, arguments.rows)
        theirs = [*SACREBLEU, "ref", "-i", *SYSTEMS, "-m", "bleu", "chrf", "--chrf-word-order", "2", "-w", "10"]
        theirs += ["--paired-bs", "--format", "text"]
        ours = [*HALA, "score", "ref", *SYSTEMS, "--paired", "--metrics", "bleu,chrf", "--json"]
        taken: dict[str, list[float]] = {"theirs": [], "ours": []}
        said = {}
        for _ in range(arguments.times):
            for label, command in (("theirs", theirs), ("ours", ours)):
                began = time.perf_counter()
                said[label] = quiet(*command, env=environment(), cwd=folder)
                taken[label].append(time.perf_counter() - began)
        mine, other = (statistics.median(taken[label]) for label in ("ours", "theirs"))
        report(
            f"BLEU, chrF++, paired test, {rows:,} pairs: hala / sacrebleu", mine / other, "", "at most 1", mine <= other
        )
        report("... hala", mine, "s", "", True)
        report("... sacrebleu", other, "s", "", True)
        everything = [*HALA, "score", "ref", *SYSTEMS, "--paired", "--metrics", "all"]
        began = time.perf_counter()
        quiet(*everything, env=environment(), cwd=folder)
        report("all five metrics of two systems, with paired tests", time.perf_counter() - began, "s", "", True)
        for label, command in (("hala", ours), ("sacrebleu", theirs)):
            report(f"peak memory: {label}", peak(command, folder), "GB", "", True)
        print("the same numbers" if numbers(said["ours"]) == printed(said["theirs"]) else "OTHER NUMBERS")


def numbers(out: str) -> list[str]:
    """Score, mean and half of the interval of each system and metric, as sacrebleu prints them."""
    systems = json.loads(out)["systems"].values()
    scores = (system["scores"][metric] for system in systems for metric in ("bleu", "chrf"))
    return [f"{score[key]:.10f}" for score in scores for key in ("score", "mean", "half")]


def printed(out: str) -> list[str]:
    return [number for found in re.findall(r"(\d+\.\d+) \((\d+\.\d+) ± (\d+\.\d+)\)", out) for number in found]


def pairs(folder: Path, most: int) -> int:
    """References, and two systems that lose some of their words."""
    files = sorted(data("arabic_bench", "mmlu_arabic", "test").glob("*.csv"))
    texts = [" ".join(row[0].split()) for path in files for row in csv.reader(path.open(encoding="utf-8"))][:most]
    chance = random.Random(1)
    sides = {"ref": texts}
    for name, share in zip(SYSTEMS, (0.2, 0.21), strict=True):
        sides[name] = [" ".join(word for word in text.split() if chance.random() > share) for text in texts]
    for name, own in sides.items():
        (folder / name).write_text("".join(f"{text}\n" for text in own), "utf-8")
    return len(texts)


def peak(command: list[str], folder: Path) -> float:
    """Gigabytes of memory that a command held at most."""
    script = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, capture_output=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    return int(quiet(sys.executable, "-c", script, *command, env=environment(), cwd=folder)) * 1024 / 1e9


if __name__ == "__main__":
    main()
