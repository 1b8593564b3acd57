"""The order of a training: what is in which step, and that nothing is lost or seen twice."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hala_hpc.config.errors import HalaError
from hala_hpc.tasks.train.options import Batch, Dataset, Evaluation, Options
from hala_hpc.tasks.train.order import index
from hala_hpc.tasks.train.order.index import Index
from hala_hpc.tasks.train.order.packing import Prepared
from tests.tasks.train.order import prepared_runs

LENGTH = 64


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Chat rows of one piece (some dropped) and texts of several."""
    random = np.random.default_rng(3)
    folder = tmp_path_factory.mktemp("prepared")
    chat = ["empty: no answer" if number % 50 == 7 else [int(random.integers(5, 40))] for number in range(500)]
    texts = [[LENGTH] * int(random.integers(0, 3)) + [int(random.integers(2, LENGTH))] for _ in range(100)]
    return Prepared([prepared_runs.write(folder / "chat", chat), prepared_runs.write(folder / "texts", texts)])


def options(weights: tuple[float, float] = (1, 1), sequences: int = 8, held: int = 0, **task: Any) -> Options:
    datasets = {"chat": Dataset(weight=weights[0]), "texts": Dataset(kind="text", weight=weights[1])}
    batch = Batch(sequences=sequences, per_device=2)
    return (
        Options(datasets=datasets, batch=batch, sequence_length=LENGTH, evaluation=Evaluation(rows=held), seed=1)
        if not task
        else dataclasses.replace(options(weights, sequences, held), **task)
    )


@pytest.fixture
def build(prepared: Prepared, tmp_path: Path) -> Any:
    def build(asked: Options, can_pack: bool = True) -> Index:
        return index.build(prepared, asked, can_pack, tmp_path / f"index-{len(list(tmp_path.iterdir()))}")

    return build


def stream(found: Index) -> list[list[int]]:
    return [sequence for step in range(found.steps) for sequence in found.step(step)]


def seen(found: Index) -> Counter[int]:
    return Counter(piece for sequence in stream(found) for piece in sequence)


@pytest.mark.parametrize("packing", [True, False])
def test_every_piece_once_in_each_epoch(build: Any, prepared: Prepared, packing: bool) -> None:
    once, thrice = build(options(packing=packing)), build(options(packing=packing, epochs=3.0))
    assert seen(once) == dict.fromkeys(range(len(prepared)), 1)
    assert seen(thrice) == dict.fromkeys(range(len(prepared)), 3)
    # Epochs follow one another: but for what filled up the last step of one, nothing comes again before all was seen.
    first = [piece for sequence in stream(thrice)[: len(stream(once))] for piece in sequence]
    assert len(set(first)) >= len(first) - 8 * LENGTH // 2
    if not packing:
        assert len(set(first)) >= len(first) - 8


@pytest.mark.parametrize("packing", [True, False])
def test_steps_are_full_but_the_last(build: Any, packing: bool) -> None:
    found = build(options(packing=packing, epochs=2.0))
    sizes = [len(found.step(step)) for step in range(found.steps)]
    assert set(sizes[:-1]) == {8}
    assert 1 <= sizes[-1] <= 8
    assert sum(sizes) == found.report["sequences"]
    with pytest.raises(IndexError):
        found.step(found.steps)


def test_packed_sequences_hold_what_fits_of_all_datasets(build: Any, prepared: Prepared) -> None:
    found = build(options())
    totals = [int(prepared.lengths[sequence].sum()) for sequence in stream(found)]
    assert max(totals) <= LENGTH
    assert found.report["packed"]
    assert found.report["padding_share"] == pytest.approx(1 - sum(totals) / (len(totals) * LENGTH), abs=1e-6)
    assert found.report["padding_share"] <= 0.02
    mixed = [sequence for sequence in stream(found) if len(set(prepared.dataset[sequence])) == 2]
    assert len(mixed) > 10


def test_without_packing_those_of_a_step_are_about_equally_long(build: Any, prepared: Prepared) -> None:
    found = build(options(packing=None), can_pack=False)
    assert all(len(sequence) == 1 for sequence in stream(found))
    spread = [np.ptp([prepared.lengths[piece] for (piece,) in found.step(step)]) for step in range(found.steps - 1)]
    assert np.median(spread) <= 2
    longest = [max(prepared.lengths[piece] for (piece,) in found.step(step)) for step in range(found.steps)]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))
    assert found.report["padding_share"] < 0.05


def test_the_order_is_the_seeds_alone(build: Any, prepared: Prepared) -> None:
    one, other = build(options()), build(options())
    assert stream(one) == stream(other)
    assert stream(build(options(seed=2))) != stream(one)
    per_device = build(options(batch=Batch(sequences=8, per_device=4)))
    assert stream(per_device) == stream(one)  # how many GPUs take them changes nothing


def test_an_epoch_has_an_order_of_its_own(build: Any) -> None:
    found = stream(build(options(epochs=2.0)))
    half = len(found) // 2
    assert found[:half] != found[half : 2 * half]
    assert {tuple(sorted(one)) for one in found[:half]} != {tuple(sorted(one)) for one in found[half:]}


def test_weights_count_how_often_a_row_is_seen(build: Any, prepared: Prepared) -> None:
    """Half a weight: in two epochs each row once, all pieces of it; two and a half: five times."""
    for epochs, expected in ((1, ({0, 1}, {2, 3})), (2, ({1}, {5}))):
        counts = seen(build(options(weights=(0.5, 2.5), epochs=float(epochs))))
        for dataset in (0, 1):
            times = [counts[piece] for piece in np.flatnonzero(prepared.dataset == dataset).tolist()]
            assert set(times) == expected[dataset]
        for row in range(100):
            assert (
                len({counts[piece] for piece in np.flatnonzero((prepared.dataset == 1) & (prepared.rows == row))}) == 1
            )
    once = seen(build(options(weights=(0.5, 2.5))))
    assert sum(once[piece] for piece in np.flatnonzero(prepared.dataset == 0).tolist()) == 245  # of 490


def test_a_part_of_an_epoch(build: Any, prepared: Prepared) -> None:
    counts = seen(build(options(epochs=1.5, packing=False)))
    assert set(counts.values()) == {1, 2}
    assert counts.total() == len(prepared) + -(-len(prepared) // 2)


@pytest.mark.parametrize("packing", [True, False])
def test_a_budget_of_tokens_ends_with_the_step_that_spends_it(build: Any, prepared: Prepared, packing: bool) -> None:
    step = 8 * LENGTH
    found = build(options(tokens=100 * step + 1, packing=packing, epochs=0.1))
    assert {len(found.step(number)) for number in range(found.steps)} == {8}
    if packing:
        assert found.steps == 101
    else:
        longest = [max(prepared.lengths[one] for (one,) in found.step(number)) for number in range(found.steps)]
        assert sum(longest[:-1]) * 8 < 100 * step + 1 <= sum(longest) * 8
    assert max(seen(found).values()) - min(seen(found).values()) <= 1


@pytest.mark.parametrize("packing", [True, False])
def test_rows_held_out_are_never_trained_on(build: Any, prepared: Prepared, packing: bool) -> None:
    found = build(options(held=40, packing=packing, epochs=2.0))
    held = [piece for sequence in found.held_out for piece in sequence]
    assert len(held) == len(set(held))
    rows = {(prepared.dataset[piece], prepared.rows[piece]) for piece in held}
    assert len(rows) == found.report["held_out_rows"] == 40
    assert len({dataset for dataset, _ in rows}) == 2
    trained = seen(found)
    assert {(prepared.dataset[piece], prepared.rows[piece]) for piece in trained}.isdisjoint(rows)
    assert set(trained) | set(held) == set(range(len(prepared)))
    again = build(options(held=40, packing=packing, epochs=1.0))
    assert again.held_out == found.held_out


def test_the_report_counts_what_became_of_the_rows(build: Any, prepared: Prepared) -> None:
    report = build(options(epochs=2.0)).report
    assert report["tokens"] == 2 * prepared.lengths.sum()
    assert report["loss_token_share"] == pytest.approx(prepared.loss_tokens.sum() / prepared.lengths.sum(), abs=1e-6)
    assert (report["dropped_rows"], report["truncated_rows"]) == (10, 0)
    chat = report["datasets"]["chat"]
    assert (chat["rows"], chat["pieces"], chat["dropped"]) == (500, 490, {"empty": 10})
    assert chat["seen_tokens"] == 2 * chat["tokens"] == 2 * prepared.lengths[prepared.dataset == 0].sum()


def test_it_is_made_once_and_of_nothing_else(prepared: Prepared, tmp_path: Path) -> None:
    target = tmp_path / "index"
    made = index.build(prepared, options(), True, target)
    at = (target / "report.json").stat().st_mtime_ns
    assert stream(index.build(prepared, options(), True, target)) == stream(made) == stream(index.load(target))
    assert (target / "report.json").stat().st_mtime_ns == at
    with pytest.raises(HalaError, match="of another recipe or of other data"):
        index.build(prepared, options(seed=2), True, target)
    with pytest.raises(HalaError, match="of another recipe or of other data"):
        index.build(prepared, options(sequences=16), True, target)
    (target / "training_items.npy").write_bytes(b"")
    with pytest.raises(HalaError, match="is not an index of a training"):
        index.load(target)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"packing": True}, "does not keep the documents of a sequence apart"),
        ({"batch": Batch()}, "give either sequences or tokens"),
        ({"batch": Batch(sequences=4, tokens=64)}, "give either sequences or tokens"),
        ({"batch": Batch(tokens=100)}, "for example 128"),
        ({"batch": Batch(sequences=0)}, "at least 1"),
        ({"evaluation": Evaluation(rows=590)}, "590 of 590 rows"),
        ({"sequence_length": 32}, "prepared with 64 tokens"),
    ],
)
def test_what_cannot_be_is_refused(build: Any, tmp_path: Path, task: dict[str, Any], said: str) -> None:
    with pytest.raises(HalaError, match=said):
        build(options(**task), can_pack=False)
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_of_which_nothing_is_left(tmp_path: Path, prepared: Prepared) -> None:
    empty = prepared_runs.write(tmp_path / "none", ["empty: no answer"] * 3)
    with pytest.raises(HalaError, match=r"datasets.texts: no row is left to train on \(3 empty\)"):
        index.build(Prepared([prepared.runs[0], empty]), options(), True, tmp_path / "index")


def test_a_batch_in_tokens(build: Any) -> None:
    found = build(options(batch=Batch(tokens=4 * LENGTH)))
    assert found.batch == 4
    assert json.dumps(found.report)
