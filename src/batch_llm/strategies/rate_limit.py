"""How long to pause after a rate limit, and how to start again."""

from abc import ABC, abstractmethod

from batch_llm.core.config import is_number


class RateLimitStrategy(ABC):
    """Decides the length of cooldowns and the pace after them.

    A provider's own hint comes first: ``on_rate_limit`` is asked only where an error
    names no time to wait.
    """

    @abstractmethod
    async def on_rate_limit(self, worker_id: int, consecutive_limit_count: int) -> float:
        """Called once per cooldown.

        Args:
            worker_id: The worker whose call was refused first.
            consecutive_limit_count: Cooldowns since any call succeeded, this one
                included: 1, 2, 3, …

        Returns:
            Seconds to pause all workers.
        """

    @abstractmethod
    def should_apply_slow_start(self, items_since_resume: int) -> tuple[bool, float]:
        """Called for each call after a cooldown, until the first False.

        Args:
            items_since_resume: Calls let out since the cooldown ended: 0, 1, 2, …

        Returns:
            Whether this call is to be held back, and for how many seconds after the
            one before it.
        """


def _require(name: str, value: float, *, least: float) -> None:
    if not (is_number(value) and value >= least):
        raise ValueError(f"{name} must be >= {least} (got {value!r}); pass a finite number")


class ExponentialBackoffStrategy(RateLimitStrategy):
    """Cooldowns that grow by a factor while nothing succeeds, then a linear slow start.

    Args:
        initial_cooldown: Seconds of the first cooldown.
        max_cooldown: Longest cooldown in seconds.
        backoff_multiplier: Factor from one cooldown to the next.
        slow_start_items: Calls after a cooldown that are spaced out; 0 means none.
        slow_start_initial_delay: Seconds before the first of them.
        slow_start_final_delay: Seconds that the delay falls towards, linearly.

    Raises:
        ValueError: A number is negative, not finite, or backoff_multiplier is below 1.
    """

    def __init__(  # noqa: PLR0913 - the contract's positional order
        self,
        initial_cooldown: float = 60.0,
        max_cooldown: float = 600.0,
        backoff_multiplier: float = 2.0,
        slow_start_items: int = 50,
        slow_start_initial_delay: float = 2.0,
        slow_start_final_delay: float = 0.1,
    ) -> None:
        for name, value, least in (
            ("initial_cooldown", initial_cooldown, 0),
            ("max_cooldown", max_cooldown, 0),
            ("backoff_multiplier", backoff_multiplier, 1),
            ("slow_start_items", slow_start_items, 0),
            ("slow_start_initial_delay", slow_start_initial_delay, 0),
            ("slow_start_final_delay", slow_start_final_delay, 0),
        ):
            _require(name, value, least=least)
        self.initial_cooldown = initial_cooldown
        self.max_cooldown = max_cooldown
        self.backoff_multiplier = backoff_multiplier
        self.slow_start_items = slow_start_items
        self.slow_start_initial_delay = slow_start_initial_delay
        self.slow_start_final_delay = slow_start_final_delay

    async def on_rate_limit(self, worker_id: int, consecutive_limit_count: int) -> float:
        """``initial_cooldown * backoff_multiplier ** (count - 1)``, at most ``max_cooldown``."""
        exponent = max(0, consecutive_limit_count - 1)
        try:
            cooldown = self.initial_cooldown * self.backoff_multiplier**exponent
        except OverflowError:
            return self.max_cooldown if self.initial_cooldown else 0.0
        return min(cooldown, self.max_cooldown)

    def should_apply_slow_start(self, items_since_resume: int) -> tuple[bool, float]:
        """A delay that falls linearly from the initial to the final one."""
        if items_since_resume >= self.slow_start_items:
            return False, 0.0
        progress = items_since_resume / self.slow_start_items
        fall = self.slow_start_initial_delay - self.slow_start_final_delay
        return True, self.slow_start_initial_delay - progress * fall


class FixedDelayStrategy(RateLimitStrategy):
    """Cooldowns of one length, and one delay before every call from then on.

    Args:
        cooldown: Seconds of each cooldown.
        delay_between_requests: Seconds between two calls after the first cooldown.

    Raises:
        ValueError: A number is negative or not finite.
    """

    def __init__(self, cooldown: float = 300.0, delay_between_requests: float = 1.0) -> None:
        _require("cooldown", cooldown, least=0)
        _require("delay_between_requests", delay_between_requests, least=0)
        self.cooldown = cooldown
        self.delay = delay_between_requests

    async def on_rate_limit(self, worker_id: int, consecutive_limit_count: int) -> float:
        """The same cooldown every time."""
        return self.cooldown

    def should_apply_slow_start(self, items_since_resume: int) -> tuple[bool, float]:
        """The same delay for every call."""
        return True, self.delay
