"""Settings of a run: plain dataclasses that are checked when a processor takes them."""

import math
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import cast

from batch_llm.core.protocols import TokenEstimator


def is_number(value: object) -> bool:
    """Whether it is a real number that a float can hold: no NaN, no infinity, no bool."""
    return is_limit(value) and math.isfinite(cast("float", value))


def is_limit(value: object) -> bool:
    """Whether it is a number or infinity, which stands for no limit."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return not math.isnan(value)
    except OverflowError:
        return False


def _is_integer(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral)


def _is_a(value: object, kind: type) -> bool:
    """isinstance, for what a type checker takes for certain."""
    return isinstance(value, kind)


def _check(holds: bool, rule: str, got: object, remedy: str) -> None:
    if not holds:
        raise ValueError(f"{rule} (got {got!r}); {remedy}")


def check_rate(name: str, rate: object) -> None:
    """Check a rate per minute, which may be None for no limit.

    Raises:
        ValueError: It is not above 0, or no number.
    """
    unit = name.removeprefix("max_").removesuffix("_per_minute")
    _check(
        rate is None or (is_limit(rate) and cast("float", rate) > 0),
        f"{name} must be > 0",
        rate,
        f"pass {unit} per minute, or None for no limit",
    )


def _check_bool(name: str, value: object) -> None:
    _check(isinstance(value, bool), f"{name} must be a bool", value, "pass True or False")


@dataclass
class RetryConfig:
    """How often and how patiently a failed attempt is repeated.

    Attributes:
        max_attempts: Attempts per item, the first one included. Rate limits use up none.
        initial_wait: Seconds before the second attempt.
        max_wait: Longest wait between two attempts, in seconds.
        exponential_base: Factor from one wait to the next.
        jitter: Multiply each wait by a random factor in [0.5, 1.0), so that items
            that failed together do not come back together.
    """

    max_attempts: int = 3
    initial_wait: float = 1.0
    max_wait: float = 60.0
    exponential_base: float = 2.0
    jitter: bool = True

    def validate(self) -> None:
        """Check every field.

        Raises:
            ValueError: A field is out of range, not a finite number or of the wrong type.
        """
        _check(
            _is_integer(self.max_attempts) and self.max_attempts >= 1,
            "max_attempts must be >= 1",
            self.max_attempts,
            "pass a whole number; 1 means no retry",
        )
        _check(
            is_number(self.initial_wait) and self.initial_wait > 0,
            "initial_wait must be > 0",
            self.initial_wait,
            "pass seconds, such as 1.0",
        )
        _check(
            is_limit(self.max_wait) and self.max_wait >= self.initial_wait,
            "max_wait must be >= initial_wait",
            self.max_wait,
            f"initial_wait is {self.initial_wait!r}: raise max_wait or lower initial_wait",
        )
        _check(
            is_number(self.exponential_base) and self.exponential_base >= 1,
            "exponential_base must be >= 1",
            self.exponential_base,
            "pass 2.0 to double each wait, 1.0 to keep it constant",
        )
        _check_bool("jitter", self.jitter)


@dataclass
class RateLimitConfig:
    """What happens when the provider says that there were too many requests.

    Attributes:
        cooldown_seconds: Pause of all workers after a first rate limit, where the
            provider names no time of its own. 0 means none.
        slow_start_items: Calls after a cooldown that are let out one by one. 0 means none.
        slow_start_initial_delay: Seconds before the first of those calls.
        slow_start_final_delay: Seconds before the last of them; linear in between.
        backoff_multiplier: Factor from one cooldown to the next while nothing succeeds.
        max_rate_limits_per_item: An item that was refused this often fails with
            RateLimitExceededError instead of waiting again.
    """

    cooldown_seconds: float = 300.0
    slow_start_items: int = 50
    slow_start_initial_delay: float = 2.0
    slow_start_final_delay: float = 0.1
    backoff_multiplier: float = 1.5
    max_rate_limits_per_item: int = 100

    # No field, so that it tells nothing apart; False where nobody chose these settings.
    _is_given = True

    @property
    def is_given(self) -> bool:
        """Whether somebody chose these settings, rather than ProcessorConfig by default."""
        return self._is_given or self != RateLimitConfig()

    def validate(self) -> None:
        """Check every field.

        Raises:
            ValueError: A field is out of range, not a finite number or of the wrong type.
        """
        _check(
            is_number(self.cooldown_seconds) and self.cooldown_seconds >= 0,
            "cooldown_seconds must be >= 0",
            self.cooldown_seconds,
            "pass a finite number of seconds; 0 means no pause",
        )
        _check(
            _is_integer(self.slow_start_items) and self.slow_start_items >= 0,
            "slow_start_items must be >= 0",
            self.slow_start_items,
            "pass a whole number; 0 means no slow start",
        )
        self._validate_slow_start_delays()
        _check(
            is_number(self.backoff_multiplier) and self.backoff_multiplier >= 1.0,
            "backoff_multiplier must be >= 1.0",
            self.backoff_multiplier,
            "pass 1.0 for equal cooldowns, more for growing ones",
        )
        _check(
            _is_integer(self.max_rate_limits_per_item) and self.max_rate_limits_per_item >= 1,
            "max_rate_limits_per_item must be >= 1",
            self.max_rate_limits_per_item,
            "pass a whole number, such as 100",
        )

    def _validate_slow_start_delays(self) -> None:
        first, last = self.slow_start_initial_delay, self.slow_start_final_delay
        _check(
            is_number(first) and is_number(last) and first >= last,
            "slow_start_initial_delay must be >= slow_start_final_delay",
            (first, last),
            "pass seconds that shrink from the first delay to the last",
        )
        _check(last >= 0, "slow_start_final_delay must be >= 0", last, "pass seconds")


def _default_rate_limit() -> RateLimitConfig:
    config = RateLimitConfig()
    vars(config)["_is_given"] = False
    return config


@dataclass
class ProcessorConfig:
    """Settings of a ParallelBatchProcessor.

    Attributes:
        max_workers: Calls that may be in flight at once.
        timeout_per_item: Seconds for one attempt; prepare, cleanup, on_error, dry_run
            and each middleware call have the same.
        retry: Repeating failed attempts.
        rate_limit: Pausing after rate limits.
        max_requests_per_minute: Calls are spaced evenly to stay at this rate; fractions
            are fine (0.5 is one call in two minutes). None means unlimited. It holds for
            each quota by itself (``LLMCallStrategy.quota``); where cooldowns were asked for,
            for the run as a whole.
        progress_interval: Finished items between two calls of the progress callback.
        progress_callback_timeout: Seconds until a progress callback is cancelled;
            None means never.
        enable_detailed_logging: Log at DEBUG that an answer came, with its tokens; failed
            attempts are logged there in any case.
        max_queue_size: Items that may wait for a worker; 0 means any number.
        dry_run: Call ``strategy.dry_run`` instead of ``prepare`` and ``execute``.
        max_tokens_per_minute: Calls are spaced to stay at this rate too, input and output
            tokens together, for each quota as above. A call is let out for what it is
            expected to use, and settled for what it did use: too much comes back, too little
            is a debt. None means unlimited.
        token_estimator: Tells what a call is expected to use; None learns it from the run.
        hedge_after: A call that takes longer than this share of the strategy's last answers
            (0.95: the slowest twentieth) is made once more where a worker has nothing else
            to do. The first answer counts, and the tokens of both. None means never.
    """

    max_workers: int = 5
    timeout_per_item: float = 120.0
    retry: RetryConfig = field(default_factory=RetryConfig)
    rate_limit: RateLimitConfig = field(default_factory=_default_rate_limit)
    max_requests_per_minute: float | None = None
    progress_interval: int = 10
    progress_callback_timeout: float | None = 5.0
    enable_detailed_logging: bool = False
    max_queue_size: int = 0
    dry_run: bool = False
    max_tokens_per_minute: float | None = None
    token_estimator: TokenEstimator | None = None
    hedge_after: float | None = None

    def validate(self) -> None:
        """Check every field, those of ``retry`` and ``rate_limit`` included.

        Raises:
            ValueError: A field is out of range, not a finite number or of the wrong type.
        """
        _check(
            _is_integer(self.max_workers) and self.max_workers >= 1,
            "max_workers must be >= 1",
            self.max_workers,
            "pass a whole number of concurrent calls, such as 5",
        )
        _check(
            is_limit(self.timeout_per_item) and self.timeout_per_item > 0,
            "timeout_per_item must be > 0",
            self.timeout_per_item,
            "pass seconds, such as 120.0",
        )
        _check(
            _is_a(self.retry, RetryConfig),
            "retry must be a RetryConfig",
            self.retry,
            "pass RetryConfig(...)",
        )
        _check(
            _is_a(self.rate_limit, RateLimitConfig),
            "rate_limit must be a RateLimitConfig",
            self.rate_limit,
            "pass RateLimitConfig(...)",
        )
        self.retry.validate()
        self.rate_limit.validate()
        self._validate_pace_and_progress()
        _check_bool("enable_detailed_logging", self.enable_detailed_logging)
        _check(
            _is_integer(self.max_queue_size) and self.max_queue_size >= 0,
            "max_queue_size must be >= 0",
            self.max_queue_size,
            "pass a whole number; 0 means any number of items",
        )
        _check_bool("dry_run", self.dry_run)

    def _validate_pace_and_progress(self) -> None:
        check_rate("max_requests_per_minute", self.max_requests_per_minute)
        check_rate("max_tokens_per_minute", self.max_tokens_per_minute)
        _check(
            self.token_estimator is None
            or all(callable(getattr(self.token_estimator, m, None)) for m in ("estimate", "learn")),
            "token_estimator must have estimate and learn",
            self.token_estimator,
            "pass a TokenEstimator, or None to learn from the run",
        )
        _check(
            _is_integer(self.progress_interval) and self.progress_interval >= 1,
            "progress_interval must be >= 1",
            self.progress_interval,
            "pass a whole number of items; 1 reports each",
        )
        share = self.hedge_after
        _check(
            share is None or (is_number(share) and 0 < share < 1),
            "hedge_after must be between 0 and 1",
            share,
            "pass a share of the answers, such as 0.95, or None for no duplicates",
        )
        timeout = self.progress_callback_timeout
        _check(
            timeout is None or (is_limit(timeout) and timeout > 0),
            "progress_callback_timeout must be > 0",
            timeout,
            "pass seconds, or None for no limit",
        )
