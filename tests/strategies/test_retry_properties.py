"""What holds of all the decisions about one item together."""

import itertools
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from batch_llm import ErrorInfo, RateLimitConfig, RetryConfig
from batch_llm.strategies.retry import Decision, RetryPolicy, Verdict

LIMITED = ErrorInfo(False, True, False, "rate_limit")
FAILURES = st.builds(
    ErrorInfo,
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["unknown", "validation_error", "server_error", "rate_limit"]),
)
POLICIES = st.builds(
    RetryPolicy,
    st.builds(
        lambda waits, **fields: RetryConfig(initial_wait=waits[0], max_wait=waits[1], **fields),
        st.tuples(st.floats(0.001, 1e3), st.floats(0.001, 1e3)).map(sorted),
        max_attempts=st.integers(1, 8),
        exponential_base=st.floats(1, 10),
        jitter=st.booleans(),
    ),
    st.builds(RateLimitConfig, max_rate_limits_per_item=st.integers(1, 8)),
)
RANDOM = st.floats(0, 1, exclude_max=True)


@dataclass
class Step:
    """One failure of an item, and what was decided about it."""

    attempt: int
    failure: ErrorInfo
    decision: Decision


def walk(policy: RetryPolicy, failures: list[ErrorInfo], randoms: list[float]) -> list[Step]:
    """The life of an item whose calls fail like this, up to the decision to give up."""
    steps: list[Step] = []
    attempt, rate_limits = 1, 0
    for failure, random in zip(failures, itertools.cycle(randoms), strict=False):
        rate_limits += failure.is_rate_limit
        decision = policy.decide(
            failure, RuntimeError(), attempt=attempt, rate_limits=rate_limits, random=random
        )
        steps.append(Step(attempt, failure, decision))
        if decision.verdict is Verdict.RETRY:
            attempt += 1
        elif decision.verdict is not Verdict.REPEAT:
            break
    return steps


@given(POLICIES, st.lists(FAILURES, min_size=20, max_size=40), st.lists(RANDOM, min_size=1))
def test_an_item_ends_within_its_attempts_and_rate_limits(
    policy: RetryPolicy, failures: list[ErrorInfo], randoms: list[float]
) -> None:
    steps = walk(policy, failures, randoms)
    attempts = [step.attempt for step in steps]
    limited = [step for step in steps if step.failure.is_rate_limit]
    assert max(attempts) <= policy.retry.max_attempts
    assert len(limited) <= policy.rate_limit.max_rate_limits_per_item
    assert len(steps) - len(limited) <= policy.retry.max_attempts
    assert steps[-1].decision.verdict in (Verdict.GIVE_UP, Verdict.GIVE_UP_WAITING)


@given(POLICIES, st.lists(FAILURES, max_size=20), RANDOM)
def test_rate_limits_change_nothing_for_the_other_failures(
    policy: RetryPolicy, failures: list[ErrorInfo], random: float
) -> None:
    """An item that is never limited too often fares as if it had not been limited at all."""
    limits = policy.rate_limit.max_rate_limits_per_item
    others = [failure for failure in failures if not failure.is_rate_limit]
    between = [LIMITED] * (limits - 1)
    undisturbed = walk(policy, others, [random])
    disturbed = walk(policy, between + others, [random])
    assert [step for step in disturbed if not step.failure.is_rate_limit] == undisturbed


@given(POLICIES, st.lists(FAILURES, max_size=20), st.lists(RANDOM, min_size=1))
def test_every_wait_is_bounded_and_only_a_retry_has_one(
    policy: RetryPolicy, failures: list[ErrorInfo], randoms: list[float]
) -> None:
    for step in walk(policy, failures, randoms):
        delay = step.decision.delay_seconds
        is_malformed = step.failure.error_category == "validation_error"
        assert 0.0 <= delay <= policy.retry.max_wait
        assert (delay > 0) == (step.decision.verdict is Verdict.RETRY and not is_malformed)


@given(POLICIES, st.integers(1, 20), st.lists(RANDOM, min_size=1))
def test_waits_only_grow_and_jitter_only_shortens_them(
    policy: RetryPolicy, count: int, randoms: list[float]
) -> None:
    failures = [ErrorInfo(True, False, False, "server_error")] * count
    plain = RetryPolicy(RetryConfig(**{**vars(policy.retry), "jitter": False}), policy.rate_limit)
    exact = [step.decision.delay_seconds for step in walk(plain, failures, randoms)]
    jittered = [step.decision.delay_seconds for step in walk(policy, failures, randoms)]
    retried = exact[: policy.retry.max_attempts - 1]
    assert retried == sorted(retried)
    assert exact[0] <= policy.retry.initial_wait
    assert max(exact) <= policy.retry.max_wait
    assert all(whole / 2 <= part <= whole for whole, part in zip(exact, jittered, strict=True))
