"""Deadlines, to the instant, whatever the code behind them does."""

import asyncio
import logging
from typing import Any

import pytest

from batch_llm import (
    BaseMiddleware,
    FrameworkTimeoutError,
    ProcessingEvent,
    RetryConfig,
    WorkItemResult,
)
from tests.engine.support import (
    Call,
    Processor,
    Provider,
    errors,
    items,
    now,
    outputs,
    run,
    run_with,
    settings,
)
from tests.helpers import Recorder


def timing_out(seconds: float = 10.0, max_workers: int = 1, max_attempts: int = 1) -> Any:
    retry = RetryConfig(max_attempts=max_attempts, jitter=False)
    return settings(max_workers, timeout_per_item=seconds, retry=retry)


async def sleep_long(call: Call) -> str:
    await asyncio.sleep(1e6)
    return "too late"


class Stubborn(Provider):
    """Ignores its cancellation ``times`` times."""

    def __init__(self, times: int, seconds: float = 100.0) -> None:
        super().__init__()
        self.times = times
        self.step_seconds = seconds
        self.ended: list[float] = []

    async def execute(self, prompt: str, attempt: int, timeout: float) -> tuple[Any, Any]:
        self.calls.append(Call(now(), prompt, attempt, timeout))
        for _ in range(self.times):
            try:
                await asyncio.sleep(self.step_seconds)
            except asyncio.CancelledError:
                continue
        self.ended.append(now())
        return "stubborn", {"input_tokens": 7}


async def test_a_call_is_cut_off_at_the_exact_instant() -> None:
    provider = Provider(sleep_long)
    result = await run(*items(provider), config=timing_out(10.0))
    assert now() == 10.0
    assert result.results[0].error == (
        "FrameworkTimeoutError: timeout: Provider did not answer within 10.0 s; "
        "raise ProcessorConfig.timeout_per_item if answers may take longer"
    )
    assert isinstance(result.results[0].exception, TimeoutError)
    [(error, attempt)] = provider.errors
    assert isinstance(error, FrameworkTimeoutError)
    assert attempt == 1


async def test_calls_that_began_at_different_times_are_cut_off_at_different_times() -> None:
    seconds = {"prompt 0": 3.0, "prompt 1": 1.0, "prompt 2": 100.0, "prompt 3": 100.0}

    async def answer(call: Call) -> str:
        try:
            await asyncio.sleep(seconds[call.prompt])
        except asyncio.CancelledError:
            cut_off[call.prompt] = now()
            raise
        return "ok"

    cut_off: dict[str, float] = {}
    await run(*items(Provider(answer), 4), config=timing_out(10.0, 2))
    assert cut_off == {"prompt 2": 11.0, "prompt 3": 13.0}


async def test_each_attempt_has_the_whole_time() -> None:
    provider = Provider(sleep_long)
    await run(*items(provider), config=timing_out(10.0, max_attempts=3))
    assert provider.instants == [0.0, 11.0, 23.0]
    assert now() == 33.0


async def test_an_answer_just_in_time_counts() -> None:
    result = await run(*items(Provider(seconds=9.999)), config=timing_out(10.0))
    assert result.succeeded == 1


async def test_a_timeout_of_the_strategys_own_keeps_its_text() -> None:
    async def answer(call: Call) -> Any:
        raise TimeoutError("my own deadline")

    result = await run(*items(Provider(answer)), config=timing_out())
    assert errors(result) == ["TimeoutError: my own deadline"]
    assert not isinstance(result.results[0].exception, FrameworkTimeoutError)


async def test_asyncio_timeout_inside_the_strategy_works() -> None:
    async def answer(call: Call) -> Any:
        try:
            async with asyncio.timeout(3.0):
                await asyncio.sleep(1e6)
        except TimeoutError:
            return f"gave up at {now()}"

    result = await run(*items(Provider(answer)), config=timing_out())
    assert outputs(result) == ["gave up at 3.0"]


async def test_a_deadline_inside_a_task_group_of_the_strategy() -> None:
    async def answer(call: Call) -> Any:
        async with asyncio.timeout(1e5), asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(1e6))
            group.create_task(asyncio.sleep(1e6))

    result = await run(*items(Provider(answer)), config=timing_out())
    assert isinstance(result.results[0].exception, FrameworkTimeoutError)
    assert now() == 10.0


async def test_an_error_made_of_the_cancellation_is_the_attempts_error() -> None:
    async def answer(call: Call) -> Any:
        try:
            await asyncio.sleep(1e6)
        except asyncio.CancelledError:
            raise ValueError("interrupted") from None

    result = await run(*items(Provider(answer), 2), config=timing_out())
    assert errors(result) == ["ValueError: interrupted"] * 2


async def test_an_answer_in_spite_of_the_cancellation_counts() -> None:
    """It was paid for, and it is here."""
    provider = Stubborn(times=1)
    result = await run(*items(provider, 2), config=timing_out())
    assert outputs(result) == ["stubborn"] * 2
    assert provider.ended == [10.0, 20.0]
    assert result.total_input_tokens == 14


async def test_who_uncancels_does_no_harm() -> None:
    async def answer(call: Call) -> Any:
        try:
            await asyncio.sleep(1e6)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
        return "late"

    provider = Provider(answer)
    result = await run(*items(provider, 3), config=timing_out())
    assert outputs(result) == ["late"] * 3
    assert provider.instants == [0.0, 10.0, 20.0]


async def test_a_call_that_cleans_up_in_time_is_only_late() -> None:
    async def answer(call: Call) -> Any:
        try:
            await asyncio.sleep(1e6)
        finally:
            await asyncio.sleep(0.5)

    result = await run(*items(Provider(answer)), config=timing_out())
    assert now() == 10.5
    assert isinstance(result.results[0].exception, FrameworkTimeoutError)
    assert "did not answer within" in str(result.results[0].error)


async def test_a_call_that_ignores_its_cancellation_costs_only_its_item(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stubborn, other = Stubborn(times=3), Provider()
    async with Processor(config=timing_out(10.0, 1, max_attempts=3)) as processor:
        result = await run_with(processor, *items(stubborn), *items(other, 3))
        stats = await processor.get_stats()
        assert other.instants == [11.0] * 3
    assert [entry.success for entry in result.results] == [False, True, True, True]
    assert str(result.results[0].error).startswith("FrameworkTimeoutError: timeout: the call")
    assert (stats["processed"], stats["failed"], stats["succeeded"]) == (4, 1, 3)
    assert len(stubborn.calls) == 1
    await asyncio.sleep(1000.0)
    assert "worker 0: a call ignores its cancellation and is left behind" in caplog.text


async def test_a_call_that_was_left_behind_changes_nothing_when_it_ends() -> None:
    stubborn, other, recorder = Stubborn(times=2, seconds=50.0), Provider(seconds=9.0), Recorder()
    async with Processor(config=timing_out(10.0, 1), observers=[recorder]) as processor:
        result = await run_with(processor, *items(stubborn), *items(other, 20))
        stats = await processor.get_stats()
    assert stubborn.ended == [60.0]
    assert now() == 11.0 + 20 * 9.0
    assert len(result.results) == 21
    assert len({entry.item_id for entry in result.results if entry.success}) == 20
    assert stats["processed"] == 21
    assert stats["total_input_tokens"] == 0
    assert recorder.of(ProcessingEvent.WORKER_STOPPED) == [{"worker_id": 0}]


async def test_many_stubborn_calls_at_once() -> None:
    stubborn, other = Stubborn(times=3), Provider(seconds=1.0)
    result = await run(*items(stubborn, 10), *items(other, 10), config=timing_out(10.0, 10))
    assert result.failed == result.succeeded == 10
    assert other.instants == [11.0] * 10
    await asyncio.sleep(1000.0)


async def test_a_stubborn_call_holds_up_the_end_of_the_run_for_a_second_at_most(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stubborn = Stubborn(times=4)
    result = await run(*items(stubborn), config=timing_out())
    assert result.failed == 1
    assert now() == 12.0
    assert "batch_llm worker 0 ignores its cancellation and is left behind" in caplog.text
    await asyncio.sleep(1000.0)
    assert stubborn.ended == [211.0]


@pytest.mark.parametrize("count", [1, 3])
async def test_a_call_that_never_ends_costs_its_own_run_only(
    count: int, caplog: pytest.LogCaptureFixture
) -> None:
    class Endless(Provider):
        async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
            while not released.is_set():
                try:
                    await released.wait()
                except asyncio.CancelledError:
                    continue
            return "late", {}

    released = asyncio.Event()
    async with Processor(config=timing_out(10.0, count)) as processor:
        assert (await run_with(processor, *items(Endless(), count))).failed == count
        ended, told = now(), len(caplog.records)
        for _ in range(3):
            assert (await run_with(processor, *items(Provider(), 2))).succeeded == 2
    assert now() == ended == 12.0
    assert len(caplog.records) == told == 2 * count
    released.set()
    await asyncio.sleep(0)


class Slow(BaseMiddleware[str, Any, Any]):
    """One of its hooks hangs."""

    def __init__(self, hook: str) -> None:
        self.hook = hook

    async def before_process(self, work_item: Any) -> Any:
        return await self.hang_in("before_process", work_item)

    async def after_process(self, result: Any) -> Any:
        return await self.hang_in("after_process", result)

    async def on_error(self, work_item: Any, exception: BaseException) -> Any:
        return await self.hang_in("on_error", None)

    async def hang_in(self, hook: str, value: Any) -> Any:
        if hook == self.hook:
            await asyncio.sleep(1e6)
        return value


@pytest.mark.parametrize(
    ("hook", "succeeds"),
    [("before_process", True), ("after_process", True), ("on_error", False)],
)
async def test_middleware_is_bounded(
    hook: str, succeeds: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(call: Call) -> str:
        if not succeeds:
            raise ValueError("permanent")
        return "ok"

    result = await run(*items(Provider(answer)), config=timing_out(), middlewares=[Slow(hook)])
    assert now() == 10.0
    assert result.results[0].success is succeeds
    assert f"item 0: Slow.{hook} failed with FrameworkTimeoutError" in caplog.text


async def test_a_post_processor_has_ninety_seconds(caplog: pytest.LogCaptureFixture) -> None:
    async def hang(result: WorkItemResult[Any, Any]) -> None:
        await asyncio.sleep(1e6)

    result = await run(*items(Provider()), config=timing_out(), post_processor=hang)
    assert now() == 90.0
    assert result.results[0].success
    assert "item 0: post_processor failed with FrameworkTimeoutError" in caplog.text


async def test_a_hook_that_ignores_its_cancellation_is_left_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def stubborn(result: WorkItemResult[Any, Any]) -> None:
        for _ in range(3):
            try:
                await asyncio.sleep(1000.0)
            except asyncio.CancelledError:
                continue

    result = await run(*items(Provider()), config=timing_out(), post_processor=stubborn)
    assert result.succeeded == 1
    assert now() == 91.0
    assert "post_processor ignores its cancellation and is left behind" in caplog.text
    await asyncio.sleep(5000.0)


async def test_a_dry_run_is_bounded() -> None:
    class Slow(Provider):
        async def dry_run(self, prompt: str) -> Any:
            await asyncio.sleep(1e6)

    config = timing_out()
    config.dry_run = True
    result = await run(*items(Slow()), config=config)
    assert now() == 10.0
    assert isinstance(result.results[0].exception, FrameworkTimeoutError)


async def test_a_run_without_timeouts_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "batch_llm")
    await run(*items(Provider(seconds=1.0), 10), config=timing_out())
    assert caplog.records == []
