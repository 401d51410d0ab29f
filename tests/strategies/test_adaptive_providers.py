"""Learning the limit of a provider over minutes, from nothing but what it lets in and refuses."""

import heapq
import itertools
import math
import random
from collections.abc import Callable

import pytest

from batch_llm.strategies.adaptive import (
    FIRST_WAVE,
    AdaptiveLimit,
    Admission,
    refusal_wait_seconds,
)

LetsIn = Callable[[float, int], bool]


class Bucket:
    """So many calls a second, and a burst of them at once."""

    def __init__(
        self, per_second: float, *, burst: float = 10.0, changes: dict[float, float] | None = None
    ) -> None:
        self._per_second, self._burst, self._level, self._at = per_second, burst, burst, 0.0
        self._changes = sorted((changes or {}).items())

    def __call__(self, now: float, in_flight: int) -> bool:
        while self._changes and self._changes[0][0] <= now:
            at, per_second = self._changes.pop(0)
            self._fill(at)
            self._per_second = per_second
        self._fill(now)
        is_let_in = self._level >= 1
        self._level -= is_let_in
        return is_let_in

    def _fill(self, now: float) -> None:
        self._level = min(self._burst, self._level + (now - self._at) * self._per_second)
        self._at = now


class Day:
    """A run of a limit against a provider whose answers take 0.4 s and refusals 0.08 s."""

    def __init__(self, lets_in: LetsIn, *, workers: int = 50, hint: float | None = 1.0) -> None:
        self.lets_in, self.workers, self.hint = lets_in, workers, hint
        self.limit = AdaptiveLimit(workers, 0.0)
        self.random = random.Random(7)
        self.answered: list[float] = []
        self.refused: list[float] = []
        self._order = itertools.count()
        self._events: list[tuple[float, int, str, Admission | None]] = []
        self._in_flight = 0
        self._next_turn = 0.0
        self._waiting = workers

    def run(self, seconds: float) -> "Day":
        """Every worker always has something to do."""
        self._at(0.0, "turn")
        while self._events and self._events[0][0] <= seconds:
            now, _, what, admission = heapq.heappop(self._events)
            if what in ("answered", "refused"):
                self._end(now, what, admission)
            elif what == "back":
                self._waiting += 1
            self._let_out(now)
        return self

    def _at(self, at: float, what: str, admission: Admission | None = None) -> None:
        heapq.heappush(self._events, (at, next(self._order), what, admission))

    def _end(self, now: float, what: str, admission: Admission | None) -> None:
        self._in_flight -= 1
        was_idle = self.limit.is_idle
        if not was_idle:
            self.limit.end()
        if what == "answered":
            self.answered.append(now)
            self.limit.answered(admission, now)
            self._waiting += 1
            return
        self.refused.append(now)
        if not self.limit.is_engaged:
            self.limit.engage(answered=len(self.answered), in_flight=self._in_flight)
        self.limit.refused(admission, now, self.hint)
        wait = refusal_wait_seconds(self.hint, refusals=1, random=self.random.random())
        self._at(now + wait, "back")

    def _let_out(self, now: float) -> None:
        while self._waiting:
            if not self.limit.is_idle and (ready := self.limit.ready_at(now)) > now:
                if ready < math.inf and ready != self._next_turn:
                    self._next_turn = ready
                    self._at(ready, "turn")
                return
            admission = None if self.limit.is_idle else self.limit.start(now)
            self._waiting -= 1
            is_let_in = self.lets_in(now, self._in_flight)
            self._in_flight += 1
            seconds, what = (0.4, "answered") if is_let_in else (0.08, "refused")
            self._at(now + seconds, what, admission)

    def answered_between(self, start: float, end: float) -> int:
        return sum(start <= at < end for at in self.answered)

    def refused_between(self, start: float, end: float) -> int:
        return sum(start <= at < end for at in self.refused)


def test_a_provider_without_a_limit_is_never_held_back() -> None:
    day = Day(lambda now, in_flight: True).run(20.0)
    # One answer opens the door, and from then on 50 calls are in flight.
    assert day.answered_between(0.0, 20.0) == FIRST_WAVE + 49 * 50
    assert day.limit.is_idle
    assert day.limit.statistics().calls_per_second == math.inf


@pytest.mark.parametrize("per_second", [0.5, 2.0, 10.0, 60.0])
def test_a_quota_is_found_and_used(per_second: float) -> None:
    start = 20.0 + 100 / per_second
    end = start + 400 / per_second
    day = Day(Bucket(per_second)).run(end)
    assert day.answered_between(start, end) >= 0.98 * 400
    assert day.refused_between(start, end) <= 0.06 * 400
    pace = day.limit.statistics().calls_per_second
    assert 0.85 * per_second <= pace <= 1.5 * per_second


def test_a_quota_that_shrinks_and_grows_is_followed() -> None:
    day = Day(Bucket(10.0, changes={100.0: 5.0, 200.0: 15.0})).run(300.0)
    assert day.refused_between(100.0, 200.0) <= 0.06 * 500
    assert day.answered_between(120.0, 200.0) >= 0.98 * 400
    assert day.answered_between(200.0, 230.0) >= 0.8 * 450
    assert day.answered_between(230.0, 300.0) >= 0.98 * 1050


def test_a_cap_on_calls_in_flight_is_told_from_a_quota() -> None:
    day = Day(lambda now, in_flight: in_flight < 8).run(300.0)
    learned = day.limit.statistics()
    assert 7 <= learned.max_in_flight <= 9
    # Eight in flight, each for 0.4 s.
    assert day.answered_between(100.0, 300.0) >= 0.85 * 200 * 8 / 0.4
    assert day.refused_between(100.0, 300.0) <= 0.05 * 200 * 8 / 0.4


def test_a_quota_is_not_taken_for_a_cap() -> None:
    assert Day(Bucket(10.0)).run(400.0).limit.statistics().max_in_flight == 50


def test_one_refusal_in_a_flood_costs_next_to_nothing() -> None:
    refusals = iter([False])
    day = Day(lambda now, in_flight: now < 10.0 or next(refusals, True)).run(20.0)
    assert len(day.refused) == 1
    usual = day.answered_between(5.0, 10.0)
    assert day.answered_between(10.0, 15.0) >= usual - 0.5 * usual / 5


def test_an_outage_is_probed_and_then_over_at_once() -> None:
    bucket = Bucket(10.0)
    day = Day(lambda now, in_flight: not 60.0 <= now < 660.0 and bucket(now, in_flight)).run(760.0)
    assert day.refused_between(62.0, 660.0) <= 30
    # The last probe was at most half a minute before the end.
    assert day.answered_between(660.0, 690.0) > 0
    assert day.answered_between(700.0, 760.0) >= 0.95 * 600


def test_a_window_is_spent_at_once_and_then_shared_out_evenly() -> None:
    spent = dict[int, int]()

    def lets_in(now: float, in_flight: int) -> bool:
        window = int(now // 60.0)
        spent[window] = spent.get(window, 0) + 1
        return spent[window] <= 600

    day = Day(lets_in, hint=None).run(600.0)
    assert day.answered_between(120.0, 600.0) >= 0.9 * 8 * 600


def test_a_cap_that_grows_is_followed() -> None:
    day = Day(lambda now, in_flight: in_flight < (8 if now < 100.0 else 12)).run(300.0)
    assert 11 <= day.limit.statistics().max_in_flight <= 13
    assert day.answered_between(160.0, 300.0) >= 0.85 * 140 * 12 / 0.4
    assert day.refused_between(160.0, 300.0) <= 0.02 * 140 * 12 / 0.4


def test_a_cap_that_is_gone_is_forgotten() -> None:
    day = Day(lambda now, in_flight: now >= 100.0 or in_flight < 8, workers=12).run(200.0)
    assert day.limit.statistics().max_in_flight == 12
