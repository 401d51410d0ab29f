"""What happened to one item: its attempts, their tokens and their outcome."""

import logging
from dataclasses import dataclass
from typing import Any

from batch_llm.base import LLMWorkItem, WorkItemResult
from batch_llm.llm_strategies._usage import count, read_usage
from batch_llm.strategies.errors import ErrorInfo

_log = logging.getLogger(__name__)

_KEYS = ("input_tokens", "output_tokens", "total_tokens", "cached_input_tokens")


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
    return f"{type(error).__name__}: {text}"


class Journal:
    """The record of one item, from the worker that took it to its result.

    Attributes:
        strategy: The strategy that counts the item among its own; the item's may be changed
            in place.
        item: The item, as middleware left it.
        worker_id: The worker that has it.
        started: Loop time at which the worker took it, where somebody watches.
        attempt: Number of the current attempt, 0 before the first.
        epoch: The gate's epoch in which the current attempt went out.
        repeats: Whether the next call is the current attempt's again, after a rate limit.
        rate_limits: How often the item was rate limited.
        output: The answer, once there is one.
        usage: TokenUsage of all attempts so far.
        result: The result, once there is one.
        released: Whether the strategy was told that the item is done.
    """

    __slots__ = (
        "attempt",
        "epoch",
        "item",
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

    started: float
    output: Any

    def __init__(self, item: LLMWorkItem[Any, Any, Any], worker_id: int) -> None:
        self.item = item
        self.strategy = item.strategy
        self.worker_id = worker_id
        self.attempt = self.epoch = self.rate_limits = 0
        # Any on a hot path: a cast is a call.
        self.usage: Any = {}
        self.result: WorkItemResult[Any, Any] | None = None
        self.released = self.repeats = False

    def bill(self, usage: Any) -> None:
        """Add the tokens of an attempt, in whatever shape they come."""
        if type(usage) is not dict:
            usage = read_usage(usage)
        billed: Any = usage  # pyright: ignore[reportUnknownVariableType] - of a bare dict
        if not self.usage and _holds_counts_only(billed):
            self.usage = billed.copy()
            return
        counts = {
            key: count(value) for key, value in billed.items() if key in _KEYS or type(value) is int
        }
        total = total_of(self.usage) + total_of(counts)
        for key, tokens in counts.items():
            self.usage[key] = self.usage.get(key, 0) + tokens
        if "total_tokens" in self.usage:
            self.usage["total_tokens"] = total

    def bill_failure(self, error: BaseException) -> None:
        """Add the tokens that a failed attempt was billed for, where its error tells them."""
        try:
            self.bill(_usage_of(error))
        except Exception as broken:
            _log.debug("the usage of a failed call cannot be read: %r", broken)


def total_of(usage: dict[str, int]) -> int:
    """All tokens; the sum of input and output where the strategy gave no total."""
    total = usage.get("total_tokens")
    return usage.get("input_tokens", 0) + usage.get("output_tokens", 0) if total is None else total


def _holds_counts_only(usage: dict[str, Any]) -> bool:
    """Whether a plain copy will do, as it does for most strategies."""
    for value in usage.values():  # noqa: SIM110 - a generator costs more than the loop
        if type(value) is not int or value < 0:
            return False
    return True


def _usage_of(error: BaseException) -> object:
    """The three places where strategies and frameworks leave a failed call's usage."""
    result = getattr(error.__cause__, "result", None)
    if result is not None and (usage := read_usage(getattr(result, "usage", None))):
        return usage
    if usage := read_usage(getattr(error, "usage", None)):
        return usage
    return read_usage(error.__dict__.get("_failed_token_usage"))
