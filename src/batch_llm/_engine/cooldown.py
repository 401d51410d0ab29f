"""How long a cooldown is, and the pace after it, as the rate-limit strategy wants them."""

import logging
import math
from typing import Any, TypeGuard

from batch_llm._engine.tasks import FATAL, Settled, Tasks
from batch_llm.strategies.rate_limit import RateLimitStrategy

_log = logging.getLogger(__name__)


async def cooldown_seconds(
    strategy: RateLimitStrategy,
    worker_id: int,
    consecutive: int,
    *,
    tasks: Tasks,
    hook_seconds: float,
) -> Settled:
    """Ask the strategy how long to pause.

    Args:
        strategy: The strategy.
        worker_id: Whose call was refused.
        consecutive: Cooldowns since any call succeeded, this one included.
        tasks: Runs the strategy's code.
        hook_seconds: Deadline of that code.

    Returns:
        The seconds; 0 with an error where it gave none.
    """
    settled = await tasks.bounded(
        lambda: strategy.on_rate_limit(worker_id, consecutive),
        seconds=hook_seconds,
        what="rate_limit_strategy.on_rate_limit",
    )
    if settled.error is None and not is_duration(settled.value):
        settled.error = TypeError(
            f"on_rate_limit returned {settled.value!r}; it must return seconds >= 0"
        )
    if settled.error is not None:
        kind = type(settled.error).__name__
        _log.error("the rate-limit strategy failed with %s, so nobody pauses", kind)
        _log.debug("the rate-limit strategy failed", exc_info=settled.error)
        return Settled(0.0, settled.error)
    return Settled(float(settled.value))


class SlowStart:
    """Lets the calls after a cooldown out one by one, until the strategy says that it is enough.

    Attributes:
        is_on: Whether the strategy is asked about the next call.
    """

    def __init__(self) -> None:
        self.is_on: bool = False
        self._let_out = 0
        self._last_at = 0.0
        self._ready_at: float | None = None

    def begin(self, now: float) -> None:
        """A cooldown ended."""
        self.is_on = True
        self._let_out, self._last_at, self._ready_at = 0, now, None

    def let_out(self, now: float) -> None:
        """A call went out."""
        self._let_out += 1
        self._last_at, self._ready_at = now, None

    def ready_at(self, strategy: RateLimitStrategy) -> float:
        """Loop time from which the next call may go out; asks the strategy once per call."""
        if self._ready_at is None:
            self._ready_at = self._last_at + self._delay(strategy)
        return self._ready_at

    def _delay(self, strategy: RateLimitStrategy) -> float:
        """The strategy's first False ends the slow start."""
        self.is_on = False
        if getattr(strategy, "should_apply_slow_start", None) is None:
            return 0.0
        try:
            applies, delay = strategy.should_apply_slow_start(self._let_out)
        except FATAL:
            raise
        except BaseException as error:
            kind = type(error).__name__
            _log.error("should_apply_slow_start failed with %s: no slow start", kind)
            _log.debug("should_apply_slow_start failed", exc_info=error)
            return 0.0
        if not applies:
            return 0.0
        if not is_duration(delay):
            _log.error("should_apply_slow_start gave a delay of %r: no slow start", delay)
            return 0.0
        self.is_on = True
        return float(delay)


def is_duration(value: Any) -> TypeGuard[float]:
    """Whether it is a number of seconds that can be waited for."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value >= 0
    )
