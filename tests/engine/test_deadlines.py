"""Many deadlines of one length on a single timer."""

import asyncio
import gc
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from batch_llm._engine.deadlines import Deadlines, Holder
from batch_llm.testing import VirtualTimeLoop
from tests.engine.support import now


class Watching(Deadlines):
    """The deadlines of everybody who says so."""

    def __init__(self, seconds: float, on_stuck: Callable[[Holder], None]) -> None:
        self.everybody: list[Holder] = []
        super().__init__(seconds, holders=lambda: self.everybody, on_stuck=on_stuck)


class Sleeper:
    """Makes bounded calls in a task of its own and notes how each ended."""

    def __init__(self, deadlines: Watching, *seconds: float) -> None:
        self.outcomes: list[tuple[float, bool]] = []
        self.deadline: float | None = None
        deadlines.everybody.append(self)
        self.task = asyncio.create_task(self._work(deadlines, seconds))

    async def _work(self, deadlines: Watching, calls: tuple[float, ...]) -> None:
        for seconds in calls:
            deadlines.open(self)
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(seconds)
            self.outcomes.append((now(), deadlines.close(self)))


class Stubborn(Sleeper):
    """Makes one call, and takes no cancellation before 50 s."""

    async def _work(self, deadlines: Watching, calls: tuple[float, ...]) -> None:
        deadlines.open(self)
        while now() < 50.0:
            try:
                await asyncio.sleep(calls[0])
            except asyncio.CancelledError:
                continue
        self.outcomes.append((now(), deadlines.close(self)))


@pytest.fixture
def stuck() -> list[Holder]:
    return []


async def test_each_call_has_a_deadline_of_its_own(stuck: list[Holder]) -> None:
    deadlines = Watching(10.0, stuck.append)
    first = Sleeper(deadlines, 4.0, 9.0, 99.0)
    await asyncio.sleep(1.0)
    second = Sleeper(deadlines, 99.0, 9.0)
    await asyncio.gather(first.task, second.task)
    assert first.outcomes == [(4.0, False), (13.0, False), (23.0, True)]
    assert second.outcomes == [(11.0, True), (20.0, False)]
    assert stuck == []
    assert first.task.cancelling() == second.task.cancelling() == 0


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> list[asyncio.TimerHandle]:
    """The timers of deadlines, as they are set."""
    timers: list[asyncio.TimerHandle] = []
    call_at = VirtualTimeLoop.call_at

    def noting(*args: Any, **options: Any) -> asyncio.TimerHandle:
        timer = call_at(*args, **options)
        if args[2].__name__ == "_tick":
            timers.append(timer)
        return timer

    monkeypatch.setattr(VirtualTimeLoop, "call_at", noting)
    return timers


async def test_there_is_one_timer_at_most(
    stuck: list[Holder], timers: list[asyncio.TimerHandle]
) -> None:
    deadlines = Watching(10.0, stuck.append)
    sleepers = [Sleeper(deadlines, *[3.0] * 10) for _ in range(100)]
    await asyncio.gather(*[sleeper.task for sleeper in sleepers])
    # At 10 s calls are open that began at 9 s, at 19 s those of 18 s, at 28 s those of 27 s.
    assert [timer.when() for timer in timers] == [10.0, 19.0, 28.0, 37.0]
    deadlines.stop()


async def test_a_timer_that_fires_early_cuts_nothing_off(stuck: list[Holder]) -> None:
    """A real loop's clock may be a tick behind its timers."""
    deadlines = Watching(10.0, stuck.append)
    sleeper = Sleeper(deadlines, 99.0)
    await asyncio.sleep(9.0)
    deadlines._tick()
    await sleeper.task
    assert sleeper.outcomes == [(10.0, True)]


async def test_closing_twice_is_no_timeout(stuck: list[Holder]) -> None:
    deadlines = Watching(10.0, stuck.append)
    sleeper = Sleeper(deadlines, 1.0)
    await sleeper.task
    assert deadlines.close(sleeper) is False
    deadlines.stop()


async def test_stopping_forgets_everything(stuck: list[Holder]) -> None:
    deadlines = Watching(10.0, stuck.append)
    sleepers = [Sleeper(deadlines, 50.0) for _ in range(3)]
    await asyncio.sleep(1.0)
    deadlines.stop()
    deadlines.stop()
    await asyncio.gather(*[sleeper.task for sleeper in sleepers])
    assert [sleeper.outcomes for sleeper in sleepers] == [[(50.0, False)]] * 3


async def test_who_has_stopped_is_let_go_of(stuck: list[Holder]) -> None:
    deadlines = Watching(10.0, stuck.append)
    sleeper = Sleeper(deadlines, 4.0, 4.0, 4.0)
    # By then the deadlines have been looked at.
    await sleeper.task
    deadlines.stop()
    deadlines.everybody.clear()
    gone = weakref.ref(sleeper)
    del sleeper
    gc.collect()
    assert gone() is None


async def test_stopping_leaves_no_timer_and_no_call_for_the_next_deadline(
    stuck: list[Holder], timers: list[asyncio.TimerHandle]
) -> None:
    deadlines = Watching(10.0, stuck.append)
    stubborn = Stubborn(deadlines, 60.0)
    await asyncio.sleep(5.0)
    before = Sleeper(deadlines, 60.0)
    await asyncio.sleep(5.5)
    deadlines.stop()
    assert timers[-1].cancelled()
    assert len([*deadlines]) == 0
    after = Sleeper(deadlines, 60.0)
    await asyncio.gather(stubborn.task, before.task, after.task)
    assert before.outcomes == [(65.0, False)]
    assert after.outcomes == [(20.5, True)]
    assert stuck == []


async def test_who_does_not_end_is_told_of_once(stuck: list[Holder]) -> None:
    deadlines = Watching(10.0, stuck.append)
    stubborn = Stubborn(deadlines, 60.0)
    await asyncio.sleep(5.0)
    other = Sleeper(deadlines, 60.0)
    await asyncio.sleep(5.5)
    assert stuck == []
    assert stubborn in deadlines
    assert other in deadlines
    assert len([*deadlines]) == 2
    await asyncio.sleep(0.5)
    assert stuck == [stubborn]
    assert stubborn not in deadlines
    await asyncio.gather(stubborn.task, other.task)
    assert other not in deadlines
    assert stuck == [stubborn]
    assert stubborn.outcomes == [(70.0, False)]
