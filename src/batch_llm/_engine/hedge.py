"""A second chance for stragglers: the first of two equal calls answers.

The method is the hedged request of Dean and Barroso, "The Tail at Scale" (2013). A duplicate
takes the place of a worker that has nothing to do, so it never keeps an item waiting.
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, cast

from batch_llm._engine.journal import Journal
from batch_llm._engine.tasks import FATAL, Settled, Tasks, settle
from batch_llm.base import LLMWorkItem, ProcessingStats, TokenUsage
from batch_llm.llm_strategies._usage import read_usage
from batch_llm.strategies.adaptive import Admission
from batch_llm.strategies.errors import ErrorInfo

_FEWEST_LATENCIES = 20
_LAST_LATENCIES = 200

_Task = asyncio.Task[Settled]


class Latencies:
    """How long the last answers of a strategy took, in seconds."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=_LAST_LATENCIES)

    def add(self, seconds: float) -> None:
        """Take in an answer, or how long an answer that was given up had taken at least."""
        self._last.append(seconds)

    def quantile(self, share: float) -> float | None:
        """What that share of them did not exceed; None while there are too few to say."""
        if len(self._last) < _FEWEST_LATENCIES:
            return None
        return sorted(self._last)[math.ceil(share * len(self._last)) - 1]


class Places(Protocol):
    """The workers that have nothing to do."""

    def borrow(self) -> asyncio.Future[None]:
        """Ask for the place of one; done once there is one."""
        ...

    def give_back(self, place: asyncio.Future[None]) -> None:
        """Need it no more, whether it was lent or not."""
        ...


class Hedges:
    """Makes a call and, where it is late, one duplicate.

    Args:
        share: Which share of the answers before it a call outlasts before it is late.
        tasks: Where calls live that may be given up.
        places: Lends the place for a duplicate.
        classify: Says what kind of failure an error is.
        stats: Gets the tokens of what is given up.
    """

    def __init__(
        self,
        share: float,
        *,
        tasks: Tasks,
        places: Places,
        classify: Callable[[BaseException, LLMWorkItem[Any, Any, Any]], ErrorInfo],
        stats: ProcessingStats,
    ) -> None:
        self._share = share
        self._tasks = tasks
        self._places = places
        self._classify = classify
        self._stats = stats
        self._loop = asyncio.get_running_loop()

    async def call(self, journal: Journal, make: Callable[[], Awaitable[Any]]) -> Any:
        """The first answer.

        Args:
            journal: The item's record; is billed for what is given up.
            make: Makes the call, and makes it again.

        Returns:
            What the call returned that answered first.

        Raises:
            BaseException: What the call raised, where there is no answer.
        """
        entry, begun = journal.entry, self._loop.time()
        entry.latencies = latencies = entry.latencies or Latencies()
        patience = latencies.quantile(self._share)
        if patience is None:
            returned = await make()
            latencies.add(self._loop.time() - begun)
            return returned
        name = f"call of item {journal.item.item_id!r}"
        tasks = [self._tasks.spawn(settle(make), name=name)]
        try:
            await asyncio.wait(tasks, timeout=patience)
            if not tasks[0].done():
                await self._hedge(journal, make, tasks)
            first = next((task for task in tasks if _decides(task)), tasks[0])
            await asyncio.wait((first,))
        finally:
            await self._tasks.end([task for task in tasks if not task.done()])
        settled = first.result()
        self._bill_the_other(journal, settled, [task for task in tasks if task is not first])
        if settled.error is not None:
            raise settled.error
        latencies.add(self._loop.time() - begun)
        return settled.value

    async def _hedge(
        self, journal: Journal, make: Callable[[], Awaitable[Any]], tasks: list[_Task]
    ) -> None:
        """Make the call once more when there is a place for it.

        Comes back when there is an answer, or only the first call is left to wait for.
        """
        place = self._places.borrow()
        turn: asyncio.Task[Admission | None] | None = None
        try:
            await asyncio.wait((tasks[0], place), return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                return
            gate = journal.entry.gate
            turn = self._tasks.spawn(
                gate.acquire(gate.tokens_of(journal.item)), name=f"{tasks[0].get_name()}, again"
            )
            await asyncio.wait((tasks[0], turn), return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done() or turn.cancelled() or gate.closed:
                return
            self._stats.hedged_calls += 1
            again = self._tasks.spawn(settle(make), name=turn.get_name())
            tasks.append(again)
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done() and not _decides(tasks[0]):
                await asyncio.wait((again,))
        finally:
            self._places.give_back(place)
            if turn is not None:
                self._end_turn(journal, turn, tasks)

    def _end_turn(
        self, journal: Journal, turn: asyncio.Task[Admission | None], tasks: list[_Task]
    ) -> None:
        """Tell the gate what became of a duplicate, or that there is none."""
        if not turn.done() or turn.cancelled() or turn.exception() is not None:
            turn.cancel()
            return
        gate, admission = journal.entry.gate, turn.result()
        again = tasks[1].result() if len(tasks) > 1 and _is_settled(tasks[1]) else None
        error = None if again is None else again.error
        gate.ended(admission, answered=again is not None and error is None)
        info = None if error is None else self._kind_of(journal, error)
        is_refused = info is not None and info.is_rate_limit
        usage = TokenUsage() if again is None else _usage_in(again.value)
        if admission is not None and (len(tasks) == 1 or is_refused):
            # Nothing was used.
            gate.settle(journal.item, admission.tokens, 0, {})
        elif admission is not None and usage:
            gate.settle(journal.item, admission.tokens, usage.get("total_tokens", 0), usage)
        if info is not None and is_refused and gate.adapts:
            gate.refused(admission, hint_seconds=info.suggested_wait)

    def _kind_of(self, journal: Journal, error: BaseException) -> ErrorInfo:
        """What kind of failure it is; a refusal is counted."""
        info = self._classify(error, journal.item)
        if info.is_rate_limit:
            self._stats.rate_limit_count += 1
            journal.entry.gate.refusals += 1
        return info

    def _bill_the_other(self, journal: Journal, settled: Settled, others: list[_Task]) -> None:
        """Add what the call costs that does not count.

        What a call that is given up would have answered is not known; its prompt is billed
        like that of its twin.
        """
        for other in others:
            # One that ignores its cancellation is left behind without a result.
            lost = other.result() if _is_settled(other) else Settled(error=_GIVEN_UP)
            if lost.error is None:
                journal.bill(_usage_in(lost.value), self._stats)
            elif not isinstance(lost.error, asyncio.CancelledError):
                journal.bill_failure(lost.error, self._stats)
            elif used := _usage_in(settled.value):
                read = {key: used.get(key, 0) for key in ("input_tokens", "cached_input_tokens")}
                total = read["input_tokens"]
                journal.bill(read | {"output_tokens": 0, "total_tokens": total}, self._stats)


_GIVEN_UP = asyncio.CancelledError()


def _usage_in(returned: Any) -> TokenUsage:
    """The tokens of an answer, without what else it reports; none where it is no answer."""
    is_answer = isinstance(returned, tuple) and len(cast("tuple[Any, ...]", returned)) > 1
    return read_usage(returned[1]) if is_answer else TokenUsage()


def _is_settled(task: _Task) -> bool:
    return task.done() and not task.cancelled()


def _has_answer(task: _Task) -> bool:
    return _is_settled(task) and task.result().error is None


def _decides(task: _Task) -> bool:
    """Whether there is nothing more to wait for: an answer, or what ends the program."""
    return _has_answer(task) or (_is_settled(task) and isinstance(task.result().error, FATAL))
