"""Scenarios by the seed: wide enough to meet everything, small enough to be many."""

from random import Random
from typing import Any, get_args

from batch_llm.core.config import ProcessorConfig, RateLimitConfig, RetryConfig
from batch_llm.testing.simulate.scenario import (
    CALL_FAULTS,
    Faults,
    Hooks,
    Interruption,
    Latency,
    Manner,
    Outage,
    Quota,
    QuotaChange,
    Scenario,
    Service,
)

_MANNERS: tuple[Manner, ...] = get_args(Manner)


def generate(seed: int) -> Scenario:
    """The scenario of a seed, the same in any process.

    Returns:
        Up to a few dozen items, a few workers, and some of all that can go wrong.
    """
    scenario = _Generator(Random(f"scenario {seed}")).scenario()
    # By a chance of its own, so that the rest of a scenario stays what it was.
    tokens = Random(f"tokens {seed}").choice([None, None, None, 600.0, 6_000.0, 60_000.0])
    scenario.config.max_tokens_per_minute = tokens
    return scenario


class _Generator:
    def __init__(self, random: Random) -> None:
        self._random = random

    def _happens(self, chance: float) -> bool:
        return self._random.random() < chance

    def _one_of(self, *choices: Any) -> Any:
        return self._random.choice(choices)

    def scenario(self) -> Scenario:
        """One scenario."""
        if self._happens(0.06):
            return self._long_stream()
        items = self._random.randint(0, self._one_of(3, 12, 24))
        has_late = self._happens(0.2)
        return Scenario(
            items=items,
            config=self._config(),
            service=self._service(),
            strategies=self._one_of(None, 1, 1, 2, 3),
            late_items=self._random.randint(0, items) if has_late else 0,
            late_gap_seconds=self._one_of(0.0, 0.3, 5.0),
            added_items=self._random.randint(1, 5) if self._happens(0.15) else 0,
            equal_ids=self._happens(0.1),
            streaming=self._happens(0.3),
            consumer_seconds=self._one_of(0.0, 0.0, 2.0),
            hooks=self._hooks() if self._happens(0.45) else Hooks(),
            interruption=self._interruption() if self._happens(0.2) else None,
        )

    def _long_stream(self) -> Scenario:
        """More results than may wait for a slow consumer."""
        return Scenario(
            items=90,
            config=ProcessorConfig(max_workers=self._one_of(1, 2, 3)),
            service=Service(latency=Latency(median_seconds=self._one_of(0.0, 0.1))),
            streaming=True,
            consumer_seconds=1.0,
        )

    def _config(self) -> ProcessorConfig:
        # Settings of one's own bring cooldowns, none a limit that is learned.
        config = ProcessorConfig(
            max_workers=self._one_of(1, 2, 3, 5, 8, 16, 30),
            timeout_per_item=self._one_of(3.0, 10.0, 120.0),
            retry=RetryConfig(
                max_attempts=self._one_of(1, 2, 3, 5),
                initial_wait=self._one_of(0.1, 1.0),
                jitter=self._happens(0.7),
            ),
            max_requests_per_minute=self._one_of(None, None, None, 0.5, 20, 60, 90.5, 600),
            progress_interval=self._one_of(1, 4),
            max_queue_size=self._one_of(0, 0, 0, 2, 7),
            dry_run=self._happens(0.03),
        )
        if self._happens(0.6):
            config.rate_limit = RateLimitConfig(
                cooldown_seconds=self._one_of(0.0, 1.0, 15.0, 300.0),
                slow_start_items=self._one_of(0, 0, 3, 50),
                slow_start_initial_delay=self._one_of(0.1, 2.0),
                max_rate_limits_per_item=self._one_of(1, 3, 20),
            )
        return config

    def _service(self) -> Service:
        return Service(
            latency=Latency(
                median_seconds=self._one_of(0.0, 0.2, 1.0, 2.5),
                spread=self._one_of(0.0, 0.3, 0.8),
                shape=self._one_of("lognormal", "lognormal", "uniform"),
            ),
            refusal_seconds=self._one_of(0.0, 0.05),
            quota=self._quota() if self._happens(0.4) else None,
            quota_changes=tuple(
                QuotaChange(
                    at_seconds=self._random.uniform(0.0, 60.0),
                    quota=self._quota() if self._happens(0.7) else None,
                )
                for _ in range(self._one_of(0, 0, 0, 1, 2))
            ),
            faults=self._faults(),
            outages=tuple(
                Outage(
                    start_seconds=self._random.uniform(0.0, 20.0),
                    seconds=self._random.uniform(0.5, 30.0),
                    kind=self._one_of("refused", "hang"),
                )
                for _ in range(self._one_of(0, 0, 0, 1))
            ),
            cache_ttl_seconds=self._one_of(None, None, None, 5.0),
        )

    def _quota(self) -> Quota:
        return Quota(
            requests_per_minute=self._one_of(None, 8.0, 30.0, 120.0),
            tokens_per_minute=self._one_of(None, None, 2_000.0),
            kind=self._one_of("bucket", "window"),
            period_seconds=self._one_of(1.0, 10.0, 60.0),
            hints=self._happens(0.7),
        )

    def _faults(self) -> Faults:
        """None in a third of the scenarios, else a few kinds, rare or frequent."""
        if self._happens(0.33):
            return Faults()
        kinds = self._random.sample(CALL_FAULTS, self._one_of(1, 2, 3))
        shares = {kind: self._one_of(0.05, 0.15, 0.33) for kind in kinds}
        return Faults(
            **shares,
            hooks=self._one_of(0.0, 0.0, 0.2),
            stubborn_seconds=self._random.uniform(0.1, 6.0),
        )

    def _hooks(self) -> Hooks:
        return Hooks(
            middlewares=self._some(),
            observers=self._some(),
            post_processor=self._one_of(None, *_MANNERS),
            progress_callback=self._one_of(None, None, *_MANNERS),
            rate_limit_strategy=self._one_of(None, None, *_MANNERS),
            classifier=self._one_of(None, "good", "raises"),
            skipped=self._one_of(0.0, 0.0, 0.2),
        )

    def _some(self) -> tuple[Manner, ...]:
        return tuple(self._one_of(*_MANNERS) for _ in range(self._one_of(0, 0, 1, 2)))

    def _interruption(self) -> Interruption:
        kind = self._one_of("cancel", "cleanup", "keyboard")
        return Interruption(at_seconds=self._random.uniform(0.0, 15.0), kind=kind)
