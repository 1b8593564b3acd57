"""Runs in the work environment: the tokens to be learned that the ranks see in each step, sorted, as JSON.

Arguments: runs; a line for each.
"""

import json
import sys
from pathlib import Path

from hala_hpc.config.compose import thaw
from hala_hpc.tasks.train import paths
from hala_hpc.tasks.train import task as train
from hala_hpc.tasks.train.options import layout
from hala_hpc.tasks.train.order import index
from hala_hpc.tasks.train.order.packing import Prepared
from hala_hpc.tasks.train.rank.batches import IGNORED, Batches, Collate
from hala_hpc.worker import registry


def seen_in(run: Path) -> dict[int, list[list[list[int]]]]:
    """By the number of ranks, for each step."""
    recipe = thaw(run / "recipe.yaml", registry.options_of)
    prepared, order = Prepared(train.prepare_runs(run, recipe)), index.load(run / paths.INDEX)
    form = "positions" if order.report["packed"] else "padded"
    seen: dict[int, list[list[list[int]]]] = {}
    for world in (1, 2, 4):
        spread = layout(recipe.task, world)
        ranks = [Batches(order, spread, rank, Collate(prepared, 0, form, conv=False)) for rank in range(world)]
        seen[world] = []
        for step in range(order.steps):
            learned = []
            for rank in ranks:
                for turn in range(spread.accumulation):
                    batch = rank[step * spread.accumulation + turn]
                    places = (batch["labels"] != IGNORED).nonzero().tolist()
                    for row, column in places:
                        before = batch["input_ids"][row, max(0, column - 3) : column + 1].tolist()
                        learned.append(before)  # a token with what stands before it: no two are taken for each other
            seen[world].append(sorted(learned))
    return seen


for path in sys.argv[1:]:
    print(json.dumps(seen_in(Path(path))))
