"""How fast calls may go out."""


class RequestMeter:
    """An even flow of N requests per minute with a burst of one second's worth less one.

    The generic cell rate algorithm (ITU-T I.371, 2004): a request conforms when it comes
    no earlier than the theoretical arrival time less the tolerance, and each request
    moves that time on by one interval. Over any window of ``w`` seconds at most
    ``w * N / 60 + max(1, N / 60 - 1)`` requests pass. The one less leaves room for
    requests that the network brings closer together.

    Args:
        per_minute: Requests per minute, above 0; fractions are fine.
    """

    def __init__(self, per_minute: float) -> None:
        self._interval = 60.0 / per_minute
        self._tolerance = max(0.0, 1.0 - 2 * self._interval)
        self.reset()

    def reset(self) -> None:
        """Forget the requests so far; a new event loop has a new clock."""
        self._theoretical_arrival = float("-inf")

    def ready_at(self) -> float:
        """Loop time from which the next request conforms."""
        return self._theoretical_arrival - self._tolerance

    def take(self, now: float) -> None:
        """Let one request out."""
        self._theoretical_arrival = max(self._theoretical_arrival, now) + self._interval
