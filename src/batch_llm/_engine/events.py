"""Event fan-out: every observer gets the same sequence, at its own pace."""

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from operator import length_hint
from typing import Any

from batch_llm._engine.deadlines import Deadlines, Holder
from batch_llm._engine.tasks import FATAL, Tasks
from batch_llm.observers.base import ProcessorObserver
from batch_llm.observers.events import ProcessingEvent

_log = logging.getLogger(__name__)

OBSERVER_SECONDS = 5.0
_TIMEOUTS_IN_A_ROW = 3
_BACKLOG = 1_000
_AT_ONCE = 100

# An event, its data, and twice None; or, for the two events that every item has, only what their
# data is made of, so that what waits to be told is half as much for the garbage collector.
_Record = tuple[ProcessingEvent, Any, Any, Any]


class _Feed:
    """One observer, its backlog, and the task that works it off.

    An event whose handling never waits needs no deadline, so one is opened only for what is
    still under way when the loop has its next turn.

    Args:
        observer: Who is told.
        events: Deals out what happens.
        deadlines: Bounds the handling of each event.
        fail: Told of a KeyboardInterrupt or SystemExit.
    """

    def __init__(
        self,
        observer: ProcessorObserver,
        events: "Events",
        deadlines: Deadlines,
        *,
        fail: Callable[[BaseException], None],
    ) -> None:
        self.observer = observer
        self.backlog: list[_Record] = []
        self._batch: list[_Record] = []
        self._rest: Iterator[_Record] = iter(())
        self.task: asyncio.Task[None]
        self.deadline: float | None = None
        self.asleep: asyncio.Future[None] | None = None
        self.caught_up: asyncio.Future[None] | None = None
        self.left_out = False
        self._deadlines = deadlines
        self._events = events
        self._fail = fail
        self._is_async = inspect.iscoroutinefunction(observer.on_event)
        self._loop = asyncio.get_running_loop()
        self._is_timed = self._is_suspect = False
        self._timeouts = 0

    @property
    def is_behind(self) -> bool:
        """Whether the run should wait for it."""
        return len(self.backlog) + length_hint(self._rest) >= _BACKLOG

    async def work(self) -> None:
        self._loop.call_soon(self._start_the_time)
        while not self.left_out:
            self._events.deal()
            if not self.backlog:
                await self._next_event()
                continue
            on_event, is_async = self.observer.on_event, self._is_async
            self._batch, self.backlog = self.backlog, []
            self._rest = iter(self._batch)
            for event, told, number, tokens in self._rest:
                if number is None:
                    data = told.copy()
                elif tokens is None:
                    data = {"item_id": told, "worker_id": number}
                else:
                    data = {"item_id": told, "duration": number, "tokens": tokens}
                try:
                    called: Any = on_event(event, data)
                    if is_async or inspect.isawaitable(called):
                        await called
                except BaseException as error:
                    self._judge(event, error)
                else:
                    if self._is_suspect:
                        self._judge(event, None)

    async def _next_event(self) -> None:
        if self.caught_up is not None and not self.caught_up.done():
            self.caught_up.set_result(None)
        self._events.deal_at = 1
        self.asleep = self._loop.create_future()
        await self.asleep
        self._loop.call_soon(self._start_the_time)

    def _start_the_time(self) -> None:
        """Bound what is under way, if anything is."""
        if self.asleep is None and not (self._is_timed or self.task.done()):
            self._is_timed = self._is_suspect = True
            self._deadlines.open(self)

    def _stop_the_time(self) -> bool:
        """Whether it ran out."""
        if not self._is_timed:
            return False
        self._is_timed = False
        # For what the task does in the rest of this turn.
        self._loop.call_soon(self._start_the_time)
        return self._deadlines.close(self)

    def wake(self) -> None:
        """Go on with the backlog."""
        if self.asleep is not None and not self.asleep.done():
            self.asleep.set_result(None)
        self.asleep = None

    def _judge(self, event: ProcessingEvent, error: BaseException | None) -> None:
        """Pass on what is not the observer's own, and log what is."""
        timed_out = self._is_suspect = self._stop_the_time()
        self._timeouts = self._timeouts + 1 if timed_out else 0
        if self.task.cancelling():
            # The run ends, whatever the observer makes of that.
            self.leave_out()
            if isinstance(error, asyncio.CancelledError):
                return
        if error is None and not timed_out:
            return
        if isinstance(error, FATAL):
            self._fail(error)
        name = type(self.observer).__name__
        if timed_out:
            _log.error("observer %s: timeout of %s s on %s", name, OBSERVER_SECONDS, event.value)
        else:
            # Its text may quote an output, so it is for DEBUG only.
            _log.error("observer %s failed on %s: %s", name, event.value, type(error).__name__)
            _log.debug("observer %s failed on %s", name, event.value, exc_info=error)
        if self._timeouts >= _TIMEOUTS_IN_A_ROW:
            _log.error("observer %s hangs and gets no more events in this run", name)
            self.leave_out()

    def leave_out(self) -> None:
        """Stop feeding an observer that would hold up the run."""
        self.left_out = True
        self._batch.clear()
        if self.caught_up is not None and not self.caught_up.done():
            self.caught_up.set_result(None)


class Events:
    """Hands each event to every observer.

    What happens is noted in one list, and dealt out when an observer has nothing to do or
    the list is long: an event costs little more than what its observers do with it.

    Attributes:
        observers: Who is told, from the next start on.
        now: The loop's clock, while anybody watches.
        watched: Whether anybody watches; where nobody does, no event is built.
        news: What happened and is not dealt out yet.
        deal_at: How many new events are dealt out at once: 1 while an observer sleeps.
        crowded: Whether an observer is so far behind that the run should wait for it.
    """

    def __init__(self, observers: Sequence[ProcessorObserver]) -> None:
        self.observers = observers
        self._feeds: list[_Feed] = []
        self._deadlines: Deadlines
        self.now: Callable[[], float]
        self.news: list[_Record] = []
        self.deal_at = 1
        self.watched = False
        self.crowded = False

    def start(self, tasks: Tasks, fail: Callable[[BaseException], None]) -> None:
        """Begin a run.

        Args:
            tasks: Where the observers' tasks live.
            fail: Told of a KeyboardInterrupt or SystemExit.
        """
        self._deadlines = Deadlines(
            OBSERVER_SECONDS, holders=lambda: self._feeds, on_stuck=self._stuck
        )
        self.now = self._deadlines.now
        self._feeds = [
            _Feed(observer, self, self._deadlines, fail=fail) for observer in self.observers
        ]
        for feed in self._feeds:
            feed.task = tasks.spawn(feed.work(), name=f"observer {type(feed.observer).__name__}")
        self.watched, self.crowded = bool(self._feeds), False

    def emit(self, event: ProcessingEvent, data: dict[str, Any]) -> None:
        """Note an event for every observer, each of which gets data of its own."""
        news = self.news
        news.append((event, data, None, None))
        if len(news) >= self.deal_at:
            self.deal()

    def deal(self) -> None:
        """Put what is new into the backlogs, and wake who sleeps."""
        news = self.news
        if not news:
            return
        self.deal_at = _AT_ONCE if self._feeds else 1
        for feed in self._feeds:
            if not feed.left_out:
                feed.backlog += news
                self.crowded = self.crowded or feed.is_behind
                feed.wake()
        news.clear()

    async def settle(self, within_seconds: float | None = None) -> None:
        """Wait until every observer has seen every event.

        Args:
            within_seconds: How long to wait at most; None for as long as it takes.
        """
        self.deal()
        loop = asyncio.get_running_loop()
        end = None if within_seconds is None else loop.time() + within_seconds
        for feed in self._feeds:
            while feed.asleep is None and not feed.left_out and not feed.task.done():
                if feed.caught_up is None or feed.caught_up.done():
                    feed.caught_up = loop.create_future()
                left = None if end is None else end - loop.time()
                if left is not None and left <= 0:
                    return
                await asyncio.wait(
                    (feed.caught_up, feed.task), timeout=left, return_when="FIRST_COMPLETED"
                )
        self.crowded = False

    def stop(self) -> None:
        """End the run; the tasks end with their owner."""
        self.watched = False
        self._deadlines.stop()
        self._feeds = []
        self.news.clear()

    def _stuck(self, feed: Holder) -> None:
        assert isinstance(feed, _Feed)
        _log.error(
            "observer %s ignores its cancellation and is left behind", type(feed.observer).__name__
        )
        feed.leave_out()
