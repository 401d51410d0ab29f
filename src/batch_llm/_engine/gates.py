"""Which gate a strategy's calls pass: one for each quota."""

import logging
from collections.abc import Callable
from types import EllipsisType
from typing import Any

from batch_llm._engine.estimates import Estimator, Guarded
from batch_llm._engine.events import Events
from batch_llm._engine.gate import Gate
from batch_llm._engine.tasks import Tasks
from batch_llm.base import QuotaStatistics
from batch_llm.core.clock import loop_time
from batch_llm.core.config import check_rate
from batch_llm.core.protocols import TokenEstimator
from batch_llm.strategies.adaptive import AdaptiveLimit
from batch_llm.strategies.rate_limit import RateLimitStrategy
from batch_llm.strategies.tokens import LearnedTokenEstimator

_log = logging.getLogger(__name__)

DEFAULT_QUOTA = "default"
"""Whatever strategies have that name no quota."""

Limit = float | None
NewLimit = Limit | EllipsisType
"""``...`` stands for the limit that is in force."""


class Gates:
    """The gates of a processor.

    While limits are learned, each quota has a gate of its own. Where a rate-limit strategy
    decides, all share one, since its pauses are for all.

    Args:
        strategy: Decides about cooldowns.
        requests_per_minute: Limit of each quota; None for none.
        tokens_per_minute: Likewise.
        events: Told of cooldowns.
        tasks: Runs the strategy's own code.
        hook_seconds: Deadline of that code.

    Attributes:
        main: The gate of all quotas, or of the one that was asked for first.
    """

    def __init__(  # noqa: PLR0913 - one builder, all by name
        self,
        strategy: RateLimitStrategy,
        *,
        requests_per_minute: Limit,
        tokens_per_minute: Limit,
        events: Events,
        tasks: Tasks,
        hook_seconds: float,
    ) -> None:
        self._strategy = strategy
        self._events = events
        self._tasks = tasks
        self._hook_seconds = hook_seconds
        self._limits: tuple[Limit, Limit] = (requests_per_minute, tokens_per_minute)
        self._limits_of: dict[str, tuple[Limit, Limit]] = {}
        self._estimator: Estimator | None = None
        self._calls_in_flight: Callable[[Gate], int]
        self._max_workers: int | None = None
        self._gates: dict[str, Gate] = {}
        self._used: dict[str, Gate] = {}
        self._latest: dict[str, QuotaStatistics] = {}
        self.main: Gate = self._new()
        self.main.set_limits(*self._limits)

    def _new(self) -> Gate:
        return Gate(
            self._strategy,
            events=self._events,
            tasks=self._tasks,
            hook_seconds=self._hook_seconds,
        )

    def start(
        self,
        strategy: RateLimitStrategy,
        estimator: TokenEstimator | None,
        *,
        max_workers: int | None,
        calls_in_flight: Callable[[Gate], int],
    ) -> None:
        """Begin a run.

        Args:
            strategy: Decides about cooldowns.
            estimator: Tells what calls will cost; None learns it anew in each run.
            max_workers: The most calls in flight, while limits are learned; None where the
                strategy decides.
            calls_in_flight: Counts the calls on their way to a gate's quota.
        """
        self._calls_in_flight = calls_in_flight
        self._strategy, self._max_workers = strategy, max_workers
        own = LearnedTokenEstimator() if estimator is None else estimator
        self._estimator = own if isinstance(own, LearnedTokenEstimator) else Guarded(own)
        self._used = {}
        for gate in self.all:
            self._start(gate)

    @property
    def all(self) -> list[Gate]:
        """Every gate, the main one first."""
        return list(dict.fromkeys((self.main, *self._gates.values())))

    def _start(self, gate: Gate) -> None:
        gate.strategy = self._strategy
        most = self._max_workers
        limit = None if most is None else AdaptiveLimit(most, loop_time())
        gate.start(limit, estimator=self._estimator, calls_in_flight=self._calls_in_flight)

    def of(self, strategy: object) -> Gate:
        """The gate of a strategy's quota."""
        if self._estimator is None:
            return self.main
        if self._max_workers is None:
            self._used[DEFAULT_QUOTA] = self.main
            return self.main
        quota = _quota_of(strategy)
        gate = self._gates.get(quota)
        if gate is None:
            gate = self._gates[quota] = self._new_of(quota)
        self._used[quota] = gate
        return gate

    def _new_of(self, quota: str) -> Gate:
        if not self._gates:
            gate = self.main
        else:
            gate = self._new()
            self._start(gate)
        gate.set_limits(*self._limits_of.get(quota, self._limits))
        return gate

    def set_limits(self, requests: NewLimit, tokens: NewLimit, quota: str | None) -> None:
        """Hold to other limits from now on, at one quota or at all of them.

        Raises:
            ValueError: A limit is not above 0, or no number.
        """
        for name, limit in (("requests_per_minute", requests), ("tokens_per_minute", tokens)):
            if limit is not ...:
                check_rate(name, limit)
        if quota is None:
            self._limits = _changed(self._limits, requests, tokens)
            names = [*self._limits_of]
        else:
            names = [quota]
        for name in names:
            own = self._limits_of.get(name, self._limits)
            self._limits_of[name] = _changed(own, requests, tokens)
        for name, gate in self._gates.items():
            gate.set_limits(*self._limits_of.get(name, self._limits))
        if self.main not in self._gates.values():
            self.main.set_limits(*self._limits)

    def statistics(self) -> dict[str, QuotaStatistics]:
        """What happened at each quota, in this run so far or else in the last."""
        if self._estimator is None:
            return dict(self._latest)
        return {quota: gate.statistics() for quota, gate in self._used.items()}

    def close(self) -> None:
        """Let out no more calls in this run."""
        for gate in self.all:
            gate.close()

    def reset(self) -> None:
        """End the run: cooldowns and slow start too, so that the next one finds open gates."""
        self._latest = self.statistics()
        self._estimator = None
        for gate in self.all:
            gate.reset()


def _quota_of(strategy: Any) -> str:
    try:
        quota = getattr(strategy, "quota", None)
    except Exception as broken:
        _log.error("quota of a strategy failed with %s", type(broken).__name__)
        quota = None
    # Anything may stand there in a mock.
    return quota if isinstance(quota, str) else DEFAULT_QUOTA


def _changed(
    limits: tuple[Limit, Limit], requests: NewLimit, tokens: NewLimit
) -> tuple[Limit, Limit]:
    return (
        limits[0] if isinstance(requests, EllipsisType) else requests,
        limits[1] if isinstance(tokens, EllipsisType) else tokens,
    )
