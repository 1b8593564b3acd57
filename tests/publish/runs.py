"""Finished runs to publish: a dataset that a real worker made, and models put where a training or merge puts them."""

import json
import time
from pathlib import Path
from typing import Any

from hala_hpc.config import frozen
from hala_hpc.models import location
from hala_hpc.models.card import without_folders
from hala_hpc.run import manifest
from hala_hpc.run.layout import RunDirectory
from hala_hpc.run.manifest import Facts, Shard
from hala_hpc.tasks.train import card
from tests.models import test_check as models
from tests.worker import helpers

MADE_BY = {"recipe_digest": "d" * 32, "hala_hpc": "0.1.0", "git_commit": "c" * 40, "planned_at": "2026-01-02T03:04:05Z"}
MODEL = {"name": "", "revision": None, "tokenizer": None, "licence": None}
DATA = {"path": [], "hub": None, "revision": None, "licence": None}


def translated(folder: Path, rows: int = 25, poison: str = "text 7") -> Path:
    """A real run over ``rows`` texts, one of which is in quarantine."""
    folder.mkdir(exist_ok=True)
    run = helpers.plan(folder, helpers.texts(rows), "texts-ar", fail_on=poison)
    helpers.finish(run)
    return run


def change(run: Path, **sections: dict[str, Any]) -> Path:
    """Say something else in the frozen recipe, as if the run had been another."""
    recipe = frozen.read(run)
    for section, values in sections.items():
        recipe[section] = {**(recipe.get(section) or {}), **values}
    (run / "recipe.yaml").write_text(json.dumps(recipe))
    return run


def planned(
    path: Path, unit: Any, task: dict[str, Any], model: dict[str, Any], items: list[str], sources: list[dict[str, Any]]
) -> RunDirectory:
    """A run as the planner leaves it."""
    run = RunDirectory(path, "")
    run.create_folders(max(1, len(items)))
    count = max(1, len(items))
    shards = [Shard(number, task["kind"], "m", 0, number, 1, 0, 1, "") for number in range(count)]
    facts = Facts("", count, 0, 0, count, sources, "", MADE_BY, unit, [{"name": name} for name in items])
    manifest.write(run.manifest, shards, facts)
    site = {"cache": None, "slurm": {"gpus_per_worker": 4, "nodes_per_worker": 2}}
    recipe = {"name": path.name, "task": task, "data": DATA, "model": {**MODEL, **model}, "engine": {"kind": "vllm"}}
    run.recipe.write_text(json.dumps(recipe | {"site": site, "run": {"lease_seconds": 60.0, "attempts": 3}}))
    return run


def trained(path: Path, base: dict[str, Any], datasets: dict[str, dict[str, Any]], read: list[dict[str, Any]]) -> Path:
    """A finished training: its model with record and card, as the export writes them."""
    task = {
        "kind": "train",
        "datasets": {name: {"kind": "chat", "weight": 1.0, **DATA, **what} for name, what in datasets.items()},
    }
    run = planned(path, "models", task, base, [], read)
    folder = models.model(run.shard_output(0))
    dressed(folder, path.name, str(base["name"]), {"name": path.name, "task": task, "model": {**MODEL, **base}})
    return path


def merged(path: Path, given: list[dict[str, Any]], weights: tuple[str, ...] = ("t0.50",)) -> Path:
    """A finished merge, a model for each of ``weights``; no two are alike."""
    run = planned(path, "merges", {"kind": "merge", "models": given}, {}, list(weights), [])
    for number, name in enumerate(weights):
        folder = models.model(run.shard_output(number))
        (folder / "config.json").write_text(json.dumps({"merged": name}))
        (folder / "hala.json").unlink()
        models.record(folder)
        (folder / "README.md").write_text(
            f"---\nlibrary_name: transformers\ntags:\n- merge\n---\n# {name}\n\nMerged.\n\n## Recipe\n"
        )
        worked(run, number)
    return path


def dressed(folder: Path, run: str, base: str, recipe: dict[str, Any]) -> None:
    """Record and card of a model folder, with what a training tells of itself."""
    told = {
        "run": run, **MADE_BY, "base_model": Path(base).name if base.startswith("/") else base,
        "base_is_local": base.startswith("/"), "base_revision": None, "parameters": 5, "report": {"steps": 12},
        "training": {"steps": 12, "hours": 3.25, "gpu_hours": 26.0}, "versions": {"hala_hpc": "0.1.0"},
        "datasets": [{"name": "mine", "kind": "chat", "weight": 1.0, "hub": None, "rows": 10, "sources": []}],
        "recipe": without_folders(recipe),
    }  # fmt: skip
    (folder / "hala.json").unlink()
    models.record(folder)
    told |= {"files": json.loads((folder / "hala.json").read_text())["files"]}
    (folder / "hala.json").write_text(json.dumps(told))
    (folder / "README.md").write_text(card.render(told))


def worked(run: RunDirectory, number: int, hours: float = 0.5) -> None:
    """The ledger of a worker that was at it for so long."""
    start = time.time() - 7200
    lines = [
        {"event": "started", "time": start, "host": f"n{number}"},
        {"event": "published", "time": start + 3600 * hours},
    ]
    (run.ledger / f"w{number}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def evaluated(
    path: Path,
    scores: dict[str, dict[str, tuple[float, float]]],
    weights: dict[str, str],
    limits: dict[str, int] | None = None,
) -> Path:
    """A finished evaluation: model to benchmark to score and standard error of each of its two tasks."""
    cells = [(model, benchmark) for model, told in scores.items() for benchmark in told]
    run = planned(path, "benchmarks", {"kind": "evaluate"}, {}, [f"{model}-{name}" for model, name in cells], [])
    for number, (model, benchmark) in enumerate(cells):
        limit = (limits or {}).get(benchmark)
        score, error = scores[model][benchmark]
        one = {"score": score, "stderr": error, "questions": 50, "metric": "acc_norm"}
        told = {
            "model": model, "path": "elsewhere", "weights": weights[model], "benchmark": benchmark,
            "harness": "lighteval", "versions": {}, "few_shot": 0, "limit": limit, "questions": 100,
            "tasks": {"a": one, "b": one}, "score": score, "seconds": 9.0, "questions_per_second": 11.1, "engine": {},
        }  # fmt: skip
        folder = run.shard_output(number)
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(told))
    return path


def digest(run: Path) -> str:
    return location.digest(next(iter(location.locate(str(run)).values())))


def card_in_cache(cache: Path, kind: str, name: str, licence: str, **more: str) -> None:
    """A card as the hub's client keeps it."""
    place = cache / f"{kind}s--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("r" * 40)
    snapshot = place / "snapshots" / ("r" * 40)
    snapshot.mkdir(parents=True)
    told = {"license": licence, **more}
    (snapshot / "README.md").write_text(f"---\n{json.dumps(told)}\n---\n# {name}\n")
