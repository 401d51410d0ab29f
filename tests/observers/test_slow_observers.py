"""Observers that take their time, hang, or cannot be cancelled; none of them holds up the run."""

import asyncio
import contextlib
import functools
import gc
from typing import Any
from unittest.mock import MagicMock

import pytest

from batch_llm import (
    BaseObserver,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessingEvent,
    ProcessorConfig,
)
from batch_llm._engine.events import Events
from batch_llm._engine.tasks import Tasks
from batch_llm.core.clock import loop_time
from tests.helpers import ANSWER, Recorder, Script, run_batch

Event = ProcessingEvent
ONE_WORKER = ProcessorConfig(max_workers=1)


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


async def test_a_single_event_is_told_at_once() -> None:
    strategies = [Script(functools.partial(asyncio.sleep, seconds, ANSWER)) for seconds in (10, 20)]
    timed = Timed()
    await run_batch(*strategies, config=ProcessorConfig(max_workers=2), observers=[timed])
    assert timed.times == [10, 20]


async def test_an_observer_is_told_of_what_it_missed_as_soon_as_it_is_free() -> None:
    told: list[tuple[ProcessingEvent, float]] = []

    async def take_half_a_second(event: ProcessingEvent, data: dict[str, Any]) -> None:
        told.append((event, loop_time()))
        await asyncio.sleep(0.5)

    strategy = Script(functools.partial(asyncio.sleep, 10, ANSWER))
    observer = MagicMock(on_event=take_half_a_second)
    await run_batch(strategy, count=2, config=ONE_WORKER, observers=[observer])
    assert told == [
        (Event.BATCH_STARTED, 0),
        (Event.WORKER_STARTED, 0.5),
        (Event.ITEM_STARTED, 1),
        (Event.ITEM_COMPLETED, 10),
        (Event.ITEM_STARTED, 10.5),
        (Event.ITEM_COMPLETED, 20),
        (Event.WORKER_STOPPED, 20.5),
        (Event.BATCH_COMPLETED, 21),
    ]


async def test_a_run_leaves_no_timer_of_its_observers() -> None:
    async def take_half_a_second(event: ProcessingEvent, data: dict[str, Any]) -> None:
        await asyncio.sleep(0.5)

    await run_batch(Script(), observers=[MagicMock(on_event=take_half_a_second)])
    timers = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    assert [timer for timer in timers if not timer.cancelled()] == []


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


@pytest.mark.parametrize("error", [None, ValueError("broken")], ids=repr)
async def test_only_an_observer_that_hangs_three_times_in_a_row_is_left_out(
    error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    class Moody(Recorder):
        async def on_event(self, event: ProcessingEvent, data: dict[str, Any]) -> None:
            await super().on_event(event, data)
            if len(self.seen) % 3:
                await asyncio.sleep(1e6)
            if error is not None:
                raise error

    moody, quick = Moody(), Recorder()
    await run_batch(Script(), count=5, config=ONE_WORKER, observers=[moody, quick])
    assert moody.seen == quick.seen
    assert "gets no more events" not in caplog.text


async def test_who_was_left_out_of_a_run_is_told_of_the_next_from_its_start() -> None:
    waking = Slow(1e6)
    async with ParallelBatchProcessor[str, Any, Any](observers=[waking]) as processor:
        for waking.seconds in (1e6, 0):
            await processor.add_work(LLMWorkItem("0", Script()))
            assert (await processor.process_all()).succeeded == 1
    assert [event for event, _ in waking.seen].count(Event.BATCH_STARTED) == 1
    assert waking.seen[0][0] is Event.BATCH_STARTED


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


async def test_a_hanging_observer_costs_a_long_run_no_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    strategy = Script(functools.partial(asyncio.sleep, 10, ANSWER))
    hanging = Slow(1e6)
    await run_batch(strategy, count=9, config=ONE_WORKER, observers=[hanging])
    assert loop_time() == 90
    assert hanging.seen == []
    gc.collect()
    # It did end when it was cancelled, and without an error of its own.
    assert caplog.messages == [
        "observer Slow: timeout of 5.0 s on batch_started",
        "observer Slow: timeout of 5.0 s on worker_started",
        "observer Slow: timeout of 5.0 s on item_started",
        "observer Slow hangs and gets no more events in this run",
    ]


async def test_an_observer_may_hang_after_it_had_nothing_to_do() -> None:
    class Resting(Recorder):
        async def on_event(self, event: ProcessingEvent, data: dict[str, Any]) -> None:
            await super().on_event(event, data)
            if event is Event.ITEM_COMPLETED:
                await asyncio.sleep(1e6)

    strategy, resting = Script(functools.partial(asyncio.sleep, 10, ANSWER)), Resting()
    await run_batch(strategy, count=2, config=ONE_WORKER, observers=[resting])
    assert loop_time() == 25
    assert resting.seen[-1][0] is Event.BATCH_COMPLETED


async def test_a_run_that_is_cancelled_waits_for_no_observer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    slow = Slow(4)
    run = asyncio.create_task(run_batch(Script(), count=5, observers=[slow]))
    await asyncio.sleep(10)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert loop_time() == 10
    await asyncio.sleep(100)
    assert len(slow.seen) == 2
    assert not caplog.messages


async def test_observers_have_five_seconds_to_see_how_a_cancelled_run_ended() -> None:
    strategy = Script(functools.partial(asyncio.sleep, 100, ANSWER))
    observers = [Slow(2.3), Slow(2.4)]
    run = asyncio.create_task(run_batch(strategy, config=ONE_WORKER, observers=observers))
    await asyncio.sleep(50)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert loop_time() == pytest.approx(54.8)
    assert [observer.seen[-1][0] for observer in observers] == [Event.BATCH_COMPLETED] * 2


@pytest.mark.parametrize("latest", ["observer", "worker"])
async def test_a_loop_that_is_closed_down_ends_a_run_with_its_observers(latest: str) -> None:
    strategy, recorder = Script(functools.partial(asyncio.sleep, 10, ANSWER)), Recorder()
    run = asyncio.create_task(run_batch(strategy, count=5, observers=[recorder]))
    await asyncio.sleep(1)
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    # As asyncio.run does it, in any order.
    for task in sorted(tasks, key=lambda task: latest in task.get_name()):
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert loop_time() == 1


@pytest.mark.parametrize("seconds", [0, 10])
async def test_an_observer_that_ignores_its_cancellation_is_left_behind(
    seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    freed = asyncio.Event()

    async def ignore(event: ProcessingEvent, data: dict[str, Any]) -> None:
        while not freed.is_set():
            try:
                await freed.wait()
            except asyncio.CancelledError:
                continue

    strategy = Script(functools.partial(asyncio.sleep, seconds, ANSWER))
    run = asyncio.create_task(run_batch(strategy, count=9, observers=[MagicMock(on_event=ignore)]))
    await asyncio.sleep(6.5)
    assert caplog.messages == ["observer MagicMock ignores its cancellation and is left behind"]
    assert (await run).succeeded == 9
    freed.set()
    await asyncio.sleep(1)
    assert "never retrieved" not in caplog.text


async def test_an_observer_may_fail_when_the_end_of_the_run_cancels_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(event: ProcessingEvent, data: dict[str, Any]) -> None:
        try:
            await asyncio.sleep(4)
        except asyncio.CancelledError:
            raise ValueError from None

    strategy = Script(functools.partial(asyncio.sleep, 100, ANSWER))
    observer = MagicMock(on_event=fail)
    run = asyncio.create_task(run_batch(strategy, observers=[observer]))
    await asyncio.sleep(2)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert loop_time() == 7
    assert caplog.messages == ["observer MagicMock failed on worker_started: ValueError"]


@pytest.mark.parametrize("others", [[], [Recorder()]], ids=["alone", "beside a quick one"])
async def test_a_run_waits_for_an_observer_before_its_backlog_grows_without_end(
    others: list[Recorder],
) -> None:
    class Counting(Slow):
        """Knows how far behind it is."""

        behind = 0

        async def on_event(self, event: ProcessingEvent, data: dict[str, Any]) -> None:
            await super().on_event(event, data)
            self.behind = max(self.behind, 2 * len(strategy.calls) - len(self.seen))

    strategy = Script()
    slow = Counting(0.01)
    config = ProcessorConfig(max_workers=3)
    await run_batch(strategy, count=2000, config=config, observers=[slow, *others])
    assert len(slow.of(Event.ITEM_COMPLETED)) == 2000
    assert 900 < slow.behind < 1200


async def test_for_an_observer_that_is_left_out_nothing_piles_up() -> None:
    events, tasks = Events([Slow(1e6)]), Tasks()
    events.start(tasks, lambda error: None)
    for expected in (True, False):
        for number in range(2_000):
            events.emit(Event.ITEM_STARTED, {"item_id": str(number), "worker_id": 0})
        assert events.crowded is expected
        # Three timeouts later it is left out.
        await events.settle()
    assert loop_time() == 15
    await tasks.stop()
    events.stop()


class Late(Slow):
    """Falls behind, catches up, and may hang then."""

    def __init__(self, *, hangs: bool) -> None:
        super().__init__(0.01)
        self.hangs = hangs

    async def on_event(self, event: ProcessingEvent, data: dict[str, Any]) -> None:
        await super().on_event(event, data)
        if self.hangs and len(self.seen) > 2_010:
            await asyncio.sleep(1e6)


@pytest.mark.parametrize("hangs", [False, True])
async def test_an_observer_that_caught_up_is_told_the_rest(
    hangs: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer() -> Any:
        await asyncio.sleep(100 * (len(strategy.calls) > 1_000))
        return ANSWER

    strategy, late = Script(answer), Late(hangs=hangs)
    await run_batch(strategy, count=1_010, config=ONE_WORKER, observers=[late])
    gc.collect()
    if hangs:
        assert len(caplog.messages) == 4
        assert caplog.messages[-1] == "observer Late hangs and gets no more events in this run"
    else:
        assert len(late.of(Event.ITEM_COMPLETED)) == 1_010
        assert late.seen[-1][0] is Event.BATCH_COMPLETED
        assert not caplog.messages


@pytest.mark.parametrize("swallows", [False, True])
async def test_an_observer_that_makes_something_else_of_its_cancellation_ends_too(
    swallows: bool,
) -> None:
    async def hold_on(event: ProcessingEvent, data: dict[str, Any]) -> None:
        try:
            await asyncio.sleep(4)
        except asyncio.CancelledError:
            if not swallows:
                raise ValueError from None

    others = asyncio.all_tasks()
    run = asyncio.create_task(run_batch(Script(), observers=[MagicMock(on_event=hold_on)]))
    # Twice, since the end of a run that is complete waits for its observers.
    for _ in range(2):
        await asyncio.sleep(1)
        run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await asyncio.sleep(1)
    assert asyncio.all_tasks() == others


async def test_of_a_run_whose_end_was_cancelled_too_nothing_more_is_heard(
    caplog: pytest.LogCaptureFixture,
) -> None:
    freed = asyncio.Event()

    async def ignore(event: ProcessingEvent, data: dict[str, Any]) -> None:
        while not freed.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await freed.wait()

    run = asyncio.create_task(run_batch(Script(), observers=[MagicMock(on_event=ignore)]))
    for _ in range(2):
        await asyncio.sleep(1)
        run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await asyncio.sleep(100)
    assert not caplog.messages
    freed.set()
    await asyncio.sleep(1)
