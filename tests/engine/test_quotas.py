"""Each quota has its own gate; limits can be changed; what happened can be asked."""

import asyncio
import logging
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from batch_llm import (
    FixedDelayStrategy,
    ProcessorConfig,
    QuotaStatistics,
    RateLimitConfig,
    TokenUsage,
)
from tests.engine.support import (
    Call,
    Item,
    Processor,
    Provider,
    Refused,
    items,
    now,
    run,
    run_with,
    settings,
    start,
)


class At(Provider):
    """Calls a provider of which it names the quota."""

    def __init__(self, quota: Any, *args: Any, **fields: Any) -> None:
        super().__init__(*args, **fields)
        self.quota = quota


def learning(max_workers: int = 50, **fields: Any) -> ProcessorConfig:
    return ProcessorConfig(max_workers=max_workers, **fields)


def both(first: Provider, second: Provider, count: int) -> list[Item]:
    pairs = zip(items(first, count), items(second, count), strict=True)
    return [item for pair in pairs for item in pair]


async def test_two_quotas_do_not_hold_each_other_up() -> None:
    slow, fast = At("a/slow"), At("a/fast")
    config = learning(max_requests_per_minute=60)
    result = await run(*both(slow, fast, 5), config=config)
    assert slow.instants == fast.instants == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert list(result.quotas) == ["a/slow", "a/fast"]


@pytest.mark.parametrize(
    ("first", "second"),
    [("one", "one"), (None, None), (None, "default"), (7, None)],
    ids=["named", "unnamed", "called default", "no name"],
)
async def test_strategies_of_one_quota_share_it(first: Any, second: Any) -> None:
    strategies = At(first), At(second)
    result = await run(*both(*strategies, 2), config=learning(max_requests_per_minute=60))
    assert sorted(strategies[0].instants + strategies[1].instants) == [0.0, 1.0, 2.0, 3.0]
    assert len(result.quotas) == 1


async def test_a_quota_that_cannot_be_read_is_none() -> None:
    class Broken(Provider):
        @property
        def quota(self) -> str:  # type: ignore[override]
            raise RuntimeError("not yet")

    result = await run(*items(Broken(), 2), config=learning())
    assert result.succeeded == 2
    assert list(result.quotas) == ["default"]


async def test_a_quota_that_cannot_be_read_is_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Provider):
        @property
        def quota(self) -> str:  # type: ignore[override]
            raise RuntimeError("not yet")

    with caplog.at_level(logging.ERROR):
        await run(*items(Broken()), config=learning())
    assert "quota of a strategy failed with RuntimeError" in caplog.messages


async def test_one_quotas_refusals_slow_down_only_its_own_calls() -> None:
    async def refuse(call: Call) -> Any:
        if now() < 20.0:
            raise Refused(1.0)

    refused, free = At("refused", refuse), At("free", seconds=0.1)
    result = await run(*both(refused, free, 20), config=learning(40))
    assert result.succeeded == 40
    assert max(free.instants) < 0.2
    assert result.quotas["free"].refused == 0
    assert result.quotas["refused"].refused == len(refused.calls) - 20 > 0


@pytest.mark.parametrize(
    "config", [settings(50), ProcessorConfig(max_workers=50, rate_limit=RateLimitConfig(5.0, 0))]
)
async def test_where_cooldowns_are_asked_for_one_gate_serves_all(config: ProcessorConfig) -> None:
    config.max_requests_per_minute = 60
    strategies = At("a"), At("b")
    result = await run(*both(*strategies, 2), config=config)
    assert sorted(strategies[0].instants + strategies[1].instants) == [0.0, 1.0, 2.0, 3.0]
    assert list(result.quotas) == ["default"]
    assert result.quotas["default"].answered == 4


async def test_a_cooldown_of_ones_own_holds_back_every_quota() -> None:
    refusals = [Refused()]

    async def refuse_once(call: Call) -> Any:
        if refusals:
            raise refusals.pop()

    first, second = At("a", refuse_once), At("b", seconds=1.0)
    config = settings(2, cooldown=60.0)
    await run(*both(first, second, 2), config=config)
    assert first.instants == [0.0, 60.0, 60.0]
    assert second.instants == [60.0, 60.0]


async def test_a_pause_from_outside_holds_back_every_quota() -> None:
    first, second = At("a", seconds=0.1), At("b", seconds=0.1)
    async with Processor(config=learning(4)) as processor:
        running = await start(processor, *both(first, second, 10))
        await processor._handle_rate_limit()
        # One after the other, by the cooldown of 300 s that nobody chose.
        assert now() == 300.0
        await running
    assert not [at for at in first.instants + second.instants if 0.5 < at < 300.0]


async def test_a_run_that_is_wound_down_closes_every_gate() -> None:
    async def refuse(call: Call) -> Any:
        await asyncio.sleep(1.0)
        raise Refused(10.0)

    strategies = At("a", refuse), At("b", refuse)
    async with Processor(config=learning(4)) as processor:
        running = await start(processor, *both(*strategies, 10))
        assert processor._engine.pool is not None
        processor._engine.pool.wind_down("enough")
        result = await running
    assert result.interrupted
    assert len(result.not_run) == 20
    assert all(gate.closed is False for gate in processor._engine.gates.all)
    assert now() == 1.0


async def test_each_quota_has_a_gate_of_its_own_and_the_first_one_the_main_gate() -> None:
    strategies = [At(name) for name in "abc"]
    config = learning(10, max_requests_per_minute=60)
    async with Processor(config=config) as processor:
        work = [item for strategy in strategies for item in items(strategy, 3)]
        running = await start(processor, *work)
        gates = [processor._engine.gates.of(strategy) for strategy in strategies]
        assert gates == processor._engine.gates.all
        await running
    assert [strategy.instants for strategy in strategies] == [[0.0, 1.0, 2.0]] * 3


async def test_another_strategy_decides_from_the_next_run_on() -> None:
    refusals = [Refused(), Refused()]

    async def refuse_first(call: Call) -> Any:
        if refusals and len(provider.calls) != 2:
            raise refusals.pop()

    provider = Provider(refuse_first)
    async with Processor(config=settings(1, cooldown=60.0)) as processor:
        await run_with(processor, *items(provider))
        processor.rate_limit_strategy = FixedDelayStrategy(cooldown=5.0)
        await run_with(processor, *items(provider))
    # A second of slow start is its own.
    assert provider.instants == [0.0, 60.0, 60.0, 66.0]


# Limits that change.


async def test_a_limit_is_lowered_at_once() -> None:
    provider = Provider()
    async with Processor(config=learning(10, max_requests_per_minute=120)) as processor:
        running = await start(processor, *items(provider, 7))
        await asyncio.sleep(1.0)
        processor.set_limits(requests_per_minute=60)
        await running
    assert provider.instants == [0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0]


async def test_a_limit_is_raised_at_once() -> None:
    provider = Provider()
    async with Processor(config=learning(10, max_requests_per_minute=1)) as processor:
        running = await start(processor, *items(provider, 4))
        await asyncio.sleep(10.0)
        processor.set_limits(requests_per_minute=60)
        await running
    # A sixth of a call had come in until then; the rest of it takes 5/6 of a second.
    assert provider.instants == pytest.approx([0.0, *(10 + 5 / 6 + number for number in range(3))])


async def test_a_limit_is_lifted_and_set_while_calls_wait() -> None:
    provider = Provider()
    async with Processor(config=learning(10, max_requests_per_minute=1)) as processor:
        running = await start(processor, *items(provider, 4))
        await asyncio.sleep(10.0)
        processor.set_limits(requests_per_minute=None)
        assert processor._gate.wide_open
        await running
        assert provider.instants == [0.0, 10.0, 10.0, 10.0]
        processor.set_limits(requests_per_minute=math.inf)
        assert processor._gate.wide_open
        provider.calls.clear()
        processor.set_limits(requests_per_minute=60)
        await run_with(processor, *items(provider, 3))
    assert provider.instants == [10.0, 11.0, 12.0]


async def test_a_limit_that_is_lifted_and_set_again_forgets_no_call_in_flight() -> None:
    """Calls that went out through a wide-open gate end while it is not, and the reverse."""
    provider = Provider(seconds=1.0)
    async with Processor(config=learning(4)) as processor:
        running = await start(processor, *items(provider, 40))
        for rate in (600.0, None, 600.0, None, 6_000.0):
            await asyncio.sleep(0.5)
            processor.set_limits(requests_per_minute=rate)
        result = await running
    assert result.succeeded == 40


async def test_a_limit_may_be_one_quotas_alone() -> None:
    first, second = At("a"), At("b")
    async with Processor(config=learning(10, max_requests_per_minute=60)) as processor:
        processor.set_limits(requests_per_minute=30, quota="b")
        running = await start(processor, *both(first, second, 3))
        result = await running
        assert first.instants == [0.0, 1.0, 2.0]
        assert second.instants == [0.0, 2.0, 4.0]
        assert result.quotas["b"].requests_per_minute == 30
        processor.set_limits(tokens_per_minute=600)
        assert processor._engine.gates._limits_of == {"b": (30, 600)}
        assert processor._engine.gates._limits == (60, 600)


@pytest.mark.parametrize("limit", [0, -1, math.nan, "60", True])
@pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute"])
async def test_a_limit_that_is_none_is_refused(name: str, limit: Any) -> None:
    processor = Processor()
    with pytest.raises(ValueError, match=rf"^{name} must be > 0 \(got .*\); pass "):
        processor.set_limits(**{name: limit})


async def test_limits_can_be_set_before_the_first_run() -> None:
    provider = Provider()
    processor = Processor(config=learning(max_requests_per_minute=600))
    processor.set_limits(requests_per_minute=60)
    async with processor:
        await run_with(processor, *items(provider, 3))
    assert provider.instants == [0.0, 1.0, 2.0]


async def test_a_limit_of_the_first_quota_is_not_that_of_all() -> None:
    provider = At("a")
    async with Processor(config=learning(10, max_requests_per_minute=60)) as processor:
        running = await start(processor, *items(provider, 4))
        await asyncio.sleep(0.5)
        processor.set_limits(requests_per_minute=30, quota="a")
        assert processor._engine.gates._limits == (60, None)
        await running
    # Half of a call had come in until then.
    assert provider.instants == [0.0, 1.5, 3.5, 5.5]


async def test_a_limit_is_lowered_where_one_gate_serves_all() -> None:
    provider = Provider()
    async with Processor(config=settings(10, max_requests_per_minute=60)) as processor:
        running = await start(processor, *items(provider, 4))
        await asyncio.sleep(0.5)
        processor.set_limits(requests_per_minute=30)
        await running
    assert provider.instants == [0.0, 1.5, 3.5, 5.5]


# What happened.


def billed(tokens: int) -> Callable[[Call], Any]:
    async def answer(call: Call) -> Any:
        return tokens

    return answer


class Billing(At):
    async def execute(self, prompt: str, attempt: int, timeout: float) -> tuple[Any, TokenUsage]:
        output, _ = await super().execute(prompt, attempt, timeout)
        return output, {"input_tokens": output, "output_tokens": 0, "total_tokens": output}


async def test_a_run_tells_what_it_got_out_of_each_quota() -> None:
    first, second = Billing("a", billed(10)), Billing("b", billed(4), seconds=2.0)
    async with Processor(config=learning(10, max_requests_per_minute=60)) as processor:
        assert processor.quotas == {}
        running = await start(processor, *both(first, second, 3))
        await asyncio.sleep(1.5)
        assert processor.quotas["a"].answered == 2
        assert processor.quotas["a"].seconds == 1.5
        assert processor.quotas["a"].waited_for_quota_seconds == 1.5
        result = await running
        assert processor.quotas == result.quotas
        assert (await processor.process_all()).quotas == {}
    assert result.quotas["a"] == QuotaStatistics(
        seconds=4.0, answered=3, tokens=30, waited_for_quota_seconds=2.0, requests_per_minute=60
    )
    assert result.quotas["b"] == QuotaStatistics(
        seconds=4.0, answered=3, tokens=12, waited_for_quota_seconds=2.0, requests_per_minute=60
    )
    assert result.quotas["a"].calls_per_second == 0.75
    assert result.quotas["a"].tokens_per_second == 7.5
    assert (QuotaStatistics().calls_per_second, QuotaStatistics().tokens_per_second) == (0.0, 0.0)
    assert pickle.loads(pickle.dumps(result)).quotas == result.quotas


async def test_a_gate_that_is_wide_open_counts_answers_and_tokens_too() -> None:
    result = await run(*items(Billing("a", billed(10)), 5), config=learning(2))
    assert result.quotas == {"a": QuotaStatistics(answered=5, tokens=50)}


async def test_cooldowns_are_told_apart_from_the_quota() -> None:
    refusals = [Refused()]

    async def refuse_once(call: Call) -> Any:
        if refusals:
            raise refusals.pop()

    config = settings(3, cooldown=60.0, max_requests_per_minute=60)
    result = await run(*items(Provider(refuse_once), 3), config=config)
    told = result.quotas["default"]
    assert (told.answered, told.refused) == (3, 1)
    assert told.waited_for_cooldown_seconds == 60.0
    assert told.waited_for_quota_seconds == 2.0
    assert told.learned_calls_per_second is None


async def test_a_slow_start_is_part_of_the_cooldown() -> None:
    refusals = [Refused()]

    async def refuse_once(call: Call) -> Any:
        if refusals:
            raise refusals.pop()

    rate_limit = RateLimitConfig(10.0, 3, slow_start_initial_delay=1.0, slow_start_final_delay=1.0)
    config = ProcessorConfig(max_workers=3, rate_limit=rate_limit)
    result = await run(*items(Provider(refuse_once, seconds=0.5), 3), config=config)
    assert result.quotas["default"].waited_for_cooldown_seconds > 10.0
    assert result.quotas["default"].waited_for_quota_seconds == 0.0


async def test_the_first_wave_waits_for_slots() -> None:
    result = await run(*items(Provider(seconds=0.75), 30), config=learning(30))
    told = result.quotas["default"]
    assert told.waited_for_slots_seconds == 0.75
    assert told.waited_for_quota_seconds == told.waited_for_cooldown_seconds == 0.0


async def test_what_was_learned_is_told() -> None:
    level, at = 10.0, 0.0

    async def bucket(call: Call) -> Any:
        nonlocal level, at
        level, at = min(10.0, level + 10.0 * (now() - at)), now()
        if level < 1:
            raise Refused(1.0)
        level -= 1
        await asyncio.sleep(0.4)

    result = await run(*items(Provider(bucket), 500), config=learning(30))
    told = result.quotas["default"]
    assert told.answered == 500
    assert told.refused > 0
    assert told.learned_calls_per_second == pytest.approx(10.0, rel=0.4)
    assert told.learned_tokens_per_second is None
    assert told.learned_in_flight is None
    assert told.waited_for_quota_seconds > 0.8 * told.seconds


async def test_a_learned_cap_is_told() -> None:
    in_flight = 0

    async def execute(call: Call) -> Any:
        nonlocal in_flight
        await asyncio.sleep(0.02)
        if in_flight >= 8:
            raise Refused(1.0)
        in_flight += 1
        await asyncio.sleep(0.4)
        in_flight -= 1

    result = await run(*items(Provider(execute), 1_000), config=learning(50))
    assert 6 <= result.quotas["default"].learned_in_flight <= 9
    assert result.quotas["default"].waited_for_slots_seconds > 0


async def test_the_first_refusal_of_each_quota_is_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def refuse(call: Call) -> Any:
        if call.at < 5.0:
            raise Refused(1.0)

    with caplog.at_level(logging.WARNING):
        await run(*both(At("a", refuse), At("b", refuse), 5), config=learning(10))
    told = [record for record in caplog.records if "from now on" in record.getMessage()]
    assert len(told) == 2


# What responses say is left.


class Telling(Provider):
    """A window of ten calls in ten seconds, which says what is left of it."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.reset_at, self.refused = 10, 10.0, 0

    async def execute(  # type: ignore[override]
        self, prompt: str, attempt: int, timeout: float
    ) -> Any:
        self.calls.append(Call(now(), prompt, attempt, timeout))
        if now() >= self.reset_at:
            self.left, self.reset_at = (
                10,
                self.reset_at + 10.0 * ((now() - self.reset_at) // 10 + 1),
            )
        if not self.left:
            self.refused += 1
            error = Refused(1.0)
            error.response.headers.update(self.headers())
            raise error
        self.left -= 1
        headers = self.headers()
        await asyncio.sleep(0.1)
        return "", {}, {"headers": headers}

    def headers(self) -> dict[str, str]:
        return {
            "x-ratelimit-remaining-requests": str(self.left),
            "x-ratelimit-reset-requests": f"{self.reset_at - now():.3f}s",
        }


async def test_what_is_left_lasts_until_there_is_more() -> None:
    provider = Telling()
    result = await run(*items(provider, 40), config=learning(4))
    assert (result.succeeded, provider.refused) == (40, 0)
    # Four windows, and in each of them at most ten calls.
    assert 30.0 <= now() <= 41.0
    assert result.quotas["default"].waited_for_quota_seconds > 20.0


async def test_a_refusal_says_what_is_left_too() -> None:
    provider = Telling()
    provider.left = 0
    result = await run(*items(provider, 5), config=learning(4))
    assert (result.succeeded, provider.refused) == (5, 1)
    # One second was asked for, but the window has nothing for nine more.
    assert provider.instants[:2] == pytest.approx([0.0, 10.05])


async def test_whoever_asks_for_cooldowns_is_not_told_what_is_left() -> None:
    provider = Telling()
    result = await run(*items(provider, 9), config=settings(3))
    assert result.succeeded == 9
    assert max(provider.instants) < 1.0
