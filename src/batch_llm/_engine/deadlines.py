"""Timeouts of one length for many calls, with a single timer of the loop.

Calls that share one timeout run out in the order in which they began, so an ordered
dict of open deadlines is enough: opening and closing one costs no timer and no task.
"""

import asyncio
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Protocol

from batch_llm._engine.tasks import GRACE_SECONDS
from batch_llm.core.clock import clock_of


class Holder(Protocol):
    """Something that makes one bounded call at a time, in a task of its own."""

    @property
    def task(self) -> asyncio.Task[None]:
        """The task to cancel."""
        ...


class Deadlines:
    """Cancels a holder's task when its call has taken too long.

    Args:
        seconds: The one timeout.
        on_stuck: Told of a holder whose call has ignored its cancellation for the grace.
    """

    def __init__(self, seconds: float, *, on_stuck: Callable[[Holder], None]) -> None:
        self.seconds = seconds
        self._on_stuck = on_stuck
        self._loop = asyncio.get_running_loop()
        self.running: dict[Holder, float] = {}
        self.now = clock_of(self._loop)
        self._expired: dict[Holder, float] = {}
        self.timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Calls under way."""
        return len(self.running) + len(self._expired)

    def __iter__(self) -> Iterator[Holder]:
        """Who has a call under way."""
        return chain(self.running, self._expired)

    def __contains__(self, holder: Holder) -> bool:
        """Whether the holder has a call under way."""
        return holder in self.running or holder in self._expired

    def open(self, holder: Holder) -> None:
        """Start the holder's time."""
        now = self.now
        self.running[holder] = at = now() + self.seconds
        if self.timer is None:
            self.arm(at)

    def arm(self, at: float) -> None:
        """Have a look at loop time ``at``, the earliest end of a call."""
        self.timer = self._loop.call_at(at, self._tick)

    def close(self, holder: Holder) -> bool:
        """End the holder's time.

        Returns:
            Whether it ran out; the cancellation is then taken back from the task.
        """
        if self.running.pop(holder, None) is not None or holder not in self._expired:
            return False
        del self._expired[holder]
        holder.task.uncancel()
        return True

    def stop(self) -> None:
        """Forget all deadlines."""
        self.running.clear()
        self._expired.clear()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _tick(self) -> None:
        now = self._loop.time()
        for holder in _due(self.running, now):
            del self.running[holder]
            self._expired[holder] = now + GRACE_SECONDS
            holder.task.cancel()
        for holder in _due(self._expired, now):
            del self._expired[holder]
            self._on_stuck(holder)
        upcoming = [next(iter(times.values())) for times in (self.running, self._expired) if times]
        self.timer = self._loop.call_at(min(upcoming), self._tick) if upcoming else None


def _due(deadlines: dict[Holder, float], now: float) -> list[Holder]:
    due: list[Holder] = []
    for holder, at in deadlines.items():
        if at > now:
            break
        due.append(holder)
    return due
