"""The story of one item, from the worker that took it to its result."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

from batch_llm._engine.attempt import Attempts
from batch_llm._engine.events import Events
from batch_llm._engine.gates import Gates
from batch_llm._engine.hooks import Hooks
from batch_llm._engine.journal import Failure, Journal, describe, total_of
from batch_llm._engine.lifecycle import NOBODY, Lifecycle
from batch_llm._engine.progress import Progress
from batch_llm._engine.recovery import Recovery
from batch_llm._engine.worker import Worker
from batch_llm.base import LLMWorkItem, ProcessingStats, TokenUsage, WorkItemResult
from batch_llm.observers.events import ProcessingEvent
from batch_llm.strategies.errors import StrategyContractError

Skipped = Literal["Skipped by middleware"]
SKIPPED: Skipped = "Skipped by middleware"

Ending = Failure | Skipped | None
"""Why an item ends without an answer; None where it has one."""

# A member of an enum takes longer to look up than to tell.
_ITEM_COMPLETED = ProcessingEvent.ITEM_COMPLETED


class Pool(Protocol):
    """Where a worker's items come from, and where their results go."""

    queue: deque[LLMWorkItem[Any, Any, Any]]
    self_service: bool
    outbox: list[WorkItemResult[Any, Any]]
    pause_at: int

    async def next_item(self, worker: Worker) -> LLMWorkItem[Any, Any, Any] | None:
        """Let others have their turn where it is time for that, and take an item.

        Returns:
            None where there is none: the worker is to go home.
        """
        ...

    def leave(self, worker: Worker, error: BaseException) -> None:
        """Pass on what ends a worker, and save what it has.

        Raises:
            asyncio.CancelledError: That was the error.
        """
        ...


@dataclass(slots=True, kw_only=True)
class ItemRunner:
    """Turns items into results; one per run, shared by its workers."""

    gates: Gates
    attempts: Attempts
    recovery: Recovery
    lifecycle: Lifecycle
    hooks: Hooks
    events: Events
    progress: Progress | None
    stats: ProcessingStats
    wind_down: Callable[[str], None]

    async def work(self, worker: Worker, pool: Pool) -> None:
        """Turn one item after another into its result; whatever goes wrong, there is one.

        A worker has one coroutine for all its items: one for each would be a tenth of the
        time that an item takes.
        """
        journal, queue, entry = worker.journal, pool.queue, NOBODY
        attempts, events, entry_of = self.attempts, self.events, self.lifecycle.entry_of
        watching, has_hooks = events if events.watched else None, self.hooks.follow
        try:
            while (
                item := queue.popleft()
                if queue
                and pool.self_service
                and len(pool.outbox) < pool.pause_at
                and not events.crowded
                else await pool.next_item(worker)
            ) is not None:
                is_known = item.strategy is entry.strategy and entry.pending
                entry = entry if is_known else entry_of(item.strategy)
                journal.begin(item, entry, watching)
                ending: Ending = entry.failure
                if has_hooks or not entry.prepared:
                    ending = await self._let_in(journal)
                    entry = journal.entry
                gate = entry.gate
                while ending is None:
                    if not (gate.wide_open or attempts.dry_run or gate.admit(journal)):
                        await gate.line_up(journal)
                    returned = error = None
                    try:
                        returned = await attempts.call(journal, worker)
                    except BaseException as raised:
                        error = raised
                    failure = attempts.outcome(journal, worker, returned, error)
                    if failure is None:
                        break
                    ending = await self._after(journal, failure)
                if has_hooks or entry.pending == 1:
                    result = await self.conclude(journal, ending)
                else:
                    result = _result_of(journal, ending)
                    self._take_down(journal, result)
                    entry.pending -= 1
                journal.stage = "idle"
                pool.outbox.append(result)
        except BaseException as error:
            pool.leave(worker, error)

    async def _let_in(self, journal: Journal) -> Ending:
        """Ask middleware, and have the strategy prepared; gives why there is to be no call."""
        if self.hooks.middlewares:
            changed = await self.hooks.before(journal.item)
            if changed is None:
                return SKIPPED
            try:
                changed = self.lifecycle.resolve(changed)
            except StrategyContractError as error:
                return Failure(error, self.recovery.classify(error, journal.item))
            await self._change(journal, changed)
        entry = journal.entry
        if not (entry.prepared or entry.failure or self.attempts.dry_run):
            await self.lifecycle.prepare(entry, journal)
        return entry.failure

    async def _change(self, journal: Journal, item: LLMWorkItem[Any, Any, Any]) -> None:
        """Go on with the item that middleware made of the accepted one."""
        journal.item = item
        if item.strategy is journal.entry.strategy:
            return
        entry, journal.entry = journal.entry, self.lifecycle.expect(item.strategy)
        entry.pending -= 1
        if not entry.pending:
            await self.lifecycle.retire(entry)

    async def _after(self, journal: Journal, failure: Failure) -> Failure | None:
        """Let everybody know of a failed attempt; gives it back where there is to be no other.

        A strategy that breaks its contract before it ever answered gets no further call.
        """
        entry = journal.entry
        if isinstance(failure.error, StrategyContractError) and not entry.has_answered:
            entry.failure = failure
        await self.recovery.pause_if_rate_limited(journal, failure.info)
        journal.admission = None
        await self.hooks.on_error(journal, failure.error)
        if failure.info.ends_run and entry.gate.adapts:
            self.wind_down(failure.info.message or describe(failure.error))
        goes_on = await self.recovery.again(journal, failure)
        return entry.failure if goes_on else failure

    async def conclude(self, journal: Journal, ending: Ending) -> WorkItemResult[Any, Any]:
        """Make the item's result, and let everybody know."""
        journal.stage = "concluding"
        result = _result_of(journal, ending)
        if self.hooks.middlewares:
            if ending is None:
                result = await self.hooks.after(result)
            elif isinstance(ending, Failure):
                result = await self.hooks.recover(journal, ending.error) or result
                _complete(result, journal, ending)
            if not result.token_usage:
                result.token_usage = journal.usage or TokenUsage()
            if journal.state is not None and result.retry_state is None:
                result.retry_state = journal.state
        journal.result, journal.stage = result, "concluded"
        self._take_down(journal, result)
        if self.hooks.post_processor is not None:
            await self.hooks.finished(result)
        await self._release(journal)
        return result

    async def _release(self, journal: Journal) -> None:
        """Let go of the item's strategy, which may have been its last."""
        journal.stage = "released"
        entry = journal.entry
        entry.pending -= 1
        if not entry.pending:
            await self.lifecycle.retire(entry)

    def may_stop(self, worker: Worker) -> bool:
        """Whether nothing that was paid for is lost if the worker stops now."""
        journal = worker.journal
        is_calling = journal.stage == "calling"
        return journal.stage == "idle" or (is_calling and not self.attempts.in_flight(worker))

    async def take_over(self, journal: Journal, error: BaseException) -> WorkItemResult[Any, Any]:
        """Conclude an item whose worker is gone, from wherever that worker left off."""
        if journal.stage in ("calling", "concluding"):
            info = self.recovery.classify(error, journal.item)
            return await self.conclude(journal, Failure(error, info))
        if journal.stage == "concluded":
            await self._release(journal)
        return journal.result

    def _take_down(self, journal: Journal, result: WorkItemResult[Any, Any]) -> None:
        """Put a result into the record and the stats, and tell whoever watches."""
        stats, events = self.stats, self.events
        stats.processed += 1
        if not result.success:
            self._take_down_failure(result)
        else:
            stats.succeeded += 1
            if events.watched:
                try:
                    tokens = journal.usage["total_tokens"]
                except (KeyError, TypeError):
                    tokens = total_of(journal.usage or {})
                duration, state = events.now() - journal.started, journal.state
                if state is not None:
                    data = {"item_id": result.item_id, "duration": duration, "tokens": tokens}
                    events.emit(_ITEM_COMPLETED, {**data, "state": state})
                else:
                    # As emit() does, without the call.
                    events.news.append((_ITEM_COMPLETED, result.item_id, duration, tokens))
                    if len(events.news) >= events.deal_at:
                        events.deal()
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
            data: dict[str, Any] = {"item_id": result.item_id, "error_type": kind}
            if result.retry_state is not None:
                data["state"] = result.retry_state
            self.events.emit(ProcessingEvent.ITEM_FAILED, data)


_new: Any = object.__new__


def _result_of(journal: Journal, ending: Ending) -> WorkItemResult[Any, Any]:
    item = journal.item
    # Field by field: the dataclass's own __init__ takes longer than all else in this function.
    result: WorkItemResult[Any, Any] = _new(WorkItemResult)
    result.item_id = item.item_id
    result.success = True
    result.output = journal.output
    result.error = None
    result.context = item.context
    result.token_usage = journal.usage or TokenUsage()
    result.gemini_safety_ratings = None
    result.attempts = journal.attempt
    if not journal.is_plain:
        _add_particulars(result, journal)
    if ending is not None:
        _add_ending(result, ending)
    return result


def _add_particulars(result: WorkItemResult[Any, Any], journal: Journal) -> None:
    if journal.state is not None:
        result.retry_state = journal.state
    if journal.metadata is not None:
        result.metadata = journal.metadata
        result.gemini_safety_ratings = _ratings_of(journal.metadata)


def _add_ending(result: WorkItemResult[Any, Any], ending: Failure | Skipped) -> None:
    result.success = False
    if not isinstance(ending, Failure):
        result.error = ending
        return
    result.error = describe(ending.error)
    result.exception = ending.error
    result.gemini_safety_ratings = _ratings_of(vars(ending.error))


def _ratings_of(source: Any) -> dict[str, str] | None:
    """The safety ratings in a mapping, where there are any."""
    if not isinstance(source, Mapping):
        return None
    ratings = cast("Mapping[str, Any]", source).get("safety_ratings")
    return cast("dict[str, str]", ratings) if isinstance(ratings, dict) else None


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
