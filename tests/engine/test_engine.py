"""Runs that follow each other, and what may be asked for between them."""

import asyncio

from batch_llm import ProcessingEvent
from tests.engine.support import Processor, Provider, items, now, run_with, settings
from tests.helpers import Recorder

COOLDOWN = [ProcessingEvent.COOLDOWN_STARTED, ProcessingEvent.COOLDOWN_ENDED]


async def test_before_the_first_run_there_is_nothing_to_tell() -> None:
    processor = Processor()
    assert processor.results == []
    assert processor.quotas == {}
    assert (await processor.get_stats())["total"] == 0


async def test_a_cleanup_that_waited_for_one_run_leaves_the_next_alone() -> None:
    class Slow(Provider):
        async def cleanup(self) -> None:
            await asyncio.sleep(5.0)
            await super().cleanup()

    shared, told = Slow(seconds=10.0), list[int]()
    processor = Processor(
        config=settings(2, progress_interval=1),
        progress_callback=lambda finished, _, __: told.append(finished),
    )
    async with processor:

        async def run_twice() -> None:
            await run_with(processor, *items(shared, 2))
            await run_with(processor, *items(shared, 2))

        running = asyncio.create_task(run_twice())
        await asyncio.sleep(12.0)
        await processor.cleanup()
        assert now() == 15.0
        await running
    assert (shared.prepared, shared.cleaned) == ([0.0, 15.0], [15.0, 30.0])
    assert told == [1, 2, 1, 2]


async def test_a_cooldown_outside_a_run_is_told_once_to_who_watches_now() -> None:
    recorder = Recorder()
    async with Processor(config=settings(cooldown=3.0)) as processor:
        processor.observers = [recorder]
        await asyncio.gather(*[processor._handle_rate_limit() for _ in range(2)])
        assert now() == 3.0
        assert [event for event, _ in recorder.seen] == COOLDOWN
        await processor._handle_rate_limit()
    assert [event for event, _ in recorder.seen] == COOLDOWN * 2


async def test_a_cooldown_that_is_asked_for_in_a_run_belongs_to_it() -> None:
    provider, recorder = Provider(seconds=10.0), Recorder()
    async with Processor(config=settings(cooldown=3.0), observers=[recorder]) as processor:
        running = asyncio.create_task(run_with(processor, *items(provider, 2)))
        await asyncio.sleep(12.0)
        await processor._handle_rate_limit()
        assert now() == 15.0
        quota = (await running).quotas["default"]
    assert (quota.answered, quota.seconds) == (2, 20.0)
    assert recorder.of(ProcessingEvent.BATCH_COMPLETED) == [
        {"total": 2, "succeeded": 2, "failed": 0}
    ]
