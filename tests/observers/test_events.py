"""What observers are told, in which order, and that whatever they raise is their own."""

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


async def test_a_worker_starts_and_stops_once_however_often_it_had_nothing_to_do() -> None:
    busy, quick = Script(functools.partial(asyncio.sleep, 9, ANSWER)), Script()
    recorder, config = Recorder(), ProcessorConfig(max_workers=3)
    async with ParallelBatchProcessor[str, Any, Any](
        config=config, observers=[recorder]
    ) as processor:
        await processor.add_work(LLMWorkItem("busy", busy, ""))
        running = asyncio.create_task(processor.process_all())
        for number in range(4):
            await asyncio.sleep(1.0)
            await processor.add_work(LLMWorkItem(f"quick {number}", quick, ""))
        await running
    for event in (Event.WORKER_STARTED, Event.WORKER_STOPPED):
        assert sorted(data["worker_id"] for data in recorder.of(event)) == [0, 1, 2]
    order = [event for event, _ in recorder.seen]
    assert order[1:4] == [Event.WORKER_STARTED] * 3
    assert order[-4:-1] == [Event.WORKER_STOPPED] * 3


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


@pytest.mark.parametrize("pairs", [1, 2])
async def test_all_observers_see_the_same_sequence_and_own_their_data(pairs: int) -> None:
    observers = [observer for _ in range(pairs) for observer in (Changing(), Recorder())]
    steps = [RuntimeError(), LIMITED, ANSWER]
    await run_batch(Script(*steps), Script(ValueError()), count=20, observers=observers)
    assert len(observers[0].seen) > 80
    assert all(observer.seen == observers[0].seen for observer in observers)


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


async def test_what_an_observer_raises_is_shown_to_who_debugs_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "batch_llm")
    broken = MagicMock(on_event=AsyncMock(side_effect=[None, ValueError("an answer"), *[None] * 4]))
    await run_batch(Script(), config=ONE_WORKER, observers=[broken])
    told = [record for record in caplog.records if "observer" in record.message]
    assert [(record.levelname, record.message) for record in told] == [
        ("ERROR", "observer MagicMock failed on worker_started: ValueError"),
        ("DEBUG", "observer MagicMock failed on worker_started"),
    ]
    assert [record.exc_info is None for record in told] == [True, False]


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


async def test_an_observer_need_not_be_async(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []
    quick = Recorder()
    plain = MagicMock(on_event=lambda event, data: seen.append((event, data)))
    await run_batch(Script(), count=3, observers=[plain, quick])
    assert seen == quick.seen
    assert not caplog.records


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
