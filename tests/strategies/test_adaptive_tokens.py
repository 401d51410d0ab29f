"""A quota of tokens: it is the large calls that are refused."""

import math

import pytest

from batch_llm.strategies.adaptive import AdaptiveLimit


def with_a_quota_of_tokens(*, refused: float = 1_000.0) -> AdaptiveLimit:
    """A limit at 1.2 s: ten calls of ten tokens were let in, and larger ones refused."""
    limit = AdaptiveLimit(20, 0.0)
    limit.engage(answered=0, in_flight=0)
    # First, so that they do not seem to be refused for the calls in flight.
    large = [limit.start(0.0, refused) for _ in range(6)]
    small = [limit.start(0.0, 10.0) for _ in range(10)]
    for _ in range(16):
        limit.end()
    for call in small:
        limit.answered(call, 0.9)
    for call in large:
        limit.refused(call, 1.0, None)
    limit.refused(None, 1.0, None)
    limit.ready_at(1.2)
    assert limit.statistics().calls_per_second == 10.0
    return limit


def test_tokens_per_second_are_learned_where_large_calls_are_refused() -> None:
    assert with_a_quota_of_tokens().statistics().tokens_per_second == 100.0


def test_where_size_makes_no_difference_no_tokens_per_second_are_learned() -> None:
    limit = with_a_quota_of_tokens(refused=10.0)
    assert limit.statistics().tokens_per_second == math.inf
    assert limit.ready_at(1.2, 10.0) == limit.ready_at(1.2, 1_000.0) == 1.0 + 1 / 10


def test_the_larger_a_call_the_longer_it_waits() -> None:
    limit = with_a_quota_of_tokens()
    waits = {tokens: limit.ready_at(1.2, tokens) - 1.0 for tokens in (0.0, 10.0, 200.0)}
    assert waits == pytest.approx({0.0: 0.0, 10.0: 0.1, 200.0: 2.0})
    assert limit.ready_at(1.2) == 1.0


def test_the_next_cut_goes_by_the_tokens_that_were_let_in() -> None:
    limit = with_a_quota_of_tokens()
    calls = [limit.start(2.0, 80.0) for _ in range(5)]
    for call in calls[:2]:
        limit.end()
        limit.refused(call, 5.0, None)
    limit.ready_at(6.0)
    # Three of 80 tokens within the 4 s since the last cut, and one second of the guess.
    learned = limit.statistics()
    assert learned.tokens_per_second == pytest.approx((3 * 80.0 + 100.0) / (4.0 + 1.0))
    assert learned.calls_per_second == pytest.approx(learned.tokens_per_second / 10.0)
