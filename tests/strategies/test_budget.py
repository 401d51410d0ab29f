"""What a provider says is left, and when the next call may go out."""

import math

import pytest

from batch_llm.strategies._http import Allowance
from batch_llm.strategies.budget import Budget


def requests(remaining: float, reset_seconds: float) -> Allowance:
    return Allowance(False, remaining, reset_seconds)


def ready_at(
    budget: Budget, now: float, spent: float, *, amount: float = 1.0, last_at: float = 0.0
) -> float:
    return budget.ready_at(now, amount=amount, spent=spent, last_at=last_at)


def of_a_bucket() -> Budget:
    """A bucket of 100 at ten a second; twenty a second were spent for two seconds."""
    budget = Budget()
    for number in range(21):
        left = 80 - number
        budget.tell(requests(left, (100 - left) / 10), number / 10, 2.0 * number)
    return budget


def test_nothing_told_binds_nothing() -> None:
    assert ready_at(Budget(), 0.0, 0.0) == -math.inf


def test_a_window_is_spent_four_times_as_fast_as_would_be_even() -> None:
    budget = Budget()
    budget.tell(requests(10, 20.0), 0.0, 1.0)
    # Two calls went out since: eight are left for the 19.05 seconds to the reset.
    assert ready_at(budget, 1.0, 3.0, last_at=1.0) == pytest.approx(1.0 + 19.05 / (4 * 8))
    assert ready_at(budget, 1.0, 3.0, last_at=1.0, amount=2.0) == pytest.approx(1.0 + 19.05 / 16)


def test_nothing_left_waits_for_the_reset_and_a_bit_for_the_network() -> None:
    budget = Budget()
    budget.tell(requests(3, 20.0), 0.0, 1.0)
    assert ready_at(budget, 1.0, 4.0) == pytest.approx(20.05)
    assert ready_at(budget, 1.0, 2.0, amount=2.5) == pytest.approx(20.05)
    assert ready_at(budget, 20.06, 4.0) == -math.inf


def test_what_costs_nothing_is_not_held_back() -> None:
    budget = Budget()
    budget.tell(requests(0, 20.0), 0.0, 1.0)
    assert ready_at(budget, 1.0, 1.0, amount=0.0) == -math.inf


def test_a_reset_of_days_binds_for_a_minute() -> None:
    budget = Budget()
    budget.tell(requests(0, 86_400.0), 0.0, 1.0)
    assert ready_at(budget, 1.0, 1.0) == pytest.approx(60.05)


def test_the_response_of_an_older_call_is_no_news() -> None:
    budget = Budget()
    budget.tell(requests(5, 20.0), 1.0, 7.0)
    budget.tell(requests(9, 20.0), 0.5, 3.0)
    assert ready_at(budget, 2.0, 12.0) == pytest.approx(21.05)


def test_what_comes_in_is_measured_and_can_be_spent() -> None:
    budget = of_a_bucket()
    # 60 left of 100, ten a second come in, and that may all be spent down to a reserve of 3.
    assert ready_at(budget, 2.0, 40.0, last_at=2.0) == pytest.approx(2.0 + 1 / (60 * 10 / 3))
    # 61 were spent since: one is lacking, which comes in within a tenth of a second.
    assert ready_at(budget, 2.0, 100.0) == pytest.approx(2.1)


def test_what_a_window_gets_at_its_reset_does_not_come_in_all_the_time() -> None:
    budget = Budget()
    for number in range(10):
        budget.tell(requests(9 - number, 10.0 - number), float(number), number + 1.0)
    budget.tell(requests(9, 10.0), 10.0, 11.0)
    # Nine were spent since.
    assert ready_at(budget, 12.0, 20.0) == pytest.approx(20.05)


def test_after_a_refusal_what_comes_in_is_measured_anew() -> None:
    budget = of_a_bucket()
    budget.forget()
    assert ready_at(budget, 2.0, 100.0) == pytest.approx(2.0 + 4.0 + 0.05)


def test_there_is_plenty_above_four_reserves() -> None:
    budget = of_a_bucket()

    def has_plenty(spent: float, now: float = 2.0) -> bool:
        return budget.has_plenty(now, amount=1.0, spent=spent)

    assert not Budget().has_plenty(0.0, amount=1.0, spent=0.0)
    # Reserves of 3, of 60 that were left when 40 were spent.
    assert has_plenty(40.0)
    assert has_plenty(87.9)
    assert not has_plenty(88.0)
    assert not has_plenty(40.0, now=7.0)


def test_of_responses_as_new_as_each_other_the_last_counts() -> None:
    budget = Budget()
    budget.tell(requests(5, 20.0), 1.0, 7.0)
    budget.tell(requests(9, 20.0), 1.5, 7.0)
    # Six were spent since, so three are left.
    assert ready_at(budget, 3.0, 13.0, last_at=3.0) == pytest.approx(3.0 + 18.55 / (4 * 3))


def test_the_last_of_a_window_can_be_spent_before_its_reset() -> None:
    budget = Budget()
    budget.tell(requests(2, 20.0), 1.0, 1.0)
    assert ready_at(budget, 1.0, 1.0, amount=2.0, last_at=1.0) == pytest.approx(1.0 + 20.05 / 4)


def test_from_its_reset_on_nothing_binds() -> None:
    budget = Budget()
    budget.tell(requests(100, 20.0), 0.0, 1.0)
    assert ready_at(budget, 20.05, 1.0) == -math.inf
    assert budget.has_plenty(20.0, amount=1.0, spent=1.0)
    assert not budget.has_plenty(20.05, amount=1.0, spent=1.0)


@pytest.mark.parametrize(("per_second", "seconds"), [(10, 1), (100, 2)])
def test_what_comes_in_is_known_after_a_second(per_second: int, seconds: int) -> None:
    """However many responses there were in it."""
    budget = Budget()
    for number in range(per_second * seconds + 1):
        at = number / per_second
        budget.tell(requests(80 - 10 * at, 4.0), at, 500.0 + 20 * at)
    now, left, spent = float(seconds), 80.0 - 10 * seconds, 500.0 + 20 * seconds
    # Ten a second. Two are lacking, and five come in within the next half of a second.
    assert ready_at(budget, now, spent + left + 1) == pytest.approx(now + 0.2)
    assert ready_at(budget, now + 0.5, spent + left + 6) == pytest.approx(now + 0.7)


def test_a_jump_in_what_is_left_is_not_what_comes_in() -> None:
    budget = Budget()
    for number in range(10):
        gained = 10 * (number >= 3)
        budget.tell(requests(9 + gained - number, 60.0), float(number), number + 1.0)
    # All ten that were left were spent.
    assert ready_at(budget, 9.0, 20.0) == pytest.approx(9.0 + 60.05)


def test_a_reserve_is_two_calls_where_little_comes_in() -> None:
    budget = Budget()
    budget.tell(requests(100, 20.0), 0.0, 0.0)
    for amount, least in ((1.0, 8.0), (2.0, 16.0)):
        assert not budget.has_plenty(1.0, amount=amount, spent=100.0 - least)
        assert budget.has_plenty(1.0, amount=amount, spent=99.9 - least)
