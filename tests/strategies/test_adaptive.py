"""Learning a provider's limit: the arithmetic, fed with what a provider lets in and refuses."""

import itertools
import math

import pytest

from batch_llm.strategies.adaptive import (
    FIRST_WAVE,
    PATIENCE_SECONDS,
    SETTLE_SECONDS,
    AdaptiveLimit,
    Admission,
    refusal_wait_seconds,
)


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
    assert limit.paused_until is None
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


def after_calls_that_found(answered: list[int], refused: list[int]) -> AdaptiveLimit:
    """A limit of one call a second, at 11 s, by the numbers in flight that calls found."""
    limit = AdaptiveLimit(20, 0.0)
    limit.engage(answered=0, in_flight=0)
    limit.refused(None, 0.0, None)
    limit.ready_at(1.0)
    for others, is_let_in in [
        *((found, True) for found in answered),
        *((found, False) for found in refused),
    ]:
        *_, call = [limit.start(10.0) for _ in range(others + 1)]
        for _ in range(others + 1):
            limit.end()
        if is_let_in:
            limit.answered(call, 10.0)
        else:
            limit.refused(call, 10.0, None)
    limit.ready_at(11.0)
    return limit


@pytest.mark.parametrize(
    ("answered", "cap"), [([0] * 10, 6), ([0] * 9 + [6], 6), ([0] * 8 + [6] * 2, 20)]
)
def test_a_cap_is_told_by_refusals_among_more_calls_than_nearly_all_answers(
    answered: list[int], cap: int
) -> None:
    assert after_calls_that_found(answered, [6] * 6).statistics().max_in_flight == cap


def test_a_cap_is_no_fault_of_the_pace() -> None:
    learned = after_calls_that_found([0] * 10, [6] * 6).statistics()
    assert learned.max_in_flight == 6
    assert learned.calls_per_second == 1.1


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
