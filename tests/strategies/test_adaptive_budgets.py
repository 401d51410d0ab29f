"""What responses say is left, beside what was learned from refusals."""

import math

import pytest

from batch_llm.strategies._http import Allowance
from batch_llm.strategies.adaptive import AdaptiveLimit, Admission

RESET_SECONDS = 20.0
# What is left is spread over the time to the reset, and a bit for the network.
SPREAD_SECONDS = 20.05


def requests(remaining: float) -> Allowance:
    return Allowance(False, remaining, RESET_SECONDS)


def tokens(remaining: float) -> Allowance:
    return Allowance(True, remaining, RESET_SECONDS)


def engaged() -> AdaptiveLimit:
    """A limit that was refused nothing so far."""
    limit = AdaptiveLimit(10, 0.0)
    limit.engage(answered=0, in_flight=0)
    return limit


def of_one_call_a_second() -> AdaptiveLimit:
    limit = engaged()
    limit.refused(None, 0.0, None)
    limit.ready_at(1.0)
    assert limit.statistics().calls_per_second == 1.0
    return limit


def call(limit: AdaptiveLimit, at: float, cost: float = 0.0) -> Admission:
    """A call that is over at once."""
    admission = limit.start(at, cost)
    limit.end()
    return admission


def test_where_plenty_is_left_no_call_waits_for_the_learned_pace() -> None:
    limit = of_one_call_a_second()
    limit.told([requests(100)], call(limit, 1.0), 1.0)
    assert limit.ready_at(1.0) == pytest.approx(1.0 + SPREAD_SECONDS / (4 * 100))


def test_where_little_is_left_the_learned_pace_counts_too() -> None:
    limit = of_one_call_a_second()
    limit.told([requests(8)], call(limit, 1.0), 1.0)
    assert limit.ready_at(1.0) == 1.0 + 1.0


@pytest.mark.parametrize(
    "allowances",
    [[requests(100), tokens(8)], [tokens(8), requests(100)]],
    ids=["few tokens", "told first"],
)
def test_plenty_of_one_is_no_plenty_of_the_other(allowances: list[Allowance]) -> None:
    limit = of_one_call_a_second()
    limit.told(allowances, call(limit, 1.0, 1.0), 1.0)
    assert limit.ready_at(1.0, 1.0) == 1.0 + 1.0


def test_the_scarcer_of_requests_and_tokens_decides() -> None:
    limit = engaged()
    limit.told([requests(1_000), tokens(100)], call(limit, 1.0, 5.0), 1.0)
    assert limit.ready_at(1.0, 1.0) == pytest.approx(1.0 + SPREAD_SECONDS / (4 * 100))
    assert limit.ready_at(1.0, 0.01) == pytest.approx(1.0 + SPREAD_SECONDS / (4 * 1_000))


def test_tokens_that_went_out_since_are_no_longer_left() -> None:
    limit = engaged()
    limit.told([tokens(1_000)], call(limit, 1.0, 50.0), 1.0)
    call(limit, 1.0, 200.0)
    assert limit.ready_at(1.0, 100.0) == pytest.approx(1.0 + 100 * SPREAD_SECONDS / (4 * 800))
    # What costs none is not held back.
    assert limit.ready_at(1.0) <= 1.0


def test_calls_that_went_out_since_are_no_longer_left() -> None:
    limit = engaged()
    first, *_ = [limit.start(1.0) for _ in range(3)]
    limit.end()
    limit.told([requests(10)], first, 3.0)
    # As of the time at which the first went out, though its response came later.
    assert limit.ready_at(3.0) == pytest.approx(1.0 + (SPREAD_SECONDS - 2.0) / (4 * 8))


def test_what_a_call_says_that_nobody_counted_holds_for_all_that_are_over() -> None:
    limit = AdaptiveLimit(10, 0.0)
    limit.engage(answered=3, in_flight=2)
    limit.told([requests(10)], None, 1.0)
    limit.start(1.0)
    # The two that were in flight, and this one.
    assert limit.ready_at(1.0) == pytest.approx(1.0 + SPREAD_SECONDS / (4 * 7))


def is_believed(limit: AdaptiveLimit) -> bool:
    """Whether a call need not wait for the pace once a response says that there is plenty."""
    limit.told([requests(1_000), tokens(1e6)], call(limit, 5.0), 5.0)
    return limit.ready_at(5.0) < 5.0 + 1.0


@pytest.mark.parametrize(
    ("allowances", "expected"),
    [
        ([requests(0)], True),
        ([requests(1)], False),
        ([requests(100)], False),
        ([tokens(499)], True),
        ([tokens(500)], False),
        ([requests(100), tokens(0)], True),
        ([requests(0), tokens(1_000)], True),
        ([requests(1), tokens(500)], False),
    ],
    ids=str,
)
def test_who_refuses_a_call_for_which_there_was_enough_left_is_not_believed(
    allowances: list[Allowance], expected: bool
) -> None:
    limit = of_one_call_a_second()
    limit.told(allowances, call(limit, 2.0, 500.0), 2.0, is_refusal=True)
    assert is_believed(limit) is expected


@pytest.mark.parametrize(("remaining", "expected"), [(0.5, True), (1, False)])
def test_of_a_call_that_nobody_counted_one_token_is_enough(
    remaining: float, expected: bool
) -> None:
    limit = of_one_call_a_second()
    limit.told([tokens(remaining)], None, 2.0, is_refusal=True)
    assert is_believed(limit) is expected


def test_who_was_not_believed_once_is_not_believed_again() -> None:
    limit = of_one_call_a_second()
    for remaining in (100, 0):
        limit.told([requests(remaining)], call(limit, 2.0), 2.0, is_refusal=True)
    assert not is_believed(limit)


def test_who_lets_calls_in_is_believed() -> None:
    limit = of_one_call_a_second()
    limit.told([requests(100)], call(limit, 2.0), 2.0)
    assert is_believed(limit)


def test_while_responses_say_nothing_nothing_but_the_pace_counts() -> None:
    limit = of_one_call_a_second()
    call(limit, 2.0)
    assert limit.ready_at(2.0) == 3.0
    assert engaged().ready_at(2.0) == -math.inf


def test_after_a_refusal_what_comes_in_is_measured_anew() -> None:
    limit = engaged()
    limit.told([requests(50)], call(limit, 0.0), 0.0)
    *_, last = [call(limit, 1.0) for _ in range(10)]
    limit.told([requests(50)], last, 1.0)
    # Ten a second came in, so that what is left may be spent within 0.3 seconds.
    assert limit.ready_at(1.0) == pytest.approx(1.0 + 0.3 / 50)
    limit.refused(call(limit, 1.0), 1.0, None)
    # The refused call took nothing, so that what is left would look like more that came in.
    assert limit.ready_at(1.2) == pytest.approx(1.0 + (SPREAD_SECONDS - 0.2) / (4 * 49))
