"""What the caller of a processor knows: which item must turn up where."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from batch_llm import BatchResult, WorkItemResult

Result = WorkItemResult[Any, Any]


def ids_of(results: Iterable[Result]) -> list[str]:
    return [result.item_id for result in results]


@dataclass
class Run:
    """What the caller knows of a run.

    Attributes:
        own: Items that are in this run for sure.
        perhaps: Items added when the run might just have been over: here, or in the next.
        doubtful: Items of which it is not known whether the last run dropped them.
        later: Items added when the run was over: in the next.
        pressed_at: When Ctrl-C was pressed.
        told_at: When it was told to end at once.
        over: Whether no item can come in any more.
        no_more_calls: Whether Ctrl-C has been noticed.
        cancelled: Whether process_all was cancelled.
        cleaned_up: Whether cleanup() was called.
        cut_short: Whether its very end was perhaps cancelled too.
        answers: Calls that were answered.
    """

    own: set[str]
    doubtful: set[str]
    perhaps: set[str] = field(default_factory=set[str])
    later: set[str] = field(default_factory=set[str])
    pressed_at: float | None = None
    told_at: float | None = None
    over: bool = False
    no_more_calls: bool = False
    cancelled: bool = False
    cleaned_up: bool = False
    cut_short: bool = False
    answers: int = 0

    def may_be_over(self, finished: set[str]) -> bool:
        """Whether the run can be at its end, as far as the caller can tell."""
        return self.was_told_to_end or self.own <= finished

    @property
    def was_told_to_end(self) -> bool:
        return self.told_at is not None or self.pressed_at is not None


class Ledger:
    """What the caller knows: what was accepted, and where each item must turn up.

    Attributes:
        waiting: Items that are queued for the next run.
        doubtful: Items that are queued for it, or were dropped by a cancel.
        finished: Every item that ever had its result in a BatchResult or ``results``.
        total: Fewest items that the stats can count.
        unsure: How many more they may count.
    """

    def __init__(self) -> None:
        self.run: Run | None = None
        self.waiting: set[str] = set()
        self.doubtful: set[str] = set()
        self.finished: set[str] = set()
        self.total = self.unsure = 0

    def begin(self) -> Run:
        self.total, self.unsure = len(self.waiting), len(self.doubtful)
        self.run = run = Run(self.waiting, self.doubtful)
        self.waiting, self.doubtful = set(), set()
        return run

    def accept(self, item_id: str, finished: set[str]) -> None:
        self.total += 1
        run = self.run
        if run is None:
            self.waiting.add(item_id)
        elif run.over:
            run.later.add(item_id)
        elif run.may_be_over(finished):
            run.perhaps.add(item_id)
        else:
            run.own.add(item_id)

    def call(self, item_id: str) -> str | None:
        """A call is made; says what is wrong with that, if anything."""
        run = self.run
        if run is None:
            return f"a call of item {item_id} outside a run"
        if run.no_more_calls:
            return f"a call of item {item_id} after Ctrl-C"
        if item_id in run.later or item_id in self.finished:
            return f"a call of item {item_id}, which waits or is finished"
        run.perhaps.discard(item_id)
        run.doubtful.discard(item_id)
        run.own.add(item_id)
        return None

    def clean_up(self, now: float) -> None:
        self.waiting.clear()
        self.doubtful.clear()
        if (run := self.run) is not None:
            run.later.clear()
            run.over = run.cleaned_up = True
            run.told_at = now if run.told_at is None else run.told_at

    def returned(self, run: Run, batch: BatchResult[Any, Any]) -> None:
        results, left = ids_of(batch.results), batch.not_run
        known = run.own | run.perhaps | run.doubtful
        assert set(results) | set(left) <= known, f"came from nowhere: {results} {left}"
        assert run.own <= set(results) | set(left), f"lost: {run.own - {*results, *left}}"
        assert len({*results, *left}) == len(results) + len(left), f"twice: {results} {left}"
        told = run.cleaned_up or run.pressed_at is not None
        assert told or not batch.interrupted
        assert batch.interrupted or not left
        carried_over = set[str]() if run.cleaned_up else run.perhaps - {*results, *left}
        self.waiting = run.later | carried_over
        self._close(results)

    def was_cancelled(self, run: Run, results: list[str]) -> None:
        assert set(results) <= run.own | run.perhaps | run.doubtful
        self.waiting = run.later
        self.doubtful = set[str]() if run.cleaned_up else run.perhaps - set(results)
        self._close(results)

    def _close(self, results: list[str]) -> None:
        self.run = None
        assert len(set(results)) == len(results), f"twice: {results}"
        assert self.finished.isdisjoint(results), f"again: {results}"
        self.finished.update(results)
