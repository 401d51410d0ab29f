"""One bounded call, awaited by the story itself, and what came of it."""

import asyncio
import inspect
import logging
from collections.abc import Callable
from types import CoroutineType
from typing import Any, cast

from batch_llm._engine.deadlines import Deadlines
from batch_llm._engine.gate import Gate
from batch_llm._engine.journal import Failure, Journal
from batch_llm._engine.tasks import FATAL
from batch_llm._engine.worker import Worker
from batch_llm.base import LLMWorkItem, ProcessingStats
from batch_llm.llm_strategies.base import LLMCallStrategy
from batch_llm.strategies.errors import ErrorInfo, FrameworkTimeoutError, StrategyContractError

_log = logging.getLogger(__name__)

# An answer is a tuple of the output and its usage.
_ANSWER = 2


class Attempts:
    """Makes calls, each bounded by the run's one timeout.

    The story awaits the strategy's own coroutine between ``call`` and ``outcome``: a call
    takes no task, no timer and no frame of ours.

    Args:
        gate: Has let the call out, and learns that one succeeded.
        deadlines: Bounds each call from then on.
        classify: Says what kind of failure an error is.
        stats: Gets the tokens of each call.
        dry_run: Whether strategies are to pretend.
        detailed: Whether answers are logged too, beside the failures.
    """

    def __init__(  # noqa: PLR0913 - one builder, all by name
        self,
        gate: Gate,
        deadlines: Deadlines,
        classify: Callable[[BaseException, LLMWorkItem[Any, Any, Any]], ErrorInfo],
        *,
        stats: ProcessingStats,
        dry_run: bool,
        detailed: bool,
    ) -> None:
        self._gate = gate
        self._deadlines = deadlines
        self._classify = classify
        self._stats = stats
        self.dry_run = dry_run
        self._detailed = detailed

    def call(self, journal: Journal, worker: Worker) -> Any:
        """Start the time and make the call.

        Returns:
            What is to be awaited: the strategy's own coroutine, as a rule.

        Raises:
            StrategyContractError: The strategy's ``execute`` gave nothing to await.
        """
        journal.epoch = self._gate.epoch
        if journal.repeats:
            journal.repeats = False
        else:
            journal.attempt += 1
        deadlines = self._deadlines
        now = deadlines.now
        deadlines.running[worker] = end = now() + deadlines.seconds
        if deadlines.timer is None:
            deadlines.arm(end)
        item = journal.item
        if self.dry_run:
            return _pretend(item.strategy, item.prompt)
        call: Any = item.strategy.execute(item.prompt, journal.attempt, deadlines.seconds)
        if type(call) is not CoroutineType and not inspect.isawaitable(call):
            raise _not_async(item.strategy, call)
        return call  # pyright: ignore[reportUnknownVariableType] - narrowed from Any

    @property
    def calls_in_flight(self) -> int:
        """Calls that are on their way."""
        return len(self._deadlines)

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
        if self._deadlines.running.pop(worker, None) is None:
            timed_out = self._was_late(worker)
        shape = type(returned)  # pyright: ignore[reportUnknownVariableType]
        if shape is tuple and len(returned) == _ANSWER:
            if not self._gate.wide_open:
                self._gate.ended(journal.admission, answered=True)
            journal.entry.has_answered = True
            journal.output, usage = returned
            journal.bill(usage, self._stats)
            if self._detailed:
                item_id = journal.item.item_id
                _log.debug("item %s: attempt %s: answer, %s", item_id, journal.attempt, usage)
            return None
        if not self._gate.wide_open:
            self._gate.ended(journal.admission, answered=False)
        if error is None:
            method = "dry_run" if self.dry_run else "execute"
            error = _wrong_shape(f"{type(journal.item.strategy).__name__}.{method}", returned)
        elif _is_for(worker, error):
            raise error
        elif timed_out and isinstance(error, asyncio.CancelledError):
            error = _timeout(journal.item.strategy, self._deadlines.seconds)
        journal.bill_failure(error, self._stats)
        return Failure(error, self._classify(error, journal.item))

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
