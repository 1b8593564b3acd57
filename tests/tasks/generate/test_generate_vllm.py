"""500 conversations made up by real vLLM on the CPU: a worker is killed in the middle, the rows are an unbroken run's.

The model is tiny and random, so what it says is noise, which the filters reject for several reasons.
"""

import json
import os
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from hala_hpc.data.shards import reason_of
from tests.conftest import SMALL_VLLM, Hala, TinyModel
from tests.worker import helpers

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
ROWS = 500
SCRIPT = Path(__file__).with_name("generate_script.py")


def test_a_broken_run_equals_an_unbroken_one_and_its_counts_add_up(
    serve_python: Path, tiny_model: TinyModel, hala: Hala
) -> None:
    recipe = {
        "name": "made",
        "task": {
            "kind": "generate",
            "rows": ROWS,
            "kinds": {"general": {"weight": 2}, "code": {"system": "You help programmers with their code."}},
            "instructions": {"max_tokens": 24},
            "filters": {"truncated": False, "min_instruction": 84, "max_response": 104},
        },
        "model": {"name": str(tiny_model("llama"))},
        "engine": {
            "kind": "vllm",
            "dtype": "float32",
            "max_model_len": 256,
            "max_num_seqs": 32,
            "enforce_eager": True,
            "arguments": {"distributed_executor_backend": "uni"},
        },
        "sampling": {"temperature": 0.5, "max_tokens": 24},
        "run": {"shard_rows": 50, "lease_seconds": 5, "flush_seconds": 0.2},
    }
    (hala.folder / "made.yaml").write_text(json.dumps(recipe))
    broken, whole = hala.folder / "runs" / "broken", hala.folder / "runs" / "whole"
    for run in (broken, whole):
        hala("plan", "made.yaml", f"name={run.name}", "--create")

    def start(*words: object) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            list(map(str, (serve_python, *words))),
            env=os.environ | SMALL_VLLM,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    process = start("-m", "hala_hpc.worker", broken)
    helpers.wait_until(lambda: process.poll() is not None or len(list(broken.glob("shards/*/*.parquet"))) > 3, 300)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 3 < len(list(broken.glob("shards/*/*.parquet"))) < ROWS // 50, "killed in the middle"
    process = start(SCRIPT, broken, whole)  # one engine for both
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said[-4000:]

    assert helpers.proof(broken).proven and helpers.proof(whole).proven
    rows = helpers.rows(broken)
    assert len(rows) == ROWS
    assert rows == helpers.rows(whole)
    made = [row["messages"][0]["content"] for row in rows if row["hala_error"] is None]
    assert len(set(made)) > 0.95 * len(made), "each row is drawn for itself"

    held = Counter(reason_of(row["hala_error"]) for row in rows if row["hala_error"] is not None)
    rejected = Counter(reason_of(row["hala_rejected"]) for row in rows if row["hala_rejected"] is not None)
    kept = [row for row in rows if row["hala_error"] is None and row["hala_rejected"] is None]
    assert len(rejected) > 1 and kept, rejected
    assert all([turn["role"] for turn in row["messages"]] == ["user", "assistant"] for row in kept)
    facts = hala.json("collect", "whole", "--to", "out")
    counted = {name: int(value.split()[0].replace(",", "")) for name, value in facts["judgements"].items()}
    assert counted == {"kept": len(kept)} | {f"rejected: {reason}": count for reason, count in rejected.items()}
    assert facts["quarantined"] == held
    assert sum(counted.values()) + held.total() == ROWS
    state = hala.json("status", "whole")
    seen = Counter[str]()
    for worker in state["workers"]:
        seen.update({name: count for name, count in worker["counts"].items() if name.startswith("rejected: ")})
    assert seen == {f"rejected: {reason}": count for reason, count in rejected.items()}
