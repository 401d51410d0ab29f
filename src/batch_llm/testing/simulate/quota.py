"""May this call pass, or has the provider's quota run out?"""

import math
from collections.abc import Iterable

from batch_llm.testing.simulate.scenario import Quota, QuotaChange

_TOLERANCE = 1e-9


class QuotaMeter:
    """Requests and input tokens of one provider, against the quota that holds at the time.

    Args:
        quota: What holds at first; None for no limit.
        changes: What holds later; each starts with a fresh account.
    """

    def __init__(self, quota: Quota | None, changes: Iterable[QuotaChange] = ()) -> None:
        self._changes = sorted(changes, key=lambda change: change.at_seconds, reverse=True)
        self._take_up(quota)

    def admit(self, tokens: int, now: float) -> float | None:
        """Take one call out of the quota.

        Args:
            tokens: Its input tokens.
            now: Seconds since the start, never falling.

        Returns:
            None if it may pass, or else the seconds after which it might; nothing is taken
            then. More than the quota ever grants waits for one period.
        """
        while self._changes and self._changes[-1].at_seconds <= now:
            self._take_up(self._changes.pop().quota)
        asks = [(account, ask) for account, ask in zip(self._accounts, (1, tokens), strict=True)]
        waits = [account.wait_seconds(ask, now) for account, ask in asks]
        if max(waits) > 0:
            return max(waits)
        for account, ask in asks:
            account.level -= ask
        return None

    @property
    def hints(self) -> bool:
        """Whether a refusal says how long to wait."""
        return self._quota.hints

    def _take_up(self, quota: Quota | None) -> None:
        self._quota = quota = quota or Quota()
        limits = (quota.requests_per_minute, quota.tokens_per_minute)
        self._accounts = [_Account(limit, quota) for limit in limits]


class _Account:
    """What is left of one limit."""

    def __init__(self, per_minute: float | None, quota: Quota) -> None:
        self._per_second = math.inf if per_minute is None else per_minute / 60
        self._period = quota.period_seconds
        self._in_windows = quota.kind == "window"
        self._capacity = max(1.0, self._per_second * self._period)
        self.level = self._capacity
        self._filled_at = 0.0

    def wait_seconds(self, ask: float, now: float) -> float:
        """Seconds until that much can be had."""
        if self._capacity == math.inf:
            return 0.0
        self._fill(now)
        if ask <= self.level + _TOLERANCE:
            return 0.0
        if self._in_windows:
            return (now // self._period + 1) * self._period - now
        return min(self._period, (ask - self.level) / self._per_second)

    def _fill(self, now: float) -> None:
        if not self._in_windows:
            gained = (now - self._filled_at) * self._per_second
            self.level = min(self._capacity, self.level + gained)
        elif now // self._period > self._filled_at // self._period:
            self.level = self._capacity
        self._filled_at = now
