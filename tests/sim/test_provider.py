"""The simulated provider: quotas to the very call, faults as often as asked for, one ledger."""

import asyncio
from collections import Counter
from contextlib import suppress
from random import Random
from statistics import median
from typing import Any

import pytest

from batch_llm import DefaultErrorClassifier
from batch_llm.testing.simulate import (
    Faults,
    Latency,
    Outage,
    ProviderError,
    Quota,
    QuotaChange,
    Service,
    SimulatedProvider,
    SimulatedStrategy,
)

INSTANT = Latency(median_seconds=0.0)


def strategy_of(**service: Any) -> SimulatedStrategy:
    return SimulatedProvider(Service(**{"latency": INSTANT, **service})).strategy()


async def ask(strategy: SimulatedStrategy, prompt: str = "item") -> Any:
    return await strategy.execute(prompt, 1, 60.0)


async def passed(strategy: SimulatedStrategy, count: int) -> int:
    """How many of so many calls pass the quota."""
    calls = [ask(strategy, str(number)) for number in range(count)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    return sum(not isinstance(answer, ProviderError) for answer in answers)


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_a_bucket_is_refilled_evenly() -> None:
    strategy = strategy_of(
        quota=Quota(requests_per_minute=60, period_seconds=10), refusal_seconds=0.0
    )
    assert await passed(strategy, 15) == 10
    await asyncio.sleep(0.99)
    assert await passed(strategy, 2) == 0
    await asyncio.sleep(0.01)
    assert await passed(strategy, 2) == 1
    await asyncio.sleep(1000)
    assert await passed(strategy, 15) == 10


async def test_a_window_counts_anew() -> None:
    quota = Quota(requests_per_minute=60, period_seconds=10, kind="window")
    strategy = strategy_of(quota=quota, refusal_seconds=0.0)
    await asyncio.sleep(9)
    assert await passed(strategy, 15) == 10
    await asyncio.sleep(0.99)
    assert await passed(strategy, 1) == 0
    await asyncio.sleep(0.01)
    assert await passed(strategy, 15) == 10


@pytest.mark.parametrize(("kind", "hint"), [("bucket", 2.0), ("window", 47.0)])
async def test_a_refusal_says_how_long_to_wait(kind: Any, hint: float) -> None:
    quota = Quota(requests_per_minute=30, kind=kind)
    strategy = strategy_of(quota=quota, refusal_seconds=0.0)
    await asyncio.sleep(13)
    assert await passed(strategy, 30) == 30
    with pytest.raises(ProviderError) as refused:
        await ask(strategy)
    info = DefaultErrorClassifier().classify(refused.value)
    assert info.is_rate_limit
    assert info.suggested_wait == pytest.approx(hint)


async def test_without_hints_it_does_not() -> None:
    strategy = strategy_of(quota=Quota(requests_per_minute=1, hints=False))
    await ask(strategy)
    with pytest.raises(ProviderError) as refused:
        await ask(strategy)
    assert DefaultErrorClassifier().classify(refused.value).suggested_wait is None


async def test_tokens_have_a_quota_too_and_refusals_cost_nothing() -> None:
    strategy = strategy_of(
        quota=Quota(requests_per_minute=1000, tokens_per_minute=600), refusal_seconds=0.0
    )
    provider = strategy._provider
    await passed(strategy, 30)
    spent = sum(call.usage["input_tokens"] for call in provider.calls if call.usage)
    assert 450 <= spent <= 600
    await asyncio.sleep(60)
    assert await passed(strategy, 30) >= 4


async def test_another_quota_holds_from_its_moment_on() -> None:
    strategy = strategy_of(
        quota=Quota(requests_per_minute=2),
        quota_changes=(
            QuotaChange(at_seconds=20, quota=None),
            QuotaChange(at_seconds=10, quota=Quota(requests_per_minute=5)),
        ),
        refusal_seconds=0.0,
    )
    assert await passed(strategy, 50) == 2
    await asyncio.sleep(10)
    assert await passed(strategy, 50) == 5
    await asyncio.sleep(10)
    assert await passed(strategy, 50) == 50


@pytest.mark.parametrize(("kind", "until"), [("refused", 5.5), ("hang", 8.0)])
async def test_an_outage(kind: Any, until: float) -> None:
    outage = Outage(start_seconds=3, seconds=5, kind=kind)
    strategy = strategy_of(outages=(outage,), refusal_seconds=0.5)
    await ask(strategy)
    await asyncio.sleep(5)
    with pytest.raises(ConnectionError):
        await ask(strategy)
    assert now() == until
    await asyncio.sleep(8 - until)
    await ask(strategy)


async def test_a_cache_expires_and_is_made_anew() -> None:
    strategy = strategy_of(cache_ttl_seconds=10)
    await strategy.prepare()
    await asyncio.sleep(9.9)
    await ask(strategy)
    await asyncio.sleep(0.1)
    with pytest.raises(ConnectionError, match="expired") as expired:
        await ask(strategy)
    await strategy.on_error(expired.value, 1)
    await ask(strategy)


@pytest.mark.parametrize(
    ("latency", "least", "middle", "most"),
    [
        (Latency(median_seconds=2.0), 2.0, 2.0, 2.0),
        (Latency(median_seconds=2.0, spread=0.5, shape="uniform"), 1.0, 2.0, 3.0),
        (Latency(median_seconds=2.0, spread=1.0), 0.01, 2.0, 200.0),
    ],
)
def test_latency(latency: Latency, least: float, middle: float, most: float) -> None:
    random = Random(1)
    drawn = [latency.draw(random) for _ in range(2_000)]
    assert least <= min(drawn)
    assert max(drawn) <= most
    assert median(drawn) == pytest.approx(middle, rel=0.1)
    assert latency.spread == 0 or max(drawn) - min(drawn) > 1.9


ERRORS = {
    "connection": ConnectionError,
    "server": ProviderError,
    "client": ProviderError,
    "malformed": ValueError,
    "rate_limit": ProviderError,
    "timeout": TimeoutError,
    "cancelled": asyncio.CancelledError,
}


@pytest.mark.parametrize("fault", ERRORS)
async def test_a_fault_happens_as_often_as_told(fault: str) -> None:
    strategy = strategy_of(faults=Faults(**{fault: 0.25}))
    outcomes: Counter[str] = Counter()
    for number in range(1_000):
        try:
            await ask(strategy, str(number))
            outcomes["answer"] += 1
        except ERRORS[fault]:
            outcomes[fault] += 1
    assert outcomes[fault] == pytest.approx(250, abs=50)
    assert outcomes == Counter(call.outcome for call in strategy._provider.calls)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Faults, {"connection": 0.6, "server": 0.6}),
        (Faults, {"connection": -0.1}),
        (Faults, {"hooks": 1.1}),
        (Quota, {"requests_per_minute": 0}),
        (Quota, {"tokens_per_minute": -1}),
        (Quota, {"period_seconds": 0}),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(kind: type[Any], values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        kind(**values)


async def test_a_stuck_call_ends_when_it_is_cancelled() -> None:
    strategy = strategy_of(faults=Faults(stuck=1.0))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(ask(strategy), 7)
    assert now() == 7
    assert strategy._provider.calls[0].outcome == "ended"


async def test_a_stubborn_call_goes_on_after_its_cancellation() -> None:
    strategy = strategy_of(faults=Faults(stubborn=1.0, stubborn_seconds=5.0))
    call = asyncio.create_task(ask(strategy))
    for _ in range(2):
        await asyncio.sleep(3)
        call.cancel()
    output, _ = await call
    assert output == "answer to item"
    assert now() == 8
    assert strategy._provider.calls[0].is_left_behind


async def test_a_wrong_shape_is_no_answer_with_usage() -> None:
    strategy = strategy_of(faults=Faults(wrong_shape=1.0))
    returned = [await ask(strategy, str(number)) for number in range(20)]
    assert not [value for value in returned if isinstance(value, tuple) and len(value) == 2]
    assert len({type(value) for value in returned}) > 2


async def test_what_becomes_of_a_call_does_not_depend_on_the_others() -> None:
    faults = Faults(connection=0.3, malformed=0.3)
    fates: list[dict[str, str]] = []
    for order in (range(50), reversed(range(50))):
        strategy = strategy_of(faults=faults)
        calls = [ask(strategy, str(number)) for number in order]
        await asyncio.gather(*calls, return_exceptions=True)
        fates.append({call.prompt: call.outcome for call in strategy._provider.calls})
    assert fates[0] == fates[1]


async def test_hooks_fail_as_often_as_told() -> None:
    provider = SimulatedProvider(Service(faults=Faults(hooks=0.5)))
    for _ in range(200):
        with suppress(ConnectionError, ValueError, TimeoutError):
            await asyncio.wait_for(provider.strategy().prepare(), 60)
    assert sum(call.succeeded for call in provider.upkeep) == pytest.approx(100, abs=30)
