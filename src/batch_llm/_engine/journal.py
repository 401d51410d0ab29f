"""What happened to one item: its attempts, their tokens and their outcome."""

import logging
from dataclasses import dataclass
from typing import Any

from batch_llm.base import LLMWorkItem, ProcessingStats, WorkItemResult
from batch_llm.llm_strategies._usage import count, read_usage
from batch_llm.strategies.adaptive import Admission
from batch_llm.strategies.errors import ErrorInfo

_log = logging.getLogger(__name__)

# A proxy's error page may be a megabyte.
_LONGEST_TEXT = 2_000

_KEYS = ("input_tokens", "output_tokens", "total_tokens", "cached_input_tokens")


class _Counts:
    """The plain token counts of one item, whose ``__dict__`` becomes its usage.

    Dicts of one class's instances share their table of keys (PEP 412), which takes a third
    off what a kept usage weighs.
    """

    input_tokens: int
    output_tokens: int
    total_tokens: int
    cached_input_tokens: int


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
        strategy: The strategy that counts the item among its own; the item's may be changed
            in place.
        item: The item, as middleware left it.
        worker_id: The worker that has it.
        open: Whether there is an item whose result was not handed over yet.
        started: Loop time at which the worker took it, where somebody watches.
        attempt: Number of the current attempt, 0 before the first.
        admission: What the gate gave for the current attempt, if it was asked.
        epoch: The gate's epoch in which the current attempt went out.
        repeats: Whether the next call is the current attempt's again, after a rate limit.
        rate_limits: How often the item was rate limited.
        output: The answer, once there is one.
        usage: TokenUsage of all attempts so far.
        result: The result, once there is one.
        concluding: Whether there is an outcome, and only hooks are left to be called.
        released: Whether the strategy was told that the item is done.
    """

    __slots__ = (
        "admission",
        "attempt",
        "concluding",
        "epoch",
        "item",
        "open",
        "output",
        "rate_limits",
        "released",
        "repeats",
        "result",
        "started",
        "strategy",
        "usage",
        "worker_id",
    )

    item: LLMWorkItem[Any, Any, Any]
    strategy: Any
    started: float
    epoch: int
    output: Any

    def __init__(self, worker_id: int) -> None:
        self.worker_id = worker_id
        self.open = False

    def begin(self, item: LLMWorkItem[Any, Any, Any]) -> None:
        """Start the record of another item."""
        self.item = item
        self.strategy = item.strategy
        self.open = True
        self.attempt = self.rate_limits = 0
        # Any on a hot path: a cast is a call.
        self.usage: Any = {}
        self.result: WorkItemResult[Any, Any] | None = None
        self.admission: Admission | None = None
        self.released = self.repeats = self.concluding = False

    def bill(self, usage: Any, stats: ProcessingStats) -> None:
        """Add the tokens of an attempt, in whatever shape they come, here and to the stats."""
        if type(usage) is not dict:
            usage = read_usage(usage)
        billed: Any = usage  # pyright: ignore[reportUnknownVariableType] - of a bare dict
        if not self.usage and (counts := _plain_counts(billed, stats)) is not None:
            self.usage = counts
        elif billed:
            self._add(billed, stats)

    def _add(self, usage: dict[str, Any], stats: ProcessingStats) -> None:
        counts = {
            key: count(value) for key, value in usage.items() if key in _KEYS or type(value) is int
        }
        total = total_of(counts)
        stats.total_input_tokens += counts.get("input_tokens", 0)
        stats.total_output_tokens += counts.get("output_tokens", 0)
        stats.total_tokens += total
        stats.cached_input_tokens += counts.get("cached_input_tokens", 0)
        total += total_of(self.usage)
        for key, tokens in counts.items():
            self.usage[key] = self.usage.get(key, 0) + tokens
        if "total_tokens" in self.usage:
            self.usage["total_tokens"] = total

    def bill_failure(self, error: BaseException, stats: ProcessingStats) -> None:
        """Add the tokens that a failed attempt was billed for, where its error tells them."""
        try:
            self.bill(_usage_of(error), stats)
        except Exception as broken:
            _log.debug("the usage of a failed call cannot be read: %r", broken)


def total_of(usage: dict[str, int]) -> int:
    """All tokens; the sum of input and output where the strategy gave no total."""
    total = usage.get("total_tokens")
    return usage.get("input_tokens", 0) + usage.get("output_tokens", 0) if total is None else total


def _plain_counts(usage: dict[str, Any], stats: ProcessingStats) -> dict[str, int] | None:
    """Add the three counts that most strategies give, and perhaps the cached, to the stats.

    Returns:
        A copy of them; None if the usage is anything else, and nothing was added.
    """
    if len(usage) != 3 and not (len(usage) == 4 and "cached_input_tokens" in usage):
        return None
    read: Any = usage.get("input_tokens")
    written: Any = usage.get("output_tokens")
    total: Any = usage.get("total_tokens")
    cached: Any = usage.get("cached_input_tokens", 0)
    if not (type(read) is type(written) is type(total) is type(cached) is int):
        return None
    if read < 0 or written < 0 or total < 0 or cached < 0:
        return None
    counts = _Counts()
    counts.input_tokens = read
    counts.output_tokens = written
    counts.total_tokens = total
    stats.total_input_tokens += read
    stats.total_output_tokens += written
    stats.total_tokens += total
    if len(usage) == 4:
        counts.cached_input_tokens = cached
        stats.cached_input_tokens += cached
    return vars(counts)


def _usage_of(error: BaseException) -> object:
    """The three places where strategies and frameworks leave a failed call's usage."""
    result = getattr(error.__cause__, "result", None)
    if result is not None and (usage := read_usage(getattr(result, "usage", None))):
        return usage
    if usage := read_usage(getattr(error, "usage", None)):
        return usage
    return read_usage(error.__dict__.get("_failed_token_usage"))
