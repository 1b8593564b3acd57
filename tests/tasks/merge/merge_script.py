"""Runs in the work environment, all in one process: whole runs, each method of mergekit, a merged model loaded.

usage: merge_script.py ASKED.json, which holds ``runs`` to work on; ``methods``: base and others to merge by each of
mergekit's methods into ``out``; ``strange``: two models with a tensor that mergekit does not know; ``cosines``: pairs
of models by name; ``cut``: a model of twelve tokens; ``load``: a model.
Writes out/seen.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

from mergekit.merge_methods import registry

from hala_hpc.config.errors import HalaError
from hala_hpc.config.schema import Model, Recipe
from hala_hpc.tasks.merge import inputs as merge_inputs
from hala_hpc.tasks.merge import merging, methods
from hala_hpc.tasks.merge import task as merge
from hala_hpc.tasks.train.export import model as export
from hala_hpc.worker.job import work_until


def spec(method: Any) -> dict[str, Any]:
    """What mergekit says of a method, in the words of our table."""
    found = method.spec
    contract = found.contract
    each = [one for one in found.parameters if one.scope.value != "shared"]
    return {
        "base": contract.base.value,
        "inputs": [contract.min_inputs, contract.max_inputs],
        "others": [contract.min_non_base or 0, contract.max_non_base],
        "parameters": sorted(one.name for one in found.parameters if one.scope.value == "shared"),
        "each": sorted(one.name for one in each),
        "needed": sorted(one.name for one in found.parameters if one.required),
        "with_base": any(one.scope.value == "input" for one in each),
    }


def ours(name: str) -> dict[str, Any]:
    method = methods.METHODS[name]
    told = {key: list(getattr(method, key)) for key in ("inputs", "others")}
    told |= {key: sorted(getattr(method, key)) for key in ("parameters", "each", "needed")}
    return told | {"base": method.base, "with_base": method.with_base}


def options(name: str, models: list[Path]) -> merge.Options:
    """A recipe's section that any method will take."""
    method = methods.METHODS[name]
    most = methods.most_others(method, method.base == "required")
    sources = {f"m{number}": merge.MergedModel(str(model)) for number, model in enumerate(models[:most])}
    parameters: dict[str, Any] = {"weight": 0.5} if "weight" in method.needed else {}
    parameters |= {"density": 0.5} if "density" in method.each else {}
    return merge.Options(
        method=name,
        models=sources,
        parameters=parameters,
        base_as_model=name in ("nuslerp", "multislerp"),
        t=[0.5] if "t" in method.known() else [],
    )


def merged(name: str, base: Path, others: list[Path], out: Path) -> list[str]:
    """Merge by a method as a worker does; the names of the tensors."""
    task = merge.create(Recipe(name="x", task=options(name, others), engine=None, model=Model(str(base))))
    (asked,) = task.plan(out, merge.PlanWatch()).facts.items
    inputs = {label: merge_inputs.read(label, Path(model["folder"])) for label, model in asked["models"].items()}
    tensors = merge_inputs.tensors_to_merge(inputs["base"], inputs)
    config = dict(asked["config"])
    dtype = config.pop("out_dtype")
    out.mkdir()
    return list(merging.merge(merging.MergeJob(config, inputs, tensors, dtype), out))


def refusal(base: Path, other: Path, out: Path) -> str:
    """A tensor that mergekit's description of the architecture does not have would be lost."""
    try:
        merged("slerp", base, [other], out)
    except HalaError as error:
        return str(error)
    return ""


def cosines(one: Path, two: Path) -> dict[str, Any]:
    """In pieces of seven numbers; and whether it can be stopped."""
    mine, other = (merge_inputs.read(path.name, path) for path in (one, two))
    merging.PIECE = 7
    try:
        merging.cosines(mine, other, list(mine.tensors), stop)
    except KeyboardInterrupt:
        return {
            "apart": merging.cosines(mine, other, list(mine.tensors)),
            "same": merging.cosines(mine, mine, mine.tensors),
        }
    return {}


def stop() -> None:
    raise KeyboardInterrupt


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text())
    out = Path(asked["out"])
    for run in asked["runs"]:
        assert work_until(Path(run), lambda: False).value == "finished"
    base, *others = map(Path, asked["methods"])
    seen: dict[str, Any] = {"theirs": {method.spec.name: spec(method) for method in registry.registered_methods()}}
    seen["ours"] = {name: ours(name) for name in methods.METHODS}
    seen["tensors"] = {name: merged(name, base, others, out / name) for name in methods.METHODS}
    merged("dare_linear", base, others, out / "again")
    seen["strange"] = refusal(*map(Path, asked["strange"]), out / "strange")
    seen["cosines"] = {name: cosines(*map(Path, models)) for name, models in asked["cosines"].items()}
    whole = merge_inputs.read("tuned", Path(asked["cut"]))
    for _ in range(2):  # again, as after a kill
        merge_inputs.cut(whole, merge_inputs.Vocabulary(10, 12), out / "cut")
    seen["loaded"] = export.examine(Path(asked["load"]))
    (out / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
