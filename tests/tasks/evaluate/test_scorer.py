"""What the scorer asks of vLLM, as requests; what vLLM answers is tested in test_lighteval and tests/tasks."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hala_hpc.tasks.evaluate import scorer
from hala_hpc.tasks.evaluate.scorer import WRITTEN, _requests, _score, _scored


def probability(before: tuple[int, ...], token: int) -> float:
    """A made-up model over five tokens."""
    weights = [1 + (7 * sum(before) + 3 * each + len(before)) % 11 for each in range(5)]
    return math.log(weights[token] / sum(weights))


def answered(request: scorer._Request) -> object:
    if request.after == WRITTEN:
        likely = {token: probability(request.tokens, token) for token in range(5)}
        asked = request.params["logprob_token_ids"]
        return max(likely, key=lambda token: likely[token]), {str(token): likely[token] for token in asked}
    told = range(request.after, len(request.tokens))
    total = sum(probability(request.tokens[:at], request.tokens[at]) for at in told)
    is_greedy = all(
        probability(request.tokens[:at], request.tokens[at])
        == max(probability(request.tokens[:at], each) for each in range(5))
        for at in told
    )
    return total, is_greedy


tokens = st.integers(0, 4)


@given(
    st.lists(tokens, min_size=1, max_size=4).map(tuple), st.sets(st.lists(tokens, max_size=5).map(tuple), min_size=1)
)
def test_a_tree_and_prompts_give_each_continuation_its_probability(
    context: tuple[int, ...], follow: set[tuple[int, ...]]
) -> None:
    requests = _requests(context, follow)
    found = {(request.tokens, request.after): answered(request) for request in requests}
    for continuation in follow:
        total, _ = _score(context, continuation, found)
        places = range(len(continuation))
        assert total == pytest.approx(
            sum(probability(context + continuation[:at], continuation[at]) for at in places), abs=1e-12
        )
    assert len(requests) <= max(1, len(follow)), "never more requests than the harness's own way"


@given(
    st.lists(
        st.tuples(st.lists(tokens, min_size=1, max_size=4).map(tuple), st.lists(tokens, max_size=4).map(tuple)),
        min_size=1,
        max_size=12,
    )
)
@example([((1,), (2, 3)), ((1,), (2, 4)), ((1, 2), (0,)), ((1, 2), (1,))])
def test_contexts_that_go_on_in_each_other_keep_their_own_answers(
    pairs: list[tuple[tuple[int, ...], tuple[int, ...]]],
) -> None:
    found = _scored([(*pair, 0) for pair in pairs], lambda requests: [answered(request) for request in requests])
    for (context, follow), score in zip(pairs, found, strict=True):
        places = range(len(follow))
        expected = sum(probability(context + follow[:at], follow[at]) for at in places)
        assert score.sum == pytest.approx(expected, abs=1e-12)


def test_choices_of_one_token_cost_one_request() -> None:
    assert len(_requests((1, 2, 3), {(4,), (5,), (6,), (7,)})) == 1
    # two tokens, the first shared, as Arabic letters are in a byte-level vocabulary
    assert len(_requests((1, 2, 3), {(4, 1), (4, 2), (4, 3), (4, 7)})) == 2
    assert len(_requests((1, 2, 3), {(4, 1, 1, 1), (5, 2, 2, 2)})) == 2


def test_equal_prompts_with_other_answers_are_other_requests() -> None:
    long, short = _requests((1,), {(2, 3, 4, 5, 6)})[0], _requests((1, 2, 3), {(4, 5, 6)})[0]
    assert long.tokens == short.tokens and long.key != short.key
