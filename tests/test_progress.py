"""The progress callback: when it is told what, and that nothing waits for it."""

import asyncio
import functools
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest

from batch_llm import LLMWorkItem, ParallelBatchProcessor, ProcessorConfig, RetryConfig
from batch_llm.core.clock import loop_time
from tests.helpers import Script, run_batch
from tests.testing.impatience import run_impatiently

Report = tuple[int, int, str]


class Reports(list[Report]):
    """Remembers what the callback was told."""

    def note(self, completed: int, total: int, item_id: str) -> None:
        self.append((completed, total, item_id))

    async def anote(self, completed: int, total: int, item_id: str) -> None:
        self.note(completed, total, item_id)

    @property
    def completed(self) -> list[int]:
        return [completed for completed, _, _ in self]


class Resting(Script):
    """Takes its time to clean up, so that items which end together are reported late."""

    async def cleanup(self) -> None:
        await asyncio.sleep(1)


def every(items: int, **settings: Any) -> ProcessorConfig:
    return ProcessorConfig(progress_interval=items, **settings)


@pytest.mark.parametrize(
    ("items", "interval", "expected"),
    [
        (25, 10, [10, 20, 25]),
        (20, 10, [10, 20]),
        (3, 10, [3]),
        (3, 1, [1, 2, 3]),
        (1, 1, [1]),
        (0, 1, []),
    ],
)
@pytest.mark.parametrize("workers", [1, 4, 30])
@pytest.mark.parametrize("strategies", [1, 0], ids=["shared", "each its own"])
async def test_every_interval_and_the_end_are_reported_once(
    items: int, interval: int, expected: list[int], workers: int, strategies: int
) -> None:
    reports = Reports()
    shared = [Resting() for _ in range(strategies or items)]
    await run_batch(
        *shared,
        count=items if strategies else 1,
        config=every(interval, max_workers=workers),
        progress_callback=reports.anote,
        post_processor=AsyncMock(),
    )
    assert reports.completed == expected
    assert {total for _, total, _ in reports} <= {items}


async def test_the_default_interval_is_ten() -> None:
    reports = Reports()
    await run_batch(Script(), count=12, progress_callback=reports.anote)
    assert reports.completed == [10, 12]


async def test_the_id_is_that_of_the_item_that_finished_last() -> None:
    reports = Reports()
    config = every(1, max_workers=1)
    await run_batch(Script(), count=2, config=config, progress_callback=reports.anote)
    assert reports == [(1, 2, "0"), (2, 2, "1")]


async def test_failed_items_are_finished_too() -> None:
    reports = Reports()
    await run_batch(Script(ValueError()), count=2, config=every(2), progress_callback=reports.anote)
    assert reports.completed == [2]


async def test_each_run_counts_anew() -> None:
    reports = Reports()
    async with ParallelBatchProcessor[str, Any, Any](
        config=every(2), progress_callback=reports.anote
    ) as processor:
        for items in (3, 2):
            for number in range(items):
                await processor.add_work(LLMWorkItem(str(number), Script()))
            await processor.process_all()
    assert [report[:2] for report in reports] == [(2, 3), (3, 3), (2, 2)]


async def test_a_run_whose_end_is_cancelled_leaves_no_report_to_the_next() -> None:
    reports = Reports()
    slow = MagicMock(on_event=lambda *_: asyncio.sleep(4))
    async with ParallelBatchProcessor[str, Any, Any](
        observers=[slow], progress_callback=reports.anote
    ) as processor:
        await processor.add_work(LLMWorkItem("cancelled", Script()))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(processor.process_all(), 5)
        await processor.process_all()
    assert reports == []


async def test_every_call_has_begun_when_the_run_is_over() -> None:
    begun = Reports()

    async def slow(completed: int, total: int, item_id: str) -> None:
        begun.note(completed, total, item_id)
        await asyncio.sleep(3)

    processor = ParallelBatchProcessor[str, Any, Any](progress_callback=slow)
    await processor.add_work(LLMWorkItem("only", Script()))
    await processor.process_all()
    assert begun == [(1, 1, "only")]
    assert loop_time() < 1
    await processor.cleanup()


async def test_no_worker_waits_for_a_slow_callback() -> None:
    async def slow(*_: Any) -> None:
        await asyncio.sleep(4)

    start = loop_time()
    await run_batch(Script(), count=30, config=every(1), progress_callback=slow)
    assert loop_time() - start < 1


async def test_a_synchronous_callback_runs_in_a_thread() -> None:
    threads: list[threading.Thread] = []
    await run_batch(
        Script(), progress_callback=lambda *_: threads.append(threading.current_thread())
    )
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


class Threads(list[threading.Thread]):
    """The threads that the callback was called in."""

    def note(self, *_: Any) -> None:
        self.append(threading.current_thread())


async def test_the_thread_ends_with_the_run() -> None:
    threads = Threads()
    processor = ParallelBatchProcessor[str, Any, Any](progress_callback=threads.note)
    await processor.add_work(LLMWorkItem("only", Script()))
    await processor.process_all()
    threads[0].join(5)
    assert not threads[0].is_alive()
    await processor.cleanup()


async def test_the_thread_of_a_run_whose_end_was_cancelled_ends_with_the_processor() -> None:
    threads = Threads()
    slow = MagicMock(on_event=lambda *_: asyncio.sleep(4))
    processor = ParallelBatchProcessor[str, Any, Any](
        observers=[slow], progress_callback=threads.note, config=every(1)
    )
    await processor.add_work(LLMWorkItem("cancelled", Script()))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(processor.process_all(), 5)
    await processor.cleanup()
    threads[0].join(5)
    assert not threads[0].is_alive()


async def test_an_async_callback_may_come_after_a_synchronous_one() -> None:
    reports = Reports()
    async with ParallelBatchProcessor[str, Any, Any](progress_callback=reports.note) as processor:
        for callback in (reports.note, reports.anote, reports.note):
            processor.progress_callback = callback
            await processor.add_work(LLMWorkItem("only", Script()))
            await processor.process_all()
    assert reports == [(1, 1, "only")] * 3


def seconds_of_a_run(items: int, config: ProcessorConfig) -> float:
    """How long a run takes, in virtual time, whose synchronous callback does not return."""

    async def main() -> float:
        free = threading.Event()
        processor = ParallelBatchProcessor[str, Any, Any](
            config=config, progress_callback=lambda *_: free.wait(30)
        )
        try:
            for number in range(items):
                await processor.add_work(LLMWorkItem(str(number), Script()))
            await processor.process_all()
            assert not processor._engine._progress._beginning
            return loop_time()
        finally:
            free.set()
            await processor.cleanup()

    seconds: float = run_impatiently(main(), thread_grace_seconds=0.2)
    return seconds


def test_a_call_in_a_thread_is_given_a_hundredth_of_a_second_to_end() -> None:
    assert seconds_of_a_run(1, every(1)) == pytest.approx(0.01)


def test_a_call_that_times_out_before_it_begins_is_not_waited_for() -> None:
    config = every(1, progress_callback_timeout=0.5)
    assert seconds_of_a_run(2, config) == pytest.approx(0.5)


class Telling:
    """An object that is called."""

    def __init__(self, reports: Reports) -> None:
        self.reports = reports

    async def __call__(self, completed: int, total: int, item_id: str) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.reports.note(completed, total, item_id)


@pytest.mark.parametrize(
    "made",
    [
        lambda reports: reports.note,
        lambda reports: reports.anote,
        lambda reports: functools.partial(reports.anote),
        lambda reports: lambda *report: reports.anote(*report),  # noqa: PLW0108 (it is the case)
        Telling,
        lambda reports: MagicMock(side_effect=reports.note),
        lambda reports: AsyncMock(side_effect=reports.note),
    ],
    ids=["sync", "async", "partial", "lambda", "object", "MagicMock", "AsyncMock"],
)
async def test_any_callable_will_do(
    made: Callable[[Reports], Any], caplog: pytest.LogCaptureFixture
) -> None:
    reports = Reports()
    await run_batch(Script(), config=every(1), progress_callback=made(reports))
    assert reports == [(1, 1, "0")]
    assert caplog.records == []


async def run_with(callback: Any, config: ProcessorConfig, *, for_seconds: float) -> None:
    """A run of one item, and what happens while the processor stays open."""
    processor = ParallelBatchProcessor[str, Any, Any](config=config, progress_callback=callback)
    await processor.add_work(LLMWorkItem("only", Script()))
    result = await processor.process_all()
    assert result.succeeded == 1
    await asyncio.sleep(for_seconds)
    await processor.cleanup()


@pytest.mark.parametrize(("timeout", "ended"), [(2.0, [2.0]), (None, [9.0])])
async def test_the_timeout_cancels_a_callback_and_logs(
    timeout: float | None, ended: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    ends: list[float] = []
    start = loop_time()

    async def slow(*_: Any) -> None:
        try:
            await asyncio.sleep(9)
        finally:
            ends.append(loop_time() - start)

    config = every(1, progress_callback_timeout=timeout)
    await run_with(slow, config, for_seconds=20)
    assert ends == ended
    told = "item only: progress_callback failed with FrameworkTimeoutError" in caplog.text
    assert told == (timeout is not None)


async def test_leaving_the_processor_ends_its_callbacks() -> None:
    ends: list[float] = []

    async def slow(*_: Any) -> None:
        try:
            await asyncio.sleep(900)
        finally:
            ends.append(loop_time())

    await run_with(slow, every(1, progress_callback_timeout=None), for_seconds=1)
    assert ends == [pytest.approx(1.0)]


@pytest.mark.parametrize("error", [ValueError("broken"), asyncio.CancelledError()], ids=repr)
async def test_a_callback_that_fails_costs_only_itself(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any) -> None:
        raise error

    caplog.set_level(logging.DEBUG, logger="batch_llm._engine.progress")
    await run_with(broken, every(1), for_seconds=1)
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert type(error).__name__ in record.getMessage()
    [why] = [record.exc_info for record in caplog.records if record.exc_info]
    assert why[1] is error


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("in_thread", [True, False])
@pytest.mark.parametrize("count", [1, 50])
async def test_an_interrupt_in_a_callback_comes_out_of_the_run(
    kind: type[BaseException], in_thread: bool, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupt(*_: Any) -> None:
        raise kind

    strategy = Script(functools.partial(asyncio.sleep, 1, ("answer", {})))
    config = every(1, max_workers=1)
    callback = interrupt if in_thread else AsyncMock(side_effect=kind)
    with pytest.raises(kind):
        await run_batch(strategy, count=count, config=config, progress_callback=callback)
    assert len(strategy.calls) < 5
    assert caplog.messages[0] == f"progress_callback raised {kind.__name__}"


@pytest.mark.real_time
async def test_a_thread_that_blocks_does_not_hold_up_the_end() -> None:
    free = threading.Event()
    begun = threading.Event()

    def blocked(*_: Any) -> None:
        begun.set()
        free.wait(30)

    processor = ParallelBatchProcessor[str, Any, Any](progress_callback=blocked)
    await processor.add_work(LLMWorkItem("only", Script()))
    await processor.process_all()
    assert begun.is_set()
    assert not free.is_set()
    free.set()
    await processor.cleanup()


async def test_a_callback_that_hangs_takes_no_thread_from_the_strategies() -> None:
    free = threading.Event()

    async def in_a_thread() -> Any:
        return await asyncio.to_thread(lambda: ("answer", {}))

    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    config = every(1, max_workers=1, timeout_per_item=10, retry=RetryConfig(max_attempts=1))
    try:
        batch = await run_batch(
            Script(in_a_thread),
            count=3,
            config=config,
            progress_callback=lambda *_: free.wait(30),
        )
        assert not free.is_set()
    finally:
        free.set()
    assert batch.succeeded == 3


@pytest.mark.real_time
async def test_synchronous_calls_come_one_after_the_other_in_order() -> None:
    free, last = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    begun: list[int] = []

    def slow(completed: int, total: int, item_id: str) -> None:
        begun.append(completed)
        free.wait(30)
        if completed == total:
            loop.call_soon_threadsafe(last.set)

    async with ParallelBatchProcessor[str, Any, Any](
        config=every(1), progress_callback=slow
    ) as processor:
        for number in range(4):
            await processor.add_work(LLMWorkItem(str(number), Script()))
        await processor.process_all()
        assert begun == [1]
        free.set()
        await asyncio.wait_for(last.wait(), 30)
    assert begun == [1, 2, 3, 4]
