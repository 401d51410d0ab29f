"""What observers are told, in which order, and that none of them can hurt the run."""

import asyncio
import functools
import logging
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest

from batch_llm import (
    BaseMiddleware,
    BaseObserver,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessingEvent,
    ProcessorConfig,
    ProcessorObserver,
    RateLimitConfig,
    RetryConfig,
)
from batch_llm.core.clock import loop_time
from tests.helpers import ANSWER, Recorder, Script, run_batch

Event = ProcessingEvent
LIMITED = RuntimeError("429 RESOURCE_EXHAUSTED")
ONE_WORKER = ProcessorConfig(max_workers=1)


async def observed(*strategies: Script, **options: Any) -> Recorder:
    """What one observer is told of a run with one worker."""
    recorder = Recorder()
    await run_batch(*strategies, observers=[recorder], **{"config": ONE_WORKER, **options})
    return recorder


def test_the_values_of_the_events_are_their_lower_case_names() -> None:
    assert [event.value for event in Event] == [event.name.lower() for event in Event]
    assert len(Event) == 10


async def test_the_events_of_a_run_and_their_data() -> None:
    strategy = Script(functools.partial(asyncio.sleep, 3, ANSWER), ValueError("bad"))
    recorder = await observed(strategy, count=2)
    assert recorder.seen == [
        (Event.BATCH_STARTED, {"total": 2}),
        (Event.WORKER_STARTED, {"worker_id": 0}),
        (Event.ITEM_STARTED, {"item_id": "0", "worker_id": 0}),
        (Event.ITEM_COMPLETED, {"item_id": "0", "duration": 3.0, "tokens": 15}),
        (Event.ITEM_STARTED, {"item_id": "1", "worker_id": 0}),
        (Event.ITEM_FAILED, {"item_id": "1", "error_type": "ValueError"}),
        (Event.WORKER_STOPPED, {"worker_id": 0}),
        (Event.BATCH_COMPLETED, {"total": 2, "succeeded": 1, "failed": 1}),
    ]


async def test_an_empty_run_has_events_too() -> None:
    recorder = Recorder()
    async with ParallelBatchProcessor[str, Any, Any](observers=[recorder]) as processor:
        await processor.process_all()
    assert recorder.of(Event.BATCH_STARTED) == [{"total": 0}]
    assert recorder.of(Event.BATCH_COMPLETED) == [{"total": 0, "succeeded": 0, "failed": 0}]


async def test_every_worker_starts_and_stops() -> None:
    recorder = await observed(Script(), count=9, config=ProcessorConfig(max_workers=3))
    for event in (Event.WORKER_STARTED, Event.WORKER_STOPPED):
        assert sorted(data["worker_id"] for data in recorder.of(event)) == [0, 1, 2]
    assert {data["worker_id"] for data in recorder.of(Event.ITEM_STARTED)} <= {0, 1, 2}


async def test_an_item_has_one_start_and_one_end_whatever_its_attempts() -> None:
    recorder = await observed(Script(RuntimeError(), LIMITED, ANSWER))
    assert len(recorder.of(Event.ITEM_STARTED)) == 1
    assert len(recorder.of(Event.ITEM_COMPLETED)) == 1
    assert recorder.of(Event.ITEM_FAILED) == []


async def test_a_rate_limit_and_its_cooldown() -> None:
    config = ProcessorConfig(max_workers=1, rate_limit=RateLimitConfig())
    recorder = await observed(Script(LIMITED, LIMITED, ANSWER), config=config)
    cooldowns = [entry for entry in recorder.seen if "item" not in entry[0].value][2:-2]
    hit = (Event.RATE_LIMIT_HIT, {"item_id": "0", "worker_id": 0})
    assert [entry for entry in recorder.seen if entry == hit] == [hit, hit]
    expected: list[Any] = []
    for duration, consecutive in ((300.0, 1), (450.0, 2)):
        started = {"worker_id": 0, "duration": duration, "consecutive": consecutive}
        expected += [
            hit,
            (Event.COOLDOWN_STARTED, started),
            (Event.COOLDOWN_ENDED, {"duration": duration}),
        ]
    assert cooldowns == expected


async def test_a_failing_rate_limit_strategy_is_told_by_the_end_of_the_cooldown() -> None:
    broken = MagicMock(on_rate_limit=AsyncMock(side_effect=LookupError("lost")))
    recorder = await observed(Script(LIMITED, ANSWER), rate_limit_strategy=broken)
    assert recorder.of(Event.COOLDOWN_ENDED) == [{"duration": 0.0, "error": "LookupError: lost"}]
    assert len(recorder.of(Event.ITEM_COMPLETED)) == 1


class Failing(Script):
    """Cannot be prepared."""

    async def prepare(self) -> None:
        raise PermissionError("no")


class SkipAll(BaseMiddleware[str, Any, Any]):
    """Skips every item."""

    async def before_process(self, work_item: LLMWorkItem[str, Any, Any]) -> None:
        return None


@pytest.mark.parametrize(
    ("strategy", "middlewares", "error_type"),
    [
        (Script(ValueError("a: b")), [], "ValueError"),
        (Script(RuntimeError()), [], "RuntimeError"),
        (Script(lambda: asyncio.sleep(999)), [], "FrameworkTimeoutError"),
        (Script("no tuple"), [], "StrategyContractError"),
        (Script(LIMITED), [], "RateLimitExceededError"),
        (Failing(), [], "PermissionError"),
        (Script(), [SkipAll()], "Skipped"),
    ],
    ids=str,
)
async def test_every_failed_result_is_an_event(
    strategy: Script, middlewares: list[Any], error_type: str
) -> None:
    config = ProcessorConfig(
        retry=RetryConfig(max_attempts=2), rate_limit=RateLimitConfig(max_rate_limits_per_item=2)
    )
    recorder = await observed(strategy, middlewares=middlewares, config=config)
    assert recorder.of(Event.ITEM_FAILED) == [{"item_id": "0", "error_type": error_type}]
    assert recorder.of(Event.ITEM_COMPLETED) == []


class Changing(Recorder):
    """Spoils the data it is given."""

    async def on_event(self, event: ProcessingEvent, data: dict[str, Any]) -> None:
        await super().on_event(event, dict(data))
        data.clear()


async def test_all_observers_see_the_same_sequence_and_own_their_data() -> None:
    observers = [Changing(), Recorder(), Changing(), Recorder()]
    steps = [RuntimeError(), LIMITED, ANSWER]
    await run_batch(Script(*steps), Script(ValueError()), count=20, observers=observers)
    assert len(observers[0].seen) > 80
    assert all(observer.seen == observers[0].seen for observer in observers)


class Slow(Recorder):
    """Takes its time for each event, and notes only what it has seen to the end."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    async def on_event(self, event: ProcessingEvent, data: dict[str, Any]) -> None:
        await asyncio.sleep(self.seconds)
        await super().on_event(event, data)


async def test_every_observer_has_seen_everything_when_the_run_returns() -> None:
    slow, quick = Slow(4.9), Recorder()
    await run_batch(Script(), count=3, config=ONE_WORKER, observers=[slow, quick])
    assert slow.seen == quick.seen
    assert slow.seen[-1][0] is Event.BATCH_COMPLETED


async def test_a_slow_observer_holds_up_neither_the_work_nor_the_others() -> None:
    times: list[float] = []
    strategy = Script(functools.partial(asyncio.sleep, 1, ANSWER))
    quick = Recorder()
    await run_batch(
        strategy,
        count=5,
        config=ONE_WORKER,
        observers=[Slow(4), quick],
        post_processor=lambda result: times.append(loop_time()),
    )
    assert times == [1, 2, 3, 4, 5]


class Timed(BaseObserver):
    """Notes when it is told that an item is done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    async def on_event(self, event: ProcessingEvent, data: dict[str, Any]) -> None:
        if event is Event.ITEM_COMPLETED:
            self.times.append(loop_time())


@pytest.mark.parametrize("seconds", [0.3, 0.7, 1.0, 4.0])
async def test_a_quick_observer_is_told_at_once_beside_a_slow_one(seconds: float) -> None:
    strategy = Script(functools.partial(asyncio.sleep, 1, ANSWER))
    first, last = Timed(), Timed()
    await run_batch(strategy, count=5, config=ONE_WORKER, observers=[first, Slow(seconds), last])
    assert first.times == last.times == [1, 2, 3, 4, 5]


async def test_an_event_that_takes_too_long_is_cancelled_after_5_seconds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Sometimes(Recorder):
        async def on_event(self, event: ProcessingEvent, data: dict[str, Any]) -> None:
            await super().on_event(event, data)
            if event is Event.ITEM_STARTED:
                await asyncio.sleep(1e6)

    sometimes, quick = Sometimes(), Recorder()
    await run_batch(Script(), count=5, config=ONE_WORKER, observers=[sometimes, quick])
    assert loop_time() == 25
    assert sometimes.seen == quick.seen
    assert caplog.text.count("observer Sometimes: timeout of 5.0 s on item_started") == 5


async def test_an_observer_that_hangs_for_ever_is_left_out_of_the_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hanging, quick = Slow(1e6), Recorder()
    async with ParallelBatchProcessor[str, Any, Any](observers=[hanging, quick]) as processor:
        for expected in (15, 30):
            for number in range(200):
                await processor.add_work(LLMWorkItem(str(number), Script()))
            assert (await processor.process_all()).succeeded == 200
            assert loop_time() == expected
    assert caplog.text.count("observer Slow hangs and gets no more events in this run") == 2
    assert len(quick.of(Event.ITEM_COMPLETED)) == 400


class Uncancellable(asyncio.Future[None]):
    """Takes a cancellation for an answer."""

    def cancel(self, msg: Any = None) -> bool:
        self.set_result(None)
        return True


async def test_an_observer_that_swallows_its_cancellation_is_left_out_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    swallowing = MagicMock(on_event=lambda *_: Uncancellable())
    await run_batch(Script(), count=9, observers=[swallowing])
    assert loop_time() == 15
    assert "observer MagicMock hangs and gets no more events in this run" in caplog.text


async def test_a_hanging_observer_costs_a_long_run_no_time() -> None:
    strategy = Script(functools.partial(asyncio.sleep, 10, ANSWER))
    hanging = Slow(1e6)
    await run_batch(strategy, count=9, config=ONE_WORKER, observers=[hanging])
    assert loop_time() == 90
    assert hanging.seen == []


async def test_a_run_that_is_cancelled_waits_for_no_observer() -> None:
    slow = Slow(4)
    run = asyncio.create_task(run_batch(Script(), count=5, observers=[slow]))
    await asyncio.sleep(10)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert loop_time() == 10
    await asyncio.sleep(100)
    assert len(slow.seen) == 2


async def test_an_observer_that_ignores_its_cancellation_is_left_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stubborn = Recorder()
    freed = asyncio.Event()

    async def ignore(event: ProcessingEvent, data: dict[str, Any]) -> None:
        while not freed.is_set():
            try:
                await freed.wait()
            except asyncio.CancelledError:
                continue

    stubborn.on_event = ignore
    batch = await run_batch(Script(), count=9, observers=[stubborn])
    assert batch.succeeded == 9
    assert "observer Recorder ignores its cancellation and is left behind" in caplog.text
    freed.set()
    await asyncio.sleep(1)
    assert "never retrieved" not in caplog.text


@pytest.mark.parametrize(
    "error", [ValueError("broken"), asyncio.CancelledError(), GeneratorExit()], ids=repr
)
async def test_an_observer_that_raises_gets_every_event_all_the_same(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    quick = Recorder()
    broken = MagicMock(on_event=AsyncMock(side_effect=error))
    batch = await run_batch(Script(), count=5, observers=[broken, quick])
    assert batch.succeeded == 5
    assert [call.args for call in broken.on_event.await_args_list] == quick.seen
    failures = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(failures) == len(quick.seen)
    assert type(error).__name__ in failures[0].getMessage()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_an_interrupt_comes_out_of_the_run(kind: type[BaseException]) -> None:
    async def interrupt(event: ProcessingEvent, data: dict[str, Any]) -> None:
        if event is Event.ITEM_COMPLETED:
            raise kind

    strategy = Script(functools.partial(asyncio.sleep, 1, ANSWER))
    observer = MagicMock(on_event=interrupt)
    with pytest.raises(kind):
        await run_batch(strategy, count=50, config=ONE_WORKER, observers=[observer])
    assert len(strategy.calls) < 5


async def test_a_run_waits_for_an_observer_before_its_backlog_grows_without_end() -> None:
    class Counting(Slow):
        """Knows how far behind it is."""

        behind = 0

        async def on_event(self, event: ProcessingEvent, data: dict[str, Any]) -> None:
            await super().on_event(event, data)
            self.behind = max(self.behind, 2 * len(strategy.calls) - len(self.seen))

    strategy = Script()
    slow = Counting(0.01)
    config = ProcessorConfig(max_workers=3)
    await run_batch(strategy, count=2000, config=config, observers=[slow])
    assert len(slow.of(Event.ITEM_COMPLETED)) == 2000
    assert 900 < slow.behind < 1100


@pytest.mark.parametrize("mock", [MagicMock(), AsyncMock()], ids=["MagicMock", "AsyncMock"])
async def test_a_mock_will_do(mock: Any) -> None:
    recorder = Recorder()
    await run_batch(Script(), observers=[mock, recorder])
    assert [call.args for call in mock.on_event.call_args_list] == recorder.seen


async def test_the_base_ignores_everything() -> None:
    base = BaseObserver()
    assert isinstance(base, ProcessorObserver)
    await base.on_event(Event.BATCH_STARTED, {"total": 1})
    await run_batch(Script(), observers=[base])
