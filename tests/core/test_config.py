"""Settings: defaults, what is refused, and in which words."""

import dataclasses
import math
from fractions import Fraction
from typing import Any

import pytest

from batch_llm import ParallelBatchProcessor, ProcessorConfig, RateLimitConfig, RetryConfig

Config = RetryConfig | RateLimitConfig | ProcessorConfig

DEFAULTS: list[tuple[type[Any], dict[str, Any]]] = [
    (
        RetryConfig,
        {
            "max_attempts": 3,
            "initial_wait": 1.0,
            "max_wait": 60.0,
            "exponential_base": 2.0,
            "jitter": True,
        },
    ),
    (
        RateLimitConfig,
        {
            "cooldown_seconds": 300.0,
            "slow_start_items": 50,
            "slow_start_initial_delay": 2.0,
            "slow_start_final_delay": 0.1,
            "backoff_multiplier": 1.5,
        },
    ),
    (
        ProcessorConfig,
        {
            "max_workers": 5,
            "timeout_per_item": 120.0,
            "retry": RetryConfig(),
            "rate_limit": RateLimitConfig(),
            "max_requests_per_minute": None,
            "progress_interval": 10,
            "progress_callback_timeout": 5.0,
            "enable_detailed_logging": False,
            "max_queue_size": 0,
            "dry_run": False,
        },
    ),
]

# Class, field, first value out of range, nearest value in range, start of the message.
RANGES: list[tuple[type[Any], str, Any, Any, str]] = [
    (RetryConfig, "max_attempts", 0, 1, "max_attempts must be >= 1"),
    (RetryConfig, "initial_wait", 0, 1e-9, "initial_wait must be > 0"),
    (RetryConfig, "max_wait", 0.99, 1.0, "max_wait must be >= initial_wait"),
    (RetryConfig, "exponential_base", 0.99, 1, "exponential_base must be >= 1"),
    (RateLimitConfig, "cooldown_seconds", -0.1, 0, "cooldown_seconds must be >= 0"),
    (RateLimitConfig, "slow_start_items", -1, 0, "slow_start_items must be >= 0"),
    (
        RateLimitConfig,
        "slow_start_initial_delay",
        0.09,
        0.1,
        "slow_start_initial_delay must be >= slow_start_final_delay",
    ),
    (
        RateLimitConfig,
        "slow_start_final_delay",
        2.1,
        2.0,
        "slow_start_initial_delay must be >= slow_start_final_delay",
    ),
    (RateLimitConfig, "slow_start_final_delay", -0.1, 0, "slow_start_final_delay must be >= 0"),
    (RateLimitConfig, "backoff_multiplier", 0.99, 1.0, "backoff_multiplier must be >= 1.0"),
    (
        RateLimitConfig,
        "max_rate_limits_per_item",
        0,
        1,
        "max_rate_limits_per_item must be >= 1",
    ),
    (ProcessorConfig, "max_workers", 0, 1, "max_workers must be >= 1"),
    (ProcessorConfig, "timeout_per_item", 0, 1e-9, "timeout_per_item must be > 0"),
    (
        ProcessorConfig,
        "max_requests_per_minute",
        0,
        0.5,
        "max_requests_per_minute must be > 0",
    ),
    (ProcessorConfig, "progress_interval", 0, 1, "progress_interval must be >= 1"),
    (
        ProcessorConfig,
        "progress_callback_timeout",
        0,
        1e-9,
        "progress_callback_timeout must be > 0",
    ),
    (ProcessorConfig, "max_queue_size", -1, 0, "max_queue_size must be >= 0"),
]
FIELDS = [(kind, field, message) for kind, field, _, _, message in RANGES if "final_d" not in field]
FIELDS += [
    (RetryConfig, "jitter", "jitter must be a bool"),
    (ProcessorConfig, "enable_detailed_logging", "enable_detailed_logging must be a bool"),
    (ProcessorConfig, "dry_run", "dry_run must be a bool"),
    (
        RateLimitConfig,
        "slow_start_final_delay",
        "slow_start_initial_delay must be >= slow_start_final_delay",
    ),
]
NUMBERS = [entry for entry in FIELDS if "bool" not in entry[2]]
BOOLS = [entry for entry in FIELDS if "bool" in entry[2]]


def named(value: Any) -> str:
    """A short test id."""
    return value.__name__ if isinstance(value, type) else str(value)[:40]


# Here infinity means that there is no limit.
UNLIMITED = {
    "max_wait",
    "timeout_per_item",
    "max_requests_per_minute",
    "progress_callback_timeout",
}


def refusal(config: Config) -> str:
    """What ``validate`` says; a subclass of ValueError will not do."""
    with pytest.raises(ValueError, match="must be") as caught:
        config.validate()
    assert type(caught.value) is ValueError
    return str(caught.value)


@pytest.mark.parametrize(("kind", "defaults"), DEFAULTS, ids=named)
def test_defaults_and_positional_order(kind: type[Any], defaults: dict[str, Any]) -> None:
    made = kind()
    made.validate()
    assert {name: getattr(made, name) for name in defaults} == defaults
    assert [field.name for field in dataclasses.fields(kind)][: len(defaults)] == list(defaults)
    assert kind(*defaults.values()) == made


@pytest.mark.parametrize(("kind", "field", "wrong", "right", "message"), RANGES, ids=named)
def test_ranges(kind: type[Any], field: str, wrong: Any, right: Any, message: str) -> None:
    said = refusal(kind(**{field: wrong}))
    assert said.startswith(message)
    assert "(got " in said
    assert repr(wrong) in said
    assert said.partition("); ")[2]
    kind(**{field: right}).validate()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "5", [], 1j], ids=named)
@pytest.mark.parametrize(("kind", "field", "message"), NUMBERS, ids=named)
def test_what_is_no_finite_number_is_refused(
    kind: type[Any], field: str, message: str, value: Any
) -> None:
    if value == math.inf and field in UNLIMITED:
        kind(**{field: value}).validate()
    else:
        assert refusal(kind(**{field: value})).startswith(message)


def test_a_number_too_large_for_a_float_is_refused() -> None:
    said = refusal(ProcessorConfig(timeout_per_item=10**400))
    assert said.startswith("timeout_per_item must be > 0")


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize(("kind", "field", "message"), NUMBERS, ids=named)
def test_a_bool_is_no_number(kind: type[Any], field: str, message: str, value: bool) -> None:
    assert refusal(kind(**{field: value})).startswith(message)


@pytest.mark.parametrize("value", [0, 1, None, "yes"], ids=repr)
@pytest.mark.parametrize(("kind", "field", "message"), BOOLS, ids=named)
def test_a_switch_is_a_bool(kind: type[Any], field: str, message: str, value: Any) -> None:
    assert refusal(kind(**{field: value})).startswith(message)


OPTIONAL = {"max_requests_per_minute", "progress_callback_timeout"}


@pytest.mark.parametrize(("kind", "field", "message"), NUMBERS, ids=named)
def test_none_is_for_the_two_optional_settings_only(
    kind: type[Any], field: str, message: str
) -> None:
    config = kind(**{field: None})
    if field in OPTIONAL:
        config.validate()
    else:
        assert refusal(config).startswith(message)


@pytest.mark.parametrize(
    ("kind", "field", "message"),
    [entry for entry in NUMBERS if isinstance(getattr(entry[0](), entry[1]), int)],
    ids=named,
)
def test_a_count_is_a_whole_number(kind: type[Any], field: str, message: str) -> None:
    assert refusal(kind(**{field: 2.5})).startswith(message)


def test_any_real_number_will_do() -> None:
    RetryConfig(initial_wait=1, max_wait=Fraction(7, 2), exponential_base=True + 1).validate()


@pytest.mark.parametrize("value", [None, {}, RetryConfig, RateLimitConfig], ids=named)
@pytest.mark.parametrize("field", ["retry", "rate_limit"])
def test_nested_settings_are_settings(field: str, value: Any) -> None:
    said = refusal(ProcessorConfig(**{field: value}))
    assert said.startswith(f"{field} must be a R")
    assert "(got " in said


@pytest.mark.parametrize(
    ("nested", "message"),
    [
        ({"retry": RetryConfig(max_attempts=0)}, "max_attempts must be >= 1"),
        ({"rate_limit": RateLimitConfig(cooldown_seconds=-1)}, "cooldown_seconds must be >= 0"),
    ],
    ids=["retry", "rate limit"],
)
def test_nested_settings_are_checked_too(nested: dict[str, Any], message: str) -> None:
    assert refusal(ProcessorConfig(**nested)).startswith(message)


def test_an_invalid_config_can_be_built_and_mended() -> None:
    config = ProcessorConfig(max_workers=-3)
    with pytest.raises(ValueError, match=r"^max_workers must be >= 1 \(got -3\); pass"):
        ParallelBatchProcessor(config=config)
    config.max_workers = 3
    config.validate()


def test_configs_share_no_nested_settings() -> None:
    assert ProcessorConfig().retry is not ProcessorConfig().retry
    assert ProcessorConfig().rate_limit is not ProcessorConfig().rate_limit
