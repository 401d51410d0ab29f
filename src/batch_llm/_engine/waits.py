"""How long calls waited at a gate, and for what."""

from typing import Literal

Reason = Literal["quota", "cooldown", "slots"]


class Waits:
    """Seconds in which at least one call waited, by what the first in line waited for."""

    def __init__(self) -> None:
        self._seconds: dict[Reason, float] = {"quota": 0.0, "cooldown": 0.0, "slots": 0.0}
        self._reason: Reason | None = None
        self._since = 0.0

    def note(self, reason: Reason | None, now: float) -> None:
        """From now on the first in line waits for this; None if nobody waits."""
        if self._reason is not None:
            self._seconds[self._reason] += now - self._since
        self._reason, self._since = reason, now

    def seconds(self, now: float) -> dict[Reason, float]:
        """The seconds so far, by reason."""
        self.note(self._reason, now)
        return dict(self._seconds)
