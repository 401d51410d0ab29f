"""Learning a provider's limit: the arithmetic, fed with what a provider lets in and refuses."""

import heapq
import itertools
import math
import random
from collections.abc import Callable

import pytest

from batch_llm.strategies.adaptive import (
    FIRST_WAVE,
    PATIENCE_SECONDS,
    SETTLE_SECONDS,
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


def test_the_first_wave_is_followed_by_all_once_there_is_an_answer_or_a_moment_of_peace() -> None:
    limit = AdaptiveLimit(100, 0.0)
    wave = [limit.start(0.0) for _ in range(FIRST_WAVE)]
    assert limit.ready_at(0.5) == PATIENCE_SECONDS
    limit.end()
    limit.answered(wave[0], 0.5)
    assert limit.is_idle
    patient = AdaptiveLimit(100, 0.0)
    for _ in range(FIRST_WAVE):
        patient.start(0.0)
    assert patient.ready_at(PATIENCE_SECONDS) <= PATIENCE_SECONDS
    assert patient.is_idle


def test_refusals_of_one_moment_are_one_episode() -> None:
    limit = AdaptiveLimit(20, 0.0)
    limit.engage(answered=0, in_flight=19)
    for at in (0.05, 0.06, 0.07):
        limit.refused(None, at, 1.0)
    assert limit.ready_at(0.1) == 0.05 + SETTLE_SECONDS
    limit.ready_at(0.3)
    # Stale: they went out before the cut.
    limit.refused(None, 0.4, 1.0)
    assert limit.ready_at(0.4) <= 0.4
    assert limit.statistics().episodes == 1
    # 20 calls less 3 refusals, in the second that was asked for.
    assert limit.statistics().calls_per_second == 17.0


def test_answers_that_prove_nothing_let_nothing_grow() -> None:
    limit = AdaptiveLimit(20, 0.0)
    limit.engage(answered=100, in_flight=5)
    limit.refused(None, 10.0, None)
    limit.ready_at(11.0)
    pace = limit.statistics().calls_per_second
    for number in range(300):
        # Far slower than the pace allows, so the pace is not what holds them back.
        admission = limit.start(20.0 + number)
        limit.end()
        limit.answered(admission, 20.5 + number)
        limit.answered(None, 20.5 + number)
    assert limit.statistics().calls_per_second == pace


@pytest.mark.parametrize(
    ("hint", "refusals", "drawn", "seconds"),
    [(7.0, 3, 0.5, 7.0), (0.0, 1, 0.5, 0.0), (None, 1, 0.0, 0.5), (None, 3, 0.5, 3.0)],
)
def test_a_refused_call_waits_as_it_was_told(
    hint: float | None, refusals: int, drawn: float, seconds: float
) -> None:
    assert refusal_wait_seconds(hint, refusals=refusals, random=drawn) == seconds
    assert refusal_wait_seconds(None, refusals=10_000, random=0.999) <= 30.0


def test_a_try_that_is_not_refused_for_a_moment_is_let_in() -> None:
    limit = AdaptiveLimit(4, 0.0)
    limit.engage(answered=0, in_flight=0)
    limit.refused(None, 0.0, None)
    assert limit.ready_at(1.0) == 1.0
    second = limit.start(1.0)
    limit.end()
    limit.refused(second, 1.0, None)
    # Twice in a row nothing was let in, so it is tried in a second, once.
    assert limit.ready_at(1.5) == 2.5
    assert limit.statistics().is_blocked
    assert limit.paused_until == 2.5
    limit.start(2.5)
    assert limit.paused_until is None
    assert limit.ready_at(3.0) == 2.5 + PATIENCE_SECONDS
    assert limit.ready_at(3.5) <= 3.5
    assert not limit.statistics().is_blocked


def test_no_more_calls_are_in_flight_than_may_be() -> None:
    limit = AdaptiveLimit(3, 0.0)
    limit.engage(answered=0, in_flight=0)
    for _ in range(3):
        assert limit.ready_at(0.0) <= 0.0
        limit.start(0.0)
    assert limit.ready_at(0.0) == math.inf
    limit.end()
    assert limit.ready_at(0.0) <= 0.0


def test_a_call_knows_its_number_and_how_many_others_are_in_flight() -> None:
    limit = AdaptiveLimit(100, 0.0)
    assert limit.start(0.0) == Admission(1, 0.0, 0)
    assert limit.start(1.0) == Admission(2, 1.0, 1)
    limit.end()
    assert limit.start(2.0) == Admission(3, 2.0, 1)


def test_a_cap_that_grows_is_followed() -> None:
    day = Day(lambda now, in_flight: in_flight < (8 if now < 100.0 else 12)).run(300.0)
    assert 11 <= day.limit.statistics().max_in_flight <= 13
    assert day.answered_between(160.0, 300.0) >= 0.85 * 140 * 12 / 0.4
    assert day.refused_between(160.0, 300.0) <= 0.02 * 140 * 12 / 0.4


def test_a_cap_that_is_gone_is_forgotten() -> None:
    day = Day(lambda now, in_flight: now >= 100.0 or in_flight < 8, workers=12).run(200.0)
    assert day.limit.statistics().max_in_flight == 12


def of_pace_17() -> AdaptiveLimit:
    """A limit at 0.3 s: 20 calls went out at once and 3 of them were refused."""
    limit = AdaptiveLimit(20, 0.0)
    limit.engage(answered=0, in_flight=19)
    for at in (0.05, 0.06, 0.07):
        limit.refused(None, at, None)
    limit.ready_at(0.3)
    for _ in range(19):
        limit.end()
    assert limit.statistics().calls_per_second == 17.0
    return limit


def growth(limit: AdaptiveLimit, start: float, calls: int) -> list[float]:
    """The pace after each of some calls that go out as soon as they may, by the one before."""
    paces = [limit.statistics().calls_per_second]
    now = start
    for _ in range(calls):
        now = max(now, limit.ready_at(now))
        admission = limit.start(now)
        limit.end()
        limit.answered(admission, now + 0.01)
        paces.append(limit.statistics().calls_per_second)
    return [after / before for before, after in itertools.pairwise(paces)]


def test_a_guessed_pace_grows_once_it_has_held_for_a_while() -> None:
    factors = growth(of_pace_17(), 1.0, 40)
    assert factors[:20] == [1.0] * 20
    # Not with every answer: the calls that went out must have kept up with it.
    assert {round(factor, 9) for factor in factors[20:]} == {1.0, 1.05}
    assert factors[20:].count(1.0) <= 12


def test_a_pace_that_was_cut_again_grows_slowly_at_first_and_then_faster() -> None:
    limit = of_pace_17()
    refused = limit.start(1.0)
    limit.end()
    limit.refused(refused, 1.1, None)
    limit.ready_at(2.0)
    assert 17.0 * 0.5 <= limit.statistics().calls_per_second <= 17.0 * 0.98
    factors = growth(limit, 3.0, 80)
    assert factors[:38] == [1.0] * 38
    first, *_ = rising = [factor for factor in factors if factor > 1.0]
    assert first < 1.003
    assert rising == sorted(rising)
    assert 1.01 < rising[-1] < 1.05


def test_after_a_pause_calls_are_spaced_out_from_now_on() -> None:
    limit = of_pace_17()
    limit.start(1.0)
    limit.start(10.0)
    assert limit.ready_at(10.0) == 10.0 + 1 / 17.0


def test_a_try_that_is_answered_opens_the_door_at_once() -> None:
    limit = AdaptiveLimit(4, 0.0)
    limit.engage(answered=0, in_flight=0)
    limit.refused(None, 0.0, None)
    limit.ready_at(1.0)
    second = limit.start(1.0)
    limit.end()
    limit.refused(second, 1.0, None)
    assert limit.ready_at(1.5) == 2.5
    third = limit.start(2.5)
    limit.end()
    limit.answered(third, 2.75)
    assert not limit.is_blocked
    assert limit.ready_at(2.75) <= 2.75


def blocked_until_two_and_a_half() -> AdaptiveLimit:
    """A limit at 1.5 s to which nothing was let in twice."""
    limit = AdaptiveLimit(4, 0.0)
    limit.engage(answered=0, in_flight=0)
    limit.refused(None, 0.0, None)
    limit.ready_at(1.0)
    refused = limit.start(1.0)
    limit.end()
    limit.refused(refused, 1.0, None)
    assert limit.ready_at(1.5) == 2.5
    return limit


@pytest.mark.parametrize(("hint", "seconds"), [(None, 2.0), (0.5, 2.0), (50.0, 50.0), (1e6, 600.0)])
def test_a_try_that_is_refused_is_repeated_as_the_provider_says(
    hint: float | None, seconds: float
) -> None:
    limit = blocked_until_two_and_a_half()
    probe = limit.start(2.5)
    limit.end()
    limit.refused(probe, 3.0, hint)
    assert limit.paused_until == limit.ready_at(3.0) == 3.0 + seconds


def test_a_single_call_that_is_let_in_tells_a_quota_from_an_outage() -> None:
    limit = AdaptiveLimit(4, 0.0)
    limit.engage(answered=0, in_flight=0)
    limit.refused(None, 0.0, None)
    limit.ready_at(1.0)
    refused, let_in = limit.start(1.0), limit.start(1.0)
    for _ in range(2):
        limit.end()
    limit.refused(refused, 1.1, None)
    limit.answered(let_in, 1.2)
    limit.ready_at(2.0)
    assert limit.statistics().episodes == 2
    assert not limit.is_blocked


def test_the_first_call_after_a_cut_keeps_its_distance_from_the_refusal() -> None:
    limit = AdaptiveLimit(4, 0.0)
    limit.engage(answered=0, in_flight=1)
    limit.refused(None, 0.05, None)
    # One call a second was let in.
    assert limit.ready_at(0.3) == 1.05


def test_the_last_call_before_a_cut_proves_nothing_either() -> None:
    limit = AdaptiveLimit(20, 0.0)
    limit.engage(answered=0, in_flight=0)
    calls = [limit.start(0.0) for _ in range(10)]
    for call, at in ((calls[0], 0.05), (calls[-1], 0.4)):
        limit.end()
        limit.refused(call, at, None)
        limit.ready_at(at + SETTLE_SECONDS)
    limit.ready_at(1.0)
    assert limit.statistics().episodes == 1


@pytest.mark.parametrize(("let_in", "caps"), [(6, [7, 6, 5]), (1, [2, 1, 1])])
def test_each_cut_of_the_cap_lowers_it_to_one_at_least(let_in: int, caps: list[int]) -> None:
    limit = AdaptiveLimit(20, 0.0)
    limit.engage(answered=0, in_flight=0)
    limit.refused(None, 0.0, None)
    limit.ready_at(1.0)
    found: list[int] = []
    for at in (10.0, 20.0, 30.0):
        for _ in range(10):
            alone = limit.start(at)
            limit.end()
            limit.answered(alone, at)
        for call in [limit.start(at) for _ in range(let_in + 6)]:
            limit.end()
            if call.others >= let_in:
                limit.refused(call, at, None)
        limit.ready_at(at + 1.0)
        found.append(limit.statistics().max_in_flight)
    assert found == caps


def test_the_first_guess_is_what_was_let_in_by_the_time_it_took() -> None:
    limit = AdaptiveLimit(4, 0.0)
    limit.engage(answered=50, in_flight=0)
    limit.refused(None, 10.0, None)
    limit.ready_at(11.0)
    assert limit.statistics().calls_per_second == 5.0


def test_whatever_was_let_in_a_cut_is_a_cut() -> None:
    limit = of_pace_17()
    calls = [limit.start(1.0) for _ in range(100)]
    limit.end()
    limit.refused(calls[-1], 1.5, None)
    limit.ready_at(2.0)
    assert limit.statistics().calls_per_second == pytest.approx(0.98 * 17.0)


def pace_after(limit: AdaptiveLimit, now: float) -> float:
    """The pace once, of five calls within ten seconds from now, the last is refused."""
    calls = [limit.start(now) for _ in range(5)]
    limit.end()
    limit.refused(calls[-1], now + 10.0, None)
    limit.ready_at(now + 11.0)
    return limit.statistics().calls_per_second


def after_an_outage() -> AdaptiveLimit:
    """A limit at 5 s, when the second try was let in."""
    limit = blocked_until_two_and_a_half()
    refused = limit.start(2.5)
    limit.end()
    limit.refused(refused, 2.5, None)
    let_in = limit.start(5.0)
    limit.end()
    limit.answered(let_in, 5.0)
    return limit


def test_the_time_of_an_outage_says_nothing_of_the_quota() -> None:
    # Four calls let in within 10 s, and ten at the one call a second that was guessed before.
    assert pace_after(after_an_outage(), 5.0) == pytest.approx((4 + 10) / (10 + 10))


def test_a_wait_that_the_provider_kept_to_is_part_of_the_quotas_time() -> None:
    limit = blocked_until_two_and_a_half()
    let_in = limit.start(2.5)
    limit.end()
    limit.answered(let_in, 2.5)
    assert pace_after(limit, 2.5) == pytest.approx((5 + 10) / (12.5 + 10))


def test_after_an_outage_it_takes_two_empty_episodes_again() -> None:
    limit = after_an_outage()
    refused = limit.start(6.0)
    limit.end()
    limit.refused(refused, 6.0, None)
    limit.ready_at(7.0)
    assert not limit.is_blocked


def test_only_calls_at_the_cap_let_it_grow() -> None:
    limit = AdaptiveLimit(20, 0.0)
    limit.engage(answered=0, in_flight=0)
    limit.refused(None, 0.0, None)
    limit.ready_at(1.0)

    def answer(calls: int) -> int:
        for _ in range(calls):
            let_in = limit.start(20.0)
            limit.end()
            limit.answered(let_in, 20.0)
        return limit.statistics().max_in_flight

    answer(10)
    for call in [limit.start(10.0) for _ in range(12)]:
        limit.end()
        if call.others >= 6:
            limit.refused(call, 10.0, None)
    limit.ready_at(11.0)
    assert answer(500) == 7
    for _ in range(5):
        limit.start(20.0)
    assert answer(500) == 7
    limit.start(20.0)
    # Ten times as many calls as may be in flight.
    assert [answer(69), answer(1), answer(500)] == [7, 8, 8]
    limit.start(20.0)
    assert [answer(79), answer(1)] == [8, 9]


def test_what_was_counted_from_the_start_is_not_guessed_at_the_first_refusal() -> None:
    limit = AdaptiveLimit(100, 0.0)
    for _ in range(FIRST_WAVE):
        limit.start(0.0)
    limit.end()
    limit.engage(answered=0, in_flight=0)
    assert limit.start(1.0) == Admission(FIRST_WAVE + 1, 1.0, FIRST_WAVE - 1)


def test_answers_from_before_the_first_refusal_are_no_evidence_of_a_cap() -> None:
    limit = AdaptiveLimit(50, 0.0)
    for call in [limit.start(0.0) for _ in range(FIRST_WAVE)]:
        limit.end()
        limit.answered(call, 0.5)
    limit.engage(answered=FIRST_WAVE, in_flight=30)
    limit.refused(None, 1.0, None)
    limit.ready_at(2.0)
    for call in [limit.start(3.0) for _ in range(10)]:
        limit.end()
        limit.refused(call, 3.0, None)
    limit.ready_at(4.0)
    assert limit.statistics().max_in_flight == 50
