"""1,000 pairs judged by real vLLM on the CPU: a worker is killed in the middle, and the rows are an unbroken run's.

The model is tiny and random, so its verdicts are chance, and the report has to say so.
"""

import json
import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hala_hpc.data.outputs.judgements import SCORE, VERDICT, auc
from tests.conftest import SMALL_VLLM, Hala, TinyModel
from tests.worker import helpers

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
EACH = 500
WORKER = "import sys; from hala_hpc.worker.job import main; sys.exit(max(main([run]) for run in sys.argv[1:]))"
"""Importing vLLM takes longer than a tiny model's judgements."""


def pairs(data: Path) -> list[dict[str, Any]]:
    """Human translations, and as many damaged: half of them another's translation, half copies and nothing at all."""
    (stem,) = (data / "parallel" / "tatoeba").glob("*.ara")
    texts = zip(stem.with_suffix(".eng").read_text().splitlines(), stem.read_text().splitlines(), strict=True)
    chance = random.Random(5)
    drawn = chance.sample(list(texts), 2 * EACH)
    rows = [(source, target, 1) for source, target in drawn[:EACH]]
    for number, (source, _) in enumerate(drawn[EACH:]):
        other = drawn[EACH + (number + 1) % EACH][1]
        rows.append((source, [other, source, other, ""][number % 4], 0))
    chance.shuffle(rows)
    return [{"translation": {"en": source, "ar": target}, "good": good} for source, target, good in rows]


@pytest.fixture
def start(serve_python: Path, tiny_model: TinyModel, data: Path, hala: Hala) -> Callable[..., subprocess.Popen[str]]:
    """Plan runs of these names, and start a process that is a worker of one after the other."""
    (hala.folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs(data)))
    recipe = {
        "task": {"kind": "judge", "label": "good"},
        "data": {"path": "pairs.jsonl", "columns": ["translation.en", "translation.ar"]},
        "model": {"name": str(tiny_model("llama"))},
        "engine": {
            "kind": "vllm",
            "dtype": "float32",
            "max_model_len": 2048,
            "max_num_seqs": 8,
            "enforce_eager": True,
            "arguments": {"distributed_executor_backend": "uni"},
        },
        "run": {"shard_rows": 50, "lease_seconds": 5, "flush_seconds": 0.2},
    }
    (hala.folder / "judge.yaml").write_text(json.dumps({"name": "judge"} | recipe))

    def start(*names: str) -> subprocess.Popen[str]:
        for name in names:
            if not (hala.folder / "runs" / name).is_dir():
                hala("plan", "judge.yaml", f"name={name}", "--create")
        command = [str(serve_python), "-c", WORKER, *(f"runs/{name}" for name in names)]
        return subprocess.Popen(
            command,
            cwd=hala.folder,
            env=os.environ | SMALL_VLLM,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def test_a_broken_run_equals_an_unbroken_one_and_says_how_good_its_judge_is(
    start: Callable[..., subprocess.Popen[str]], hala: Hala
) -> None:
    def finish(process: subprocess.Popen[str]) -> None:
        said, _ = process.communicate(timeout=400)
        assert process.returncode == 0, said[-4000:]

    broken, whole = hala.folder / "runs" / "broken", hala.folder / "runs" / "whole"
    process = start("broken")
    helpers.wait_until(lambda: process.poll() is not None or len(list(broken.glob("shards/*/*.parquet"))) > 3, 300)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 3 < len(list(broken.glob("shards/*/*.parquet"))) < 2 * EACH // 50, "killed in the middle"
    finish(start("broken", "whole"))
    assert helpers.proof(broken).proven and helpers.proof(whole).proven
    rows = helpers.rows(broken)
    assert len(rows) == 2 * EACH
    assert rows == helpers.rows(whole)

    scored = [row for row in rows if row[SCORE] is not None]
    assert len(scored) > 600 and all(0 < row[VERDICT]["mass"] < 0.5 for row in scored), "no verdicts were learned"
    by_chance = auc(*([row[SCORE] for row in scored if row["good"] == good] for good in (1, 0)))
    assert by_chance is not None and 0.4 < by_chance < 0.6
    reasons = {row[VERDICT]["reason"] for row in rows if row[SCORE] is None}
    assert reasons >= {"same", "empty"}
    facts = hala.json("collect", "broken", "--to", "out")["judgements"]
    assert facts["AUC"].endswith("(500 good and 500 bad rows, by `good`)")
    hala("report", "broken", "--to", "report", "--format", "md")
    tables = json.loads((hala.folder / "report" / "report.json").read_text())["tables"]
    assert tables["calibration-broken"]["rows"][0]["AUC"] == pytest.approx(float(facts["AUC"].split()[0]), abs=1e-4)
