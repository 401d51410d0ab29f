"""The end of a run that is cancelled itself, and what it does with calls that will not end."""

import asyncio
from typing import Any

import pytest

from batch_llm import FixedDelayStrategy, ProcessingEvent, WorkItemResult
from tests.engine.moments import other_tasks
from tests.engine.support import (
    Call,
    Processor,
    Provider,
    items,
    now,
    run_with,
    script,
    settings,
    start,
)
from tests.helpers import Recorder

ENDS_AT = 20.0


class Deaf(Provider):
    """Ignores every cancellation, and answers at last."""

    def __init__(self, cleanup_seconds: float = 0.0) -> None:
        super().__init__()
        self.cleanup_seconds = cleanup_seconds
        self.cancelled: list[float] = []

    async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
        while now() < ENDS_AT:
            try:
                await asyncio.sleep(ENDS_AT - now())
            except asyncio.CancelledError:
                self.cancelled.append(now())
        return "late", {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}

    async def cleanup(self) -> None:
        await asyncio.sleep(self.cleanup_seconds)


async def test_a_call_that_the_end_left_behind_is_left_alone() -> None:
    """Though the cleanup of its strategy takes until after the call's deadline."""
    deaf, recorder = Deaf(cleanup_seconds=8.0), Recorder()
    processor = Processor(config=settings(timeout_per_item=10.0), observers=[recorder])
    running = await start(processor, *items(deaf))
    await asyncio.sleep(5.0)
    await processor.cleanup()
    result = await running
    assert now() == 14.0
    assert deaf.cancelled == [5.0]
    assert (result.results, result.not_run) == ([], ["0"])
    last = [event for event, _ in recorder.seen[-2:]]
    assert last == [ProcessingEvent.WORKER_STOPPED, ProcessingEvent.BATCH_COMPLETED]
    await asyncio.sleep(ENDS_AT)


async def test_a_call_is_left_alone_by_an_end_that_is_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    deaf = Deaf()
    processor = Processor(config=settings(timeout_per_item=10.0))
    running = await start(processor, *items(deaf))
    await asyncio.sleep(5.0)
    running.cancel()
    await asyncio.sleep(0.5)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert now() == 5.5
    await asyncio.sleep(ENDS_AT)
    # The deadline of the call, at 10 s, was the run's.
    assert deaf.cancelled == [5.0, 5.5]
    assert "left behind" not in caplog.text
    stats = await processor.get_stats()
    assert (stats["processed"], stats["total_tokens"]) == (0, 0)


async def test_workers_without_an_item_have_stopped_also_where_the_end_is_cancelled() -> None:
    recorder = Recorder()
    processor = Processor(config=settings(3), observers=[recorder])
    running = await start(processor, *items(Deaf()))
    for _ in range(2):
        await asyncio.sleep(0.5)
        running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    stopped = [data["worker_id"] for data in recorder.of(ProcessingEvent.WORKER_STOPPED)]
    assert stopped == [1, 2]
    await asyncio.sleep(ENDS_AT)


async def test_a_second_cancellation_cuts_short_what_the_first_left_time_for() -> None:
    class Thorough(Provider):
        async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
            try:
                await asyncio.sleep(100.0)
            finally:
                await asyncio.sleep(0.9)

    processor = Processor(config=settings())
    running = await start(processor, *items(Thorough()))
    await asyncio.sleep(1.0)
    running.cancel()
    await asyncio.sleep(0.5)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.sleep(0)
    assert now() == 1.5
    assert other_tasks() == set()


async def test_observers_are_told_of_a_cooldown_after_a_run() -> None:
    recorder = Recorder()
    processor = Processor(
        config=settings(), rate_limit_strategy=FixedDelayStrategy(5.0), observers=[recorder]
    )
    assert (await run_with(processor, *items(Provider()))).succeeded == 1
    await processor._handle_rate_limit(worker_id=3)
    assert [event for event, _ in recorder.seen[-3:]] == [
        ProcessingEvent.BATCH_COMPLETED,
        ProcessingEvent.COOLDOWN_STARTED,
        ProcessingEvent.COOLDOWN_ENDED,
    ]


async def test_observers_are_told_of_each_cooldown_outside_a_run_once() -> None:
    class Slow(Recorder):
        async def on_event(self, event: ProcessingEvent, data: dict[str, Any]) -> None:
            await asyncio.sleep(3.0)
            await super().on_event(event, data)

    recorder = Slow()
    processor = Processor(config=settings(), rate_limit_strategy=FixedDelayStrategy(2.0))
    processor.observers = [recorder]
    for _ in range(2):
        first = asyncio.create_task(processor._handle_rate_limit())
        await asyncio.sleep(1.0)
        await asyncio.gather(first, processor._handle_rate_limit())
    assert [event for event, _ in recorder.seen] == [
        ProcessingEvent.COOLDOWN_STARTED,
        ProcessingEvent.COOLDOWN_ENDED,
    ] * 2
    # One event after the other.
    assert now() == 4 * 3.0


@pytest.mark.parametrize("observers", [[], [Recorder()]], ids=["unwatched", "watched"])
async def test_a_cooldown_from_outside_leaves_a_run_its_counters(observers: list[Any]) -> None:
    processor = Processor(config=settings(cooldown=5.0), observers=observers)
    running = await start(processor, *items(Provider(seconds=1.0), 4))
    await asyncio.sleep(1.5)
    await processor._handle_rate_limit()
    quota = (await running).quotas["default"]
    assert (quota.answered, quota.seconds) == (4, now())


async def test_what_stopped_the_run_comes_out_of_it_whatever_fails_on_the_way_out() -> None:
    class Leaving(Provider):
        async def cleanup(self) -> None:
            raise SystemExit

    async with Processor(config=settings()) as processor:
        with pytest.raises(KeyboardInterrupt):
            await run_with(processor, *items(Leaving(script(KeyboardInterrupt())), 2))


async def test_nobody_takes_what_is_added_after_the_end() -> None:
    """By a call that comes back in the very turn in which another has ended the run."""

    async def answer(call: Call) -> Any:
        await asyncio.sleep(1.0)
        if call.prompt == "prompt 0":
            raise KeyboardInterrupt
        await processor.add_work(*items(provider))

    provider = Provider(answer)
    async with Processor(config=settings(2)) as processor:
        for item in items(provider, 2):
            await processor.add_work(item)
        with pytest.raises(KeyboardInterrupt):
            await processor.process_all()
    assert len(provider.calls) == 2


async def interrupt(result: WorkItemResult[Any, Any]) -> None:
    raise SystemExit(3)


async def test_a_result_is_kept_whose_post_processor_ends_the_program() -> None:
    async with Processor(config=settings(), post_processor=interrupt) as processor:
        with pytest.raises(SystemExit):
            await run_with(processor, *items(Provider(), 3))
        assert [result.item_id for result in processor.results] == ["0"]
        assert (await processor.get_stats())["succeeded"] == 1


async def test_an_interrupt_where_a_call_was_left_behind() -> None:
    deaf = Deaf()
    async with Processor(config=settings(timeout_per_item=5.0), post_processor=interrupt) as it:
        with pytest.raises(SystemExit):
            await run_with(it, *items(deaf))
        [result] = it.results
        assert "ignored its cancellation" in str(result.error)
    await asyncio.sleep(ENDS_AT)


async def test_a_result_is_kept_that_the_end_finds_while_its_strategy_is_cleaned_up() -> None:
    class Slow(Provider):
        async def cleanup(self) -> None:
            await asyncio.sleep(10.0)

    async with Processor(config=settings()) as processor:
        running = await start(processor, *items(Slow(seconds=1.0)))
        await asyncio.sleep(5.0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        [result] = processor.results
        assert result.success
