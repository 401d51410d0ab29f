"""Requests per minute as a promise: never more, never later than needed, in order."""

import asyncio
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_llm._engine.meters import Meter
from tests.engine.support import Processor, now
from tests.engine.support import settings as config_with

RATES = st.floats(0.01, 1e6) | st.sampled_from([0.01, 0.5, 1.0, 59.9, 60.0, 60.1, 61.0, 1e6])
# Between two requests, in intervals of the rate: bunches, the even flow, pauses.
GAPS = st.lists(
    st.sampled_from([0.0, 0.0, 0.0, 0.5, 1.0, 1.5]) | st.floats(0, 50), min_size=1, max_size=100
)


def arrivals(per_minute: float, gaps: list[float]) -> list[float]:
    """When each request is made, in seconds."""
    instants, instant = [], 0.0
    for gap in gaps:
        instant += gap * 60.0 / per_minute
        instants.append(instant)
    return instants


def let_out(per_minute: float, asked: list[float]) -> list[float]:
    """When the meter lets each request out, first come, first served."""
    meter, passed = Meter(per_minute, spare=1.0), []
    for instant in asked:
        at = max(instant, meter.ready_at(), *passed[-1:])
        meter.take(at)
        passed.append(at)
    return passed


def burst(per_minute: float) -> float:
    return max(1.0, per_minute / 60.0 - 1)


def check_windows(per_minute: float, passed: list[float]) -> None:
    """In every window, of any length, at most its share and the burst.

    n requests from i to j in w seconds: n <= w * rate + burst. So j - rate * t(j) never
    exceeds the least i - rate * t(i) before it by more than burst - 1.
    """
    rate, least = per_minute / 60.0, float("inf")
    for number, instant in enumerate(passed):
        level = number - rate * instant
        least = min(least, level)
        assert level - least <= burst(per_minute) - 1 + 1e-6


@given(RATES, GAPS)
def test_no_window_of_any_length_holds_more(per_minute: float, gaps: list[float]) -> None:
    check_windows(per_minute, let_out(per_minute, arrivals(per_minute, gaps)))


@given(RATES, GAPS)
def test_nobody_waits_longer_than_a_token_bucket_would_have_it(
    per_minute: float, gaps: list[float]
) -> None:
    """The same promise said in another way, and reckoned without rounding."""
    asked = arrivals(per_minute, gaps)
    rate = Fraction(per_minute) / 60
    size = max(Fraction(1), rate - 1)
    tokens, last, expected = size, Fraction(0), []
    for instant in asked:
        at = max(Fraction(instant), last)
        tokens = min(size, tokens + (at - last) * rate)
        at += max(Fraction(0), (1 - tokens) / rate)
        tokens = max(tokens, Fraction(1)) - 1
        last = at
        expected.append(at)
    interval = 60.0 / per_minute
    for at, wanted in zip(let_out(per_minute, asked), expected, strict=True):
        assert abs(at - wanted) <= 1e-6 * interval + 1e-12 * float(wanted)


@given(RATES, GAPS, st.floats(0, 1e6))
def test_a_forgotten_past_gives_the_first_burst_again(
    per_minute: float, gaps: list[float], later: float
) -> None:
    meter = Meter(per_minute, spare=1.0)
    for instant in arrivals(per_minute, gaps):
        meter.take(instant)
    meter.reset()
    for _ in range(min(int(burst(per_minute)), 1000)):
        assert meter.ready_at() <= later + 1e-6
        meter.take(later)


@settings(max_examples=50)
@given(
    RATES,
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.3, 1.0, 7.0]), st.none() | st.floats(0, 5)),
        min_size=1,
        max_size=30,
    ),
)
async def test_who_asked_first_goes_first_and_who_left_costs_nothing(
    per_minute: float, asked: list[tuple[float, float | None]]
) -> None:
    """Some give up after a while; the gate serves the others as if these had never come."""
    gate: Any = Processor(config=config_with(max_requests_per_minute=per_minute))
    limiter = gate._proactive_rate_limiter
    interval = 60.0 / per_minute
    passed: list[tuple[int, float]] = []

    async def ask(number: int) -> None:
        await limiter.acquire()
        passed.append((number, now()))

    loop, tasks, came = asyncio.get_running_loop(), [], []
    for number, (gap, patience) in enumerate(asked):
        await asyncio.sleep(gap * interval)
        came.append(now())
        tasks.append(asyncio.create_task(ask(number)))
        await asyncio.sleep(0)
        if patience is not None:
            loop.call_later(patience * interval, tasks[-1].cancel)
    await asyncio.gather(*tasks, return_exceptions=True)

    served = [number for number, _ in passed]
    assert served == sorted(served)
    assert set(served) >= {number for number, (_, patience) in enumerate(asked) if patience is None}
    instants = [instant for _, instant in passed]
    check_windows(per_minute, instants)
    alone = let_out(per_minute, [came[number] for number in served])
    for at, wanted in zip(instants, alone, strict=True):
        assert at <= wanted + 1e-6 * interval


def burst_of_ten(taken: float) -> Meter:
    """Ten units a second and at once, some of which are taken at 0 s."""
    meter = Meter(600.0)
    meter.take(0.0, taken)
    return meter


def test_a_burst_is_one_seconds_worth() -> None:
    assert burst_of_ten(10.0).ready_at(10.0) == pytest.approx(1.0)
    assert burst_of_ten(9.0).ready_at() == pytest.approx(0.0)


def test_at_a_faster_rate_what_is_left_stays_and_fills_up_faster() -> None:
    meter = burst_of_ten(10.0)
    meter.resize(1200.0, 0.5)
    assert meter.per_minute == 1200.0
    assert meter.ready_at(5.0) == pytest.approx(0.5)
    assert meter.ready_at(6.0) == pytest.approx(0.55)


def test_at_a_slower_rate_no_more_is_left_than_its_burst() -> None:
    meter = burst_of_ten(10.0)
    meter.resize(60.0, 0.5)
    assert meter.ready_at() == pytest.approx(0.5)
    meter.take(0.5)
    assert meter.ready_at() == pytest.approx(1.5)


def test_at_another_rate_a_debt_stays_a_debt() -> None:
    meter = burst_of_ten(30.0)
    meter.resize(1200.0, 1.0)
    assert meter.ready_at() == pytest.approx(1.55)


def test_a_larger_burst_is_not_a_present() -> None:
    meter = Meter(600.0)
    meter.resize(1200.0, 7.0)
    assert meter.ready_at(10.0) == pytest.approx(7.0)
    assert meter.ready_at(11.0) == pytest.approx(7.05)


ASKS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.3, 1.0, 5.0]) | st.floats(0, 20),
        st.sampled_from([0.0, 0.1, 1.0, 3.0]) | st.floats(0, 10),
        st.floats(-1, 2),
    ),
    min_size=1,
    max_size=60,
)


@given(RATES, ASKS)
def test_asks_of_any_size_stay_within_the_rate(
    per_minute: float, asks: list[tuple[float, float, float]]
) -> None:
    """Gap in seconds, size in bursts, and what it cost more or less, as a share of it.

    Settled at once, so in any window there is its share, the burst, and no more than the last
    ask over it: what that cost, less the burst that had to be whole for it.
    """
    meter, rate, burst = Meter(per_minute), per_minute / 60, max(1.0, per_minute / 60)
    now, total, least = 0.0, 0.0, 0.0
    for gap, size, error in asks:
        asked = size * burst
        now = max(now + gap, meter.ready_at(asked))
        meter.take(now, asked)
        meter.take(now, error * asked)
        least = min(least, total - rate * now)
        cost = asked * (1 + error)
        over = max(0.0, cost - min(asked, burst))
        assert total + cost - rate * now - least <= (burst + over) * (1 + 1e-9) + 1e-6
        total += cost


@given(RATES, ASKS)
def test_the_first_in_line_waits_no_longer_than_for_a_whole_burst(
    per_minute: float, asks: list[tuple[float, float, float]]
) -> None:
    meter, burst = Meter(per_minute), max(1.0, per_minute / 60)
    now, owed = 0.0, 0.0
    for gap, size, _ in asks:
        asked = size * burst
        ready_at = meter.ready_at(asked)
        owed = max(0.0, owed - gap * per_minute / 60)
        now += gap
        assert ready_at <= now + owed * 60 / per_minute * (1 + 1e-9) + 1e-6
        waited = max(0.0, ready_at - now)
        now += waited
        owed = max(0.0, owed - waited * per_minute / 60) + asked
        meter.take(now, asked)


@given(RATES, RATES, st.floats(0, 5), st.floats(0, 120))
def test_a_new_rate_takes_over_what_is_left_and_what_is_owed(
    before: float, after: float, bursts: float, later: float
) -> None:
    meter = Meter(before)
    old, new = max(1.0, before / 60), max(1.0, after / 60)
    meter.take(0.0, bursts * old)
    meter.resize(after, later)
    left = min(old, old - bursts * old + later * before / 60)
    expected = later + max(0.0, new - min(left, new)) * 60 / after
    assert meter.ready_at(new) == pytest.approx(expected, rel=1e-6, abs=1e-6)
