"""The story of one item, from the worker that took it to its result."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

from batch_llm._engine.attempt import Attempts
from batch_llm._engine.events import Events
from batch_llm._engine.gate import Gate
from batch_llm._engine.hooks import Hooks
from batch_llm._engine.journal import Failure, Journal, describe, total_of
from batch_llm._engine.lifecycle import Entry, Lifecycle
from batch_llm._engine.progress import Progress
from batch_llm._engine.recovery import Recovery
from batch_llm._engine.worker import Worker
from batch_llm.base import LLMWorkItem, ProcessingStats, WorkItemResult
from batch_llm.observers.events import ProcessingEvent
from batch_llm.strategies.errors import StrategyContractError

Skipped = Literal["Skipped by middleware"]
SKIPPED: Skipped = "Skipped by middleware"

# A member of an enum takes longer to look up than to tell.
_ITEM_STARTED = ProcessingEvent.ITEM_STARTED
_ITEM_COMPLETED = ProcessingEvent.ITEM_COMPLETED


@dataclass(slots=True, kw_only=True)
class ItemRunner:
    """Turns items into results; one per run, shared by its workers."""

    gate: Gate
    attempts: Attempts
    recovery: Recovery
    lifecycle: Lifecycle
    hooks: Hooks
    events: Events
    progress: Progress | None
    stats: ProcessingStats
    wind_down: Callable[[str], None]
    now: Callable[[], float]

    async def run(
        self, item: LLMWorkItem[Any, Any, Any], worker: Worker
    ) -> WorkItemResult[Any, Any]:
        """Process one item; whatever goes wrong, there is a result."""
        journal = worker.journal
        journal.begin(item)
        if self.events.watched:
            self._tell_start(journal)
        if self.hooks.middlewares and not await self._let_in(journal):
            return await self.conclude(journal, SKIPPED)
        entry = self.lifecycle.entry_of(journal.item.strategy)
        if not (entry.prepared or self.attempts.dry_run):
            await self.lifecycle.prepare(entry, journal)
        while (failure := entry.failure) is None:
            if not (self.gate.wide_open or self.attempts.dry_run):
                journal.admission = await self.gate.acquire()
            returned = error = None
            try:
                returned = await self.attempts.call(journal, worker)
            except BaseException as raised:
                error = raised
            failure = self.attempts.outcome(journal, worker, returned, error)
            entry.has_answered = entry.has_answered or failure is None
            if failure is None or not await self._again(journal, failure, entry):
                break
        if self.hooks.middlewares or self.hooks.post_processor is not None:
            return await self.conclude(journal, failure)
        # What conclude() does where there are no hooks to wait for: a coroutine less per item.
        result = _result_of(journal, failure)
        self._take_down(journal, result)
        journal.released = True
        entry.pending -= 1
        if not entry.pending:
            await self.lifecycle.retire(entry)
        return result

    async def _again(self, journal: Journal, failure: Failure, entry: Entry) -> bool:
        """Let everybody know of a failed attempt; whether there is to be another.

        A strategy that breaks its contract before it ever answered gets no further call.
        """
        if isinstance(failure.error, StrategyContractError) and not entry.has_answered:
            entry.failure = failure
        await self.recovery.pause_if_rate_limited(
            journal, failure.info, in_flight=self.attempts.calls_in_flight
        )
        journal.admission = None
        await self.hooks.on_error(journal.item, failure.error, journal.attempt)
        if failure.info.ends_run and self.gate.adapts:
            self.wind_down(failure.info.message or describe(failure.error))
        return await self.recovery.again(journal, failure)

    async def conclude(
        self, journal: Journal, failure: Failure | Skipped | None
    ) -> WorkItemResult[Any, Any]:
        """Make the item's result, and let everybody know."""
        journal.concluding = True
        result = _result_of(journal, failure)
        if self.hooks.middlewares:
            if failure is None:
                result = await self.hooks.after(result)
            elif isinstance(failure, Failure):
                result = await self.hooks.recover(journal.item, failure.error) or result
                _complete(result, journal, failure)
            if not result.token_usage:
                result.token_usage = journal.usage
        self._take_down(journal, result)
        if self.hooks.post_processor is not None:
            await self.hooks.finished(result)
        if (last_of := self._leave(journal)) is not None:
            await self.lifecycle.retire(last_of)
        return result

    def may_stop(self, worker: Worker) -> bool:
        """Whether nothing that was paid for is lost if the worker stops now."""
        journal = worker.journal
        return not journal.open or not (journal.concluding or self.attempts.in_flight(worker))

    async def take_over(self, journal: Journal, error: BaseException) -> WorkItemResult[Any, Any]:
        """Conclude an item whose worker is gone, from wherever that worker left off."""
        if journal.result is None:
            info = self.recovery.classify(error, journal.item)
            return await self.conclude(journal, Failure(error, info))
        if not journal.released and (last_of := self._leave(journal)) is not None:
            await self.lifecycle.retire(last_of)
        return journal.result

    def _leave(self, journal: Journal) -> Entry | None:
        """Let go of the item's strategy; gives its entry if there is no other item of it."""
        journal.released = True
        return self.lifecycle.leave(journal.strategy)

    async def _let_in(self, journal: Journal) -> bool:
        """Go on with the item that middleware makes of the accepted one; False skips it."""
        changed = await self.hooks.before(journal.item)
        if changed is None:
            return False
        if changed.strategy is not journal.strategy:
            self.lifecycle.expect(changed.strategy)
            last_of = self._leave(journal)
            journal.strategy, journal.released = changed.strategy, False
            if last_of is not None:
                await self.lifecycle.retire(last_of)
        journal.item = changed
        return True

    def _tell_start(self, journal: Journal) -> None:
        journal.started = self.now()
        self.events.emit(
            _ITEM_STARTED, {"item_id": journal.item.item_id, "worker_id": journal.worker_id}
        )

    def _take_down(self, journal: Journal, result: WorkItemResult[Any, Any]) -> None:
        """Put a result into the record and the stats, and tell whoever watches."""
        journal.result = result
        stats = self.stats
        stats.processed += 1
        if not result.success:
            self._take_down_failure(result)
        else:
            stats.succeeded += 1
            if self.events.watched:
                self.events.emit(
                    _ITEM_COMPLETED,
                    {
                        "item_id": result.item_id,
                        "duration": self.now() - journal.started,
                        "tokens": total_of(journal.usage),
                    },
                )
        if self.progress is not None:
            self.progress.report(stats, result.item_id)

    def _take_down_failure(self, result: WorkItemResult[Any, Any]) -> None:
        self.stats.failed += 1
        kind = _kind_of(result.error)
        counts = self.stats.error_counts
        counts[kind] = counts.get(kind, 0) + 1
        if result.exception is not None:
            kind = type(result.exception).__name__
            _drop_frames(result.exception)
        elif result.error == SKIPPED:
            kind = "Skipped"
        if self.events.watched:
            self.events.emit(
                ProcessingEvent.ITEM_FAILED, {"item_id": result.item_id, "error_type": kind}
            )


_new: Any = object.__new__


def _result_of(journal: Journal, failure: Failure | Skipped | None) -> WorkItemResult[Any, Any]:
    item = journal.item
    output = error = None
    if failure is None:
        output = journal.output
    elif isinstance(failure, Failure):
        error = describe(failure.error)
    else:
        error = failure
    # Field by field: the dataclass's own __init__ takes longer than all else in this function.
    result: WorkItemResult[Any, Any] = _new(WorkItemResult)
    result.item_id = item.item_id
    result.success = failure is None
    result.output = output
    result.error = error
    result.context = item.context
    result.token_usage = journal.usage
    result.gemini_safety_ratings = None
    result.attempts = journal.attempt
    if isinstance(failure, Failure):
        result.exception = failure.error
    return result


def _kind_of(error: object) -> str:
    """What stands before the colon of an error, which is a text unless middleware made it."""
    try:
        return str(error or "unknown").split(":", 1)[0]
    except Exception:
        return type(error).__name__


def _complete(result: WorkItemResult[Any, Any], journal: Journal, failure: Failure) -> None:
    """Add to a result that middleware may have made what is known of the item."""
    if result.context is None:
        result.context = journal.item.context
    result.attempts = result.attempts or journal.attempt
    given: object = result.exception
    if not isinstance(given, BaseException):
        result.exception = None if result.success else failure.error


def _drop_frames(error: BaseException) -> None:
    """Take the tracebacks, whose frames would pin memory, off an error and what caused it."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        # Not by assignment, which an exception's own __setattr__ may refuse.
        current.with_traceback(None)
        pending += [current.__cause__, current.__context__]
        if isinstance(current, BaseExceptionGroup):
            pending += cast("BaseExceptionGroup[BaseException]", current).exceptions
