"""Whether a failed attempt is repeated, and after how long."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm import ErrorInfo, RateLimitConfig, RetryConfig
from batch_llm.strategies.retry import Decision, RetryPolicy, Verdict

LIMITED = ErrorInfo(False, True, False, "rate_limit")
RETRYABLE = ErrorInfo(True, False, False, "unknown")
PERMANENT = ErrorInfo(False, False, False, "logic_error")


def policy(**retry: Any) -> RetryPolicy:
    return RetryPolicy(RetryConfig(**retry), RateLimitConfig(max_rate_limits_per_item=4))


def decide(
    error: ErrorInfo,
    *,
    attempt: int = 1,
    rate_limits: int = 0,
    exception: BaseException | None = None,
    random: float = 0.0,
    **retry: Any,
) -> Decision:
    return policy(**retry).decide(
        error,
        exception or RuntimeError(),
        attempt=attempt,
        rate_limits=rate_limits,
        random=random,
    )


def test_a_retryable_failure_is_repeated_up_to_max_attempts() -> None:
    decisions = [decide(RETRYABLE, attempt=attempt, jitter=False) for attempt in (1, 2, 3, 4)]
    assert decisions == [
        Decision(Verdict.RETRY, 1.0),
        Decision(Verdict.RETRY, 2.0),
        Decision(Verdict.GIVE_UP),
        Decision(Verdict.GIVE_UP),
    ]


def test_one_attempt_means_no_retry() -> None:
    assert decide(RETRYABLE, max_attempts=1) == Decision(Verdict.GIVE_UP)


def test_a_permanent_failure_is_not_repeated() -> None:
    assert decide(PERMANENT) == Decision(Verdict.GIVE_UP)


@pytest.mark.parametrize("retryable", [True, False])
@pytest.mark.parametrize("attempt", [1, 3, 99])
def test_a_rate_limit_is_repeated_whatever_the_attempt(attempt: int, retryable: bool) -> None:
    error = ErrorInfo(retryable, True, False, "rate_limit")
    assert decide(error, attempt=attempt, rate_limits=3) == Decision(Verdict.REPEAT)


def test_one_item_is_not_rate_limited_for_ever() -> None:
    verdicts = [decide(LIMITED, rate_limits=count).verdict for count in (1, 3, 4, 5)]
    assert verdicts == [
        Verdict.REPEAT,
        Verdict.REPEAT,
        Verdict.GIVE_UP_WAITING,
        Verdict.GIVE_UP_WAITING,
    ]


@pytest.mark.parametrize(
    "name", ["ValidationError", "OutputParserException", "UnexpectedModelBehavior", "PARSEerror"]
)
def test_there_is_no_wait_after_a_malformed_answer(name: str) -> None:
    exception: Exception = type(name, (Exception,), {})()
    assert decide(RETRYABLE, exception=exception) == Decision(Verdict.RETRY, 0.0)


def test_the_category_alone_says_that_an_answer_was_malformed() -> None:
    error = ErrorInfo(True, False, False, "validation_error")
    assert decide(error) == Decision(Verdict.RETRY, 0.0)
    assert decide(error, attempt=3) == Decision(Verdict.GIVE_UP)


def test_waits_grow_up_to_the_longest() -> None:
    made = policy(initial_wait=2.0, max_wait=10.0, exponential_base=2, jitter=False)
    waits = [made.backoff_seconds(attempt, random=0.3) for attempt in range(1, 6)]
    assert waits == [2.0, 4.0, 8.0, 10.0, 10.0]


def test_jitter_takes_away_up_to_half() -> None:
    waits = [policy().backoff_seconds(3, random=random) for random in (0.0, 0.5, 1.0)]
    assert waits == [2.0, 3.0, 4.0]


ATTEMPTS = st.integers(1, 5000)
WAITS = st.tuples(st.floats(0.001, 1e4), st.floats(0.001, 1e4)).map(sorted)
RANDOM = st.floats(0, 1, exclude_max=True)


@given(waits=WAITS, base=st.floats(1, 100) | st.integers(1, 100), attempt=ATTEMPTS, random=RANDOM)
def test_backoff_is_bounded_and_jitter_is_half_of_it(
    waits: list[float], base: float, attempt: int, random: float
) -> None:
    initial, longest = waits
    settings = {"initial_wait": initial, "max_wait": longest, "exponential_base": base}
    exact = policy(**settings, jitter=False).backoff_seconds(attempt, random=random)
    later = policy(**settings, jitter=False).backoff_seconds(attempt + 1, random=random)
    assert initial <= exact <= later <= longest
    assert exact / 2 <= policy(**settings).backoff_seconds(attempt, random=random) <= exact


@given(
    flags=st.sampled_from(list(itertools.product((False, True), repeat=3))),
    attempt=st.integers(1, 10),
    max_attempts=st.integers(1, 10),
    rate_limits=st.integers(1, 8),
)
def test_every_failure_has_one_verdict(
    flags: tuple[bool, bool, bool], attempt: int, max_attempts: int, rate_limits: int
) -> None:
    is_retryable, is_rate_limit, is_timeout = flags
    error = ErrorInfo(is_retryable, is_rate_limit, is_timeout, "any")
    decision = decide(error, attempt=attempt, rate_limits=rate_limits, max_attempts=max_attempts)
    if is_rate_limit:
        expected = Verdict.REPEAT if rate_limits < 4 else Verdict.GIVE_UP_WAITING
    else:
        goes_on = is_retryable and attempt < max_attempts
        expected = Verdict.RETRY if goes_on else Verdict.GIVE_UP
    assert decision.verdict is expected
    assert (decision.delay_seconds > 0) == (expected is Verdict.RETRY)
