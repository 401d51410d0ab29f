"""What is remembered of a simulation."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

from batch_llm.base import TokenUsage, WorkItemResult
from batch_llm.observers.events import ProcessingEvent
from batch_llm.testing.simulate.scenario import Scenario

GRACE_SECONDS = 1.0
"""How long the processor waits for a cancelled call before it leaves it behind."""


class Moment(NamedTuple):
    """When something happened.

    Attributes:
        seconds: Virtual time.
        order: Tells apart what happened at one time; rises throughout a simulation.
    """

    seconds: float
    order: int


class Clock:
    """Gives moments.

    Args:
        now: Gives the virtual time.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._orders = itertools.count()

    def moment(self) -> Moment:
        """This very moment."""
        return Moment(self._now(), next(self._orders))


@dataclass(slots=True)
class Call:
    """One call of ``execute``, as the provider saw it.

    Attributes:
        strategy: Number of the strategy.
        prompt: The item's.
        attempt: What the processor passed.
        started: When it came.
        ended: When it went; None for one that never did.
        outcome: ``answer``, the name of a fault, ``quota``, ``outage``, ``cache_expired``,
            ``keyboard``, or ``ended`` if it was cancelled.
        usage: Tokens that the processor was told of, None for none.
        cancelled_at: Virtual time at which a stubborn call was first cancelled.
    """

    strategy: int
    prompt: str
    attempt: int
    started: Moment
    ended: Moment | None = None
    outcome: str = "ended"
    usage: TokenUsage | None = None
    cancelled_at: float | None = None

    @property
    def given_up_at(self) -> float | None:
        """Virtual time from which the processor no longer waits for it; None if it ever does."""
        return None if self.cancelled_at is None else self.cancelled_at + GRACE_SECONDS

    @property
    def is_left_behind(self) -> bool:
        """Whether it ended only after the processor had given it up."""
        given_up_at = self.given_up_at
        return given_up_at is not None and (self.ended is None or self.ended[0] >= given_up_at)

    @property
    def is_rate_limited(self) -> bool:
        """Whether it was refused with status 429."""
        return self.outcome in ("quota", "rate_limit")


@dataclass(slots=True)
class Upkeep:
    """One call of a strategy's ``prepare`` or ``cleanup``.

    Attributes:
        strategy: Number of the strategy.
        kind: Which of the two.
        started: When it came.
        succeeded: Whether it came to its end.
    """

    strategy: int
    kind: Literal["prepare", "cleanup"]
    started: Moment
    succeeded: bool = False


@dataclass(frozen=True, slots=True)
class Accepted:
    """An item that the processor has accepted.

    Attributes:
        at: When.
        number: From 0; the context and part of the prompt of the item.
        item_id: Its id, which need not be its own.
        strategy: Number of its strategy.
    """

    at: Moment
    number: int
    item_id: str
    strategy: int

    @property
    def prompt(self) -> str:
        """The item's prompt, its own alone."""
        return f"item {self.number}"


@dataclass(frozen=True, slots=True)
class Event:
    """What an observer was told.

    Attributes:
        at: When.
        kind: The event.
        data: Its data.
    """

    at: Moment
    kind: ProcessingEvent
    data: dict[str, Any]


class Snapshot(NamedTuple):
    """The counters of the run at some moment; ``errors`` is the sum of ``error_counts``."""

    at: Moment
    total: int
    processed: int
    succeeded: int
    failed: int
    errors: int
    rate_limits: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Run:
    """One ``process_all()``.

    Attributes:
        started: When it was called.
        ended: When it returned or raised.
        results: What it returned.
        post_processed: What the post-processor got.
        stats: The counters after it.
        interrupted: Whether it was ended before its time.
    """

    started: Moment
    ended: Moment
    results: tuple[WorkItemResult[Any, Any], ...]
    post_processed: tuple[WorkItemResult[Any, Any], ...]
    stats: dict[str, Any]
    interrupted: bool

    def has(self, at: Moment) -> bool:
        """Whether a moment lies in the run."""
        return self.started <= at <= self.ended


@dataclass(frozen=True)
class Simulation:
    """What happened.

    Attributes:
        scenario: What was played.
        seed: With which seed.
        is_generated: Whether the seed alone gives the scenario too.
        calls: Every call of ``execute``, in the order in which they came.
        upkeep: Every ``prepare`` and ``cleanup``, likewise.
        accepted: Every item that the processor has accepted.
        events: What an observer was told.
        snapshots: The counters at each event and each call.
        runs: More than one if items came too late for the first.
        most_waiting: Largest number of results that a streaming consumer left waiting.
        left: Tasks, timers and threads that outlived the processor, and complaints of the
            event loop.
        failure: Why the simulation came to no good end; None if it did.
    """

    scenario: Scenario
    seed: int
    is_generated: bool
    calls: tuple[Call, ...]
    upkeep: tuple[Upkeep, ...]
    accepted: tuple[Accepted, ...]
    events: tuple[Event, ...]
    snapshots: tuple[Snapshot, ...]
    runs: tuple[Run, ...]
    most_waiting: int
    left: tuple[str, ...]
    failure: str | None

    @property
    def seconds(self) -> float:
        """Virtual time until the last run was over."""
        return self.runs[-1].ended.seconds if self.runs else 0.0

    @cached_property
    def results(self) -> tuple[WorkItemResult[Any, Any], ...]:
        """The results of all runs."""
        return tuple(result for run in self.runs for result in run.results)

    @cached_property
    def peak_in_flight(self) -> int:
        """Most calls at a time, without those that the processor had left behind."""
        changes: list[tuple[Moment, int]] = []
        for call in self.calls:
            changes.append((call.started, 1))
            if call.is_left_behind and call.given_up_at is not None:
                changes.append((Moment(call.given_up_at, -1), -1))
            elif call.ended is not None:
                changes.append((call.ended, -1))
        changes.sort()
        return max(itertools.accumulate((change for _, change in changes), initial=0))

    @property
    def ledger(self) -> TokenUsage:
        """Tokens of all calls that the processor was told of, as the provider counts them."""
        return total_usage(self.calls)

    @property
    def replay(self) -> str:
        """What plays exactly this again: a command, or the expression for a scenario of yours."""
        if self.is_generated:
            return f"python -m batch_llm.testing.simulate {self.seed}"
        return f"simulate({self.scenario}, {self.seed})"

    def trace(self) -> str:
        """What happened, one line for each call, hook, event and result."""
        lines: list[tuple[Moment, str]] = []
        for call in self.calls:
            lines.append((call.started, f"call     {call.prompt}, attempt {call.attempt}"))
            if call.ended is not None:
                usage = f", {call.usage}" if call.usage else ""
                lines.append((call.ended, f"call     {call.prompt}: {call.outcome}{usage}"))
        for upkeep in self.upkeep:
            done = "" if upkeep.succeeded else " (fails)"
            lines.append((upkeep.started, f"{upkeep.kind:<8} strategy {upkeep.strategy}{done}"))
        lines += [(item.at, f"accepted {item.prompt} ({item.item_id})") for item in self.accepted]
        for event in self.events:
            data = ", ".join(f"{key}={value}" for key, value in event.data.items())
            lines.append((event.at, f"event    {event.kind.value}: {data}"))
        for run in self.runs:
            ended = "interrupted, " if run.interrupted else ""
            lines.append((run.started, "run      starts"))
            lines.append((run.ended, f"run      ends: {ended}{len(run.results)} results"))
            for result in run.results:
                how = "answer" if result.success else result.error
                lines.append((run.ended, f"result   item {result.context}: {how}"))
        return "\n".join(f"{at.seconds:14.6f}  {line}" for at, line in sorted(lines))


def total_usage(calls: tuple[Call, ...] | list[Call]) -> TokenUsage:
    """The tokens of some calls that the processor was told of."""
    total: TokenUsage = {
        "input_tokens": 0,
        "output_tokens": 0,
        "total_tokens": 0,
        "cached_input_tokens": 0,
    }
    for call in calls:
        usage = None if call.is_left_behind else call.usage
        if usage is None:
            continue
        total["input_tokens"] += usage.get("input_tokens", 0)
        total["output_tokens"] += usage.get("output_tokens", 0)
        total["cached_input_tokens"] += usage.get("cached_input_tokens", 0)
        both = usage.get("input_tokens", 0) + usage.get("output_tokens", 0)
        total["total_tokens"] += usage.get("total_tokens", both)
    return total
