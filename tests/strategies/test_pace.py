"""The pace that is learned, what is remembered for it, and what a call counts."""

import math

import pytest

from batch_llm.strategies.pace import Pace, Sizes


def cut(pace: Pace, *episodes: tuple[float, float]) -> float:
    for let_in, seconds in episodes:
        # As if it had grown, so that what was let in decides.
        pace.per_second *= 1.5
        pace.cut(let_in, seconds)
    return pace.per_second


def guessed(per_second: float) -> Pace:
    pace = Pace()
    pace.cut(per_second, 1.0)
    assert pace.per_second == per_second
    return pace


def test_before_the_first_cut_nothing_is_held_back() -> None:
    pace = Pace()
    pace.start(5.0, 1.0)
    assert pace.per_second == math.inf
    assert pace.ready_at(1.0) <= 5.0


def test_a_quick_succession_of_refusals_tells_little_of_the_pace() -> None:
    pace = guessed(10.0)
    assert cut(pace, (100, 10.0)) == pytest.approx(10.0)
    # One let in, in 0.3 s, twice: two calls of more than a hundred.
    assert cut(pace, (1, 0.3), (1, 0.3)) == pytest.approx((100 + 2) / (10 + 0.6))


def test_about_a_hundred_calls_are_remembered() -> None:
    pace = guessed(10.0)
    cut(pace, *[(100, 10.0)] * 20)
    # Fewer than were expected: they weigh as much as the hundred before them.
    assert cut(pace, (100, 12.5)) == pytest.approx(200 / 22.5)


def test_more_than_was_expected_weighs_more() -> None:
    pace = guessed(10.0)
    cut(pace, *[(100, 10.0)] * 20)
    assert cut(pace, (100, 8.0)) == pytest.approx((30 + 100) / (3 + 8))


def test_a_surprise_is_a_new_quota() -> None:
    pace = guessed(10.0)
    cut(pace, *[(100, 10.0)] * 20)
    # 100 were expected, give or take 10.
    assert cut(pace, (69, 10.0)) == pytest.approx(0.5 * 15.0)
    assert cut(pace, (69, 10.0)) == pytest.approx(6.9)


def test_a_quota_that_has_grown_is_searched_for_quickly() -> None:
    def growth(pace: Pace, answers: int) -> float:
        before, now = pace.per_second, 1_000.0
        pace.hold()
        for _ in range(answers):
            now += 1 / pace.per_second
            pace.start(now, 1.0)
            pace.answered()
        return pace.per_second / before

    constant, grown = guessed(10.0), guessed(10.0)
    for pace in (constant, grown):
        cut(pace, *[(100, 10.0)] * 20)
    cut(constant, (100, 10.0))
    cut(grown, (140, 10.0))
    assert growth(constant, 40) < 1.05
    assert growth(grown, 40) > 1.5


def test_a_call_is_paid_for_before_it_goes_out() -> None:
    pace = guessed(10.0)
    pace.start(5.0, 1.0)
    assert pace.ready_at(1.0) == pytest.approx(5.1)
    assert pace.ready_at(7.0) == pytest.approx(5.7)
    assert pace.last_at == 5.0
    pace.resume(8.0)
    assert pace.ready_at(1.0) == pytest.approx(8.1)


def refusing(threshold: float) -> Sizes:
    """Calls of 1 to 50 tokens, of which those above a threshold are refused once too."""
    sizes = Sizes()
    for tokens in range(1, 51):
        sizes.let_in(float(tokens))
        if tokens > threshold:
            sizes.refused(float(tokens))
    return sizes


def test_calls_count_by_their_tokens_where_the_large_ones_are_refused() -> None:
    sizes = refusing(25)
    assert sizes.weight_of(51.0) == 1.0
    sizes.judge()
    assert sizes.matter
    assert sizes.weight_of(51.0) == pytest.approx(51.0 / 25.5)


def test_calls_count_one_each_where_their_tokens_do_not_matter() -> None:
    sizes = refusing(0)
    sizes.judge()
    assert not sizes.matter
    equal = Sizes()
    for _ in range(50):
        equal.let_in(100.0)
        equal.refused(100.0)
    equal.judge()
    assert not equal.matter


def test_tokens_matter_until_the_evidence_is_gone() -> None:
    sizes = refusing(25)
    sizes.judge()
    for _ in range(3):
        for tokens in (10.0, 40.0, 20.0, 30.0):
            sizes.refused(tokens)
    sizes.judge()
    assert sizes.matter
    for _ in range(8):
        for tokens in (5.0, 45.0, 20.0, 30.0):
            sizes.refused(tokens)
    sizes.judge()
    assert not sizes.matter


def test_a_few_refusals_or_unknown_sizes_prove_nothing() -> None:
    sizes = Sizes()
    for tokens in range(50):
        sizes.let_in(float(tokens))
    for _ in range(5):
        sizes.refused(1_000.0)
    sizes.judge()
    assert not sizes.matter
    unknown = Sizes()
    for _ in range(20):
        unknown.let_in(0.0)
        unknown.refused(0.0)
    unknown.judge()
    assert not unknown.matter


def test_a_usual_call_is_the_mean_of_the_last_hundred() -> None:
    sizes = Sizes()
    for _ in range(300):
        sizes.let_in(1_000.0)
    for _ in range(100):
        sizes.let_in(10.0)
    assert sizes.mean == pytest.approx(10.0)


def started(pace: Pace, apart: float, *weights: float) -> Pace:
    for number, weight in enumerate(weights or [1.0] * 20):
        pace.start(1_000.0 + number * apart, weight)
    return pace


def answered(pace: Pace, times: int) -> float:
    for _ in range(times):
        pace.answered()
    return pace.per_second


def test_before_anything_went_out_nothing_is_paid_for() -> None:
    assert Pace().last_at == -math.inf
    assert guessed(10.0).ready_at(1.0) == -math.inf


def test_a_guess_grows_from_the_third_answer_on() -> None:
    pace = started(guessed(10.0), 0.1)
    assert answered(pace, 2) == 10.0
    assert answered(pace, 1) == pytest.approx(10.5)
    assert answered(pace, 1) == pytest.approx(10.5 * 1.05)
    pace.hold()
    assert answered(pace, 2) == pytest.approx(10.5 * 1.05)
    assert answered(pace, 1) == pytest.approx(10.5 * 1.05**2)


def test_what_was_measured_grows_after_twenty_answers_and_then_ever_faster() -> None:
    pace = guessed(10.0)
    cut(pace, (100, 10.0))
    # All at once, so that the pace holds them back however fast it is.
    before = started(pace, 0.0).per_second
    assert answered(pace, 20) == before
    expected = before
    for number in range(1, 121):
        expected *= 1 + 0.002 * 2 ** min(number / 12, 8)
        assert answered(pace, 1) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("apart", "weights", "grows"),
    [
        (0.12, (), True),
        (0.13, (), False),
        (0.13, (100.0, *[1.0] * 19), False),
        (0.13, (1.0, 100.0, *[1.0] * 18), True),
        (0.0, (1.0,) * 19, False),
    ],
    ids=["nearly at the pace", "slower", "larger before", "larger", "too few"],
)
def test_a_pace_grows_only_where_calls_go_out_nearly_as_fast(
    apart: float, weights: tuple[float, ...], grows: bool
) -> None:
    pace = started(guessed(10.0), apart, *weights)
    assert (answered(pace, 3) > 10.0) == grows


@pytest.mark.parametrize(
    ("let_in", "seconds", "per_second"), [(50.0, 5.0, 10.0), (0.0, 0.25, 1.0), (3.0, 0.25, 3.0)]
)
def test_the_first_cut_takes_what_was_let_in_for_at_least_a_second(
    let_in: float, seconds: float, per_second: float
) -> None:
    pace = Pace()
    pace.cut(let_in, seconds)
    assert pace.per_second == per_second


def test_a_cut_is_one_whatever_was_let_in() -> None:
    pace = guessed(10.0)
    pace.cut(10.0, 1.0)
    assert pace.per_second == pytest.approx(9.8)


def test_a_guess_weighs_as_much_as_ten_calls() -> None:
    assert cut(guessed(10.0), (8, 1.0)) == pytest.approx((10 + 8) / (1 + 1))


def test_fewer_than_a_hundred_calls_weigh_what_they_are() -> None:
    pace = guessed(10.0)
    cut(pace, (25, 2.5))
    assert cut(pace, (8, 1.0)) == pytest.approx((10 + 25 + 8) / (1 + 2.5 + 1))


def test_a_little_more_than_was_expected_weighs_more_too() -> None:
    pace = guessed(10.0)
    cut(pace, *[(100, 10.0)] * 20)
    assert cut(pace, (105, 10.0)) == pytest.approx((30 + 105) / (3 + 10))


def test_a_pace_that_is_to_blame_for_nothing_is_raised() -> None:
    pace = guessed(10.0)
    pace.raise_to(2.0)
    assert pace.per_second == 20.0


@pytest.mark.parametrize(("smallest", "matter"), [(1_000.0, True), (7.5, True), (6.5, False)])
def test_the_evidence_is_three_deviations_of_the_rank_sum(smallest: float, matter: bool) -> None:
    """Of Mann and Whitney: of 60 pairs 30 are expected, give or take 9.2."""
    sizes = Sizes()
    for tokens in range(10):
        sizes.let_in(float(tokens))
    for tokens in (smallest, *[1_000.0] * 5):
        sizes.refused(tokens)
    sizes.judge()
    assert sizes.matter == matter


@pytest.mark.parametrize(("let_in", "matter"), [(0.0, False), (0.5, True)])
def test_calls_that_cost_nothing_are_no_measure(let_in: float, matter: bool) -> None:
    sizes = Sizes()
    for _ in range(20):
        sizes.let_in(let_in)
        sizes.refused(100.0)
    sizes.judge()
    assert sizes.matter == matter


def test_nine_calls_are_no_measure() -> None:
    sizes = Sizes()
    for tokens in range(9):
        sizes.let_in(float(tokens))
    for _ in range(20):
        sizes.refused(1_000.0)
    sizes.judge()
    assert not sizes.matter


def test_no_pace_is_slower_than_a_call_a_minute() -> None:
    first, later = Pace(), guessed(1.0)
    first.cut(1, 3_600.0)
    assert first.per_second == pytest.approx(1 / 60)
    assert cut(later, *[(0, 60.0)] * 20) == pytest.approx(1 / 60)
