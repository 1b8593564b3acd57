"""The whole worker against one raw LLM.chat call: same engine, same rows, same settings, in pairs.

The worker reads shards, claims and publishes them, and makes finished rows durable; the raw call does nothing else.
Which of the two goes first changes from pair to pair, and the figure is the median of the pairs' ratios: a machine
that is slow for a while spoils a pair, not the figure. The spread of the raw rates says how much is noise, and the
processor seconds of this process (vLLM computes in another) how much is the worker's own.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import HALA, ROOT, SERVE, data, quiet, report, title

Measure = Callable[[Any, Path, list[Any]], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--times", type=int, default=7, help="pairs")
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
            f"name: r\ntask: {{kind: translate, truncated: keep, segments: {{tokens: 0}}}}\nmodel: {{name: {model}}}\n"
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
    from hala_hpc.config.compose import thaw
    from hala_hpc.engines.vllm import Vllm
    from hala_hpc.worker import registry

    engine = Vllm(thaw(folder / "runs" / "r0" / "recipe.yaml", registry.options_of))
    engine.close_for_good, engine.close = engine.close, lambda: None  # type: ignore[attr-defined, method-assign]
    rates: dict[Measure, list[float]] = {raw: [], worker: []}
    spent: dict[Measure, list[float]] = {raw: [], worker: []}
    requests = requests_of(folder / "runs" / "r0")
    raw(engine, folder / "runs" / "r0", requests[:64])
    for number in range(times):
        run = folder / "runs" / f"r{number}"
        for measure in (raw, worker) if number % 2 == 0 else (worker, raw):
            engine._llm.reset_prefix_cache()
            before = time.process_time()
            rates[measure].append(measure(engine, run, requests))
            spent[measure].append((time.process_time() - before) / len(requests) * 1e3)
    raw_rates, worker_rates = rates[raw], rates[worker]
    ratios = [ours / theirs for ours, theirs in zip(worker_rates, raw_rates, strict=True)]
    for name, seen in (("raw rows/s", raw_rates), ("worker rows/s", worker_rates), ("ratios", ratios)):
        print(f"{name}: {', '.join(f'{one:.3g}' for one in seen)} (spread {spread(seen):.1%})")
    for name, of in (("raw", raw), ("worker", worker)):
        print(f"{name}: {statistics.median(spent[of]):.2f} ms of this process a row")
    ratio = statistics.median(ratios)
    report("raw LLM.chat (the limit)", statistics.median(raw_rates), "rows/s", "", True)
    report("the whole worker", statistics.median(worker_rates), "rows/s", "", True)
    report("worker / raw, median of pairs", ratio, "", "at least 0.95", ratio >= 0.95)
    engine.close_for_good()  # type: ignore[attr-defined]


def spread(values: list[float]) -> float:
    """Largest less smallest, as a share of the median."""
    return (max(values) - min(values)) / statistics.median(values)


def requests_of(run: Path) -> list[Any]:
    """What is asked of the engine; the same in every run."""
    work = work_of(run)
    return [request for _, row in all_rows(run) for request in next(work.do(row), [])]


def raw(engine: Any, run: Path, requests: list[Any]) -> float:
    """One LLM.chat call over all rows; rows per second."""
    from dataclasses import asdict

    del run
    params = [engine._params(request, 0) for request in requests]
    began = time.perf_counter()
    engine._llm.chat([[asdict(message) for message in r.prompt] for r in requests], params, use_tqdm=False)
    return len(requests) / (time.perf_counter() - began)


def worker(engine: Any, run: Path, requests: list[Any]) -> float:
    """The worker's whole loop over the run, from its first claim to its last published shard; rows per second."""
    del requests
    from hala_hpc.config.compose import thaw
    from hala_hpc.run import manifest
    from hala_hpc.run.layout import RunDirectory
    from hala_hpc.run.lease import Leases
    from hala_hpc.run.ledger import Ledger
    from hala_hpc.worker import registry
    from hala_hpc.worker.rows import loop as rows
    from hala_hpc.worker.task import Context

    recipe = thaw(run / "recipe.yaml", registry.options_of)
    plan = manifest.read(run / "manifest.parquet")
    directory = RunDirectory(run)
    leases = Leases(directory, "bench", recipe.run.lease_seconds, recipe.run.attempts)
    ledger = Ledger(directory.ledger / "bench.jsonl", host="here", job="", pid=os.getpid())
    context = Context(directory, recipe, plan, registry.create(recipe), leases, ledger, lambda: engine, lambda: False)
    began = time.perf_counter()
    rows.work(context)
    took = time.perf_counter() - began
    published = sum(1 for shard in range(len(plan)) if directory.shard_output(shard).exists())
    assert published == len(plan), f"{published} of {len(plan)} shards published"
    return plan.facts.rows / took


def work_of(run: Path) -> Any:
    from hala_hpc.config.compose import thaw
    from hala_hpc.data import schema
    from hala_hpc.run import manifest
    from hala_hpc.worker import registry

    facts = manifest.read(run / "manifest.parquet").facts
    task: Any = registry.create(thaw(run / "recipe.yaml", registry.options_of))
    return task.work_on(schema.load(facts.schema))


def all_rows(run: Path) -> Any:
    from hala_hpc.data import shards
    from hala_hpc.run import manifest

    plan = manifest.read(run / "manifest.parquet")
    for shard in plan:
        yield from shards.read_input(run, shard, plan.facts).numbered()


if __name__ == "__main__":
    main()
