"""The emulator's clocks: the loop's and the world's, both moved by the same test."""

from batch_llm.core.clock import loop_time, wall_time


class EmulatorClock:
    """Time as the emulated service sees it."""

    def __init__(self) -> None:
        self._ahead_seconds = 0.0

    def advance(self, seconds: float) -> None:
        """Move both clocks ahead.

        Raises:
            ValueError: ``seconds`` is negative.
        """
        if seconds < 0:
            raise ValueError(
                f"seconds must not be negative (got {seconds!r}). Time only moves ahead."
            )
        self._ahead_seconds += seconds

    def monotonic(self) -> float:
        """Seconds that never run backwards; what quotas are filled by."""
        return loop_time() + self._ahead_seconds

    def wall(self) -> float:
        """Seconds since the epoch; what caches expire by."""
        return wall_time() + self._ahead_seconds
