"""Spending what a provider says is left, so that it lasts until it says there is more."""

import math
from collections import deque
from dataclasses import dataclass

from batch_llm.strategies._http import Allowance

_APART_SECONDS = 0.1
_LEAST_SECONDS = 1.0
_OBSERVATIONS = 20
_RESERVE_SECONDS = 0.3
_RESERVE_CALLS = 2.0
_HASTE = 4.0
_NETWORK_SECONDS = 0.05
_PLENTY_RESERVES = 4.0
_LONGEST_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _Observation:
    at: float
    spent: float
    remaining: float


class Budget:
    """One limit of a provider's, requests or tokens, as the headers of its responses tell it.

    A header is as old as its call: what went out since then is deducted. Nobody says whether
    the limit is a window, which gets nothing until its reset, or a bucket, which fills all the
    time. So what comes in is measured: between two responses, what is left has changed by
    what came in less what we spent. Whatever others spend is then in the account as well.

    * What is left, spread over the time to the reset, can never be too fast, nor can four
      times that: the less is left, the slower it is spent. An even flow would waste what a
      window, or half a bucket, still holds at the end of a job.
    * What comes in can be spent at once, in the measure in which there is more left than a
      reserve of two calls or 0.3 seconds' worth, whichever is more: a bucket is spent down
      to that, and then its flow is followed.

    From its reset on an observation binds nothing, and none binds for more than a minute: then
    a single refusal is cheaper than to believe a header that meant something else.
    """

    def __init__(self) -> None:
        self._last: _Observation | None = None
        self._reset_at = -math.inf
        self._seen: deque[_Observation] = deque(maxlen=_OBSERVATIONS)
        self._gain = 0.0

    def tell(self, allowance: Allowance, at: float, spent: float) -> None:
        """Take in a response.

        Args:
            allowance: What it says.
            at: When its call went out.
            spent: All that was spent until then, the call included.
        """
        if self._last is not None and spent < self._last.spent:
            return
        if at >= self._reset_at - _NETWORK_SECONDS:
            # What a window gets at its reset does not come in from then on.
            self.forget()
        self._last = seen = _Observation(at, spent, allowance.remaining)
        wait = min(allowance.reset_seconds, _LONGEST_SECONDS)
        self._reset_at = at + wait + _NETWORK_SECONDS
        if not self._seen or at >= self._seen[-1].at + _APART_SECONDS:
            self._seen.append(seen)
            self._gain = self._measured_gain(seen)

    def _measured_gain(self, last: _Observation) -> float:
        """What comes in per second: the lower of two measures, lest a reset be taken for it."""
        gains = [
            (last.remaining - first.remaining + last.spent - first.spent) / (last.at - first.at)
            for first in (self._seen[0], self._seen[len(self._seen) // 2])
            if last.at - first.at >= _LEAST_SECONDS
        ]
        return max(0.0, min(gains, default=0.0))

    def forget(self) -> None:
        """What was measured of what comes in does not hold any more."""
        self._seen.clear()
        self._gain = 0.0

    def ready_at(self, now: float, *, amount: float, spent: float, last_at: float) -> float:
        """When the next call may go out.

        Args:
            now: Loop time.
            amount: What it costs.
            spent: All that was spent so far.
            last_at: When the last call went out.
        """
        last = self._last
        if last is None or now >= self._reset_at or amount <= 0:
            return -math.inf
        left = self._left(last, now, spent)
        if left < amount:
            at = now + (amount - left) / self._gain if self._gain else math.inf
            return min(at, self._reset_at)
        until_reset = self._reset_at - now
        pace = left * max(_HASTE / until_reset, self._gain / self._reserve(amount))
        return min(last_at + amount / pace, self._reset_at)

    def has_plenty(self, now: float, *, amount: float, spent: float) -> bool:
        """Whether there is so much left that nothing need be held back."""
        last = self._last
        if last is None or now >= self._reset_at:
            return False
        return self._left(last, now, spent) > _PLENTY_RESERVES * self._reserve(amount)

    def _left(self, last: _Observation, now: float, spent: float) -> float:
        return last.remaining - (spent - last.spent) + self._gain * (now - last.at)

    def _reserve(self, amount: float) -> float:
        return max(_RESERVE_CALLS * amount, _RESERVE_SECONDS * self._gain)
