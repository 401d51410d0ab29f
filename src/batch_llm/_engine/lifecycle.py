"""Prepare once, clean up once."""

import asyncio
import copy
import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any, cast

from batch_llm._engine.gate import Gate
from batch_llm._engine.gates import Gates
from batch_llm._engine.hedge import Latencies
from batch_llm._engine.journal import Failure, Journal
from batch_llm._engine.recovery import Recovery
from batch_llm._engine.state import takes_state
from batch_llm._engine.tasks import FATAL, Settled, Tasks, hook, settle
from batch_llm.base import LLMWorkItem
from batch_llm.llm_strategies.base import LLMCallStrategy
from batch_llm.strategies.errors import StrategyContractError

_log = logging.getLogger(__name__)

_IDLE_STRATEGIES = 100

# Hooks that do nothing, and so are not worth a task.
_INHERITED = {"prepare": LLMCallStrategy[Any].prepare, "cleanup": LLMCallStrategy[Any].cleanup}


class Entry:
    """One strategy instance in one run.

    Attributes:
        strategy: The instance; held, so that its identity stays its own.
        gate: That of its quota.
        takes_state: Whether ``execute`` asks for the item's state.
        used: Whether ``prepare`` was called, so that there may be something to clean up.
        prepared: Whether ``prepare`` has succeeded.
        has_answered: Whether ``execute`` has ever returned what it must.
        latencies: How long its answers took, where calls are hedged.
        closing: Done when the cleanup that is under way has ended.
        failure: What fails every item of the strategy: its prepare failed for good, or it
            returned something that no strategy may return.
    """

    __slots__ = (
        "closing",
        "failure",
        "gate",
        "has_answered",
        "items",
        "latencies",
        "pending",
        "prepared",
        "preparing",
        "settled",
        "strategy",
        "takes_state",
        "used",
    )

    def __init__(self, strategy: Any, gate: Gate) -> None:
        self.strategy = strategy
        self.gate = gate
        self.takes_state = takes_state(strategy, "execute")
        self.pending = 0
        self.items = 0
        self.used = False
        self.prepared = False
        self.has_answered = False
        self.latencies: Latencies | None = None
        self.closing: asyncio.Future[None] | None = None
        self.preparing: asyncio.Task[Settled] | None = None
        self.settled: asyncio.Event
        self.failure: Failure | None = None

    def prepare(self) -> Any:
        """Call the strategy's prepare; only from now on is there something to clean up."""
        self.used = True
        return hook(self.strategy, "prepare")()

    def cleanup(self) -> Any:
        """Call the strategy's cleanup."""
        if not self.used:
            return None
        self.used = False
        return hook(self.strategy, "cleanup")()


NOBODY: Any = Entry(None, cast("Gate", None))
"""The entry of no strategy."""


class Lifecycle:
    """Knows every strategy instance that has items, by identity.

    A strategy of a single item is cleaned up with that item. One that served several may
    get more of them at any time, so it is kept until the run ends, or until more than a
    hundred others that are idle came after it.

    Args:
        gates: Hold back a prepare during a cooldown.
        recovery: Decides whether a failed prepare is repeated.
        tasks: Runs the strategies' code.
        seconds: Deadline of each call.
    """

    def __init__(self, gates: Gates, recovery: Recovery, *, tasks: Tasks, seconds: float) -> None:
        self._gates = gates
        self._recovery = recovery
        self._tasks = tasks
        self._seconds = seconds
        self.entries: dict[int, Entry] = {}
        self._named: dict[str, Any] = {}
        self._idle: dict[int, Entry] = {}

    def register(self, name: str, strategy: Any) -> None:
        """Let items name the strategy.

        Raises:
            ValueError: Another one has the name.
        """
        if self._named.setdefault(name, strategy) is not strategy:
            raise ValueError(
                f"the strategy name {name!r} is taken by another "
                f"{type(self._named[name]).__name__}; register each under a name of its own"
            )

    def resolve(self, item: LLMWorkItem[Any, Any, Any]) -> LLMWorkItem[Any, Any, Any]:
        """The item with the strategy that it names, if it names one.

        Raises:
            StrategyContractError: No strategy has that name.
        """
        named: object = item.strategy
        if not isinstance(named, str):
            return item
        if named not in self._named:
            known = ", ".join(map(repr, self._named)) or "none"
            raise StrategyContractError(
                f"item {item.item_id!r}: no strategy is registered as {named!r} (registered: "
                f"{known}); await register_strategy({named!r}, ...) first"
            )
        # The caller's own item goes on naming it.
        item = copy.copy(item)
        item.strategy = self._named[named]
        return item

    def start(self) -> None:
        """A run begins, in which strategies may have other gates than before."""
        for entry in self.entries.values():
            entry.gate = self._gates.of(entry.strategy)

    def expect(self, strategy: Any) -> Entry:
        """An item of this strategy was accepted."""
        entry = self.entries.get(id(strategy)) or self.entry_of(strategy)
        if not entry.pending:
            self._idle.pop(id(strategy), None)
        entry.pending += 1
        entry.items += 1
        return entry

    def entry_of(self, strategy: Any) -> Entry:
        """The strategy's entry, a new one where it has none."""
        entry = self.entries.get(id(strategy))
        if entry is None:
            entry = self.entries[id(strategy)] = Entry(strategy, self._gates.of(strategy))
        return entry

    async def prepare(self, entry: Entry, journal: Journal) -> Failure | None:
        """Prepare the strategy, or wait until the one who does it is done.

        Returns:
            None, or the failure that holds for the run.
        """
        if entry.closing is None and _is_inherited(entry.strategy, "prepare"):
            entry.used = entry.prepared = True
            return None
        if entry.preparing is None:
            name = f"{type(entry.strategy).__name__}.prepare"
            settled = entry.settled = asyncio.Event()
            entry.preparing = self._tasks.spawn(
                settle(lambda: self._prepare(entry, journal, name)),
                name=name,
                ended=lambda _: settled.set(),
            )
        preparing = entry.preparing
        await entry.settled.wait()
        if (interrupt := preparing.result().error) is not None:
            raise interrupt
        return entry.failure

    async def _prepare(self, entry: Entry, journal: Journal, name: str) -> None:
        trial = Journal(journal.worker_id)
        trial.begin(journal.item, entry)
        if entry.closing is not None:
            await asyncio.wait((entry.closing,))
        gate = entry.gate
        while True:
            await gate.resumed.wait()
            if gate.is_blocked:
                trial.admission = await gate.acquire()
            trial.epoch = gate.epoch
            trial.attempt += 0 if trial.repeats else 1
            settled = await self._tasks.bounded(entry.prepare, seconds=self._seconds, what=name)
            if trial.admission is not None:
                gate.ended(trial.admission, answered=settled.error is None)
            if settled.error is None:
                entry.prepared = True
                return
            failure = Failure(settled.error, self._recovery.classify(settled.error, journal.item))
            await self._recovery.pause_if_rate_limited(trial, failure.info)
            trial.admission = None
            if not await self._recovery.again(trial, failure):
                entry.failure = failure
                _log.error("%s failed for good: every item of this strategy fails", name)
                return

    async def retire(self, entry: Entry) -> None:
        """Clean up a strategy without pending items, now or once the next have had their chance."""
        if entry.items == 1:
            await self._clean_up(entry)
            return
        self._idle[id(entry.strategy)] = entry
        if len(self._idle) > _IDLE_STRATEGIES:
            await self._clean_up(next(iter(self._idle.values())))

    def knows(self, strategy: Any) -> bool:
        """Whether the strategy has items already."""
        return id(strategy) in self.entries

    async def close(self, queue: Iterable[LLMWorkItem[Any, Any, Any]]) -> None:
        """The run is over: clean up every strategy that was used in it.

        Args:
            queue: The items that wait for the next run.

        Raises:
            KeyboardInterrupt: A cleanup raised it, likewise SystemExit; the others are done.
        """
        try:
            await self._clean_up(*self.entries.values())
        finally:
            self.reset(queue)

    def reset(self, queue: Iterable[LLMWorkItem[Any, Any, Any]]) -> None:
        """Forget what belongs to the run that is over; what is not cleaned up yet stays."""
        entries = list(self.entries.values())
        self.entries.clear()
        self._idle.clear()
        for entry in entries:
            if entry.used:
                kept = self.entry_of(entry.strategy)
                kept.used, kept.prepared = True, entry.prepared
        for item in queue:
            self.expect(item.strategy)

    async def _clean_up(self, *entries: Entry) -> None:
        calls: list[tuple[str, Callable[[], Any]]] = []
        closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for entry in entries:
            self._idle.pop(id(entry.strategy), None)
            if entry.used and not _is_inherited(entry.strategy, "cleanup"):
                name = f"{type(entry.strategy).__name__}.cleanup"
                calls.append((name, entry.cleanup))
            else:
                entry.used = False
            # Whoever comes meanwhile prepares anew, once this is over.
            entry.prepared = False
            entry.preparing, entry.closing = None, closing
        try:
            ends = await self._tasks.bounded_all(calls, seconds=self._seconds)
        finally:
            closing.set_result(None)
            for entry in entries:
                entry.closing = None
                if not (entry.pending or entry.used):
                    self.entries.pop(id(entry.strategy), None)
        errors = [end.error for end in ends]
        for (name, _), error in zip(calls, errors, strict=True):
            if error is not None:
                _log.error("%s failed with %s", name, type(error).__name__)
                _log.debug("%s failed", name, exc_info=error)
        for error in errors:
            if isinstance(error, FATAL):
                raise error


def _is_inherited(strategy: Any, method: str) -> bool:
    """Whether a hook is the base class's."""
    return inspect.getattr_static(strategy, method, None) is _INHERITED[method]
