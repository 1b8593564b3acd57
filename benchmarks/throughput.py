"""The whole worker against one raw LLM.chat call: same engine, same rows, same settings, in pairs.

The worker reads shards, claims and publishes them, and makes finished rows durable; the raw call does nothing else.
Which of the two goes first changes from pair to pair, and the figure is the median of the pairs' ratios: a machine
that is slow for a while spoils a pair, not the figure. The spread of the raw rates says how much is noise, and the
processor seconds of this process (vLLM computes in another) how much is the worker's own.

Measured twice: texts asked for whole, and with all that keeps their shape (segments, protection, checks, the ladder).
Then the raw call gets exactly the requests that the ladder sent. The model's weights are random, so nearly every answer
fails a check and climbs to the top: the most work that there can be. A row's rounds follow each other, so rows must be
many more than the engine holds at once (512), as in any real run: else it runs half empty, which is its latency.

The engine computes on a core of its own, as it would on a GPU, and this process, raw or worker, on the others. With
``--shared`` both have all cores, and whatever this process computes is taken from the engine.
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
from typing import TYPE_CHECKING, Any

from common import HALA, ROOT, SERVE, data, quiet, report, title

if TYPE_CHECKING:
    from hala_hpc.worker.task import Context

Measure = Callable[[Any, "Context", list[Any]], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--times", type=int, default=7, help="pairs")
    parser.add_argument("--architecture", default="llama")
    parser.add_argument("--eager", action="store_true", help="no compilation: starts sooner, runs slower")
    parser.add_argument("--ladder-rows", type=int, default=1_500, help="rows with the ladder; each is asked for often")
    parser.add_argument("--shared", action="store_true", help="engine and this process on the same cores")
    parser.add_argument("--inner", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inner:
        inner(arguments.inner, arguments.times, arguments.shared)
        return
    title("throughput")
    if not SERVE.is_file():
        sys.exit("no serve environment: make serve")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        quiet(SERVE, ROOT / "jobs" / "demo" / "tiny_model.py", model, "--architecture", arguments.architecture)
        ways = {"whole": (arguments.rows, "{tokens: 0}"), "ladder": (arguments.ladder_rows, "{}")}
        for way, (rows, segments) in ways.items():
            recipe = Path(folder, f"{way}.yaml")
            recipe.write_text(
                f"name: r\ntask: {{kind: translate, truncated: keep, segments: {segments}}}\nmodel: {{name: {model}}}\n"
                f"data: {{path: {data('instructions', 'alpaca_52k')}, limit: {rows}, columns: [instruction]}}\n"
                "engine: {kind: vllm, dtype: float32, max_model_len: 2048, "
                f"enforce_eager: {str(arguments.eager).lower()}}}\nsampling: {{max_tokens: 64}}\n"
                f"run: {{shard_rows: {max(1, rows // 10)}}}\n"
            )
            for number in range(arguments.times + 1):
                quiet(*HALA, "plan", recipe, f"name={way}{number}", "--create", cwd=Path(folder))
        environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
        environment |= {} if arguments.shared else {"VLLM_CPU_OMP_THREADS_BIND": str(min(os.sched_getaffinity(0)))}
        command = [SERVE, __file__, "--inner", folder, "--times", str(arguments.times)]
        command += ["--shared"] * arguments.shared
        subprocess.run(list(map(str, command)), check=True, env=environment)


def inner(folder: Path, times: int, is_shared: bool) -> None:
    """In the serve environment: one engine, the raw call and the worker in turn."""
    from hala_hpc.config.compose import thaw
    from hala_hpc.engines.vllm import Vllm
    from hala_hpc.worker import registry

    engine = Vllm(thaw(folder / "runs" / "whole0" / "recipe.yaml", registry.options_of))
    if not is_shared:
        part(engine)
    engine.close_for_good, engine.close = engine.close, lambda: None  # type: ignore[attr-defined, method-assign]
    for way in ("whole", "ladder"):
        compare(engine, folder / "runs", way, times)
    engine.close_for_good()  # type: ignore[attr-defined]


def part(engine: Any) -> None:
    """Give the engine's processes the first core, and this one the others."""
    manager = getattr(engine._engine.engine_core, "resources", None)
    theirs = [int(process.pid) for process in manager.engine_manager.processes] if manager else []
    first, *others = sorted(os.sched_getaffinity(0))
    if not theirs or not others:
        return
    for pid in theirs:  # which grows by their children
        theirs += [
            int(child) for tasks in Path(f"/proc/{pid}/task").glob("*/children") for child in tasks.read_text().split()
        ]
    for pids, cores in ((theirs, [first]), ([os.getpid()], others)):
        for task in (task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()):
            os.sched_setaffinity(int(task.name), cores)


def compare(engine: Any, runs: Path, way: str, times: int) -> None:
    """The raw call and the worker in pairs, after a run of the worker that tells what is asked of the engine."""
    rates: dict[Measure, list[float]] = {raw: [], worker: []}
    spent: dict[Measure, list[float]] = {raw: [], worker: []}
    requests = requests_of(engine, runs / f"{way}{times}")
    for number in range(times):
        context = context_of(engine, runs / f"{way}{number}")
        for measure in (raw, worker) if number % 2 == 0 else (worker, raw):
            engine._llm.reset_prefix_cache()
            before, began = time.process_time(), time.perf_counter()
            measure(engine, context, requests)
            rates[measure].append(len(requests) / (time.perf_counter() - began))
            spent[measure].append((time.process_time() - before) / len(requests) * 1e3)
    raw_rates, worker_rates = rates[raw], rates[worker]
    ratios = [ours / theirs for ours, theirs in zip(worker_rates, raw_rates, strict=True)]
    for name, seen in (("raw requests/s", raw_rates), ("worker requests/s", worker_rates), ("ratios", ratios)):
        print(f"{way}: {name}: {', '.join(f'{one:.3g}' for one in seen)} (spread {spread(seen):.1%})")
    for name, of in (("raw", raw), ("worker", worker)):
        print(f"{way}: {name}: {statistics.median(spent[of]):.2f} ms of this process a request")
    ratio = statistics.median(ratios)
    report(f"{way}: raw LLM.chat (the limit), {len(requests):,} requests", statistics.median(raw_rates), "/s", "", True)
    report(f"{way}: the whole worker", statistics.median(worker_rates), "/s", "", True)
    report(f"{way}: worker / raw, median of pairs", ratio, "", "at least 0.95", ratio >= 0.95)


def spread(values: list[float]) -> float:
    """Largest less smallest, as a share of the median."""
    return (max(values) - min(values)) / statistics.median(values)


def requests_of(engine: Any, run: Path) -> list[Any]:
    """What the worker asks of the engine, each request once; the same in every run."""
    sent: list[Any] = []
    add = engine.add

    def noted(id: str, request: Any) -> None:
        sent.append(request)
        add(id, request)

    engine.add = noted
    worker(engine, context_of(engine, run), [])
    engine.add = add
    return sent


def context_of(engine: Any, run: Path) -> "Context":
    """All that a worker has before its first claim."""
    from hala_hpc.config.compose import thaw
    from hala_hpc.run import manifest
    from hala_hpc.run.layout import RunDirectory
    from hala_hpc.run.lease import Leases
    from hala_hpc.run.ledger import Ledger
    from hala_hpc.worker import registry
    from hala_hpc.worker.task import Context

    recipe = thaw(run / "recipe.yaml", registry.options_of)
    plan = manifest.read(run / "manifest.parquet")
    directory = RunDirectory(run)
    leases = Leases(directory, "bench", recipe.run.lease_seconds, recipe.run.attempts)
    ledger = Ledger(directory.ledger / "bench.jsonl", host="here", job="", pid=os.getpid())
    return Context(directory, recipe, plan, registry.create(recipe), leases, ledger, lambda: engine, lambda: False)


def raw(engine: Any, context: "Context", requests: list[Any]) -> None:
    """One LLM.chat call with all requests."""
    from dataclasses import asdict

    del context
    params = [engine._params(request, 0) for request in requests]
    engine._llm.chat([[asdict(message) for message in r.prompt] for r in requests], params, use_tqdm=False)


def worker(engine: Any, context: "Context", requests: list[Any]) -> None:
    """The worker's whole loop over the run, from its first claim to its last published shard."""
    del engine, requests
    from hala_hpc.worker.rows import loop as rows

    rows.work(context)
    published = sum(1 for shard in range(len(context.plan)) if context.run.shard_output(shard).exists())
    assert published == len(context.plan), f"{published} of {len(context.plan)} shards published"


if __name__ == "__main__":
    main()
