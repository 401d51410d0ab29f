"""Ends of a run other than the last item: cancelled, cleaned up, interrupted, left alone."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from batch_llm import (
    BaseMiddleware,
    BaseObserver,
    BatchResult,
    FixedDelayStrategy,
    ProcessingEvent,
    WorkItemResult,
)
from batch_llm._engine.events import OBSERVER_SECONDS
from batch_llm.testing.loop import run as virtual_run
from tests.engine.moments import MOMENTS, other_tasks, stuck_at
from tests.engine.support import (
    Item,
    Processor,
    Provider,
    Refused,
    items,
    now,
    outputs,
    run,
    run_with,
    script,
    settings,
    start,
)
from tests.helpers import Recorder


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_cancelled_run_stops_at_once_and_leaves_nothing(moment: str) -> None:
    processor, provider = stuck_at(moment)
    running = await start(processor, *items(provider, 20))
    await asyncio.sleep(10.0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert now() == 10.0
    assert other_tasks() == set()
    assert not processor._in_cooldown
    assert len(provider.cleaned) <= 1
    assert (await processor.process_all()).total_items == 0
    other = Provider()
    if moment in ("retry", "execute", "prepare", "on_error", "cooldown", "slow start"):
        assert (await run_with(processor, *items(other, 3))).succeeded == 3


@pytest.mark.parametrize("moment", MOMENTS)
async def test_cleanup_ends_a_run_and_gives_what_there_is(moment: str) -> None:
    processor, provider = stuck_at(moment)
    done = Provider()
    running = await start(processor, *items(done), *items(provider, 20))
    await asyncio.sleep(10.0)
    await processor.cleanup()
    assert now() == 10.0
    result = await running
    stats = await processor.get_stats()
    assert result.total_items <= 20
    assert stats["processed"] == stats["succeeded"] + stats["failed"]
    assert other_tasks() == set()
    assert (await processor.process_all()).total_items == 0


@pytest.mark.parametrize("turns", range(12))
async def test_a_run_may_be_cancelled_in_any_turn_of_the_loop(turns: int) -> None:
    provider = Provider()
    async with Processor(config=settings(3), observers=[Recorder()]) as processor:
        for item in items(provider, 50):
            await processor.add_work(item)
        running = asyncio.create_task(processor.process_all())
        for _ in range(turns):
            await asyncio.sleep(0)
        running.cancel()
        outcome = (await asyncio.gather(running, return_exceptions=True))[0]
        assert isinstance(outcome, asyncio.CancelledError | BatchResult)
        assert other_tasks() == set()
        [item] = items(provider)
        result = await run_with(processor, item)
        assert result.results[-1].success
    assert len(provider.cleaned) <= 2


async def test_a_timeout_around_a_run_works() -> None:
    processor = Processor(config=settings())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3.0):
            await run_with(processor, *items(Provider(seconds=100.0)))
    assert now() == 3.0
    assert other_tasks() == set()


async def test_a_run_that_is_cancelled_twice() -> None:
    class Slow(Provider):
        async def cleanup(self) -> None:
            await asyncio.sleep(50.0)

    processor = Processor(config=settings())
    running = await start(processor, *items(Slow(seconds=100.0)))
    await asyncio.sleep(1.0)
    running.cancel()
    await asyncio.sleep(1.0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert now() == 2.0
    assert (await run_with(processor, *items(Provider()))).succeeded == 1


async def test_an_end_that_is_cancelled_leaves_no_observer_running() -> None:
    class Slow(Provider):
        async def cleanup(self) -> None:
            await asyncio.sleep(50.0)

    processor = Processor(config=settings(), observers=[Recorder()])
    running = await start(processor, *items(Slow(seconds=100.0)))
    await asyncio.sleep(1.0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(processor.cleanup(), 1.0)
    assert (await running).total_items == 0
    assert other_tasks() == set()


async def test_cleanup_keeps_what_was_finished() -> None:
    provider = Provider(seconds=1.0)
    async with Processor(config=settings(2)) as processor:
        running = await start(processor, *items(provider, 100))
        await asyncio.sleep(3.5)
        await processor.cleanup()
        result = await running
        stats = await processor.get_stats()
    assert result.succeeded == stats["succeeded"] == 6
    assert provider.cleaned == [3.5]


async def test_a_run_after_a_cleaned_up_one_is_a_run_of_its_own() -> None:
    """Nobody awaited the first run before the second began."""
    async with Processor(config=settings()) as processor:
        first = await start(processor, *items(Provider(seconds=100.0)))
        await asyncio.sleep(1.0)
        await processor.cleanup()
        second = await run_with(processor, *items(Provider(seconds=5.0), 2))
        assert second.succeeded == 2
        assert (await first).total_items == 0


async def test_cleanup_may_be_called_any_number_of_times() -> None:
    processor = Processor(config=settings())
    await processor.cleanup()
    running = await start(processor, *items(Provider(seconds=100.0)))
    await asyncio.gather(*[processor.cleanup() for _ in range(5)], processor.shutdown())
    await processor.shutdown()
    assert (await running).total_items == 0


HOOKS = [
    "prepare",
    "execute",
    "on_error",
    "cleanup",
    "before_process",
    "after_process",
    "post_processor",
    "on_rate_limit",
    "on_event",
    "progress_callback",
]


class Acting(Provider, BaseMiddleware[str, Any, Any], BaseObserver, FixedDelayStrategy):
    """Every hook there is; one of them acts."""

    def __init__(self, hook: str, act: Callable[[], Any]) -> None:
        super().__init__(script(Refused()), seconds=1.0)
        self.hook = hook
        self.act = act

    async def do(self, hook: str) -> None:
        if hook == self.hook:
            await self.act()

    async def prepare(self) -> None:
        await self.do("prepare")

    async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
        await self.do("execute")
        return await super().execute(prompt, attempt, timeout)

    async def on_error(self, *args: Any) -> Any:
        await self.do("on_error")

    async def cleanup(self) -> None:
        await self.do("cleanup")

    async def before_process(self, work_item: Item) -> Item:
        await self.do("before_process")
        return work_item

    async def after_process(self, result: Any) -> Any:
        await self.do("after_process")
        return result

    async def on_event(self, event: ProcessingEvent, data: dict[str, Any]) -> None:
        if event is ProcessingEvent.ITEM_COMPLETED:
            await self.do("on_event")

    async def on_rate_limit(self, worker_id: int, consecutive_limit_count: int) -> float:
        await self.do("on_rate_limit")
        return 0.0

    def should_apply_slow_start(self, items_since_resume: int) -> tuple[bool, float]:
        return False, 0.0

    async def post_process(self, result: WorkItemResult[Any, Any]) -> None:
        await self.do("post_processor")

    async def progress(self, completed: int, total: int, item_id: str) -> None:
        await self.do("progress_callback")


def acting_in(hook: str, act: Callable[[], Any]) -> tuple[Processor, Provider]:
    """A processor and a provider; each hook is reached, and one of them acts."""
    acting = Acting(hook, act)
    processor = Processor(
        config=settings(2, progress_interval=1),
        middlewares=[acting],
        observers=[acting],
        post_processor=acting.post_process,
        rate_limit_strategy=acting,
        progress_callback=acting.progress,
    )
    return processor, acting


@pytest.mark.parametrize("hook", HOOKS)
async def test_cleanup_from_inside_a_hook(hook: str) -> None:
    async def act() -> None:
        await processor.cleanup()

    processor, provider = acting_in(hook, act)
    result = await run_with(processor, *items(provider, 10))
    assert now() <= 2.0 or hook == "cleanup"
    assert result.total_items <= 10
    assert (await processor.process_all()).total_items == 0
    await asyncio.sleep(0)
    assert other_tasks() == set()


@pytest.mark.parametrize("end", [Processor.cleanup, Processor.shutdown])
@pytest.mark.parametrize("own", [True, False], ids=["a hook", "outside"])
async def test_what_was_told_to_be_finished_is_a_result(
    own: bool, end: Callable[[Processor], Any]
) -> None:
    """Some items are in their post-processor, the last thing that happens to them."""
    recorder = Recorder()

    async def post_process(result: WorkItemResult[Any, Any]) -> None:
        await asyncio.sleep(0.5)
        if own and result.item_id == "2":
            await end(processor)
        await asyncio.sleep(50.0)

    processor = Processor(config=settings(3), post_processor=post_process, observers=[recorder])
    running = await start(processor, *items(Provider(script("ok", ValueError("no")), seconds=1), 9))
    await asyncio.sleep(2.0)
    if not own:
        await end(processor)
    result = await running
    stats = await processor.get_stats()
    told = [
        *recorder.of(ProcessingEvent.ITEM_COMPLETED),
        *recorder.of(ProcessingEvent.ITEM_FAILED),
    ]
    assert sorted(entry.item_id for entry in result.results) == ["0", "1", "2"]
    assert sorted(data["item_id"] for data in told) == ["0", "1", "2"]
    assert (stats["succeeded"], stats["failed"]) == (result.succeeded, result.failed) == (2, 1)
    assert recorder.of(ProcessingEvent.BATCH_COMPLETED) == [
        {"total": 9, "succeeded": 2, "failed": 1}
    ]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("hook", HOOKS)
async def test_what_ends_the_program_comes_out_of_the_run(
    hook: str, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    async def act() -> None:
        raise error

    processor, provider = acting_in(hook, act)
    with pytest.raises(error):
        await run_with(processor, *items(provider, 10))
    assert "broke down" not in caplog.text
    assert other_tasks() == set()
    other = Provider()
    processor.middlewares.clear()
    if hook not in ("post_processor", "on_event", "progress_callback"):
        assert (await run_with(processor, *items(other, 3))).succeeded == 3


async def test_an_interrupt_in_the_cleanup_of_an_items_own_strategy() -> None:
    class Interrupting(Provider):
        async def cleanup(self) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await run(*items(Interrupting()), *items(Provider(seconds=100.0)), config=settings(2))
    assert now() == 0.0


@pytest.mark.parametrize("event", list(ProcessingEvent), ids=lambda event: event.value)
async def test_an_interrupt_on_any_event(event: ProcessingEvent) -> None:
    class Interrupting(BaseObserver):
        async def on_event(self, seen: ProcessingEvent, data: dict[str, Any]) -> None:
            if seen is event:
                raise KeyboardInterrupt

    processor = Processor(config=settings(), observers=[Interrupting()])
    steps = [Refused(1), ValueError("permanent")]
    with pytest.raises(KeyboardInterrupt):
        await run_with(processor, *items(Provider(script(*steps)), 3))
    assert other_tasks() == set()


@pytest.mark.parametrize("when", ["classify", "slow start", "slow start of a waiting call"])
async def test_an_interrupt_where_the_engine_decides(when: str) -> None:
    class Strategy(FixedDelayStrategy):
        def should_apply_slow_start(self, items_since_resume: int) -> tuple[bool, float]:
            raise KeyboardInterrupt

    class Classifier:
        def classify(self, exception: Exception) -> Any:
            raise KeyboardInterrupt

    options: Any = {"rate_limit_strategy": Strategy(0.0 if when == "slow start" else 1.0)}
    if when == "classify":
        options = {"error_classifier": Classifier()}
    with pytest.raises(KeyboardInterrupt):
        await run(*items(Provider(script(Refused())), 3), config=settings(2), **options)
    assert other_tasks() == set()


async def test_two_runs_at_once_are_refused() -> None:
    async with Processor(config=settings()) as processor:
        running = await start(processor, *items(Provider(seconds=1.0)))
        with pytest.raises(RuntimeError, match="already running"):
            await processor.process_all()
        assert (await running).succeeded == 1


async def test_a_second_run_brings_only_its_own() -> None:
    provider = Provider()
    async with Processor(config=settings(2)) as processor:
        first = await run_with(processor, *items(provider, 3))
        kept = list(first.results)
        second = await run_with(processor, *items(provider, 2))
        stats = await processor.get_stats()
    assert (first.total_items, second.total_items, stats["processed"]) == (3, 2, 2)
    assert first.results == kept
    assert first.results is not second.results


def test_a_processor_may_be_used_on_one_loop_after_the_other() -> None:
    processor = Processor(config=settings(2, max_requests_per_minute=6000))
    provider = Provider(script(Refused(0.01)))

    async def use() -> int:
        async with processor:
            return (await run_with(processor, *items(provider, 3))).succeeded

    assert [asyncio.run(use()), asyncio.run(use())] == [3, 3]


def test_a_prepare_may_be_refused_on_each_loop() -> None:
    """Whoever waits for the end of a cooldown waits on the loop that is running."""

    class Refusing(Provider):
        async def prepare(self) -> None:
            await super().prepare()
            if len(self.prepared) == 1:
                raise Refused(5)

    processor = Processor(config=settings(2))

    async def use() -> list[float]:
        refusing = Refusing()
        assert (await run_with(processor, *items(refusing, 2))).succeeded == 2
        return refusing.prepared

    assert [virtual_run(use()) for _ in range(2)] == [[0.0, 5.0]] * 2


@pytest.mark.parametrize("observers", [1, 3])
async def test_slow_observers_hold_up_a_cancelled_run_for_some_seconds_only(
    observers: int,
) -> None:
    class Slow(BaseObserver):
        async def on_event(self, event: ProcessingEvent, data: dict[str, Any]) -> None:
            await asyncio.sleep(4.0)

    processor = Processor(config=settings(50), observers=[Slow() for _ in range(observers)])
    running = await start(processor, *items(Provider(seconds=3.0), 400))
    await asyncio.sleep(10.0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert now() <= 10.0 + OBSERVER_SECONDS
    assert other_tasks() == set()


async def test_async_with_suppresses_nothing() -> None:
    processor = Processor(config=settings())

    async def fail() -> None:
        async with processor:
            await start(processor, *items(Provider(seconds=100.0)))
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await fail()
    await asyncio.sleep(0)
    assert other_tasks() == set()


async def test_an_item_alone() -> None:
    provider = Provider()
    async with Processor(config=settings()) as processor:
        [item] = items(provider)
        assert (await processor._process_item(item)).output == "ok"
        assert now() == 0.0
    assert len(provider.prepared) == len(provider.cleaned) == 1


async def test_the_workers_door_kept_for_subclasses() -> None:
    provider = Provider()
    async with Processor(config=settings()) as processor:
        for item in items(provider, 3):
            await processor.add_work(item)
        await processor._worker(0)
        assert outputs(BatchResult(processor._results)) == ["ok"] * 3
