"""May this request pass, or is the minute's quota used up?

Each quota is a token bucket per model: it holds what the service grants in
``burst_seconds`` (a minute, unless told otherwise), starts full, and is refilled evenly.
So a rested client may send a minute's worth at once, and N per minute from then on. A
refused request costs nothing.
"""

from dataclasses import dataclass

from batch_llm.testing.gemini import errors
from batch_llm.testing.gemini.clock import EmulatorClock

_TOLERANCE = 1e-9
_NEVER_ENOUGH_RETRY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _Limit:
    per_minute: float
    metric: str
    quota_id: str


class _Bucket:
    """One model's share of one limit."""

    def __init__(self, limit: _Limit, burst_seconds: float, now: float) -> None:
        self.limit = limit
        self._per_second = limit.per_minute / 60
        self._capacity = max(1.0, self._per_second * burst_seconds)
        self._level = self._capacity
        self._filled_at = now

    def wait_seconds(self, amount: float, now: float) -> float:
        """Seconds until ``amount`` can be had; 0.0 when it can be had now."""
        gained = max(0.0, now - self._filled_at) * self._per_second
        self._level = min(self._capacity, self._level + gained)
        self._filled_at = now
        missing = amount - self._level
        if missing <= _TOLERANCE:
            return 0.0
        if amount > self._capacity:
            return _NEVER_ENOUGH_RETRY_SECONDS
        return missing / self._per_second

    def take(self, amount: float) -> None:
        self._level -= amount


class Quota:
    """Requests and input tokens per minute, counted for each model apart."""

    def __init__(
        self,
        *,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        burst_seconds: float,
        clock: EmulatorClock,
    ) -> None:
        self._clock = clock
        self._requests = _limit(
            requests_per_minute,
            "generate_content_paid_tier_requests",
            "GenerateRequestsPerMinutePerProjectPerModel",
        )
        self._tokens = _limit(
            tokens_per_minute,
            "generate_content_paid_tier_input_token_count",
            "GenerateContentPaidTierInputTokensPerModelPerMinute",
        )
        self._burst_seconds = burst_seconds
        self._buckets: dict[tuple[str, _Limit], _Bucket] = {}

    def admit(self, model: str, *, tokens: int) -> None:
        """Take one request and its tokens out of the model's quota.

        Raises:
            ApiError: One of the two is used up (429); nothing was taken then.
        """
        now = self._clock.monotonic()
        asks = [
            (self._bucket(model, limit, now), amount)
            for limit, amount in ((self._requests, 1), (self._tokens, tokens))
            if limit is not None
        ]
        for bucket, amount in asks:
            wait = bucket.wait_seconds(amount, now)
            if wait > 0:
                raise errors.quota_exceeded(
                    metric=bucket.limit.metric,
                    quota_id=bucket.limit.quota_id,
                    limit=bucket.limit.per_minute,
                    model=model,
                    retry_delay_seconds=wait,
                )
        for bucket, amount in asks:
            bucket.take(amount)

    def _bucket(self, model: str, limit: _Limit, now: float) -> _Bucket:
        bucket = self._buckets.get((model, limit))
        if bucket is None:
            bucket = _Bucket(limit, self._burst_seconds, now)
            self._buckets[model, limit] = bucket
        return bucket


def _limit(per_minute: float | None, metric: str, quota_id: str) -> _Limit | None:
    if per_minute is None:
        return None
    if per_minute <= 0:
        raise ValueError(
            f"A quota per minute must be above 0 (got {per_minute!r}). "
            "Leave it at None for no quota."
        )
    return _Limit(per_minute, metric, quota_id)
