"""Requests per minute: an even flow with a small burst, first come, first served."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm import FixedDelayStrategy
from batch_llm._engine.meters import Meter
from batch_llm.testing.loop import run as virtual_run
from tests.engine.support import (
    Call,
    Processor,
    Provider,
    Refused,
    items,
    now,
    run,
    run_with,
    script,
    settings,
    start,
)


def paced(per_minute: float, max_workers: int = 50, **fields: Any) -> Any:
    return settings(max_workers, max_requests_per_minute=per_minute, **fields)


async def test_sixty_per_minute_is_one_per_second() -> None:
    provider = Provider()
    await run(*items(provider, 60), config=paced(60))
    assert provider.instants == pytest.approx(list(range(60)))


async def test_half_a_request_per_minute() -> None:
    provider = Provider()
    await run(*items(provider, 3), config=paced(0.5))
    assert provider.instants == [0.0, 120.0, 240.0]


async def test_the_burst_is_one_seconds_worth_less_one() -> None:
    provider = Provider()
    await run(*items(provider, 30), config=paced(600))
    assert sum(instant == 0.0 for instant in provider.instants) == 9
    assert provider.instants[9:] == pytest.approx([number / 10 for number in range(1, 22)])


@given(
    rate=st.floats(0.1, 6000),
    asked=st.lists(st.floats(0, 10), min_size=1, max_size=200),
)
def test_no_window_holds_more_than_the_bound(rate: float, asked: list[float]) -> None:
    meter, instant, passed = Meter(rate, spare=1.0), 0.0, []
    for pause in asked:
        instant = max(instant + pause / rate, meter.ready_at())
        meter.take(instant)
        passed.append(instant)
    burst = max(1.0, rate / 60 - 1)
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            window = passed[last] - passed[first]
            assert last - first + 1 <= window * rate / 60 + burst + 1 + 1e-6


async def test_a_pause_earns_no_more_than_the_burst() -> None:
    provider = Provider()
    async with Processor(config=paced(600)) as processor:
        await run_with(processor, *items(provider, 10))
        provider.calls.clear()
        await asyncio.sleep(1000.0 - now())
        await run_with(processor, *items(provider, 20))
    later = [instant - 1000.0 for instant in provider.instants]
    assert later[:9] == pytest.approx([0.0] * 9)
    assert later[9:] == pytest.approx([number / 10 for number in range(1, 12)])


async def test_the_rate_holds_from_one_run_to_the_next() -> None:
    provider = Provider()
    async with Processor(config=paced(60)) as processor:
        for _ in range(3):
            await run_with(processor, *items(provider))
    assert provider.instants == [0.0, 1.0, 2.0]


def test_the_rate_starts_afresh_on_another_loop() -> None:
    """Each loop has a clock of its own, so what was let out at its 60th second says nothing."""
    processor = Processor(config=paced(1))

    async def use() -> list[float]:
        provider = Provider()
        await run_with(processor, *items(provider, 3))
        return provider.instants

    assert [virtual_run(use()) for _ in range(2)] == [[0.0, 60.0, 120.0]] * 2


async def test_retries_are_paced_too() -> None:
    class ParseError(Exception):
        pass

    provider = Provider(script(ParseError(), ParseError()))
    await run(*items(provider), config=paced(6))
    assert provider.instants == [0.0, 10.0, 20.0]


async def test_first_come_first_served() -> None:
    provider = Provider()
    await run(*items(provider, 40), config=paced(60, 40))
    assert [call.prompt for call in provider.calls] == [f"prompt {n}" for n in range(40)]


async def test_a_newcomer_does_not_overtake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that lags lets a newcomer ask before it has woken the one who waits."""
    limiter = Processor(config=paced(60))._proactive_rate_limiter
    assert limiter is not None
    await limiter.acquire()
    let_out: list[str] = []

    async def ask(name: str) -> None:
        await limiter.acquire()
        let_out.append(name)

    waiting = asyncio.create_task(ask("first"))
    await asyncio.sleep(0.5)
    with monkeypatch.context() as lagging:
        lagging.setattr(asyncio.get_running_loop(), "time", lambda: 1.5)
        newcomer = asyncio.create_task(ask("newcomer"))
        await asyncio.sleep(0)
    await asyncio.gather(waiting, newcomer)
    assert let_out == ["first", "newcomer"]


async def test_a_call_from_outside_waits_its_turn_and_outlives_the_run() -> None:
    provider = Provider()
    async with Processor(config=paced(60, 5)) as processor:
        running = await start(processor, *items(provider, 3))
        await asyncio.sleep(1.0)
        limiter = processor._proactive_rate_limiter
        assert limiter is not None
        await limiter.acquire()
        assert now() == 3.0
        await running
    assert provider.instants == [0.0, 1.0, 2.0]


async def test_the_timeout_starts_when_the_call_is_let_out() -> None:
    provider = Provider(seconds=4.0)
    result = await run(*items(provider, 5), config=paced(6, timeout_per_item=5.0))
    assert result.succeeded == 5


async def test_a_cooldown_and_the_rate_hold_together() -> None:
    provider = Provider(script(Refused(30)))
    await run(*items(provider, 5), config=paced(6, 1))
    assert provider.instants == [0.0, 30.0, 40.0, 50.0, 60.0, 70.0]


async def test_the_slower_of_rate_and_slow_start_decides() -> None:
    provider = Provider(script(Refused(30)))
    strategy = FixedDelayStrategy(delay_between_requests=15.0)
    await run(*items(provider, 3), config=paced(6, 1), rate_limit_strategy=strategy)
    assert provider.instants == [0.0, 45.0, 60.0, 75.0]


async def test_no_call_goes_out_in_the_instant_in_which_a_cooldown_begins() -> None:
    """One call is let out and another refused in the same turn of the loop."""
    provider = Provider(script(Refused(30)), seconds=10.0)
    await run(*items(provider, 2), config=paced(6, 2))
    assert provider.instants == [0.0, 40.0, 50.0]


async def test_who_is_sent_back_by_a_cooldown_stays_first_in_line() -> None:
    """It begins when the first has been given its turn and has not yet woken up."""
    processor = Processor(config=paced(6), rate_limit_strategy=FixedDelayStrategy(5.0))
    limiter = processor._proactive_rate_limiter
    assert limiter is not None
    let_out: list[tuple[int, float]] = []

    async def refuse() -> None:
        await asyncio.sleep(10.0)
        await limiter.cool_down(0, worker_id=0, hint_seconds=1.0)

    async def ask(number: int) -> None:
        await limiter.acquire()
        let_out.append((number, now()))

    await limiter.acquire()
    async with asyncio.TaskGroup() as group:
        group.create_task(refuse())
        await asyncio.sleep(0)
        for number in range(3):
            group.create_task(ask(number))
    assert [number for number, _ in let_out] == [0, 1, 2]
    assert let_out[0][1] > 10.0


async def test_a_dry_run_is_not_paced() -> None:
    await run(*items(Provider(), 100), config=paced(1, dry_run=True))
    assert now() == 0.0


async def test_the_limiter_outside_a_run() -> None:
    limiter = Processor(config=paced(60))._proactive_rate_limiter
    assert limiter is not None
    for _ in range(3):
        await limiter.acquire()
    assert now() == 2.0


async def test_who_gives_up_waiting_holds_up_nobody() -> None:
    limiter = Processor(config=paced(6))._proactive_rate_limiter
    assert limiter is not None
    await limiter.acquire()
    waiting = [asyncio.create_task(limiter.acquire()) for _ in range(3)]
    await asyncio.sleep(1.0)
    waiting[0].cancel()
    waiting[1].cancel()
    await waiting[2]
    assert now() == 10.0
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_who_gives_up_last_leaves_no_timer() -> None:
    limiter = Processor(config=paced(6))._proactive_rate_limiter
    assert limiter is not None
    await limiter.acquire()
    waiting = asyncio.create_task(limiter.acquire())
    await asyncio.sleep(1.0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await limiter.acquire()
    assert now() == 10.0


async def test_a_run_that_is_ended_ends_the_waiting() -> None:
    async def answer(call: Call) -> str:
        return call.prompt

    provider = Provider(answer)
    async with Processor(config=paced(1)) as processor:
        running = await start(processor, *items(provider, 20))
        await asyncio.sleep(90.0)
        await processor.cleanup()
        assert [entry.output for entry in (await running).results] == ["prompt 0", "prompt 1"]
        assert now() == 90.0
