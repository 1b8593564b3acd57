"""What judged rows add up to, held against counts by hand."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hala_hpc.config.errors import HalaError
from hala_hpc.data.outputs.judgements import SCORE, VERDICT, Judgements, auc, label_of

few = st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=12)


@given(good=few, bad=few)
def test_auc_is_the_share_of_pairs_in_order_with_ties_half(good: list[float], bad: list[float]) -> None:
    pairs = [(one > other) + (one == other) / 2 for one in good for other in bad]
    assert auc(good, bad) == pytest.approx(sum(pairs) / len(pairs))


def test_auc_by_hand() -> None:
    assert auc([0.9, 0.8, 0.4], [0.8, 0.1]) == pytest.approx((2 + 1.5 + 1) / 6)
    assert auc([], [0.1]) is None
    assert auc([0.5], []) is None


def table(*rows: tuple[Any, float | None, str]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "meta": {"good": good},
                SCORE: score,
                VERDICT: {"keep": not why, "reason": why, "mass": score and 0.5},
                "hala_error": None,
            }
            for good, score, why in rows
        ]
        + [{"meta": {"good": 1}, SCORE: None, VERDICT: None, "hala_error": "thinking: no end"}]
    )


ROWS = ((1, 0.9, ""), (1, 0.7, ""), (1, 0.4, "score"), (0, 0.7, ""), (0, None, "length"), (None, 0.2, "score"))


def test_counts_and_calibration_by_hand() -> None:
    judgements = Judgements("meta.good")
    judgements.add(table(*ROWS))
    judgements.add(pa.table({"text": ["a table that no run judged"]}))
    assert judgements.reasons == {"kept": 3, "score": 2, "length": 1}
    assert judgements.auc == pytest.approx((1 + 1 + 0.5 + 1 + 0 + 1) / 6), "a rejected row is below all others"
    assert (judgements.share(good=True), judgements.share(good=False)) == (pytest.approx(2 / 3), 0.5)
    assert judgements.at(0.8) == (pytest.approx(1 / 3), 1.0)
    assert dict(judgements.facts()) == {
        "kept": "3 of 6",
        "rejected: score": "2",
        "rejected: length": "1",
        "probability of a verdict, mean": "0.5000 of 5 rows",
        "AUC": "0.7500 (3 good and 2 bad rows, by `meta.good`)",
        "good rows kept": "0.6667",
        "bad rows rejected": "0.5000",
    }


def test_without_labels_there_are_counts_alone() -> None:
    judgements = Judgements()
    judgements.add(table(*ROWS))
    assert list(judgements.facts())[:3] == [("kept", "3 of 6"), ("rejected: score", "2"), ("rejected: length", "1")]
    assert [name for name, _ in judgements.facts()][3:] == ["probability of a verdict, mean"]
    assert (judgements.auc, judgements.share(good=True), judgements.at(0.5)) == (None, None, None)
    assert dict(Judgements().facts()) == {}


@pytest.mark.parametrize(
    ("value", "good"), [(1, True), (0, False), (True, True), (False, False), (1.0, True), (None, None)]
)
def test_labels(value: object, good: bool | None) -> None:
    assert label_of({"good": value}, "good") is good


@pytest.mark.parametrize("value", [2, "yes", 0.5, [1]])
def test_odd_labels_are_refused(value: object) -> None:
    with pytest.raises(HalaError, match=r"task\.label: column 'good' holds"):
        label_of({"good": value}, "good")
