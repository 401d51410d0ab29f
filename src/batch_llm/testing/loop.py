"""An asyncio event loop on which waiting takes no time.

:class:`VirtualTimeLoop` keeps a clock of its own. Whenever nothing is left to do at
the present moment, the clock jumps to the very instant of the next timer, so an hour
of cooldowns is over in milliseconds and every instant in a test is exact::

    from batch_llm.testing.loop import run


    async def scenario() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()


    def test_an_hour() -> None:
        assert run(scenario()) == 3600.0

What happens outside the loop keeps its real pace and takes no virtual time:

* **Threads.** While work given to ``run_in_executor`` or ``asyncio.to_thread`` (name
  lookups included) is going on, the clock stands still. A job that keeps its thread
  for longer than ``thread_grace_seconds`` of real time is taken to be waiting for the
  loop itself and holds the clock no more. Threads started in any other way are
  unknown to the loop.
* **Sockets.** Both ends belong on this loop: a client and a server on loopback.
  The clock stands still while a socket holds bytes that the receiving end has not
  acknowledged or waits to become writable (a connection being made included), so no
  timeout overtakes bytes on their way. What makes no progress for ``grace_seconds`` of
  real time, such as a full buffer whose reader is asleep, holds the clock no more.
  Linux tells exactly what is on its way; elsewhere the loop listens for 5 real
  milliseconds before each jump. What a process, or a host, outside the loop does
  between its reads and writes cannot be seen: use real time for that.
* **Nothing at all.** With nothing ready, no timer, no job in a thread, and nothing
  arriving for ``grace_seconds`` of real time, nobody is left who could wake the tasks:
  :class:`DeadlockError` comes out of the run and says where each of them waits.

A test framework that takes a loop factory can be given the class itself, for instance
anyio's pytest plugin: let a fixture ``anyio_backend`` return
``("asyncio", {"loop_factory": VirtualTimeLoop})``. For plain synchronous tests there
is the fixture of :mod:`batch_llm.testing.pytest_plugin`.
"""

import asyncio
import gc
import inspect
import itertools
import math
import selectors
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from contextvars import Context
from types import FrameType
from typing import Any, Protocol, TypeVar, TypeVarTuple

from batch_llm.strategies.errors import BatchLLMError

__all__ = ["WALL_TIME_START", "DeadlockError", "VirtualTimeLoop", "run"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

WALL_TIME_START = 1767225600.0
"""Where virtual wall time starts unless told otherwise: 2026-01-01T00:00:00Z."""

# The one that a loop wakes itself with, always watched.
_OWN_SOCKETS = 1
_POLL_SECONDS = 0.001
_SETTLE_SECONDS = 0.0 if sys.platform == "linux" else 0.005

_Events = list[tuple[selectors.SelectorKey, int]]
_Flight = frozenset[tuple[int, int]]


class DeadlockError(BatchLLMError, RuntimeError):
    """Every task waits and nothing is left that could wake one; the text says where."""


class _Wait(Protocol):
    def __call__(self, timeout: float | None, /) -> _Events: ...


class _IdleSelector(selectors.DefaultSelector):
    """Hands over to the loop where an ordinary selector would go to sleep."""

    def __init__(self, idle: Callable[[_Wait], _Events]) -> None:
        super().__init__()
        self._idle = idle

    def select(self, timeout: float | None = None) -> _Events:
        events = super().select(0)
        if events or timeout == 0:
            return events
        return self._idle(super().select)


class _Instant(float):
    """The time of a timer; equal times keep the order in which they were set."""

    __slots__ = ("order",)
    order: int

    def __new__(cls, when: float, order: int) -> "_Instant":
        self = super().__new__(cls, when)
        self.order = order
        return self

    def __lt__(self, other: float, /) -> bool:
        if self == other and isinstance(other, _Instant):
            return self.order < other.order
        return float.__lt__(self, other)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer instead of passing.

    Timers fire at exactly the instant they were set for, those of one instant in the
    order in which they were set. The module's text tells what holds the clock.

    Args:
        start: Seconds that ``time()`` shows at first.
        wall_start: Seconds since the epoch that ``wall_time()`` shows at first.
        grace_seconds: Real seconds without any I/O after which bytes that make no
            progress are overtaken, and after which a loop without timers is dead.
        thread_grace_seconds: Real seconds for which one job in a thread holds the clock.
    """

    # Of asyncio's own, the same from 3.11 to 3.14: the heap of timers, and how far ahead
    # of the clock a timer may fire.
    _scheduled: list[asyncio.TimerHandle]
    _clock_resolution: float

    def __init__(
        self,
        *,
        start: float = 0.0,
        wall_start: float = WALL_TIME_START,
        grace_seconds: float = 0.5,
        thread_grace_seconds: float = 5.0,
    ) -> None:
        self._idle_selector = _IdleSelector(self._idle)
        super().__init__(self._idle_selector)
        self._wall_offset = wall_start - start
        self._grace_seconds = grace_seconds
        self._thread_grace_seconds = thread_grace_seconds
        self._timer_order = itertools.count()
        self._jobs: dict[object, float] = {}
        self._stalled: _Flight = frozenset()
        self._jump(start)

    def time(self) -> float:
        """Virtual seconds on the loop's monotonic clock."""
        return self._now

    def wall_time(self) -> float:
        """Virtual seconds since the epoch; they move together with :meth:`time`."""
        return self._now + self._wall_offset

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call back at exactly ``when``, after the timers already set for that instant."""
        instant = _Instant(when, next(self._timer_order))
        return super().call_at(instant, callback, *args, context=context)

    def run_in_executor(
        self,
        executor: Executor | None,
        func: Callable[[*Ts], T],
        *args: *Ts,
    ) -> asyncio.Future[T]:
        """Run ``func`` in an executor; the clock stands still until it is done."""
        future = super().run_in_executor(executor, func, *args)
        self._jobs[future] = time.monotonic() + self._thread_grace_seconds
        future.add_done_callback(self._jobs.pop)
        return future

    async def shutdown_default_executor(self, *args: Any, **kwargs: Any) -> None:
        """Wait in real time for the threads of the default executor to end."""
        job = object()
        self._jobs[job] = time.monotonic() + self._thread_grace_seconds
        try:
            await super().shutdown_default_executor(*args, **kwargs)
        finally:
            del self._jobs[job]

    def _idle(self, wait: _Wait) -> _Events:
        """Wait for the world outside or, if it owes us nothing, move the clock."""
        events = self._await_jobs(wait) or self._await_flight(wait)
        if events:
            return events
        if self._scheduled and math.isfinite(when := self._scheduled[0].when()):
            self._jump(when)
            return []
        events = wait(None if self._jobs else self._grace_seconds)
        if not events:
            raise DeadlockError(self._describe_deadlock())
        return events

    def _await_jobs(self, wait: _Wait) -> _Events:
        """Wait while a thread may still be at work for the loop."""
        if not self._jobs:
            return []
        remaining = max(self._jobs.values()) - time.monotonic()
        return wait(remaining) if remaining > 0 else []

    def _await_flight(self, wait: _Wait) -> _Events:
        """Wait while bytes are on their way and come nearer."""
        sockets = self._idle_selector.get_map()
        if len(sockets) == _OWN_SOCKETS:
            return []
        seen, deadline = None, 0.0
        while (flight := _in_flight(sockets)) and flight != self._stalled:
            if flight != seen:
                seen, deadline = flight, time.monotonic() + self._grace_seconds
            elif time.monotonic() >= deadline:
                break
            if events := wait(_POLL_SECONDS):
                return events
        self._stalled = flight
        # Bytes that arrived while their sender was being asked show only now.
        return wait(_SETTLE_SECONDS)

    def _jump(self, when: float) -> None:
        self._now = float(when)
        # One step of a float: timers at this very instant are due, no later one is, and
        # the sum with the time never rounds back to the time itself.
        self._clock_resolution = math.ulp(self._now)

    def _describe_deadlock(self) -> str:
        places: dict[str, list[str]] = {}
        for task in sorted(asyncio.all_tasks(self), key=lambda task: task.get_name()):
            places.setdefault(_where(task), []).append(task.get_name())
        waiting = "\n".join(f"{_some(names)}:\n{place}" for place, names in places.items())
        return (
            f"all tasks wait for ever at {self._now} s of virtual time: nothing is ready, no "
            f"timer is set, no thread works for the loop and no I/O came within "
            f"{self._grace_seconds} real seconds. Set what they wait for, or give the wait a "
            f"timeout.\n{waiting}"
        )


def run(
    main: Coroutine[Any, Any, T],
    *,
    start: float = 0.0,
    wall_start: float = WALL_TIME_START,
    debug: bool | None = None,
) -> T:
    """Run a coroutine in virtual time, otherwise as ``asyncio.run`` does.

    What is left over is cleaned up as well: tasks are cancelled, asynchronous generators
    and the default executor are shut down, and the loop is closed.

    Args:
        main: The coroutine to run.
        start: Seconds that the loop's ``time()`` shows at first.
        wall_start: Seconds since the epoch that ``wall_time()`` shows at first.
        debug: asyncio's debug mode; None leaves the choice to the environment.

    Returns:
        What ``main`` returns.

    Raises:
        DeadlockError: All tasks wait and nothing is left that could wake one.
        RuntimeError: An event loop is running in this thread already.
    """

    def new_loop() -> VirtualTimeLoop:
        return VirtualTimeLoop(start=start, wall_start=wall_start)

    if _inside_a_loop():
        main.close()
        raise RuntimeError("run() was called inside a running event loop; await the coroutine")
    with asyncio.Runner(debug=debug, loop_factory=new_loop) as runner:
        return runner.run(main)


def _inside_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _in_flight(sockets: Mapping[Any, selectors.SelectorKey]) -> _Flight:
    """The sockets with bytes on their way, and how many; -1 waits to become writable."""
    flight = {(key.fd, -1) for key in sockets.values() if key.events & selectors.EVENT_WRITE}
    if any(map(_unacknowledged, sockets)):
        for fd in sockets:
            _acknowledge(fd)
        flight.update((fd, count) for fd in sockets if (count := _unacknowledged(fd)))
    return frozenset(flight)


if sys.platform == "linux":
    import fcntl
    import termios

    def _unacknowledged(fd: int) -> int:
        """Bytes sent through a socket that the other end's kernel has not confirmed."""
        try:
            return int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        except OSError:  # a pipe has no such count
            return 0

    def _acknowledge(fd: int) -> None:
        """Confirm at once what a socket received: the kernel may put it off for 40 ms."""
        try:
            borrowed = socket.socket(fileno=fd)
        except OSError:
            return
        with suppress(OSError):
            borrowed.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        borrowed.detach()

else:

    def _unacknowledged(fd: int) -> int:
        """Not to be had here; listening before each jump takes its place."""
        return 0

    def _acknowledge(fd: int) -> None:
        """Nothing to confirm."""


def _where(task: asyncio.Task[Any]) -> str:
    """The places at which a task waits, outermost first, as in a traceback."""
    frames = [(frame.f_code, frame.f_lineno) for frame in _frames(task.get_coro())]
    return "\n".join(
        f'    File "{code.co_filename}", line {line}, in {code.co_qualname}'
        for code, line in frames
    )


def _frames(waiting: Any) -> Iterator[FrameType]:
    while waiting is not None:
        frame = None
        if inspect.iscoroutine(waiting):
            frame, waiting = waiting.cr_frame, waiting.cr_await
        elif inspect.isasyncgen(waiting):
            frame, waiting = waiting.ag_frame, waiting.ag_await
        else:
            # A step of an asynchronous generator does not name it, but holds it.
            waiting = next(filter(inspect.isasyncgen, gc.get_referents(waiting)), None)
        if frame is not None:
            yield frame


def _some(names: list[str], limit: int = 3) -> str:
    """The first few names and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return "  " + ", ".join(names[:limit]) + more
