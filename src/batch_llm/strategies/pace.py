"""How fast a provider lets calls in, learned from what it let in between two throttlings."""

import math
from bisect import bisect_left, bisect_right
from collections import deque

_SHORTEST_PERIOD_SECONDS = 1.0
_PRIOR_CALLS = 10
_MEMORY_CALLS, _MEMORY_CALLS_BELOW, _ENOUGH_CALLS = 100, 30, 20
_SURPRISE = 3.0
_MOST_OF_PACE, _LEAST_OF_PACE = 0.98, 0.5
# Who lets in less than a call a minute refuses for something else than the pace.
_SLOWEST_PER_SECOND = 1 / 60
_HOLD_CALLS, _GROWTH, _DOUBLING_CALLS = 20, 0.002, 12
_GUESS_HOLD_CALLS, _GUESS_GROWTH = 2, 0.05
_BINDING = 0.8
_RECENT_STARTS = 20
_SIZES, _REFUSED_SIZES = 100, 32
_FEW_REFUSED, _FEW_LET_IN = 6, 10
_LARGER, _STILL_LARGER = 3.0, 1.0


class Pace:
    """Calls per second: cut after a throttling, grown by answers.

    A call may count as more or less than one (``Sizes``).

    Attributes:
        per_second: The pace; infinite before the first cut.
    """

    def __init__(self) -> None:
        self.per_second: float = math.inf
        self._is_guess = True
        self._grant = _Grant()
        self._paid_at = -math.inf
        self._starts: deque[tuple[float, float]] = deque(maxlen=_RECENT_STARTS)
        self._answers = 0

    def ready_at(self, weight: float) -> float:
        """When a call may go out: it is paid for beforehand, the larger the longer."""
        return self._paid_at + weight / self.per_second

    @property
    def last_at(self) -> float:
        """When the last call went out."""
        return self._starts[-1][0] if self._starts else -math.inf

    def start(self, now: float, weight: float) -> None:
        """A call goes out."""
        self._starts.append((now, weight))
        self._paid_at = now

    def resume(self, since: float) -> None:
        """Go on after a stop, as if the last call had gone out at that time."""
        self._paid_at = since

    def hold(self) -> None:
        """A throttling is over: its answers count for the pace that comes now."""
        self._answers = 0

    def raise_to(self, factor: float) -> None:
        """The pace was blamed for nothing, so let it not be in the way."""
        self.per_second *= factor

    def answered(self) -> None:
        """A call was let in that was begun at this pace: it grows, where it holds calls back."""
        if self.per_second == math.inf or not self._is_binding():
            return
        self._answers += 1
        if self._is_guess:
            growth = _GUESS_GROWTH if self._answers > _GUESS_HOLD_CALLS else 0.0
        else:
            doublings = min((self._answers - _HOLD_CALLS) / _DOUBLING_CALLS, 8)
            growth = _GROWTH * 2**doublings if self._answers > _HOLD_CALLS else 0.0
        self.per_second *= 1 + growth

    def _is_binding(self) -> bool:
        if len(self._starts) < _RECENT_STARTS:
            return False
        seconds = self._starts[-1][0] - self._starts[0][0]
        calls = sum(weight for _, weight in self._starts) - self._starts[0][1]
        return _BINDING * self.per_second * seconds <= calls

    def cut(self, let_in: float, seconds: float) -> None:
        """Go on at what was granted since the last throttling, and slower, to a call a minute."""
        if self.per_second == math.inf:
            # A guess that soon grows; a hint says when one call may come back, not how many.
            guess = max(let_in, 1.0) / max(seconds, _SHORTEST_PERIOD_SECONDS)
            self.per_second = max(guess, _SLOWEST_PER_SECOND)
            self._grant.guess(self.per_second)
            return
        estimate, has_grown = self._grant.add(let_in, seconds)
        least, most = self.per_second * _LEAST_OF_PACE, self.per_second * _MOST_OF_PACE
        self.per_second = max(min(max(estimate, least), most), _SLOWEST_PER_SECOND)
        # A quota that has grown may have grown by much more than was asked of it.
        self._is_guess = has_grown


class _Grant:
    """What was let in, and in how long: about the last hundred calls, while nothing changes."""

    def __init__(self) -> None:
        self._calls = self._seconds = 0.0
        self._recent_calls = self._recent_seconds = 0.0

    def guess(self, per_second: float) -> None:
        self._calls, self._seconds = _PRIOR_CALLS, _PRIOR_CALLS / per_second

    def add(self, calls: float, seconds: float) -> tuple[float, bool]:
        """Remember what was let in.

        Returns:
            The calls per second that all of it makes, and whether that is news of more.
        """
        self._recent_calls += calls
        self._recent_seconds += seconds
        expected = self._recent_seconds * self._calls / self._seconds
        surprise = (self._recent_calls - expected) / math.sqrt(max(expected, 1.0))
        if abs(surprise) > _SURPRISE:
            self._calls = self._seconds = 0.0
            self._take_in()
        elif self._recent_calls >= _ENOUGH_CALLS:
            if surprise > 0:
                self._forget(_MEMORY_CALLS_BELOW)
            self._take_in()
        calls, seconds = self._calls + self._recent_calls, self._seconds + self._recent_seconds
        return calls / seconds, surprise > _SURPRISE

    def _take_in(self) -> None:
        self._calls += self._recent_calls
        self._seconds += self._recent_seconds
        self._recent_calls = self._recent_seconds = 0.0
        self._forget(_MEMORY_CALLS)

    def _forget(self, calls: float) -> None:
        part = min(1.0, calls / max(self._calls, 1e-9))
        self._calls *= part
        self._seconds *= part


class Sizes:
    """Whether calls are refused for their tokens, and what a call then counts."""

    def __init__(self) -> None:
        self._let_in: deque[float] = deque(maxlen=_SIZES)
        self._refused: deque[float] = deque(maxlen=_REFUSED_SIZES)
        self.matter: bool = False
        self.mean: float = 0.0

    def weight_of(self, tokens: float) -> float:
        """What a call counts: 1, or its share of the tokens of a usual one."""
        return tokens / self.mean if self.matter else 1.0

    def let_in(self, tokens: float) -> None:
        """A call was let in."""
        if len(self._let_in) == _SIZES:
            self.mean -= self._let_in[0] / _SIZES
            self.mean += tokens / _SIZES
        else:
            self.mean += (tokens - self.mean) / (len(self._let_in) + 1)
        self._let_in.append(tokens)

    def refused(self, tokens: float) -> None:
        """A call was refused."""
        self._refused.append(tokens)

    def judge(self) -> None:
        """Look at the evidence again."""
        refused, let_in = len(self._refused), len(self._let_in)
        if refused < _FEW_REFUSED or let_in < _FEW_LET_IN or self.mean <= 0:
            return
        ranked = sorted(self._let_in)
        above = sum(
            bisect_left(ranked, tokens) + bisect_right(ranked, tokens) for tokens in self._refused
        )
        deviation = math.sqrt(refused * let_in * (refused + let_in + 1) / 12)
        score = (above / 2 - refused * let_in / 2) / deviation
        self.matter = score > (_STILL_LARGER if self.matter else _LARGER)
