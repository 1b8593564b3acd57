"""What a preflight finds: on made-up reports, and of two real ranks."""

from pathlib import Path
from typing import Any

import pytest

from hala_hpc.run.ledger import Ledger
from hala_hpc.tasks.train.launch import fitness, preflight
from hala_hpc.tasks.train.launch.preflight import RankReport
from hala_hpc.tasks.train.launch.step import Allocation
from tests.work import work_python

__all__ = ["work_python"]
NODES = ["n1", "n2", "n3", "n4"]


def reports(rank: int | None = None, **odd: Any) -> dict[int, RankReport]:
    """Of eight ranks on four nodes; ``odd`` is what the ranks of one node say."""
    fine: dict[str, Any] = {
        "host": "h",
        "gpus": ["H100"] * 2,
        "gpu_gb": [80.0] * 2,
        "gpu_free_gb": [79.0] * 2,
        "run_free_gb": 900.0,
        "scratch_free_gb": 90.0,
        "versions": {"torch": "2.13.0", "python": "3.11.7"},
        "inside": 100.0,
        "pairs": {"0-1": 40.0},
        "all": 40.0,
    }
    return {one: RankReport(one, **(fine | (odd if one // 2 == rank else {}))) for one in range(8)}


def judged(found: dict[int, RankReport], slowest: float = 0.5) -> dict[str, str]:
    return {bad.node: bad.reason for bad in fitness.judge(found, NODES, 2, slowest)}


def test_good_nodes() -> None:
    assert judged(reports()) == {}


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        ({"gpu_error": "CUDA error: uncorrectable ECC"}, "uncorrectable ECC"),
        ({"gpus": ["H100"], "gpu_gb": [80.0], "gpu_free_gb": [79.0]}, "1 GPUs for 2 ranks"),
        ({"gpu_free_gb": [79.0, 20.0]}, "only 20 are free"),
        ({"scratch_free_gb": 0.1}, "temporary files"),
        ({"clock_seconds": -90.0}, "clock is -90 s off"),
        ({"versions": {"torch": "2.12.0", "python": "3.11.7"}}, "torch 2.12.0 (not 2.13.0)"),
        ({"inside": None, "pairs": {}}, "inside the node failed"),
        ({"pairs": {}}, "no all-reduce with a neighbour"),
        ({"inside": 30.0}, "30.00 GB/s, where 100.00 is usual"),
        ({"pairs": {"1-2": 12.0}}, "12.00 GB/s, where 40.00 is usual"),
    ],
)
def test_a_bad_node_is_named_and_why(odd: dict[str, Any], reason: str) -> None:
    found = judged(reports(rank=2, **odd))
    assert list(found) == ["n3"] and reason in found["n3"]


def test_a_node_that_never_answers_is_named() -> None:
    found = reports()
    del found[2], found[3]
    assert judged(found) == {"n2": "0 of 2 ranks answered"}


def test_a_slow_neighbour_does_not_make_a_node_slow() -> None:
    found = reports()
    speeds = {
        f"{first}-{second}": 5.0 if 1 in (first, second) else 40.0
        for pairs in preflight.rounds(4)
        for first, second in pairs
    }
    for rank, report in found.items():
        report.pairs = {pair: speed for pair, speed in speeds.items() if str(rank // 2) in pair.split("-")}
    assert list(judged(found)) == ["n2"]


def test_a_slow_node_may_be_used_where_there_is_no_other(tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    history = Ledger(tmp_path / "ledger" / "one.jsonl")
    where = Allocation(("here",), 2, 1, 0, None, ("python",), (), "127.0.0.1", None)
    slow = fitness.Bad("here", "5 GB/s", is_slow=True)
    assert fitness.leave_out(where, [slow], history) is False
    with pytest.raises(Exception, match="here: no GPU"):
        fitness.leave_out(where, [slow, fitness.Bad("here", "no GPU")], history)


@pytest.mark.parametrize("count", range(1, 12))
def test_every_node_has_two_neighbours_and_is_in_one_pair_at_a_time(count: int) -> None:
    together = preflight.rounds(count)
    for pairs in together:
        members = [node for pair in pairs for node in pair]
        assert len(members) == len(set(members)) > 0
    pairs_of = [sum(node in pair for pairs in together for pair in pairs) for node in range(count)]
    assert pairs_of == [0 if count == 1 else 1 if count == 2 else 2] * count


@pytest.mark.train
def test_two_real_ranks(tmp_path: Path, work_python: Path) -> None:
    (tmp_path / "logs" / "ranks").mkdir(parents=True)
    where = Allocation(("here",), 2, 1, 0, None, (str(work_python),), (), "127.0.0.1", None)
    assert fitness.check(tmp_path, "one", where, 0.5, lambda: False) == []
    import json

    told = json.loads((tmp_path / "training" / "preflight" / "one.json").read_text())
    assert [rank["rank"] for rank in told["ranks"]] == [0, 1] and told["bad"] == []
    for rank in told["ranks"]:
        assert rank["inside"] > 0 and rank["all"] > 0 and rank["error"] is None
        assert rank["versions"]["torch"].startswith("2.") and abs(rank["clock_seconds"]) < 5
        assert rank["run_free_gb"] > 0
