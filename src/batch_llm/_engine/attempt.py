"""One bounded call, awaited by the story itself, and what came of it."""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable
from types import CoroutineType
from typing import Any, cast

from batch_llm._engine.deadlines import Deadlines
from batch_llm._engine.gate import Gate
from batch_llm._engine.hedge import Hedges
from batch_llm._engine.journal import Failure, Journal, total_of
from batch_llm._engine.tasks import FATAL
from batch_llm._engine.worker import Worker
from batch_llm.base import LLMWorkItem, ProcessingStats
from batch_llm.llm_strategies.base import LLMCallStrategy
from batch_llm.strategies._http import headers_in, headers_of
from batch_llm.strategies.errors import ErrorInfo, FrameworkTimeoutError, StrategyContractError

_log = logging.getLogger(__name__)

# An answer is a tuple of the output and its usage, and perhaps of metadata.
_ANSWER, _LONG_ANSWER = 2, 3


class Attempts:
    """Makes calls, each bounded by the run's one timeout.

    The story awaits the strategy's own coroutine between ``call`` and ``outcome``: a call
    takes no task, no timer and no frame of ours.

    Args:
        deadlines: Bounds each call from then on.
        classify: Says what kind of failure an error is.
        stats: Gets the tokens of each call.
        hedges: Make duplicates of late calls, where that is wished.
        dry_run: Whether strategies are to pretend.
        detailed: Whether answers are logged too, beside the failures.
    """

    def __init__(  # noqa: PLR0913 - one builder, all by name
        self,
        deadlines: Deadlines,
        classify: Callable[[BaseException, LLMWorkItem[Any, Any, Any]], ErrorInfo],
        *,
        stats: ProcessingStats,
        hedges: Hedges | None,
        dry_run: bool,
        detailed: bool,
    ) -> None:
        self._deadlines = deadlines
        self._classify = classify
        self._stats = stats
        self._hedges = hedges
        self.dry_run = dry_run
        self._has_detour = dry_run or hedges is not None
        self._detailed = detailed

    def call(self, journal: Journal, worker: Worker) -> Any:
        """Start the time and make the call.

        Returns:
            What is to be awaited: the strategy's own coroutine, as a rule.

        Raises:
            StrategyContractError: The strategy's ``execute`` gave nothing to await.
        """
        entry, item = journal.entry, journal.item
        journal.epoch = entry.gate.epoch
        if not journal.repeats:
            journal.attempt += 1
        deadlines = self._deadlines
        # As open() does, without the call.
        worker.deadline = end = deadlines.now() + deadlines.seconds
        if deadlines.timer is None:
            deadlines.arm(end)
        if self._has_detour or entry.takes_state:
            return self._detour(journal)
        call: Any = item.strategy.execute(item.prompt, journal.attempt, deadlines.seconds)
        if type(call) is not CoroutineType and not inspect.isawaitable(call):
            raise _not_async(item.strategy, call)
        return call  # pyright: ignore[reportUnknownVariableType] - narrowed from Any

    def _detour(self, journal: Journal) -> Awaitable[Any]:
        """The call, where it is more than a call of ``execute`` with three arguments."""
        if self.dry_run:
            return _pretend(journal.item.strategy, journal.item.prompt)
        if self._hedges is not None:
            return self._hedges.call(journal, lambda: self._execute(journal))
        return self._execute(journal)

    def _execute(self, journal: Journal) -> Awaitable[Any]:
        strategy: Any = journal.item.strategy
        more = {"state": journal.shared_state()} if journal.entry.takes_state else {}
        call = strategy.execute(
            journal.item.prompt, journal.attempt, self._deadlines.seconds, **more
        )
        if not inspect.isawaitable(call):
            raise _not_async(strategy, call)
        return call

    def calls_in_flight(self, gate: Gate) -> int:
        """Calls that are on their way to a gate's quota."""
        running = cast("Iterable[Worker]", self._deadlines)
        return sum(worker.journal.entry.gate is gate for worker in running)

    def in_flight(self, worker: Worker) -> bool:
        """Whether a call of the worker's is on its way."""
        return worker in self._deadlines

    def outcome(
        self, journal: Journal, worker: Worker, returned: Any, error: BaseException | None
    ) -> Failure | None:
        """Stop the time and take down what came of the call.

        A CancelledError that is not meant for the worker is the strategy's failure like
        any other.

        Args:
            journal: Gets the output and the tokens.
            worker: Who made the call.
            returned: What the call returned.
            error: What the call raised.

        Returns:
            None for an answer, or the failure as a value.

        Raises:
            asyncio.CancelledError: The worker itself is cancelled.
            KeyboardInterrupt: The strategy raised it.
            SystemExit: The strategy raised it.
        """
        timed_out = False
        if worker.deadline is None:
            timed_out = self._was_late(worker)
        worker.deadline = None
        answer = returned
        if type(returned) is not tuple or len(returned) != _ANSWER:  # pyright: ignore[reportUnknownArgumentType]
            answer = _unusual_answer(journal, returned)
        entry = journal.entry
        gate = entry.gate
        if not gate.is_calm:
            gate.ended(journal.admission, answered=answer is not None)
        if answer is None:
            return self._failure(journal, worker, returned, error, timed_out=timed_out)
        gate.answers += 1
        entry.has_answered = True
        journal.output, usage = answer
        used = journal.bill(usage, self._stats)
        if journal.booked:
            booked, journal.booked = journal.booked, 0.0
            if usage:
                gate.settle(journal.item, booked, used, usage)
        if not journal.is_plain:
            gate.told(headers_in(journal.metadata), journal.admission, is_refusal=False)
        if self._detailed:
            item_id = journal.item.item_id
            _log.debug("item %s: attempt %s: answer, %s", item_id, journal.attempt, usage)
        return None

    def _failure(
        self,
        journal: Journal,
        worker: Worker,
        returned: Any,
        error: BaseException | None,
        *,
        timed_out: bool,
    ) -> Failure:
        if error is None:
            method = "dry_run" if self.dry_run else "execute"
            error = _wrong_shape(f"{type(journal.item.strategy).__name__}.{method}", returned)
        elif _is_for(worker, error):
            raise error
        elif timed_out and isinstance(error, asyncio.CancelledError):
            error = _timeout(journal.item.strategy, self._deadlines.seconds)
        journal.is_plain = False
        usage = journal.bill_failure(error, self._stats)
        info, gate = self._classify(error, journal.item), journal.entry.gate
        if journal.booked:
            booked, journal.booked = journal.booked, 0.0
            # A refused call has used nothing; of another without usage nothing is known.
            if usage or info.is_rate_limit:
                gate.settle(journal.item, booked, total_of(usage), usage)
        gate.told(headers_of(error), journal.admission, is_refusal=info.is_rate_limit)
        return Failure(error, info)

    def _was_late(self, worker: Worker) -> bool:
        """Whether the worker's time ran out, rather than the run's."""
        if worker.replaced:
            raise asyncio.CancelledError
        return self._deadlines.close(worker)


async def _pretend(strategy: Any, prompt: str) -> Any:
    own: Callable[[str], Any] | None = getattr(strategy, "dry_run", None)
    if own is None:
        return await LLMCallStrategy[Any].dry_run(strategy, prompt)
    value = own(prompt)
    return await value if inspect.isawaitable(value) else value


def _unusual_answer(journal: Journal, returned: Any) -> tuple[Any, Any] | None:
    """Output and usage of an answer with metadata, or of a tuple class of the caller's."""
    if not issubclass(type(returned), tuple) or len(returned) not in (_ANSWER, _LONG_ANSWER):
        return None
    output, usage, *more = returned
    if more:
        journal.metadata, journal.is_plain = more[0], False
    return output, usage


def _is_for(worker: Worker, error: BaseException) -> bool:
    """Whether it ends the program, or the worker, rather than the call."""
    return isinstance(error, FATAL) or (
        isinstance(error, asyncio.CancelledError) and worker.task.cancelling() > 0
    )


def _timeout(strategy: object, seconds: float) -> FrameworkTimeoutError:
    return FrameworkTimeoutError(
        f"timeout: {type(strategy).__name__} did not answer within {seconds} s; "
        "raise ProcessorConfig.timeout_per_item if answers may take longer"
    )


def _wrong_shape(what: str, returned: Any) -> StrategyContractError:
    got = type(returned).__name__
    if isinstance(returned, tuple):
        got += f" of {len(cast('tuple[Any, ...]', returned))}"
    return StrategyContractError(
        f"{what} returned a {got}; it must return the tuple "
        "(output, token_usage), such as (text, {'input_tokens': 10, 'output_tokens': 5}) or "
        "(text, {}). A strategy that has not answered before gets no further call in this run",
        returned=returned,
    )


def _not_async(strategy: object, returned: Any) -> StrategyContractError:
    return StrategyContractError(
        f"{type(strategy).__name__}.execute is not async: it returned a "
        f"{type(returned).__name__} that cannot be awaited; define it with 'async def'. "
        "A strategy that has not answered before gets no further call in this run",
        returned=returned,
    )
