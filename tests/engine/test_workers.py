"""Workers that somebody cancels, and results that nobody takes."""

import asyncio
import gc
import logging
from contextvars import ContextVar
from typing import Any

import pytest

from batch_llm import (
    WorkItemResult,
)
from tests.engine.moments import MOMENTS, Hooked, other_tasks, stuck_at
from tests.engine.support import (
    Call,
    Processor,
    Provider,
    items,
    now,
    outputs,
    run,
    run_with,
    settings,
    start,
)


def workers() -> list[asyncio.Task[Any]]:
    return [task for task in other_tasks() if task.get_name().startswith("batch_llm worker")]


@pytest.mark.parametrize(
    "moment", [moment for moment in MOMENTS if moment not in ("cooldown", "on_rate_limit")]
)
async def test_a_worker_that_somebody_cancels_is_replaced(moment: str) -> None:
    processor, provider = stuck_at(moment)
    running = await start(processor, *items(provider, 3))
    await asyncio.sleep(10.0)
    for task in workers():
        task.cancel()
    result = await running
    assert sorted(entry.item_id for entry in result.results) == ["0", "1", "2"]
    cancelled = [entry for entry in result.results if not entry.success]
    assert {entry.error for entry in cancelled} <= {
        "CancelledError: the worker's task was cancelled"
    }
    stats = await processor.get_stats()
    assert stats["processed"] == 3
    assert other_tasks() == set()


async def test_a_worker_that_is_cancelled_while_a_strategy_cleans_up() -> None:
    provider = Hooked("cleanup")
    async with Processor(config=settings(2)) as processor:
        running = await start(processor, *items(provider), *items(Provider(seconds=10.0)))
        await asyncio.sleep(1.0)
        for task in workers():
            if task.get_name().endswith("0"):
                task.cancel()
        assert outputs(await running) == ["ok", "ok"]
    assert now() == 10.0
    assert provider.cleaned == [0.0]


async def test_workers_that_are_cancelled_before_they_begin() -> None:
    provider = Provider()
    async with Processor(config=settings(3)) as processor:
        for item in items(provider, 5):
            await processor.add_work(item)
        running = asyncio.create_task(processor.process_all())
        await asyncio.sleep(0)
        assert len(workers()) == 3
        for task in workers():
            task.cancel()
        assert (await running).succeeded == 5


async def test_a_worker_that_is_cancelled_while_it_takes_over() -> None:
    async def slow(result: WorkItemResult[Any, Any]) -> None:
        await asyncio.sleep(50.0)

    provider = Provider(seconds=10.0)
    async with Processor(config=settings(), post_processor=slow) as processor:
        running = await start(processor, *items(provider, 2))
        for _ in range(3):
            await asyncio.sleep(1.0)
            for task in workers():
                task.cancel()
        result = await running
        stats = await processor.get_stats()
    assert [entry.item_id for entry in result.results] == ["0", "1"]
    assert stats["processed"] == 2


@pytest.mark.parametrize("turns", range(8))
async def test_what_a_successor_has_concluded_comes_once_whenever_the_run_ends(turns: int) -> None:
    async def answer(call: Call) -> str:
        if call.prompt == "prompt 99":
            await asyncio.sleep(50.0)
        return "ok"

    async with Processor(config=settings()) as processor:
        running = await start(processor, *items(Provider(answer), 100))
        await asyncio.sleep(1.0)
        [task] = workers()
        task.cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
        await processor.cleanup()
        result = await running
    ids = [entry.item_id for entry in result.results]
    assert sorted(ids + result.not_run, key=int) == [str(number) for number in range(100)]


async def test_a_worker_without_an_item_has_no_task() -> None:
    busy, quick = Provider(seconds=10.0), Provider(seconds=1.0)
    async with Processor(config=settings(3)) as processor:
        await processor.add_work(*items(busy))
        running = asyncio.create_task(processor.process_all())
        await asyncio.sleep(0)
        for _ in range(2):
            assert len(workers()) == 1
            for item in items(quick, 2):
                await processor.add_work(item)
            await asyncio.sleep(0.5)
            assert len(workers()) == 3
            await asyncio.sleep(1.0)
        assert (await running).total_items == 5
    assert quick.instants == [0.0, 0.0, 1.5, 1.5]


async def test_workers_that_come_later_have_the_context_of_the_run_each_its_own() -> None:
    place: ContextVar[str] = ContextVar("place")

    async def answer(_: Call) -> str:
        seen = place.get()
        place.set("a worker")
        return seen

    async def add() -> None:
        place.set("who adds")
        for item in items(Provider(answer, seconds=1.0), 3):
            await processor.add_work(item)

    place.set("the run")
    async with Processor(config=settings(4)) as processor:
        running = await start(processor, *items(Provider(answer, seconds=10.0)))
        await asyncio.create_task(add())
        assert outputs(await running) == ["the run"] * 4


async def test_a_worker_that_cancels_itself_loses_no_item() -> None:
    async def answer(call: Call) -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if call.prompt == "prompt 0":
            await asyncio.sleep(5.0)
        return call.prompt

    result = await run(*items(Provider(answer), 4), config=settings(2))
    assert sorted(entry.item_id for entry in result.results) == ["0", "1", "2", "3"]


async def test_a_prepare_task_that_somebody_cancels() -> None:
    provider = Hooked("prepare")
    processor = Processor(config=settings(2))
    running = await start(processor, *items(provider, 3))
    await asyncio.sleep(1.0)
    for task in other_tasks():
        if task.get_name() == "Hooked.prepare":
            task.cancel()
    result = await running
    assert result.total_items == 3


async def test_a_bug_of_our_own_comes_out_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "batch_llm._engine.pool")
    processor = Processor(config=settings())
    monkeypatch.setattr(processor._engine.lifecycle, "entry_of", lambda strategy: 1 / 0)
    monkeypatch.setattr(processor._engine.lifecycle, "expect", lambda strategy: None)
    with pytest.raises(ZeroDivisionError):
        await run_with(processor, *items(Provider()))
    told, whole = caplog.records
    assert (told.levelno, whole.levelno) == (logging.CRITICAL, logging.DEBUG)
    assert whole.exc_info is not None
    assert isinstance(whole.exc_info[1], ZeroDivisionError)
    assert other_tasks() == set()


async def test_a_stream_holds_a_few_results_only() -> None:
    provider = Provider()
    async with Processor(config=settings(2)) as processor:
        for item in items(provider, 200):
            await processor.add_work(item)
        stream = processor._stream()
        seen = [await anext(stream)]
        await asyncio.sleep(1000.0)
        assert len(provider.calls) < 50
        seen += [result async for result in stream]
    assert len(seen) == len(provider.calls) == 200


async def test_a_stream_that_is_closed_early_ends_the_run() -> None:
    provider = Provider(seconds=1.0)
    async with Processor(config=settings(2)) as processor:
        for item in items(provider, 20):
            await processor.add_work(item)
        stream = processor._stream()
        await anext(stream)
        await stream.aclose()
        await asyncio.sleep(0)
        assert now() == 1.0
        assert other_tasks() == set()
        assert (await processor.process_all()).total_items == 0
    assert provider.cleaned == [1.0]


async def test_a_stream_that_is_forgotten_ends_the_run() -> None:
    provider = Provider(seconds=1.0)
    processor = Processor(config=settings(2))
    for item in items(provider, 20):
        await processor.add_work(item)
    stream = processor._stream()
    await anext(stream)
    del stream
    gc.collect()
    await asyncio.sleep(0.5)
    assert other_tasks() == set()
    assert (await run_with(processor, *items(Provider(), 2))).succeeded == 2


async def test_workers_that_wait_for_the_consumer_do_not_count_as_in_flight(
    caplog: pytest.LogCaptureFixture,
) -> None:
    processor = Processor(config=settings(2))
    for item in items(Provider(), 200):
        await processor.add_work(item)
    stream = processor._stream()
    await anext(stream)
    await asyncio.sleep(1.0)
    pool = processor._engine.pool
    assert pool is not None
    pool.wind_down("a test")
    assert "a test; 0 items in flight may finish" in caplog.text
    assert len([result async for result in stream]) < 50
    assert now() == 1.0


async def test_a_stream_with_a_full_outbox_can_be_cleaned_up() -> None:
    provider = Provider()
    processor = Processor(config=settings(2))
    for item in items(provider, 200):
        await processor.add_work(item)
    stream = processor._stream()
    await anext(stream)
    await asyncio.sleep(1.0)
    await processor.cleanup()
    rest = [result async for result in stream]
    assert len(rest) == len(provider.calls) - 1 < 50
    assert other_tasks() == set()


async def test_a_strategy_of_few_connections_is_found_behind_one_that_has_enough(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Connected(Provider):
        def __init__(self, connections: int) -> None:
            super().__init__()
            self.max_concurrency = connections

    async with Processor(config=settings(8)) as processor:
        for connections in (8, 7):
            await processor.add_work(*items(Connected(connections)))
    assert [message for message in caplog.messages if "in flight at once" in message] != []


async def test_a_stream_gives_each_result_as_soon_as_it_is_made() -> None:
    async with Processor(config=settings()) as processor:
        for item in items(Provider(seconds=10.0), 3):
            await processor.add_work(item)
        seen = [(result.item_id, now()) async for result in processor._stream()]
    assert seen == [("0", 10.0), ("1", 20.0), ("2", 30.0)]


async def test_calls_that_never_wait_leave_others_their_turn() -> None:
    async def count() -> None:
        nonlocal turns
        # Not for ever: where somebody waits, time goes on only when nobody has a turn.
        while not done and turns < 1_000:
            turns += 1
            await asyncio.sleep(0)

    turns, done = 0, False
    counting = asyncio.create_task(count())
    result = await run(*items(Provider(), 5_000), config=settings(1))
    done = True
    await counting
    assert (result.succeeded, now()) == (5_000, 0.0)
    assert turns >= 49


async def test_a_worker_that_is_cancelled_after_its_result_lets_go_of_the_strategy() -> None:
    async def post_process(result: Any) -> None:
        if result.item_id == "0" and now() == 1.0:
            [worker] = [task for task in workers() if task.get_name().endswith("1")]
            worker.cancel()
            await asyncio.sleep(0.5)

    provider = Provider(seconds=1.0)
    async with Processor(config=settings(2), post_processor=post_process) as processor:
        running = await start(processor, *items(Provider(seconds=10.0)), *items(provider))
        assert (await running).succeeded == 2
    assert provider.cleaned == [1.0]
