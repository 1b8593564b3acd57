"""The whole worker against one raw LLM.chat call: same engine, same rows, same settings, in turn.

The worker reads shards, claims and publishes them, and makes finished rows durable; the raw call does nothing else.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import HALA, ROOT, SERVE, data, quiet, report, title


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--architecture", default="llama")
    parser.add_argument("--eager", action="store_true", help="no compilation: starts sooner, runs slower")
    parser.add_argument("--inner", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inner:
        inner(arguments.inner, arguments.times)
        return
    title("throughput")
    if not SERVE.is_file():
        sys.exit("no serve environment: make serve")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        quiet(SERVE, ROOT / "jobs" / "demo" / "tiny_model.py", model, "--architecture", arguments.architecture)
        recipe = Path(folder, "r.yaml")
        recipe.write_text(
            f"name: r\ntask: {{kind: translate, truncated: keep}}\nmodel: {{name: {model}}}\n"
            f"data: {{path: {data('instructions', 'alpaca_52k')}, limit: {arguments.rows}, columns: [instruction]}}\n"
            "engine: {kind: vllm, dtype: float32, max_model_len: 2048, "
            f"enforce_eager: {str(arguments.eager).lower()}}}\nsampling: {{max_tokens: 64}}\n"
            f"run: {{shard_rows: {max(1, arguments.rows // 10)}}}\n"
        )
        for number in range(arguments.times):
            quiet(*HALA, "plan", recipe, f"name=r{number}", "--create", cwd=Path(folder))
        environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
        command = [SERVE, __file__, "--inner", folder, "--times", str(arguments.times)]
        subprocess.run(list(map(str, command)), check=True, env=environment)


def inner(folder: Path, times: int) -> None:
    """In the serve environment: one engine, the raw call and the worker in turn."""
    from hala_hpc import tasks
    from hala_hpc.config.compose import thaw
    from hala_hpc.engines.vllm import Vllm

    engine = Vllm(thaw(folder / "runs" / "r0" / "recipe.yaml", tasks.options_of))
    engine.close_for_good, engine.close = engine.close, lambda: None  # type: ignore[attr-defined, method-assign]
    raw_rates, worker_rates = [], []
    raw(engine, folder / "runs" / "r0", warm=True)
    for number in range(times):
        run = folder / "runs" / f"r{number}"
        for measure, rates in ((raw, raw_rates), (worker, worker_rates)):
            engine._llm.reset_prefix_cache()
            rates.append(measure(engine, run))
    ratios = [ours / theirs for ours, theirs in zip(worker_rates, raw_rates, strict=True)]
    for name, rates in (("raw", raw_rates), ("worker", worker_rates)):
        print(f"{name}: {', '.join(f'{rate:.1f}' for rate in rates)} rows/s")
    ratio = statistics.median(ratios)
    report("raw LLM.chat (the limit)", statistics.median(raw_rates), "rows/s", "", True)
    report("the whole worker", statistics.median(worker_rates), "rows/s", "", True)
    report("worker / raw, median of pairs", ratio, "", "at least 0.95", ratio >= 0.95)
    engine.close_for_good()  # type: ignore[attr-defined]


def raw(engine: Any, run: Path, warm: bool = False) -> float:
    """One LLM.chat call over all rows; rows per second."""
    from dataclasses import asdict

    requests = [request for _, row in all_rows(run) for request in work_of(run).requests(row)]
    requests = requests[:64] if warm else requests
    params = [engine._params(request, 0) for request in requests]
    began = time.perf_counter()
    engine._llm.chat([[asdict(message) for message in r.prompt] for r in requests], params, use_tqdm=False)
    return len(requests) / (time.perf_counter() - began)


def worker(engine: Any, run: Path) -> float:
    """The worker's whole loop over the run, from its first claim to its last published shard; rows per second."""
    from hala_hpc import tasks
    from hala_hpc.config.compose import thaw
    from hala_hpc.run import manifest
    from hala_hpc.run.layout import RunDirectory
    from hala_hpc.run.lease import Leases
    from hala_hpc.run.ledger import Ledger
    from hala_hpc.worker import rows
    from hala_hpc.worker.context import Context

    recipe = thaw(run / "recipe.yaml", tasks.options_of)
    plan = manifest.read(run / "manifest.parquet")
    directory = RunDirectory(run)
    leases = Leases(directory, "bench", recipe.run.lease_seconds, recipe.run.attempts)
    ledger = Ledger(directory.ledger / "bench.jsonl", host="here", job="", pid=os.getpid())
    context = Context(directory, recipe, plan, tasks.create(recipe), leases, ledger, lambda: engine, lambda: False)
    began = time.perf_counter()
    rows.work(context)
    took = time.perf_counter() - began
    published = sum(1 for shard in range(len(plan)) if directory.shard_output(shard).exists())
    assert published == len(plan), f"{published} of {len(plan)} shards published"
    return plan.facts.rows / took


def work_of(run: Path) -> Any:
    from hala_hpc import tasks
    from hala_hpc.config.compose import thaw
    from hala_hpc.data import schema
    from hala_hpc.run import manifest

    facts = manifest.read(run / "manifest.parquet").facts
    task: Any = tasks.create(thaw(run / "recipe.yaml", tasks.options_of))
    return task.work_on(schema.load(facts.schema))


def all_rows(run: Path) -> Any:
    from hala_hpc.data import shards
    from hala_hpc.run import manifest

    plan = manifest.read(run / "manifest.parquet")
    for shard in plan:
        yield from shards.read_input(run, shard, plan.facts).numbered()


if __name__ == "__main__":
    main()
