"""How fast a run made its texts, from its ledgers, and on what."""

from pathlib import Path
from typing import Any

from hala_hpc.config import frozen
from hala_hpc.run import history
from hala_hpc.run.history import Worker
from hala_hpc.run.layout import RunDirectory


def of_run(run: Path) -> dict[str, Any]:
    """Tokens, hours and rates of a run, with its model, engine and GPUs as its recipe says.

    ``output_tokens_per_second`` is that of one worker, on average, from when its model was loaded until its last row;
    ``of_gpu`` the same of each of its GPUs. Both are None where the ledgers do not say.
    """
    recipe = frozen.read(run)
    site, engine = recipe.get("site") or {}, recipe.get("engine") or {}
    slurm = site.get("slurm") or {}
    work = history.of_run(run, site)
    stretches = [_stretch(worker) for worker in history.read(RunDirectory(run)).workers]
    tokens, seconds = (sum(column) for column in zip(*stretches, strict=True)) if stretches else (0, 0.0)
    rate = round(tokens / seconds, 3) if tokens and seconds else None
    gpus = int(slurm.get("gpus_per_worker") or 0)
    return {
        "name": run.name,
        "model": (recipe.get("model") or {}).get("name") or None,
        "engine": engine.get("kind"),
        "dtype": engine.get("dtype"),
        "gpus_per_worker": gpus,
        "gpu_type": slurm.get("gpu_type"),
        "workers": work.workers,
        "output_tokens": work.output_tokens,
        "hours": round(work.hours, 6),
        "gpu_hours": round(work.gpu_hours, 6),
        "output_tokens_per_second": rate,
        "of_gpu": round(rate / gpus, 3) if rate and gpus else None,
    }


def _stretch(worker: Worker) -> tuple[int, float]:
    """Tokens that a worker wrote, and the seconds from the last count without any to the first with all of them."""
    idle = [time for time, _, tokens in worker.counts if not tokens]
    last = [time for time, _, tokens in worker.counts if tokens and tokens == worker.counts[-1][2]]
    if not last:
        return 0, 0.0
    return worker.totals.get("output_tokens", 0), last[0] - max(idle, default=worker.start)
