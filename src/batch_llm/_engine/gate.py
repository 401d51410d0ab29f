"""The one door to a quota: learned limits, pauses, slow start, requests and tokens per minute."""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from batch_llm._engine.cooldown import SlowStart, cooldown_seconds, is_duration
from batch_llm._engine.estimates import Estimator
from batch_llm._engine.events import Events
from batch_llm._engine.journal import Journal, describe
from batch_llm._engine.meters import LARGEST_BLOCK, Meters
from batch_llm._engine.tasks import FATAL, Tasks
from batch_llm._engine.waits import Reason, Waits
from batch_llm.base import LLMWorkItem, QuotaStatistics
from batch_llm.core.clock import clock_of, loop_time
from batch_llm.llm_strategies._usage import is_plain, read_usage
from batch_llm.observers.events import ProcessingEvent
from batch_llm.strategies._http import allowances_of
from batch_llm.strategies.adaptive import AdaptiveLimit, Admission
from batch_llm.strategies.rate_limit import RateLimitStrategy
from batch_llm.strategies.tokens import LearnedTokenEstimator

_log = logging.getLogger(__name__)

Item = LLMWorkItem[Any, Any, Any]


@dataclass(slots=True)
class _Turn:
    """A call that waits in line."""

    future: asyncio.Future[Admission | None]
    tokens: float


class Gate:
    """Lets calls out one by one, in the order in which they asked.

    Args:
        strategy: Decides the length of a cooldown and the pace after it.
        events: Told of cooldowns.
        tasks: Runs the strategy's own code.
        hook_seconds: Deadline of that code.

    Attributes:
        resumed: Set unless there is a cooldown.
        epoch: Number of cooldowns so far. A call remembers it when it is let out, so that
            its late refusal does not start a second cooldown.
        consecutive: Cooldowns since any call succeeded.
        closed: Whether no call goes out any more in this run.
        wide_open: Whether a call may go out at once, with nothing to wait for or count.
        is_calm: Whether there is nothing to wait for or count but requests and tokens.
        answers: Calls of the run that were answered.
        tokens: Tokens that its calls were billed for.
        refusals: Calls that were refused.
    """

    def __init__(
        self, strategy: RateLimitStrategy, *, events: Events, tasks: Tasks, hook_seconds: float
    ) -> None:
        self.strategy = strategy
        self._events = events
        self._tasks = tasks
        self._hook_seconds = hook_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._now: Callable[[], float] = loop_time
        self.resumed = asyncio.Event()
        self.resumed.set()
        self.epoch = 0
        self.consecutive = 0
        self._waiting: deque[_Turn] = deque()
        # Calls that were let out, and have not heard of it yet.
        self._waking = 0
        self._meters = Meters()
        self._calls_in_flight: Callable[[Gate], int]
        self._estimator: Estimator
        self._limit: AdaptiveLimit | None = None
        self._paused_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._slow_start = SlowStart()
        self._reason: Reason = "quota"
        self.closed, self.wide_open, self.is_calm = False, True, True
        self._begin(0.0)

    def _begin(self, now: float) -> None:
        self._begun, self._waits = now, Waits()
        self.answers = self.tokens = self.refusals = 0

    def start(
        self,
        limit: AdaptiveLimit | None = None,
        *,
        estimator: Estimator | None = None,
        calls_in_flight: "Callable[[Gate], int]" = lambda _: 0,
    ) -> None:
        """Begin a run, perhaps on another event loop than the last.

        Args:
            limit: Learns the provider's limit; None where a rate-limit strategy decides.
            estimator: Tells what calls will cost, and never fails; by default learns it.
            calls_in_flight: Counts those that were let out while nobody counted.
        """
        loop = asyncio.get_running_loop()
        self._estimator = LearnedTokenEstimator() if estimator is None else estimator
        self._most_at_once = 1 if self._estimator.is_asked_each_time else LARGEST_BLOCK
        self._limit, self._paused_at = limit, None
        self._calls_in_flight = calls_in_flight
        if self._loop is not loop:
            self._loop = loop
            self.resumed = asyncio.Event()
            self.resumed.set()
            self._meters.reset()
        self._now = clock_of(loop)
        self._begin(loop.time())
        self._set_wide_open()

    def set_limits(
        self, requests_per_minute: float | None, tokens_per_minute: float | None
    ) -> None:
        """Hold to other limits from now on; None for none. Whoever waits is looked at again."""
        now = 0.0 if self._loop is None else self._loop.time()
        self._meters.resize(requests_per_minute, tokens_per_minute, now)
        if self._waiting:
            self._advance()
        self._set_wide_open()

    def statistics(self) -> QuotaStatistics:
        """What happened at the gate in this run so far."""
        now = self._now()
        waited = self._waits.seconds(now)
        limit = self._limit
        learned = None if limit is None else limit.statistics()
        is_capped = limit is not None and limit.is_capped
        requests, tokens = self._meters.requests, self._meters.tokens
        return QuotaStatistics(
            seconds=now - self._begun,
            answered=self.answers,
            refused=self.refusals,
            tokens=self.tokens,
            waited_for_quota_seconds=waited["quota"],
            waited_for_cooldown_seconds=waited["cooldown"],
            waited_for_slots_seconds=waited["slots"],
            requests_per_minute=None if requests is None else requests.per_minute,
            tokens_per_minute=None if tokens is None else tokens.per_minute,
            learned_calls_per_second=_finite(learned.calls_per_second) if learned else None,
            learned_tokens_per_second=_finite(learned.tokens_per_second) if learned else None,
            learned_in_flight=learned.max_in_flight if learned and is_capped else None,
        )

    @property
    def adapts(self) -> bool:
        """Whether limits are learned instead of paused for."""
        return self._limit is not None

    @property
    def is_blocked(self) -> bool:
        """Whether only single calls may go out, to see whether any is let in."""
        return self._limit is not None and self._limit.is_blocked

    def tokens_of(self, item: Item) -> float:
        """What to ask ``acquire`` for: the tokens that a call will cost, 0 if nobody counts."""
        meter = self._meters.tokens
        is_learned = self._limit is not None and self._limit.is_engaged
        if meter is None and not is_learned:
            return 0.0
        tokens = self._estimator.estimate(item.strategy, item.prompt)
        # More than a minute's quota is let in by no provider, and would be a debt for ever.
        return tokens if meter is None else min(tokens, meter.per_minute)

    def admit(self, journal: Journal) -> bool:
        """Let a call out at once, as most are where only requests and tokens are counted.

        Args:
            journal: The record of its item; told what was booked.

        Returns:
            Whether the call may go out; if not, it is to ``line_up``.
        """
        if self._waiting or not self.is_calm:
            return False
        now, meters = self._now(), self._meters
        if meters.permits and now < meters.valid_until:
            meters.permits -= 1
        elif not meters.take_block(now, self.tokens_of(journal.item), most=self._most_at_once):
            return False
        journal.booked = meters.booked
        return True

    async def line_up(self, journal: Journal) -> None:
        """Wait until the next call for an item may go out.

        Args:
            journal: The record of its item; told what was booked.
        """
        admission = await self.acquire(self.tokens_of(journal.item))
        journal.booked = 0.0 if admission is None else admission.tokens
        if admission is not None:
            journal.admission, journal.is_plain = admission, False

    async def acquire(self, tokens: float = 0.0) -> Admission | None:
        """Wait until a call may go out.

        Args:
            tokens: What it is expected to cost.

        Returns:
            What ``ended``, ``settle`` and ``refused`` want to know.
        """
        if not self._waiting and self.resumed.is_set():
            now = self._now()
            if self._ready_at(tokens, now) <= now:
                admission = self._let_out(now, tokens)
                self._set_wide_open()
                return admission
        loop = asyncio.get_running_loop()
        turn = _Turn(loop.create_future(), tokens)
        self._waiting.append(turn)
        if self._waiting[0] is turn:
            self._advance()
        admission = await self._turn(turn)
        while not self.resumed.is_set():
            # A cooldown began between the turn and this wake-up: first in line again.
            self._take_back(admission)
            turn = _Turn(loop.create_future(), tokens)
            self._waiting.appendleft(turn)
            self._note_wait()
            admission = await self._turn(turn)
        return admission

    async def _turn(self, turn: _Turn) -> Admission | None:
        try:
            admission = await turn.future
        except asyncio.CancelledError:
            if not turn.future.cancelled():
                self._waking -= 1
                self._take_back(turn.future.result())
            raise
        self._waking -= 1
        return admission

    def _take_back(self, admission: Admission | None) -> None:
        """A call that was let out is not made after all."""
        if self._meters.tokens is not None and admission is not None:
            self._meters.tokens.give_back(admission.tokens)
        if self._limit is not None:
            self._limit.end()
        if self._limit is not None or self._meters.tokens is not None:
            self._advance()

    def ended(self, admission: Admission | None, *, answered: bool) -> None:
        """A call ended while the gate is not calm.

        Args:
            admission: What ``acquire`` gave, if it was asked.
            answered: Whether the provider let the call in and answered it.
        """
        if answered:
            self.consecutive = 0
        if self._limit is not None:
            self._limit.end()
            if answered:
                self._limit.answered(admission, self._now())
        self._set_wide_open()
        if self._waiting:
            self._advance()

    def settle(self, item: Item, booked: float, used: int, usage: object) -> None:
        """Give back what a call has used less than was expected of it, or owe what was more.

        Args:
            item: The call's item.
            booked: What was expected.
            used: The tokens that the call was billed for.
            usage: The same as the strategy has told it, in any shape.
        """
        estimator = self._estimator
        if estimator.to_skip:
            estimator.to_skip -= 1
        elif used:
            counts: Any = usage if is_plain(usage) else read_usage(usage)
            estimator.learn(item.strategy, item.prompt, counts)
        meter = self._meters.tokens
        if meter is None:
            return
        if used <= booked:
            meter.whole_at -= (booked - used) * meter.seconds_per_unit
        else:
            meter.take(self._now(), min(used, meter.per_minute) - booked)
        if self._waiting:
            self._advance()

    def told(self, headers: object, admission: Admission | None, *, is_refusal: bool) -> None:
        """A response has come, whose headers may say how much is left.

        Args:
            headers: The response's, in the shape of any client; None for none.
            admission: What ``acquire`` gave its call, if it was asked.
            is_refusal: Whether the call was refused for its rate limit.
        """
        if self._limit is None or headers is None or not (found := allowances_of(headers)):
            return
        self._engage(self._limit)
        self._limit.told(found, admission, self._now(), is_refusal=is_refusal)

    def _engage(self, limit: AdaptiveLimit) -> None:
        if not limit.is_engaged:
            in_flight = self._calls_in_flight(self) + self._waking
            limit.engage(answered=self.answers, in_flight=in_flight)
            self._set_wide_open()

    def refused(self, admission: Admission | None, *, hint_seconds: float | None) -> None:
        """A call that ended was refused: learn from it.

        Args:
            admission: What ``acquire`` gave, if it was asked.
            hint_seconds: What the provider asked to wait, None if it named nothing.
        """
        assert self._limit is not None
        if self.refusals == 1:
            _log.warning("rate limited: from now on calls go out as the provider lets them in")
        self._engage(self._limit)
        hint = float(hint_seconds) if is_duration(hint_seconds) else None
        self._limit.refused(admission, self._now(), hint)
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
        self.resumed.clear()
        self._set_wide_open()
        self._note_wait()
        seconds, error = 0.0, None
        try:
            if is_duration(hint_seconds):
                seconds = float(hint_seconds)
            else:
                asked = await cooldown_seconds(
                    self.strategy,
                    worker_id,
                    self.consecutive,
                    tasks=self._tasks,
                    hook_seconds=self._hook_seconds,
                )
                seconds, error = asked.value, asked.error
        finally:
            self._events.emit(
                ProcessingEvent.COOLDOWN_STARTED,
                {"worker_id": worker_id, "duration": seconds, "consecutive": self.consecutive},
            )
            if seconds > 0:
                self._set_timer(self._now() + seconds, self._resume, seconds)
            else:
                self._resume(seconds, error)
        if error is None:
            _log.warning("rate limited: all workers pause for %g s", seconds)

    def _resume(self, seconds: float, error: BaseException | None = None) -> None:
        self._clear_timer()
        self.resumed.set()
        data: dict[str, Any] = {"duration": seconds}
        if error is not None:
            data["error"] = describe(error)
        self._events.emit(ProcessingEvent.COOLDOWN_ENDED, data)
        self._slow_start.is_on = False
        if error is None:
            self._slow_start.begin(self._now())
        self._advance()

    def close(self) -> None:
        """Let out no more calls in this run."""
        self.closed = True

    def reset(self) -> None:
        """End cooldown and slow start; the next run starts with an open gate."""
        self.closed = False
        self.resumed.set()
        self._slow_start.is_on = False
        self.consecutive = 0
        self._limit = None
        self._advance()

    def _advance(self) -> None:
        """Let out whoever may go now, and wake up when the next one may."""
        while self._waiting and self.resumed.is_set():
            first = self._waiting[0]
            if first.future.done():
                self._waiting.popleft()
                continue
            now = self._now()
            try:
                ready_at = self._ready_at(first.tokens, now)
            except FATAL as error:
                # The loop's own callbacks are no place to end the program from.
                self._waiting.popleft().future.set_exception(error)
                continue
            if ready_at > now:
                if ready_at < math.inf:
                    self._set_timer(ready_at, self._advance)
                self._note_wait()
                return
            self._waiting.popleft()
            self._waking += 1
            first.future.set_result(self._let_out(now, first.tokens))
        self._note_wait()
        if self.resumed.is_set():
            self._clear_timer()
            self._set_wide_open()

    def _note_wait(self) -> None:
        reason: Reason | None = None
        if self._waiting:
            reason = self._reason if self.resumed.is_set() else "cooldown"
        self._waits.note(reason, self._now())

    def _set_wide_open(self) -> None:
        self.is_calm = (
            (self._limit is None or self._limit.is_idle)
            and not (self._slow_start.is_on or self.consecutive)
            and self.resumed.is_set()
        )
        self.wide_open = self.is_calm and not self._meters.counts

    def _let_out(self, now: float, tokens: float) -> Admission | None:
        if self.wide_open:
            return None
        if self._slow_start.is_on:
            self._slow_start.let_out(now)
        self._meters.take(now, tokens)
        if self._limit is None:
            return Admission(0, now, 0, tokens) if tokens else None
        admission = self._limit.start(now, tokens)
        self._tell_pause(self._limit)
        return admission

    def _ready_at(self, tokens: float, now: float) -> float:
        """When a call may go out, and what it waits for until then."""
        if self.wide_open:
            return -math.inf
        ready_at, self._reason = self._meters.ready_at(tokens), "quota"
        if self._limit is not None:
            learned_at = self._limit.ready_at(now, tokens)
            if learned_at > ready_at:
                ready_at, self._reason = learned_at, _reason_of(self._limit, learned_at)
            self._tell_pause(self._limit)
        if self._slow_start.is_on:
            slow_at = self._slow_start.ready_at(self.strategy)
            if slow_at > ready_at:
                ready_at, self._reason = slow_at, "cooldown"
        return ready_at

    def _tell_pause(self, limit: AdaptiveLimit) -> None:
        """Where nothing is let in, the time until the next try is a cooldown for who watches."""
        until, now = limit.paused_until, self._now()
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

    def _set_timer(self, at: float, callback: Any, *args: Any) -> None:
        self._clear_timer()
        self._timer = asyncio.get_running_loop().call_at(at, callback, *args)

    def _clear_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _finite(rate: float) -> float | None:
    return None if rate == math.inf else rate


def _reason_of(limit: AdaptiveLimit, ready_at: float) -> Reason:
    if limit.is_blocked:
        return "cooldown"
    return "slots" if ready_at == math.inf or not limit.is_engaged else "quota"
