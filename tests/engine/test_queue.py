"""Adding work: before, during and after a run, to a queue with room and to a full one."""

import asyncio
from typing import Any

import pytest

from batch_llm import BaseMiddleware, BaseObserver, ProcessingEvent, WorkItemResult
from tests.engine.support import (
    Call,
    Item,
    Processor,
    Provider,
    items,
    now,
    outputs,
    run_with,
    settings,
    start,
)


async def test_one_worker_takes_items_in_order() -> None:
    provider = Provider(seconds=1.0)
    async with Processor(config=settings(1)) as processor:
        result = await run_with(processor, *items(provider, 10))
    assert [entry.item_id for entry in result.results] == [str(number) for number in range(10)]
    assert provider.instants == [float(number) for number in range(10)]


async def test_results_come_in_the_order_in_which_items_end() -> None:
    async def answer(call: Call) -> str:
        await asyncio.sleep(10.0 - int(call.prompt.split()[1]))
        return call.prompt

    async with Processor(config=settings(10)) as processor:
        result = await run_with(processor, *items(Provider(answer), 10))
    assert [entry.item_id for entry in result.results] == [str(9 - n) for n in range(10)]


async def test_an_empty_queue_gives_zeros() -> None:
    async with Processor(config=settings(5)) as processor:
        result = await processor.process_all()
    assert (result.results, result.total_items, result.succeeded, result.failed) == ([], 0, 0, 0)
    assert now() == 0.0


async def test_work_may_be_added_during_a_run() -> None:
    provider = Provider(seconds=5.0)
    async with Processor(config=settings(2)) as processor:
        running = await start(processor, *items(provider))
        for _ in range(3):
            await asyncio.sleep(1.0)
            await processor.add_work(*items(provider))
        result = await running
        stats = await processor.get_stats()
    assert provider.instants == [0.0, 1.0, 5.0, 6.0]
    assert result.total_items == stats["total"] == 4


async def test_an_idle_worker_takes_new_work_at_once() -> None:
    busy, quick = Provider(seconds=100.0), Provider(seconds=1.0)
    async with Processor(config=settings(3)) as processor:
        running = await start(processor, *items(busy))
        for _ in range(10):
            await asyncio.sleep(2.0)
            await processor.add_work(*items(quick))
        await running
    assert quick.instants == [2.0 * number for number in range(1, 11)]


async def test_a_full_queue_without_a_run_is_an_error() -> None:
    provider = Provider()
    async with Processor(config=settings(max_queue_size=2)) as processor:
        for item in items(provider, 2):
            await processor.add_work(item)
        with pytest.raises(RuntimeError, match=r"queue is full \(2 items, max_queue_size=2\)"):
            await processor.add_work(*items(provider))
        assert (await processor.process_all()).total_items == 2
        await processor.add_work(*items(provider))
        assert (await processor.process_all()).total_items == 1


async def test_a_full_queue_is_waited_for_during_a_run() -> None:
    provider = Provider(seconds=1.0)
    added: list[float] = []
    async with Processor(config=settings(1, max_queue_size=2)) as processor:
        running = await start(processor, *items(provider, 2))
        for item in items(provider, 5):
            await processor.add_work(item)
            added.append(now())
        result = await running
    assert added == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert result.total_items == 7


async def test_many_wait_for_room_and_all_get_it() -> None:
    provider = Provider(seconds=1.0)
    async with Processor(config=settings(2, max_queue_size=1)) as processor:
        running = await start(processor, *items(provider))
        adding = [asyncio.create_task(processor.add_work(item)) for item in items(provider, 50)]
        await asyncio.gather(*adding)
        result = await running
    assert result.total_items == 51
    assert sorted(outputs(result)) == ["ok"] * 51


async def test_a_run_does_not_end_while_somebody_waits_for_room() -> None:
    """The last item in hand ends in the moment in which the next are still being added."""
    provider = Provider()
    async with Processor(config=settings(1, max_queue_size=1)) as processor:
        await processor.add_work(*items(provider))
        running = asyncio.create_task(processor.process_all())
        adding = [asyncio.create_task(processor.add_work(item)) for item in items(provider, 20)]
        await asyncio.gather(*adding)
        assert (await running).total_items == 21


@pytest.mark.parametrize("turns", range(8))
async def test_who_gives_up_waiting_for_room_holds_up_nobody(turns: int) -> None:
    provider = Provider(seconds=1.0)
    async with Processor(config=settings(1, max_queue_size=1)) as processor:
        running = await start(processor, *items(provider))
        await processor.add_work(*items(provider))
        adding = [asyncio.create_task(processor.add_work(item)) for item in items(provider, 3)]
        await asyncio.sleep(1.0)
        for _ in range(turns):
            await asyncio.sleep(0)
        adding[0].cancel()
        adding[1].cancel()
        outcomes = await asyncio.gather(*adding, return_exceptions=True)
        result = await running
    given_up = sum(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    assert outcomes[2] is None
    assert result.total_items == 2 + 3 - given_up


async def test_a_run_ends_when_the_last_who_waited_for_room_gives_up() -> None:
    gate = asyncio.Event()

    async def answer(call: Call) -> str:
        if len(provider.calls) == 1:
            await gate.wait()
        return "ok"

    provider = Provider(answer)
    async with Processor(config=settings(1, max_queue_size=1)) as processor:
        running = await start(processor, *items(provider))
        await processor.add_work(*items(provider))
        adding = asyncio.create_task(processor.add_work(*items(provider)))
        await asyncio.sleep(1.0)
        gate.set()
        adding.cancel()
        await asyncio.gather(adding, return_exceptions=True)
        assert (await running).total_items == 2


async def test_a_run_that_is_wound_down_while_no_worker_has_an_item_ends_at_once() -> None:
    """Somebody has found room in the queue and has not come in yet."""
    loop = asyncio.get_running_loop()
    at_work: list[int] = []

    def wind_down() -> None:
        pool = processor._engine.pool
        assert pool is not None
        at_work.append(len(pool._running))
        pool.wind_down("a test")

    async def answer(call: Call) -> str:
        if len(provider.calls) == 1:
            await asyncio.sleep(1.0)
            # Two turns from now, just before whoever is left the room of the one who gives up.
            loop.call_soon(loop.call_soon, wind_down)
        else:
            adding[1].cancel()
        return "ok"

    provider = Provider(answer)
    async with Processor(config=settings(1, max_queue_size=1)) as processor:
        running = await start(processor, *items(provider))
        adding = [asyncio.create_task(processor.add_work(item)) for item in items(provider, 3)]
        await asyncio.gather(*adding, return_exceptions=True)
        result = await running
    assert at_work == [0]
    assert result.stop_reason == "a test"
    assert now() == 1.0


async def test_a_post_processor_may_add_work_to_a_full_queue() -> None:
    provider = Provider(seconds=1.0)
    rounds = 3

    async def add_more(result: WorkItemResult[Any, Any]) -> None:
        nonlocal rounds
        if rounds:
            rounds -= 1
            for item in items(provider, 10):
                await processor.add_work(item)

    config = settings(2, max_queue_size=1)
    async with Processor(config=config, post_processor=add_more) as processor:
        result = await run_with(processor, *items(provider))
        stats = await processor.get_stats()
    assert result.total_items == stats["total"] == stats["processed"] == 31


@pytest.mark.parametrize("hook", ["prepare", "execute", "on_error", "cleanup"])
async def test_a_strategy_may_add_work_to_a_full_queue(hook: str) -> None:
    other = Provider()

    class Adding(Provider):
        async def add(self, name: str) -> None:
            if name == hook:
                for item in items(other, 5):
                    await processor.add_work(item)

        async def prepare(self) -> None:
            await self.add("prepare")

        async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
            await self.add("execute")
            if attempt == 1:
                raise ConnectionError
            return "ok", {}

        async def on_error(self, exception: BaseException, attempt: int) -> None:
            await self.add("on_error")

        async def cleanup(self) -> None:
            await self.add("cleanup")

    async with Processor(config=settings(1, max_queue_size=1)) as processor:
        result = await run_with(processor, *items(Adding()))
    assert result.succeeded == 1 + 5 * (2 if hook == "execute" else 1)


async def test_middleware_may_add_work_to_a_full_queue() -> None:
    other = Provider()

    class Adding(BaseMiddleware[str, Any, Any]):
        async def before_process(self, work_item: Item) -> Item:
            if work_item.strategy is not other:
                for item in items(other, 5):
                    await processor.add_work(item)
            return work_item

    config = settings(1, max_queue_size=1)
    async with Processor(config=config, middlewares=[Adding()]) as processor:
        assert (await run_with(processor, *items(Provider()))).total_items == 6


@pytest.mark.parametrize("hook", ["observer", "progress callback"])
async def test_whoever_is_told_of_items_may_add_work_to_a_full_queue(hook: str) -> None:
    """Room comes only when the next item of 20 s ends, and they have no more than 5 s."""
    provider = Provider(seconds=20.0)
    added: list[float] = []

    async def add_once() -> None:
        if not added:
            await asyncio.sleep(1.0)
            await processor.add_work(*items(provider))
            added.append(now())

    class Observer(BaseObserver):
        async def on_event(self, event: ProcessingEvent, data: dict[str, Any]) -> None:
            if event is ProcessingEvent.ITEM_COMPLETED and hook == "observer":
                await add_once()

    async def report(completed: int, total: int, item_id: str) -> None:
        if hook == "progress callback":
            await add_once()

    processor = Processor(
        config=settings(1, max_queue_size=1, progress_interval=1),
        observers=[Observer()],
        progress_callback=report,
    )
    async with processor:
        running = await start(processor, *items(provider))
        for item in items(provider, 2):
            await processor.add_work(item)
        assert (await running).total_items == 4
    assert added == [21.0]


async def test_waiting_for_room_ends_with_the_run() -> None:
    provider = Provider(seconds=100.0)
    async with Processor(config=settings(1, max_queue_size=1)) as processor:
        running = await start(processor, *items(provider))
        await processor.add_work(*items(provider))
        adding = asyncio.create_task(processor.add_work(*items(provider)))
        await asyncio.sleep(1.0)
        await processor.cleanup()
        with pytest.raises(RuntimeError, match="the run ended while item '0' waited for room"):
            await adding
        assert (await running).total_items == 0
        assert (await processor.process_all()).total_items == 0
    assert now() == 1.0


async def test_a_run_that_is_ending_makes_no_more_room() -> None:
    class Slow(Provider):
        async def cleanup(self) -> None:
            await asyncio.sleep(5.0)

    async with Processor(config=settings(1, max_queue_size=2)) as processor:
        running = await start(processor, *items(Slow(), 2))
        await asyncio.sleep(1.0)
        for item in items(Provider(), 2):
            await processor.add_work(item)
        with pytest.raises(RuntimeError, match="the run ended"):
            await processor.add_work(*items(Provider()))
        assert (await running).total_items == 2
        assert (await processor.process_all()).total_items == 2


async def test_cleanup_empties_the_queue() -> None:
    provider = Provider()
    async with Processor(config=settings()) as processor:
        for item in items(provider, 5):
            await processor.add_work(item)
        await processor.cleanup()
        assert (await processor.process_all()).total_items == 0
    assert provider.calls == provider.cleaned == []


async def test_equal_ids_are_two_items() -> None:
    provider = Provider()
    async with Processor(config=settings(2)) as processor:
        result = await run_with(processor, *items(provider), *items(provider))
    assert [entry.item_id for entry in result.results] == ["0", "0"]


async def test_the_very_same_item_twice_is_two_items() -> None:
    [item] = items(Provider())
    async with Processor(config=settings(2)) as processor:
        assert (await run_with(processor, item, item)).succeeded == 2
