"""Timeouts of one length for many calls, with a single timer of the loop.

Each call's deadline is noted with whoever makes it, and cleared when it ends: that costs no
timer, no task and no entry anywhere. Now and then all open deadlines are listed in order.
Since they are of one length, each call that begins after that runs out later than all of the
list; so the next one due is the first of the list that still holds, and a new list is made
when none of it does.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from operator import itemgetter
from typing import Protocol

from batch_llm._engine.tasks import GRACE_SECONDS
from batch_llm.core.clock import clock_of


class Holder(Protocol):
    """Something that makes one bounded call at a time, in a task of its own.

    Attributes:
        deadline: Loop time at which its call has taken too long; None without a call, or when
            that time has passed.
    """

    deadline: float | None

    @property
    def task(self) -> asyncio.Task[None]:
        """The task to cancel."""
        ...


class Deadlines:
    """Cancels a holder's task when its call has taken too long.

    Args:
        seconds: The one timeout.
        holders: Gives everybody who may have a call under way.
        on_stuck: Told of a holder whose call has ignored its cancellation for the grace.

    Attributes:
        now: The loop's clock.
        timer: Wakes up at the first deadline; None if there was none when it last did.
    """

    def __init__(
        self,
        seconds: float,
        *,
        holders: Callable[[], Iterable[Holder]],
        on_stuck: Callable[[Holder], None],
    ) -> None:
        self.seconds = seconds
        self._holders = holders
        self._on_stuck = on_stuck
        self._loop = asyncio.get_running_loop()
        self.now = clock_of(self._loop)
        self._upcoming: deque[tuple[float, Holder]] = deque()
        self._expired: dict[Holder, float] = {}
        self.timer: asyncio.TimerHandle | None = None

    def __iter__(self) -> Iterator[Holder]:
        """Who has a call under way."""
        running = (holder for holder in self._holders() if holder.deadline is not None)
        return chain(running, self._expired)

    def __contains__(self, holder: Holder) -> bool:
        """Whether the holder has a call under way."""
        return holder.deadline is not None or holder in self._expired

    def open(self, holder: Holder) -> None:
        """Start the holder's time."""
        holder.deadline = at = self.now() + self.seconds
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
        holder.deadline = None
        if self._expired.pop(holder, None) is None:
            return False
        holder.task.uncancel()
        return True

    def stop(self) -> None:
        """Forget all deadlines."""
        for holder in self._holders():
            holder.deadline = None
        self._upcoming.clear()
        self._expired.clear()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _tick(self) -> None:
        now = self._loop.time()
        while (upcoming := self._first()) is not None and upcoming[0] <= now:
            _, holder = self._upcoming.popleft()
            holder.deadline = None
            self._expired[holder] = now + GRACE_SECONDS
            holder.task.cancel()
        for holder in [holder for holder, at in self._expired.items() if at <= now]:
            del self._expired[holder]
            self._on_stuck(holder)
        ends = list(self._expired.values())
        if upcoming is not None:
            ends.append(upcoming[0])
        self.timer = self._loop.call_at(min(ends), self._tick) if ends else None

    def _first(self) -> tuple[float, Holder] | None:
        """The next deadline that holds, and whose it is."""
        while self._upcoming and self._upcoming[0][1].deadline != self._upcoming[0][0]:
            self._upcoming.popleft()
        if not self._upcoming:
            open_ = [(at, each) for each in self._holders() if (at := each.deadline) is not None]
            self._upcoming = deque(sorted(open_, key=itemgetter(0)))
        return self._upcoming[0] if self._upcoming else None
