"""The demo: the main job from recipe to dataset, on this machine, with a worker killed half-way.

Every step is a command that you could type; it is printed before it runs. `make demo` calls this.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from typed import HALA, ROOT, SERVE, console, run, say

HERE = Path(__file__).resolve().parent
RUN = ROOT / "runs" / "demo"
PATIENCE_SECONDS = 600.0


def status() -> dict[str, Any]:
    done = subprocess.run([HALA, "status", RUN, "--json"], check=True, capture_output=True, text=True)
    state: dict[str, Any] = json.loads(done.stdout)
    return state


def watch_until(share: float) -> dict[str, Any]:
    """Show live progress until this share of the rows is done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} rows"),
        TimeElapsedColumn(),
    )
    ends = time.monotonic() + PATIENCE_SECONDS
    with Progress(*columns, console=console) as bar:
        state = status()
        line = bar.add_task("starting engines", total=state["rows"])
        while state["rows_done"] < share * state["rows"]:
            if time.monotonic() > ends:
                sys.exit(f"no end in sight: look at `hala logs {RUN}`")
            time.sleep(0.5)
            state = status()
            alive = sum(worker["alive"] for worker in state["workers"])
            about = f"{state['done']}/{state['shards']} shards, {alive} workers, {state['rows_per_second']:.1f} rows/s"
            bar.update(
                line, completed=state["rows_done"], description=about if state["rows_done"] else "starting engines"
            )
    return state


def kill_one(state: dict[str, Any]) -> None:
    """SIGKILL the worker that holds most: no handler runs, nothing is tidied up."""
    alive = [worker for worker in state["workers"] if worker["alive"]]
    if not alive:
        sys.exit("the workers were done before one could be killed: make the recipe slower")
    victim = max(alive, key=lambda worker: sum(worker["working_on"].values()))
    opening = json.loads((RUN / "ledger" / f"{victim['worker']}.jsonl").read_text().splitlines()[0])
    console.print(
        f"[red]$ kill -9 {opening['pid']}[/]    # {victim['worker']}, in the middle of shards {victim['working_on']}"
    )
    os.kill(opening["pid"], signal.SIGKILL)


def show_rows() -> None:
    """Two rows, original and noise side by side."""
    table = pq.read_table(RUN / "final" / "data")
    for number in (0, table.num_rows // 2):
        row = table.slice(number, 1).to_pylist()[0]
        console.print(f"[bold]{row['id']}[/] ({row['category']})")
        for original, new in zip(row["messages"], row["messages_ar"], strict=True):
            console.out(f"  {original['role']:>9}: {original['content'][:60]!r}", highlight=False)
            if new["content"] != original["content"]:
                console.out(f"{'→':>11} {new['content'][:60]!r}", highlight=False)


def main() -> None:
    began = time.monotonic()
    shutil.rmtree(RUN, ignore_errors=True)
    say("A tiny random model, made on the spot (it writes noise: this shows the machinery, not a translation)")
    run(SERVE, HERE / "tiny_model.py", HERE / "model")
    say("Submit: two workers on this machine")
    run(HALA, "submit", HERE / "translate.yaml", "--site", "local-cpu", f"run.root={RUN.parent}")
    kill_one(watch_until(0.25))
    say("One worker is dead. The other goes on; resume starts one for what is missing")
    run(HALA, "resume", RUN, "--workers", "1")
    watch_until(1.0)
    say("Every row, exactly once?")
    run(HALA, "verify", RUN)
    run(HALA, "collect", RUN)
    show_rows()
    say(f"Done in {time.monotonic() - began:.0f} s. The finished dataset: {os.path.relpath(RUN / 'final', ROOT)}")


if __name__ == "__main__":
    main()
