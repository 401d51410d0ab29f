"""What a processor is made with, out of what its caller said."""

import dataclasses
from typing import Any

from batch_llm._engine import doors
from batch_llm.core.config import ProcessorConfig
from batch_llm.strategies.rate_limit import ExponentialBackoffStrategy, RateLimitStrategy

_LONGEST_COOLDOWN_SECONDS = 600.0


def configured(
    config: ProcessorConfig | None,
    max_workers: int | None,
    timeout_per_item: float | None,
    rate_limit_cooldown: float | None,
) -> ProcessorConfig:
    """The config with the overrides in a copy, checked."""
    config = ProcessorConfig() if config is None else config
    doors.check_collaborator("config", config, "validate")
    changes: dict[str, Any] = {}
    if max_workers is not None:
        changes["max_workers"] = max_workers
    if timeout_per_item is not None:
        changes["timeout_per_item"] = timeout_per_item
    if rate_limit_cooldown is not None:
        changes["rate_limit"] = dataclasses.replace(
            config.rate_limit, cooldown_seconds=rate_limit_cooldown
        )
    config = dataclasses.replace(config, **changes) if changes else config
    config.validate()
    return config


def default_rate_limit_strategy(config: ProcessorConfig) -> RateLimitStrategy:
    """The cooldowns that the config asks for."""
    limit = config.rate_limit
    return ExponentialBackoffStrategy(
        initial_cooldown=limit.cooldown_seconds,
        max_cooldown=max(_LONGEST_COOLDOWN_SECONDS, limit.cooldown_seconds),
        backoff_multiplier=limit.backoff_multiplier,
        slow_start_items=limit.slow_start_items,
        slow_start_initial_delay=limit.slow_start_initial_delay,
        slow_start_final_delay=limit.slow_start_final_delay,
    )
