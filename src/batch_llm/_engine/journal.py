"""What happened to one item: its attempts, their tokens and their outcome."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from batch_llm.base import LLMWorkItem, ProcessingStats, RetryState, WorkItemResult
from batch_llm.llm_strategies._usage import ReportedUsage, count, read_usage
from batch_llm.observers.events import ProcessingEvent
from batch_llm.strategies.adaptive import Admission
from batch_llm.strategies.errors import ErrorInfo

if TYPE_CHECKING:
    from batch_llm._engine.events import Events
    from batch_llm._engine.lifecycle import Entry

_log = logging.getLogger(__name__)

# A proxy's error page may be a megabyte.
_LONGEST_TEXT = 2_000

Stage = Literal["idle", "calling", "concluding", "concluded", "released"]

# A member of an enum takes longer to look up than to tell.
_ITEM_STARTED = ProcessingEvent.ITEM_STARTED

_KEYS = ("input_tokens", "output_tokens", "total_tokens", "cached_input_tokens")


class _Counts:
    """A place for the token counts of an item."""

    def __init__(self, *keys: str) -> None:
        for key in keys:
            setattr(self, key, 0)


class _CachedCounts(_Counts):
    """The same with the cached ones."""


def _slim(kind: type[_Counts], *keys: str) -> dict[str, int]:
    """The attributes of an object, whose copies share their table of keys (PEP 412).

    That takes a third off what a kept usage weighs. CPython leaves room for more attributes
    until some thirty objects have had no more.
    """
    return [vars(kind(*keys)) for _ in range(40)][-1]


_FEW = 3
# An item's usage begins as a copy of one of these.
_COUNTS = _slim(_Counts, *_KEYS[:_FEW])
_CACHED_COUNTS = _slim(_CachedCounts, *_KEYS)


@dataclass(slots=True)
class Failure:
    """An attempt that brought an error, and what kind of error that is."""

    error: BaseException
    info: ErrorInfo


def describe(error: BaseException) -> str:
    """``TypeName: text`` of an error, also of one that cannot tell its text."""
    try:
        text = str(error)
    except Exception as broken:
        text = f"(its text cannot be read: {type(broken).__name__})"
    if len(text) > _LONGEST_TEXT:
        text = f"{text[:_LONGEST_TEXT]}… ({len(text):,} characters)"
    return f"{type(error).__name__}: {text}"


class Journal:
    """The record of the item that a worker has, begun anew for each.

    Attributes:
        entry: That of the strategy that counts the item among its own; the item's strategy
            may be changed in place.
        item: The item, as middleware left it.
        worker_id: The worker that has it.
        stage: "idle" until there is an item and once its result was handed over; "concluding"
            when there is an outcome, and only hooks are left to be called; "concluded" when
            there is a result; "released" when the strategy was told that the item is done.
        started: Loop time at which the worker took it, where somebody watches.
        attempt: Number of the current attempt, 0 before the first.
        booked: Tokens that the current attempt was expected to cost, 0 where nobody asked.
        epoch: The gate's epoch in which the current attempt went out.
        output: The answer, once there is one.
        usage: TokenUsage of all attempts so far, None before the first.
        result: The result, once the item is concluded.
        is_plain: Whether none of what follows was ever set for this item, so that the next
            has nothing of it to forget: whoever sets it says so here.
        admission: What the gate gave for the current attempt, if it was asked.
        repeats: Whether the next call is the current attempt's again, after a rate limit.
        rate_limits: How often the item was rate limited.
        metadata: What came with the last answer, None for nothing.
        state: What the item remembers, once somebody asked for it.
    """

    __slots__ = (
        "admission",
        "attempt",
        "booked",
        "entry",
        "epoch",
        "is_plain",
        "item",
        "metadata",
        "output",
        "rate_limits",
        "repeats",
        "result",
        "stage",
        "started",
        "state",
        "usage",
        "worker_id",
    )

    item: LLMWorkItem[Any, Any, Any]
    entry: "Entry"
    admission: Admission | None
    started: float
    epoch: int
    output: Any
    # Any on a hot path: a cast is a call.
    usage: Any
    metadata: Any
    state: RetryState | None
    result: WorkItemResult[Any, Any]

    def __init__(self, worker_id: int) -> None:
        self.worker_id = worker_id
        self.stage: Stage = "idle"
        self.booked = 0.0
        self._forget()

    def begin(
        self, item: LLMWorkItem[Any, Any, Any], entry: "Entry", watching: "Events | None" = None
    ) -> None:
        """Start the record of another item.

        Args:
            item: The item.
            entry: That of its strategy.
            watching: Told of it; None where nobody watches.
        """
        self.item = item
        self.entry = entry
        self.stage = "calling"
        self.attempt = 0
        self.output = self.usage = None
        if not self.is_plain:
            self._forget()
        if watching is not None:
            self.started = watching.now()
            # As emit() does, without the call.
            watching.news.append((_ITEM_STARTED, item.item_id, self.worker_id, None))
            if len(watching.news) >= watching.deal_at:
                watching.deal()

    def _forget(self) -> None:
        self.is_plain = True
        self.rate_limits = 0
        self.repeats = False
        self.metadata = self.state = self.admission = None

    def shared_state(self) -> RetryState:
        """What the item remembers, from now on."""
        if self.state is None:
            self.state = RetryState(self.item.item_id, self.item.context)
            self.is_plain = False
        return self.state

    def bill(self, usage: Any, stats: ProcessingStats) -> int:
        """Add the tokens of an attempt, in whatever shape they come, here and to the stats.

        Returns:
            How many there are altogether.
        """
        total: int
        kind = type(usage)  # pyright: ignore[reportUnknownVariableType]
        if kind is dict and not self.usage and len(usage) == _FEW:
            try:
                read, written = usage["input_tokens"], usage["output_tokens"]
                total = usage["total_tokens"]
                # Fails for what is no whole number, and is below 0 where one of them is.
                bits = read | written | total
            except (KeyError, TypeError):
                read = written = total = bits = -1
            if type(bits) is int and bits >= 0:
                self.usage = _COUNTS | usage
                stats.total_input_tokens += read
                stats.total_output_tokens += written
                stats.total_tokens += total
                self.entry.gate.tokens += total
                return total
        if kind is ReportedUsage:
            self.is_plain, kind = False, dict
            if self.metadata is None:
                self.metadata = usage.metadata
        return self._add(usage if kind is dict else read_usage(usage), stats)

    def _add(self, usage: Mapping[str, Any], stats: ProcessingStats) -> int:
        counts = {
            key: count(value) for key, value in usage.items() if key in _KEYS or type(value) is int
        }
        used = total = total_of(counts)
        stats.total_input_tokens += counts.get("input_tokens", 0)
        stats.total_output_tokens += counts.get("output_tokens", 0)
        stats.total_tokens += total
        self.entry.gate.tokens += total
        stats.cached_input_tokens += counts.get("cached_input_tokens", 0)
        if not self.usage:
            has_all = counts.keys() == _CACHED_COUNTS.keys()
            self.usage = _CACHED_COUNTS.copy() if has_all else {}
        total += total_of(self.usage)
        for key, tokens in counts.items():
            self.usage[key] = self.usage.get(key, 0) + tokens
        if "total_tokens" in self.usage:
            self.usage["total_tokens"] = total
        return used

    def bill_failure(self, error: BaseException, stats: ProcessingStats) -> Mapping[str, int]:
        """Add the tokens that a failed attempt was billed for, where its error tells them.

        Returns:
            Its usage, empty if that cannot be read.
        """
        try:
            usage: Mapping[str, int] = _usage_of(error)
            self.bill(usage, stats)
        except Exception as broken:
            _log.debug("the usage of a failed call cannot be read: %r", broken)
            return {}
        return usage


def total_of(usage: Mapping[str, int]) -> int:
    """All tokens; the sum of input and output where the strategy gave no total."""
    total = usage.get("total_tokens")
    return usage.get("input_tokens", 0) + usage.get("output_tokens", 0) if total is None else total


def _usage_of(error: BaseException) -> Any:
    """The three places where strategies and frameworks leave a failed call's usage."""
    result = getattr(error.__cause__, "result", None)
    if usage := read_usage(getattr(result, "usage", None)):
        return usage
    if usage := read_usage(getattr(error, "usage", None)):
        return usage
    return read_usage(error.__dict__.get("_failed_token_usage"))
