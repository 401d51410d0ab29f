"""Cooldowns and slow start, to the instant."""

import asyncio
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest

from batch_llm import (
    DefaultErrorClassifier,
    ErrorInfo,
    ExponentialBackoffStrategy,
    FixedDelayStrategy,
    ProcessingEvent,
    RateLimitConfig,
    RateLimitStrategy,
    RetryConfig,
)
from tests.engine.support import (
    Call,
    Processor,
    Provider,
    Refused,
    errors,
    items,
    now,
    run,
    run_with,
    script,
    settings,
    start,
)
from tests.helpers import Recorder


class Noting(RateLimitStrategy):
    """Notes what it is asked; cools down for 10 s and starts slowly for a few calls."""

    def __init__(self, slow_calls: int = 0) -> None:
        self.slow_calls = slow_calls
        self.asked: list[tuple[int, int]] = []
        self.numbers: list[int] = []

    async def on_rate_limit(self, worker_id: int, consecutive_limit_count: int) -> float:
        self.asked.append((worker_id, consecutive_limit_count))
        return 10.0

    def should_apply_slow_start(self, items_since_resume: int) -> tuple[bool, float]:
        self.numbers.append(items_since_resume)
        return items_since_resume < self.slow_calls, 3.0


async def test_a_refused_call_is_repeated_after_the_cooldown() -> None:
    provider = Provider(script(Refused()))
    result = await run(*items(provider), config=settings(cooldown=60.0))
    assert result.succeeded == 1
    assert provider.instants == [0.0, 60.0]


async def test_everybody_pauses() -> None:
    provider = Provider(script(Refused(60)), seconds=1.0)
    await run(*items(provider, 6), config=settings(2))
    assert provider.instants == [0.0, 0.0, 61.0, 61.0, 62.0, 62.0, 63.0]


async def test_a_slow_on_error_does_not_put_off_the_cooldown() -> None:
    class Slow(Provider):
        async def on_error(self, exception: BaseException, attempt: int) -> None:
            await asyncio.sleep(50.0)

    slow, other = Slow(script(Refused(60))), Provider()
    await run(*items(slow), *items(other, 2), config=settings(2))
    assert other.instants == [60.0, 60.0]
    assert slow.instants == [0.0, 60.0]


async def test_an_idle_worker_takes_no_call_out_during_a_cooldown() -> None:
    provider, latecomer = Provider(script(Refused())), Provider()
    async with Processor(config=settings(2, cooldown=60.0)) as processor:
        running = await start(processor, *items(provider))
        await asyncio.sleep(30.0)
        await processor.add_work(*items(latecomer))
        await running
    assert latecomer.instants == [60.0]


async def test_a_retry_waits_for_the_cooldown_too() -> None:
    async def answer(call: Call) -> str:
        if call.at > 1.0:
            return "ok"
        raise ConnectionError if call.prompt == "prompt 0" else Refused()

    provider = Provider(answer)
    await run(*items(provider, 2), config=settings(2, cooldown=60.0))
    assert provider.instants == [0.0, 0.0, 60.0, 60.0]


async def test_many_refusals_make_one_cooldown() -> None:
    recorder, strategy = Recorder(), Noting()
    provider = Provider(script(*[Refused()] * 20), seconds=1.0)
    config = settings(20)
    processor = Processor(config=config, rate_limit_strategy=strategy, observers=[recorder])
    async with processor:
        result = await run_with(processor, *items(provider, 20))
        stats = await processor.get_stats()
    assert result.succeeded == 20
    assert [consecutive for _, consecutive in strategy.asked] == [1]
    assert stats["rate_limit_count"] == 20
    assert len(recorder.of(ProcessingEvent.RATE_LIMIT_HIT)) == 20
    assert provider.instants == [0.0] * 20 + [11.0] * 20


async def test_a_late_refusal_starts_no_second_cooldown() -> None:
    """The slow call went out before the cooldown and is refused when it is long over."""

    async def answer(call: Call) -> str:
        if call.at < 1.0:
            await asyncio.sleep(15.0 if call.prompt == "prompt 0" else 0.0)
            raise Refused
        return "ok"

    recorder, provider = Recorder(), Provider(answer)
    options: dict[str, Any] = {"rate_limit_strategy": Noting(), "observers": [recorder]}
    await run(*items(provider, 2), config=settings(2), **options)
    assert provider.instants == [0.0, 0.0, 10.0, 15.0]
    assert len(recorder.of(ProcessingEvent.COOLDOWN_STARTED)) == 1


@pytest.mark.parametrize("hint", [5.0, 120.0, 700.0], ids=["shorter", "longer", "very long"])
async def test_the_providers_hint_decides(hint: float) -> None:
    strategy, provider = Noting(), Provider(script(Refused(hint)))
    await run(*items(provider), rate_limit_strategy=strategy)
    assert provider.instants == [0.0, hint]
    assert strategy.asked == []


async def test_a_hint_of_no_seconds_is_no_pause() -> None:
    provider = Provider(script(Refused(0)))
    await run(*items(provider))
    assert provider.instants == [0.0, 0.0]


@pytest.mark.parametrize("hint", [-1.0, float("nan"), float("inf"), "10", True], ids=repr)
async def test_without_a_usable_hint_the_strategy_decides(hint: Any) -> None:
    class Classifier(DefaultErrorClassifier):
        def classify(self, exception: Exception) -> ErrorInfo:
            return ErrorInfo(False, True, False, "rate_limit", hint)

    provider = Provider(script(Refused()))
    await run(*items(provider), error_classifier=Classifier(), rate_limit_strategy=Noting())
    assert provider.instants == [0.0, 10.0]


async def test_a_cooldown_above_ten_minutes_is_not_cut() -> None:
    provider = Provider(script(Refused()))
    await run(*items(provider), config=settings(cooldown=1000.0))
    assert provider.instants == [0.0, 1000.0]


async def test_cooldowns_of_the_config_grow_to_ten_minutes() -> None:
    provider = Provider(script(*[Refused()] * 3))
    await run(*items(provider), config=settings(cooldown=300.0))
    assert provider.instants == [0.0, 300.0, 900.0, 1500.0]


async def test_cooldowns_grow_to_the_limit_while_nothing_succeeds() -> None:
    provider = Provider(script(*[Refused()] * 6))
    strategy = ExponentialBackoffStrategy(slow_start_items=0)
    await run(*items(provider), rate_limit_strategy=strategy)
    pauses = [after - before for before, after in pairwise(provider.instants)]
    assert pauses == [60.0, 120.0, 240.0, 480.0, 600.0, 600.0]


async def test_a_success_makes_the_next_cooldown_a_first_one() -> None:
    strategy = Noting()
    provider = Provider(script(Refused(), Refused(), "ok", Refused(), "ok"))
    await run(*items(provider, 2), rate_limit_strategy=strategy)
    assert strategy.asked == [(0, 1), (0, 2), (0, 1)]


async def test_consecutive_counts_cooldowns_that_a_hint_decided() -> None:
    recorder, strategy = Recorder(), Noting()
    provider = Provider(script(Refused(5), Refused()))
    await run(*items(provider), rate_limit_strategy=strategy, observers=[recorder])
    assert strategy.asked == [(0, 2)]
    assert recorder.of(ProcessingEvent.COOLDOWN_STARTED) == [
        {"worker_id": 0, "duration": 5.0, "consecutive": 1},
        {"worker_id": 0, "duration": 10.0, "consecutive": 2},
    ]


async def test_observers_are_told_of_hits_and_cooldowns() -> None:
    recorder = Recorder()
    await run(*items(Provider(script(Refused()))), observers=[recorder])
    names = [event.value for event, _ in recorder.seen]
    assert names[3:7] == ["rate_limit_hit", "cooldown_started", "cooldown_ended", "item_completed"]
    assert recorder.of(ProcessingEvent.RATE_LIMIT_HIT) == [{"item_id": "0", "worker_id": 0}]
    assert recorder.of(ProcessingEvent.COOLDOWN_ENDED) == [{"duration": 60.0}]


async def test_a_refusal_keeps_the_attempt_number_and_uses_up_no_attempt() -> None:
    provider = Provider(
        script(Refused(), ConnectionError(), Refused(), Refused(), ConnectionError(), Refused())
    )
    config = settings(retry=RetryConfig(max_attempts=3, jitter=False))
    result = await run(*items(provider), config=config)
    assert provider.attempts == [1, 1, 2, 2, 2, 3, 3]
    assert result.results[0].attempts == 3
    assert result.succeeded == 1


async def test_the_strategys_on_error_sees_refusals() -> None:
    refused = Refused()
    provider = Provider(script(refused))
    await run(*items(provider))
    assert provider.errors == [(refused, 1)]


async def test_a_refusal_is_repeated_whatever_is_retryable_says() -> None:
    assert not DefaultErrorClassifier().classify(Refused()).is_retryable
    provider = Provider(script(Refused()))
    result = await run(
        *items(provider), config=settings(retry=RetryConfig(max_attempts=1, jitter=False))
    )
    assert result.succeeded == 1


async def test_an_item_that_is_refused_too_often_fails() -> None:
    refusals = [Refused() for _ in range(3)]
    provider = Provider(script(*refusals))
    limit = RateLimitConfig(cooldown_seconds=1.0, slow_start_items=0, max_rate_limits_per_item=3)
    result = await run(*items(provider, 2), config=settings(rate_limit=limit))
    first, second = result.results
    assert len(provider.calls) == 4
    assert first.error.startswith("RateLimitExceededError: rate limited 3 times")
    assert "max_rate_limits_per_item" in first.error
    assert first.exception.__cause__ is refusals[2]
    assert second.success


async def test_the_default_lets_an_item_be_refused_a_hundred_times() -> None:
    class Never(Provider):
        async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
            self.calls.append(Call(now(), prompt, attempt, timeout))
            raise Refused(1)

    provider = Never()
    await run(*items(provider))
    assert len(provider.calls) == 100


async def fails(worker_id: int, consecutive: int) -> float:
    raise LookupError("no idea")


async def hangs(worker_id: int, consecutive: int) -> float:
    await asyncio.sleep(1e6)
    return 0.0


async def says_nothing(worker_id: int, consecutive: int) -> None: ...


@pytest.mark.parametrize(
    ("on_rate_limit", "resumed_at", "error"),
    [
        (fails, 0.0, "LookupError: no idea"),
        (hangs, 120.0, "FrameworkTimeoutError: timeout"),
        (says_nothing, 0.0, "TypeError: on_rate_limit returned None"),
        (lambda worker_id, consecutive: -1.0, 0.0, "TypeError: on_rate_limit returned -1.0"),
        (lambda worker_id, consecutive: "10", 0.0, "TypeError: on_rate_limit returned '10'"),
        (lambda worker_id: 1.0, 0.0, "TypeError: "),
    ],
    ids=["fails", "hangs", "None", "negative", "text", "signature"],
)
async def test_a_failing_strategy_lets_the_workers_go_on(
    on_rate_limit: Callable[..., Any],
    resumed_at: float,
    error: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    strategy, recorder = Noting(slow_calls=5), Recorder()
    monkeypatch.setattr(strategy, "on_rate_limit", on_rate_limit)
    provider = Provider(script(Refused()))
    result = await run(*items(provider), rate_limit_strategy=strategy, observers=[recorder])
    assert result.succeeded == 1
    assert provider.instants == [0.0, resumed_at]
    [started] = recorder.of(ProcessingEvent.COOLDOWN_STARTED)
    assert started == {"worker_id": 0, "duration": 0.0, "consecutive": 1}
    [ended] = recorder.of(ProcessingEvent.COOLDOWN_ENDED)
    assert ended["duration"] == 0.0
    assert ended["error"].startswith(error)
    assert strategy.numbers == []
    assert "the rate-limit strategy failed" in caplog.text


async def test_a_plain_function_may_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = Noting()
    monkeypatch.setattr(strategy, "on_rate_limit", lambda worker_id, consecutive: 7)
    provider = Provider(script(Refused()))
    await run(*items(provider), rate_limit_strategy=strategy)
    assert provider.instants == [0.0, 7.0]


async def test_slow_start_spaces_calls_out_until_the_first_false() -> None:
    strategy = Noting(slow_calls=3)
    provider = Provider(script(*[Refused()] * 6), seconds=1.0)
    await run(*items(provider, 8), config=settings(6), rate_limit_strategy=strategy)
    assert provider.instants == [0.0] * 6 + [14.0, 17.0, 20.0, 20.0, 20.0, 20.0, 20.0, 20.0]
    assert strategy.numbers == [0, 1, 2, 3]


async def test_slow_start_asks_no_further_than_there_are_calls() -> None:
    strategy = Noting(slow_calls=9)
    await run(*items(Provider(script(Refused())), 2), rate_limit_strategy=strategy)
    assert strategy.numbers == [0, 1]


async def test_slow_start_never_runs_before_a_first_rate_limit() -> None:
    strategy, provider = Noting(slow_calls=3), Provider()
    await run(*items(provider, 5), rate_limit_strategy=strategy)
    assert strategy.numbers == []
    assert provider.instants == [0.0] * 5


async def test_the_default_slow_start_falls_linearly() -> None:
    provider = Provider(script(*[Refused()] * 6), seconds=1.0)
    config = settings(6, cooldown=60.0, slow_start_items=4)
    await run(*items(provider, 6), config=config)
    waits = [2.0, 1.525, 1.05, 0.575, 0.0, 0.0]
    expected, instant = [], 61.0
    for wait in waits:
        instant += wait
        expected.append(instant)
    assert provider.instants[6:] == pytest.approx(expected)


async def test_a_call_that_comes_late_in_a_slow_start_waits_no_longer() -> None:
    """The delay counts from the call before, not from when the next one asks."""
    provider = Provider(script(Refused()), seconds=2.0)
    await run(*items(provider, 3), rate_limit_strategy=FixedDelayStrategy(10.0, 3.0))
    assert provider.instants == [0.0, 15.0, 18.0, 21.0]


async def test_a_fixed_delay_holds_for_every_later_call_of_the_run() -> None:
    provider = Provider(script(Refused()))
    strategy = FixedDelayStrategy(cooldown=10.0, delay_between_requests=2.0)
    async with Processor(config=settings(), rate_limit_strategy=strategy) as processor:
        await run_with(processor, *items(provider, 4))
        assert provider.instants == [0.0, 12.0, 14.0, 16.0, 18.0]
        await run_with(processor, *items(provider, 2))
    assert provider.instants[5:] == [18.0, 18.0]


async def test_a_rate_limit_during_slow_start_starts_over() -> None:
    strategy = Noting(slow_calls=2)
    provider = Provider(script(Refused(), "ok", Refused()))
    await run(*items(provider, 4), rate_limit_strategy=strategy)
    assert provider.instants == [0.0, 13.0, 16.0, 29.0, 32.0, 32.0]
    assert strategy.numbers == [0, 1, 0, 1, 2]


@pytest.mark.parametrize(
    "answer",
    [
        lambda number: 1 / 0,
        lambda number: None,
        lambda number: (True, None),
        lambda number: (True, float("nan")),
        lambda number: (True, -1.0),
    ],
    ids=["raises", "None", "no delay", "nan", "negative"],
)
async def test_a_slow_start_that_fails_is_none(
    answer: Callable[[int], Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    strategy, provider = Noting(), Provider(script(Refused(), Refused()), seconds=1.0)
    monkeypatch.setattr(strategy, "should_apply_slow_start", answer)
    result = await run(*items(provider, 2), config=settings(2), rate_limit_strategy=strategy)
    assert result.succeeded == 2
    assert provider.instants == [0.0, 0.0, 11.0, 11.0]
    assert re.search(
        r"should_apply_slow_start (failed with|gave a delay of) .*: no slow", caplog.text
    )


async def test_calls_leave_a_slow_start_in_the_order_in_which_they_came() -> None:
    provider = Provider(script(*[Refused(10)] * 5), seconds=1.0)
    await run(*items(provider, 5), config=settings(5), rate_limit_strategy=Noting(slow_calls=9))
    assert [call.prompt for call in provider.calls[5:]] == [f"prompt {n}" for n in range(5)]


async def test_a_cooldown_ends_with_its_run() -> None:
    provider = Provider(script(Refused(1e6)))
    async with Processor(config=settings()) as processor:
        running = await start(processor, *items(provider))
        await asyncio.sleep(1.0)
        assert processor._in_cooldown
        await processor.cleanup()
        assert (await running).total_items == 0
        assert not processor._in_cooldown
        await run_with(processor, *items(provider))
    assert provider.instants == [0.0, 1.0]


async def test_the_run_may_end_while_the_strategy_thinks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder, strategy = Recorder(), Noting(slow_calls=5)
    monkeypatch.setattr(strategy, "on_rate_limit", hangs)
    provider = Provider(script(Refused()))
    options: dict[str, Any] = {"rate_limit_strategy": strategy, "observers": [recorder]}
    async with Processor(config=settings(), **options) as processor:
        running = await start(processor, *items(provider))
        await asyncio.sleep(1.0)
        await processor.cleanup()
        await running
        assert processor._rate_limit_event.is_set()
        await run_with(processor, *items(provider))
    assert provider.instants == [0.0, 1.0]
    assert len(recorder.of(ProcessingEvent.COOLDOWN_ENDED)) == 1


async def test_the_doors_kept_for_tests() -> None:
    strategy = Noting()
    async with Processor(config=settings(), rate_limit_strategy=strategy) as processor:
        assert processor._proactive_rate_limiter is None
        assert processor._rate_limit_event.is_set()
        assert processor._in_cooldown is False
        handling = asyncio.create_task(processor._handle_rate_limit(3))
        second = asyncio.create_task(processor._handle_rate_limit())
        await asyncio.sleep(1.0)
        assert processor._in_cooldown is True
        assert not processor._rate_limit_event.is_set()
        await handling
        await second
        assert now() == 10.0
        assert strategy.asked == [(3, 1)]


async def test_two_who_handle_one_rate_limit_are_told_of_once() -> None:
    recorder = Recorder()
    processor = Processor(rate_limit_strategy=Noting(), observers=[recorder])
    await asyncio.gather(processor._handle_rate_limit(3), processor._handle_rate_limit(4))
    started, ended = ProcessingEvent.COOLDOWN_STARTED, ProcessingEvent.COOLDOWN_ENDED
    assert [event for event, _ in recorder.seen] == [started, ended]
    assert now() == 10.0


async def test_handling_returns_promptly_after_a_failing_strategy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[int, int]] = []

    async def fail(worker_id: int, consecutive: int) -> float:
        calls.append((worker_id, consecutive))
        raise RuntimeError("broken")

    strategy = Noting()
    monkeypatch.setattr(strategy, "on_rate_limit", fail)
    async with Processor(config=settings(), rate_limit_strategy=strategy) as processor:
        await processor._handle_rate_limit()
        assert now() == 0.0
        assert processor._rate_limit_event.is_set()
    assert calls == [(0, 1)]


async def test_a_cooldown_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "batch_llm")
    await run(*items(Provider(script(*[Refused()] * 4), seconds=1.0), 4), config=settings(4))
    assert [record.getMessage() for record in caplog.records] == [
        "rate limited: all workers pause for 60 s"
    ]


async def test_everything_that_was_refused_ends_as_a_success() -> None:
    async def answer(call: Call) -> str:
        if int(call.at) % 3 == 0:
            raise Refused(1)
        return call.prompt

    provider = Provider(answer, seconds=0.25)
    result = await run(*items(provider, 100), config=settings(10))
    assert result.succeeded == 100
    assert errors(result) == [None] * 100


async def test_a_cooldown_while_a_call_waits_in_a_slow_start_starts_over_for_it_too() -> None:
    async def answer(call: Call) -> Any:
        if call.at in (0.0, 14.0):
            raise Refused

    provider, strategy = Provider(answer, seconds=1.0), Noting(slow_calls=2)
    await run(*items(provider, 2), config=settings(2), rate_limit_strategy=strategy)
    # Resumed at 11 s; and at 25 s, for the call that would have gone out at 17 s too.
    assert provider.instants == [0.0, 0.0, 14.0, 28.0, 31.0]
    assert strategy.numbers == [0, 1, 0, 1]


async def test_the_next_run_counts_its_cooldowns_anew() -> None:
    strategy = Noting()
    config = settings(rate_limit=RateLimitConfig(max_rate_limits_per_item=1))
    async with Processor(config=config, rate_limit_strategy=strategy) as processor:
        for _ in range(2):
            result = await run_with(processor, *items(Provider(script(Refused()))))
            assert result.failed == 1
    assert strategy.asked == [(0, 1), (0, 1)]


async def test_a_cooldown_that_ended_with_its_run_slows_no_later_one() -> None:
    strategy = Noting(slow_calls=5)
    async with Processor(config=settings(), rate_limit_strategy=strategy) as processor:
        running = await start(processor, *items(Provider(script(Refused()))))
        await asyncio.sleep(5.0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        provider = Provider(seconds=3.0)
        await run_with(processor, *items(provider, 4))
    assert provider.instants == [5.0, 8.0, 11.0, 14.0]
    assert strategy.numbers == []


async def test_of_a_failing_strategy_its_name_is_told_and_at_debug_its_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "batch_llm._engine.cooldown")
    strategy, recorder = Noting(), Recorder()
    monkeypatch.setattr(strategy, "on_rate_limit", hangs)
    await run(
        *items(Provider(script(Refused()))), rate_limit_strategy=strategy, observers=[recorder]
    )
    [ended] = recorder.of(ProcessingEvent.COOLDOWN_ENDED)
    assert "rate_limit_strategy.on_rate_limit took longer" in ended["error"]
    above, below = caplog.records
    assert (above.levelno, below.levelno) == (logging.ERROR, logging.DEBUG)
    assert below.exc_info is not None
    assert isinstance(below.exc_info[1], TimeoutError)


async def test_the_whole_error_of_a_slow_start_is_there_for_who_debugs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def divide(items_since_resume: int) -> Any:
        return 1 / 0

    caplog.set_level(logging.DEBUG, "batch_llm._engine.cooldown")
    strategy = Noting()
    monkeypatch.setattr(strategy, "should_apply_slow_start", divide)
    await run(*items(Provider(script(Refused()))), rate_limit_strategy=strategy)
    [told] = [record for record in caplog.records if record.levelno == logging.DEBUG]
    assert told.exc_info is not None
    assert isinstance(told.exc_info[1], ZeroDivisionError)


async def test_a_call_that_was_left_behind_is_no_success() -> None:
    async def answer(call: Call) -> Any:
        calls = len(provider.calls)
        if calls != 2:
            raise Refused
        while now() < 100.0:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(100.0 - now())

    provider, recorder = Provider(answer), Recorder()
    config = settings(1, cooldown=5.0, timeout_per_item=10.0)
    config.rate_limit.max_rate_limits_per_item = 2
    await run(*items(provider, 2), config=config, observers=[recorder])
    started = recorder.of(ProcessingEvent.COOLDOWN_STARTED)
    assert [data["consecutive"] for data in started][:2] == [1, 2]
    await asyncio.sleep(100.0)
