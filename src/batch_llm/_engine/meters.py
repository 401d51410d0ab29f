"""How fast calls may go out: so many requests, and so many tokens, per minute."""

import math


class Meter:
    """An even flow of N units per minute, with a burst of one second's worth.

    The generic cell rate algorithm (ITU-T I.371, 2004), for asks of any size: each moves
    on the moment at which the burst will be whole again, and an ask conforms once what is
    left of the burst covers it. One that is larger than the burst goes alone: it waits
    until the burst is whole, and what it takes beyond that is a debt, which all who come
    later wait for. A debt is also what a call leaves that has cost more than was thought.

    Over any window of ``w`` seconds at most ``w * N / 60`` units pass, and the burst, and
    what the last ask exceeds the burst by.

    Args:
        per_minute: Units per minute, above 0 and finite; fractions are fine.
        spare: Units by which the burst is smaller than one second's worth. One request
            leaves room for requests that the network brings closer together.
    """

    def __init__(self, per_minute: float, *, spare: float = 0.0) -> None:
        self._spare = spare
        self._set(per_minute)
        self.reset()

    def _set(self, per_minute: float) -> None:
        self.per_minute = per_minute
        self._seconds_per_unit = 60.0 / per_minute
        self._burst = max(1.0, per_minute / 60.0 - self._spare)

    def reset(self) -> None:
        """Forget what was taken so far; a new event loop has a new clock."""
        self._whole_at = -math.inf

    def ready_at(self, amount: float = 1.0) -> float:
        """Loop time from which an ask of so many units conforms."""
        left_over = self._burst - min(amount, self._burst)
        return self._whole_at - left_over * self._seconds_per_unit

    def take(self, now: float, amount: float = 1.0) -> None:
        """Take so many units, whether they are there or not; a negative amount gives back."""
        self._whole_at = max(self._whole_at, now) + amount * self._seconds_per_unit

    def resize(self, per_minute: float, now: float) -> None:
        """Go on at another rate: what is left stays, up to the new burst, and so does a debt."""
        lacking = max(0.0, self._whole_at - now) / self._seconds_per_unit
        left = self._burst - lacking
        self._set(per_minute)
        self._whole_at = now + max(0.0, self._burst - left) * self._seconds_per_unit
