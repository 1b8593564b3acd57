"""Planning: time for all of Alpaca, memory for millions of rows."""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import HALA, data, quiet, report, seconds, title


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000, help="synthetic rows")
    parser.add_argument("--times", type=int, default=3)
    arguments = parser.parse_args()
    title("plan")
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder, "r.yaml")
        recipe.write_text("name: r\ntask: {kind: translate}\nengine: {kind: echo}\n")
        alpaca = f"data.path={data('instructions', 'alpaca_52k')}"
        taken = seconds(lambda: quiet(*HALA, "plan", recipe, alpaca, cwd=Path(folder)), arguments.times)
        report("52,002 Alpaca rows (JSON arrays), process included", taken, "s", "under 5 s", taken < 5)
        rows = Path(folder, "rows.jsonl")
        _write(rows, arguments.rows)
        began = time.perf_counter()
        peak = _peak_memory([*HALA, "plan", str(recipe), f"data.path={rows}"], Path(folder))
        took = time.perf_counter() - began
    report(f"{arguments.rows:,} synthetic rows: peak memory", peak, "GB", "under 1 GB", peak < 1)
    report(f"{arguments.rows:,} synthetic rows: rate", arguments.rows / took, "rows/s", "", True)


def _write(path: Path, rows: int) -> None:
    text = "Explain in a few sentences why the sky looks blue by day and red at dusk. "
    with path.open("w") as file:
        for number in range(rows):
            words = text * (1 + number % 3)
            file.write(f'{{"id": {number}, "instruction": "{number} {words}", "input": "", "output": "{words}"}}\n')


def _peak_memory(command: list[str], folder: Path) -> float:
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)}: failed")
    return usage.ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
