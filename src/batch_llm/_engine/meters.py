"""How fast calls may go out: so many requests, and so many tokens, per minute."""

import math

_BLOCK_SECONDS, LARGEST_BLOCK = 0.01, 100


class Meter:
    """An even flow of N units per minute, with a burst of one second's worth.

    The generic cell rate algorithm (ITU-T I.371, 2004), for asks of any size: each moves
    on the moment at which the burst will be whole again, and an ask conforms once what is
    left of the burst covers it. One that is larger than the burst goes alone: it waits
    until the burst is whole, and what it takes beyond that is a debt, which all who come
    later wait for. A debt is also what a call leaves that has cost more than was thought.

    Over any window of ``w`` seconds at most ``w * N / 60`` units pass, and the burst, and
    what the last ask exceeds the burst by.

    Attributes:
        per_minute: Units per minute.
        seconds_per_unit: How long it takes until there is another.
        whole_at: Loop time at which the burst will be whole again. What is given back makes
            it earlier.

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
        self.seconds_per_unit = 60.0 / per_minute
        self._burst = max(1.0, per_minute / 60.0 - self._spare)

    def reset(self) -> None:
        """Forget what was taken so far; a new event loop has a new clock."""
        self.whole_at = -math.inf

    def ready_at(self, amount: float = 1.0) -> float:
        """Loop time from which an ask of so many units conforms."""
        left_over = self._burst - min(amount, self._burst)
        return self.whole_at - left_over * self.seconds_per_unit

    def take(self, now: float, amount: float = 1.0) -> None:
        """Take so many units, whether they are there or not."""
        self.whole_at = max(self.whole_at, now) + amount * self.seconds_per_unit

    def give_back(self, amount: float) -> None:
        """What was taken was not used."""
        self.whole_at -= amount * self.seconds_per_unit

    def resize(self, per_minute: float, now: float) -> None:
        """Go on at another rate: what is left stays, up to the new burst, and so does a debt."""
        lacking = max(0.0, self.whole_at - now) / self.seconds_per_unit
        left = self._burst - lacking
        self._set(per_minute)
        self.whole_at = now + max(0.0, self._burst - left) * self.seconds_per_unit


class Meters:
    """Requests and tokens per minute of one quota, granted together.

    One call at a time, except where a hundredth of a second brings enough for several: these
    then are taken in a block, and may go out within that time. So the many calls of a high
    limit cost little arithmetic; what is left of a block after its time is given back.

    Attributes:
        requests: Calls per minute, None for any number.
        tokens: Tokens per minute, None for any number.
        permits: Calls of the block that have not gone out.
        booked: Tokens that each of them is expected to cost.
        valid_until: Loop time at which the block's time is over.
    """

    def __init__(self) -> None:
        self.requests: Meter | None = None
        self.tokens: Meter | None = None
        self.permits, self.booked, self.valid_until = 0, 0.0, -math.inf

    @property
    def counts(self) -> bool:
        """Whether there is anything to count."""
        return self.requests is not None or self.tokens is not None

    def reset(self) -> None:
        """Forget what was taken so far; a new event loop has a new clock."""
        self.permits = 0
        for meter in (self.requests, self.tokens):
            if meter is not None:
                meter.reset()

    def resize(
        self, requests_per_minute: float | None, tokens_per_minute: float | None, now: float
    ) -> None:
        """Hold to other limits from now on; None for none."""
        self._return_block()
        self.requests = _resized(self.requests, requests_per_minute, now, spare=1.0)
        self.tokens = _resized(self.tokens, tokens_per_minute, now)

    def ready_at(self, tokens: float, *, calls: int = 1) -> float:
        """Loop time from which calls may go out that cost so many tokens each."""
        ready_at = -math.inf
        if self.requests is not None:
            ready_at = self.requests.ready_at(calls)
        if self.tokens is not None:
            ready_at = max(ready_at, self.tokens.ready_at(calls * tokens))
        return ready_at

    def take(self, now: float, tokens: float, *, calls: int = 1) -> None:
        """Let calls out that cost so many tokens each."""
        if self.requests is not None:
            self.requests.take(now, calls)
        if self.tokens is not None:
            self.tokens.take(now, calls * tokens)

    def take_block(self, now: float, tokens: float, *, most: int = LARGEST_BLOCK) -> bool:
        """Let a call out, and as many more within the block's time as are in plenty.

        Args:
            now: Loop time.
            tokens: What each is expected to cost.
            most: The most calls that may go out.

        Returns:
            Whether there was enough for the call.
        """
        self._return_block()
        for calls in (min(most, self._calls_in_block(tokens)), 1):
            if self.ready_at(tokens, calls=calls) <= now:
                self.take(now, tokens, calls=calls)
                self.permits, self.booked = calls - 1, tokens
                self.valid_until = now + _BLOCK_SECONDS
                return True
        return False

    def _calls_in_block(self, tokens: float) -> int:
        calls = float(LARGEST_BLOCK)
        if self.requests is not None:
            calls = min(calls, self.requests.per_minute / 60 * _BLOCK_SECONDS)
        if self.tokens is not None and tokens:
            calls = min(calls, self.tokens.per_minute / 60 * _BLOCK_SECONDS / tokens)
        return max(1, int(calls))

    def _return_block(self) -> None:
        if self.requests is not None:
            self.requests.give_back(self.permits)
        if self.tokens is not None:
            self.tokens.give_back(self.permits * self.booked)
        self.permits = 0


def _resized(
    meter: Meter | None, per_minute: float | None, now: float, *, spare: float = 0.0
) -> Meter | None:
    if per_minute is None or per_minute == math.inf:
        return None
    if meter is None:
        return Meter(per_minute, spare=spare)
    if meter.per_minute != per_minute:
        meter.resize(per_minute, now)
    return meter
