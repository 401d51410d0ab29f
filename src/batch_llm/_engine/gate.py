"""The one door to a provider: learned limits, pauses, slow start, requests per minute."""

import asyncio
import logging
import math
from collections import deque
from typing import Any, TypeGuard

from batch_llm._engine.events import Events
from batch_llm._engine.journal import describe
from batch_llm._engine.meters import RequestMeter
from batch_llm._engine.tasks import FATAL, Tasks
from batch_llm.observers.events import ProcessingEvent
from batch_llm.strategies.adaptive import AdaptiveLimit, Admission
from batch_llm.strategies.rate_limit import RateLimitStrategy

_log = logging.getLogger(__name__)


class Gate:
    """Lets calls out one by one, in the order in which they asked.

    Args:
        meter: Spaces the calls out; None for no limit.
        events: Told of cooldowns.
        tasks: Runs the strategy's own code.
        hook_seconds: Deadline of that code.

    Attributes:
        strategy: Decides the length of a cooldown and the pace after it.
        resumed: Set unless there is a cooldown.
        epoch: Number of cooldowns so far. A call remembers it when it is let out, so that
            its late refusal does not start a second cooldown.
        consecutive: Cooldowns since any call succeeded.
        closed: Whether no call goes out any more in this run.
        wide_open: Whether a call may go out at once, with nothing to wait for or count.
    """

    def __init__(
        self,
        strategy: RateLimitStrategy,
        meter: RequestMeter | None,
        *,
        events: Events,
        tasks: Tasks,
        hook_seconds: float,
    ) -> None:
        self.strategy = strategy
        self._meter = meter
        self._events = events
        self._tasks = tasks
        self._hook_seconds = hook_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self.resumed = asyncio.Event()
        self.resumed.set()
        self.epoch = 0
        self.consecutive = 0
        self._waiting: deque[asyncio.Future[Admission | None]] = deque()
        self._limit: AdaptiveLimit | None = None
        self._paused_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._slow_start = False
        self._let_out_since_resume = 0
        self._last_let_out = 0.0
        self._slow_ready_at: float | None = None
        self.closed = False
        self.wide_open = meter is None

    def start(self, limit: AdaptiveLimit | None = None) -> None:
        """Begin a run, perhaps on another event loop than the last.

        Args:
            limit: Learns the provider's limit; None where a rate-limit strategy decides.
        """
        loop = asyncio.get_running_loop()
        self._limit, self._paused_at = limit, None
        if self._loop is not loop:
            self._loop = loop
            self.resumed = asyncio.Event()
            self.resumed.set()
            if self._meter is not None:
                self._meter.reset()
        self._set_wide_open()

    @property
    def adapts(self) -> bool:
        """Whether limits are learned instead of paused for."""
        return self._limit is not None

    @property
    def is_blocked(self) -> bool:
        """Whether only single calls may go out, to see whether any is let in."""
        return self._limit is not None and self._limit.is_blocked

    async def acquire(self) -> Admission | None:
        """Wait until a call may go out; gives what ``ended`` and ``refused`` want to know."""
        loop = asyncio.get_running_loop()
        if not self._waiting and self.resumed.is_set() and self._ready_at() <= loop.time():
            admission = self._let_out(loop.time())
            self._set_wide_open()
            return admission
        turn: asyncio.Future[Admission | None] = loop.create_future()
        self._waiting.append(turn)
        self._advance()
        admission = await self._turn(turn)
        while not self.resumed.is_set():
            # A cooldown began between the turn and this wake-up: first in line again.
            self._take_back()
            turn = loop.create_future()
            self._waiting.appendleft(turn)
            admission = await self._turn(turn)
        return admission

    async def _turn(self, turn: asyncio.Future[Admission | None]) -> Admission | None:
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._take_back()
            raise

    def _take_back(self) -> None:
        """A call that was let out is not made after all."""
        if self._limit is not None:
            self._limit.end()
            self._advance()

    def ended(self, admission: Admission | None, *, answered: bool) -> None:
        """A call ended that was made while the gate was not wide open.

        Args:
            admission: What ``acquire`` gave, if it was asked.
            answered: Whether the provider let the call in and answered it.
        """
        if answered:
            self.consecutive = 0
        if self._limit is not None:
            self._limit.end()
            if answered:
                self._limit.answered(admission, asyncio.get_running_loop().time())
            self._advance()
        self._set_wide_open()

    def refused(
        self,
        admission: Admission | None,
        *,
        hint_seconds: float | None,
        answered: int,
        in_flight: int,
    ) -> None:
        """A call that ended was refused: learn from it.

        Args:
            admission: What ``acquire`` gave, if it was asked.
            hint_seconds: What the provider asked to wait, None if it named nothing.
            answered: Calls of the run that were answered so far.
            in_flight: Calls in flight.
        """
        assert self._limit is not None
        if not self._limit.is_engaged:
            _log.warning("rate limited: from now on calls go out as the provider lets them in")
            self._limit.engage(answered=answered, in_flight=in_flight)
        self.wide_open = False
        hint = float(hint_seconds) if is_duration(hint_seconds) else None
        self._limit.refused(admission, asyncio.get_running_loop().time(), hint)
        self._advance()

    async def cool_down(self, epoch: int, *, worker_id: int, hint_seconds: float | None) -> None:
        """A call was rate limited: pause all, once.

        Args:
            epoch: The epoch in which the call went out.
            worker_id: Who made it.
            hint_seconds: What the provider asked to wait, None if it named nothing.
        """
        if epoch < self.epoch or not self.resumed.is_set():
            return
        self.epoch += 1
        self.consecutive += 1
        self.wide_open = False
        self.resumed.clear()
        seconds, error = 0.0, None
        try:
            seconds, error = await self._cooldown_seconds(worker_id, hint_seconds)
        finally:
            self._events.emit(
                ProcessingEvent.COOLDOWN_STARTED,
                {
                    "worker_id": worker_id,
                    "duration": seconds,
                    "consecutive": self.consecutive,
                },
            )
            if seconds > 0:
                self._set_timer(asyncio.get_running_loop().time() + seconds, self._resume, seconds)
            else:
                self._resume(seconds, error)
        if error is None:
            _log.warning("rate limited: all workers pause for %g s", seconds)

    async def _cooldown_seconds(
        self, worker_id: int, hint_seconds: float | None
    ) -> tuple[float, BaseException | None]:
        if is_duration(hint_seconds):
            return float(hint_seconds), None
        settled = await self._tasks.bounded(
            lambda: self.strategy.on_rate_limit(worker_id, self.consecutive),
            seconds=self._hook_seconds,
            what="rate_limit_strategy.on_rate_limit",
        )
        if settled.error is None and not is_duration(settled.value):
            settled.error = TypeError(
                f"on_rate_limit returned {settled.value!r}; it must return seconds >= 0"
            )
        if settled.error is not None:
            kind = type(settled.error).__name__
            _log.error("the rate-limit strategy failed with %s, so nobody pauses", kind)
            _log.debug("the rate-limit strategy failed", exc_info=settled.error)
            return 0.0, settled.error
        return float(settled.value), None

    def _resume(self, seconds: float, error: BaseException | None = None) -> None:
        self._clear_timer()
        self.resumed.set()
        data: dict[str, Any] = {"duration": seconds}
        if error is not None:
            data["error"] = describe(error)
        self._events.emit(ProcessingEvent.COOLDOWN_ENDED, data)
        self._slow_start = error is None
        self._let_out_since_resume = 0
        self._slow_ready_at = None
        self._last_let_out = asyncio.get_running_loop().time()
        self._advance()

    def close(self) -> None:
        """Let out no more calls in this run."""
        self.closed, self.wide_open = True, False

    def reset(self) -> None:
        """End cooldown and slow start; the next run starts with an open gate."""
        self.closed = False
        self.resumed.set()
        self._slow_start = False
        self.consecutive = 0
        self._limit = None
        self._advance()

    def _advance(self) -> None:
        """Let out whoever may go now, and wake up when the next one may."""
        loop = asyncio.get_running_loop()
        while self._waiting and self.resumed.is_set():
            if self._waiting[0].done():
                self._waiting.popleft()
                continue
            try:
                ready_at = self._ready_at()
            except FATAL as error:
                # The loop's own callbacks are no place to end the program from.
                self._waiting.popleft().set_exception(error)
                continue
            if ready_at > loop.time():
                if ready_at < math.inf:
                    self._set_timer(ready_at, self._advance)
                return
            self._waiting.popleft().set_result(self._let_out(loop.time()))
        if self.resumed.is_set():
            self._clear_timer()
            self._set_wide_open()

    def _set_wide_open(self) -> None:
        is_idle = self._limit is None or self._limit.is_idle
        self.wide_open = (
            is_idle
            and self._meter is None
            and not (self._slow_start or self.consecutive or self.closed)
            and self.resumed.is_set()
        )

    def _let_out(self, now: float) -> Admission | None:
        self._last_let_out = now
        self._let_out_since_resume += 1
        self._slow_ready_at = None
        if self._meter is not None:
            self._meter.take(now)
        if self._limit is None:
            return None
        admission = self._limit.start(now)
        self._tell_pause(self._limit)
        return admission

    def _ready_at(self) -> float:
        ready_at = -math.inf if self._meter is None else self._meter.ready_at()
        if self._limit is not None:
            ready_at = max(ready_at, self._limit.ready_at(asyncio.get_running_loop().time()))
            self._tell_pause(self._limit)
        if self._slow_start:
            if self._slow_ready_at is None:
                self._slow_ready_at = self._last_let_out + self._slow_delay()
            ready_at = max(ready_at, self._slow_ready_at)
        return ready_at

    def _tell_pause(self, limit: AdaptiveLimit) -> None:
        """Where nothing is let in, the time until the next try is a cooldown for who watches."""
        until = limit.paused_until
        now = asyncio.get_running_loop().time()
        if until is not None and self._paused_at is None:
            self._paused_at = now
            self.consecutive += 1
            _log.warning("rate limited: nothing is let in; the next try is in %g s", until - now)
            data = {"worker_id": 0, "duration": until - now, "consecutive": self.consecutive}
            self._events.emit(ProcessingEvent.COOLDOWN_STARTED, data)
        elif until is None and self._paused_at is not None:
            data = {"duration": now - self._paused_at}
            self._paused_at = None
            self._events.emit(ProcessingEvent.COOLDOWN_ENDED, data)

    def _slow_delay(self) -> float:
        """Ask the strategy once per call; its first False ends the slow start."""
        self._slow_start = False
        if getattr(self.strategy, "should_apply_slow_start", None) is None:
            return 0.0
        try:
            applies, delay = self.strategy.should_apply_slow_start(self._let_out_since_resume)
        except FATAL:
            raise
        except BaseException as error:
            kind = type(error).__name__
            _log.error("should_apply_slow_start failed with %s: no slow start", kind)
            _log.debug("should_apply_slow_start failed", exc_info=error)
            return 0.0
        if not applies:
            return 0.0
        if not is_duration(delay):
            _log.error("should_apply_slow_start gave a delay of %r: no slow start", delay)
            return 0.0
        self._slow_start = True
        return float(delay)

    def _set_timer(self, at: float, callback: Any, *args: Any) -> None:
        self._clear_timer()
        self._timer = asyncio.get_running_loop().call_at(at, callback, *args)

    def _clear_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def is_duration(value: Any) -> TypeGuard[float]:
    """Whether it is a number of seconds that can be waited for."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value >= 0
    )
