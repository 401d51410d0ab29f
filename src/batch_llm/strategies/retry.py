"""Whether a failed attempt is repeated, and after how long. Pure arithmetic, no clock."""

from dataclasses import dataclass
from enum import Enum

from batch_llm.core.config import RateLimitConfig, RetryConfig
from batch_llm.strategies.errors import ErrorInfo

_VALIDATION_NAMES = ("validation", "parse", "unexpectedmodelbehavior")


class Verdict(Enum):
    """What comes after a failed attempt."""

    RETRY = "retry"
    """Another attempt, after ``Decision.delay_seconds``."""
    REPEAT = "repeat"
    """The same attempt again, once the cooldown is over."""
    GIVE_UP = "give up"
    """The item fails with this attempt's exception."""
    GIVE_UP_WAITING = "give up waiting"
    """The item fails since it was rate limited too often."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict with the wait before it is carried out."""

    verdict: Verdict
    delay_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The run's settings for repeating calls.

    Attributes:
        retry: Attempts and waits.
        rate_limit: How often one item may be rate limited.
    """

    retry: RetryConfig
    rate_limit: RateLimitConfig

    def decide(
        self,
        error: ErrorInfo,
        exception: BaseException,
        *,
        attempt: int,
        rate_limits: int,
        random: float,
    ) -> Decision:
        """Decide about one failed attempt.

        Args:
            error: The classified failure.
            exception: The failure itself.
            attempt: Number of the attempt that failed, from 1.
            rate_limits: How often the item was rate limited so far, this time included.
            random: A random number in [0, 1) for the jitter.

        Returns:
            The verdict and the seconds to wait first.
        """
        if error.is_rate_limit:
            waited_enough = rate_limits >= self.rate_limit.max_rate_limits_per_item
            return Decision(Verdict.GIVE_UP_WAITING if waited_enough else Verdict.REPEAT)
        if not error.is_retryable or attempt >= self.retry.max_attempts:
            return Decision(Verdict.GIVE_UP)
        if _is_validation(error, exception):
            return Decision(Verdict.RETRY)
        return Decision(Verdict.RETRY, self.backoff_seconds(attempt, random=random))

    def backoff_seconds(self, attempt: int, *, random: float) -> float:
        """Seconds between a failed attempt and the next.

        ``min(initial_wait * exponential_base ** (attempt - 1), max_wait)``, with jitter
        times a uniform factor in [0.5, 1.0), after "Exponential Backoff And Jitter",
        AWS Architecture Blog, 2015 ("equal jitter").
        """
        retry = self.retry
        try:
            wait = min(retry.initial_wait * retry.exponential_base ** (attempt - 1), retry.max_wait)
        except OverflowError:
            wait = retry.max_wait
        return wait * (0.5 + random / 2) if retry.jitter else wait


def _is_validation(error: ErrorInfo, exception: BaseException) -> bool:
    """A malformed answer says nothing about load, so there is nothing to wait for."""
    if error.error_category == "validation_error":
        return True
    name = type(exception).__name__.lower()
    return any(word in name for word in _VALIDATION_NAMES)
