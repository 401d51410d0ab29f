"""What a call will cost, learned from those before it."""

import random
import weakref
from typing import Any

import pytest

from batch_llm.strategies.tokens import LearnedTokenEstimator


def usage(read: int, written: int) -> dict[str, int]:
    return {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}


def test_before_any_answer_four_characters_are_a_token_and_an_answer_has_338() -> None:
    assert LearnedTokenEstimator().estimate(object(), "x" * 400) == 100 + 338
    assert LearnedTokenEstimator().estimate(object(), "x" * 6) == 1.5 + 338
    assert LearnedTokenEstimator().estimate(object(), "") == 1 + 338


def test_an_answer_is_expected_to_be_as_long_as_95_percent_of_those_before_it() -> None:
    estimator, strategy = LearnedTokenEstimator(), object()
    lengths = list(range(1, 101))
    random.Random(3).shuffle(lengths)
    for length in lengths:
        estimator.learn(strategy, "x" * 400, usage(100, length))
    assert estimator.estimate(strategy, "x" * 400) == pytest.approx(100 + 95)


def test_the_last_hundred_answers_count() -> None:
    estimator, strategy = LearnedTokenEstimator(), object()
    for length in [5_000] * 300 + [20] * 94 + [70] * 6:
        estimator.learn(strategy, "x" * 400, usage(100, length))
    assert estimator.estimate(strategy, "x" * 400) == pytest.approx(100 + 70)
    estimator.learn(strategy, "x" * 400, usage(100, 20))
    for _ in range(100):
        estimator.learn(strategy, "x" * 400, usage(100, 30))
    assert estimator.estimate(strategy, "x" * 400) == pytest.approx(100 + 30)


def test_what_a_strategy_adds_to_each_prompt_is_learned_too() -> None:
    estimator, strategy = LearnedTokenEstimator(), object()
    for length in (300, 900, 1_500, 2_100) * 5:
        # Three characters a token, and 1,000 tokens of instructions.
        estimator.learn(strategy, "x" * length, usage(1_000 + length // 3, 10))
    assert estimator.estimate(strategy, "x" * 1_200) == pytest.approx(1_400 + 10, rel=0.01)
    assert estimator.estimate(strategy, "") == pytest.approx(1_000 + 10, rel=0.02)


def test_prompts_of_one_length_do_not_tell_the_slope() -> None:
    estimator, strategy = LearnedTokenEstimator(), object()
    for _ in range(10):
        estimator.learn(strategy, "x" * 400, usage(500, 10))
    assert estimator.estimate(strategy, "x" * 400) == pytest.approx(500 + 10)
    assert estimator.estimate(strategy, "x" * 800) == pytest.approx(500 + 100 + 10)


def test_strategies_are_told_apart_and_a_new_one_goes_by_all() -> None:
    estimator, short, long = LearnedTokenEstimator(), object(), object()
    for _ in range(10):
        estimator.learn(short, "x" * 400, usage(100, 10))
        estimator.learn(long, "x" * 400, usage(100, 900))
    assert estimator.estimate(short, "x" * 400) == pytest.approx(110)
    assert estimator.estimate(long, "x" * 400) == pytest.approx(1_000)
    assert estimator.estimate(object(), "x" * 400) == pytest.approx(1_000)


def test_a_hundred_strategies_are_remembered() -> None:
    estimator = LearnedTokenEstimator()
    strategies = [object() for _ in range(101)]
    for number, strategy in enumerate(strategies):
        estimator.learn(strategy, "x" * 400, usage(100, 1 + 10 * (number == 0)))
    assert len(estimator._by_strategy) == 100
    assert estimator.estimate(strategies[1], "x" * 400) == pytest.approx(101)
    # The first is forgotten and goes by all of them, most of which answered with one token.
    assert estimator.estimate(strategies[0], "x" * 400) == pytest.approx(101)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"total_tokens": 150}, 150),
        ({"input_tokens": 120}, 120),
        ({"input_tokens": 0, "output_tokens": 5}, 1 + 5),
        ({"input_tokens": 120, "output_tokens": 5}, 125),
        ({"output_tokens": 7, "total_tokens": 107}, 107),
        ({"input_tokens": 200, "total_tokens": 150}, 200),
    ],
)
def test_whatever_is_missing_is_made_out(told: dict[str, int], expected: int) -> None:
    estimator, strategy = LearnedTokenEstimator(), object()
    estimator.learn(strategy, "x" * 400, told)
    assert estimator.estimate(strategy, "x" * 400) == pytest.approx(expected)


def test_an_answer_counts_among_the_next_hundred() -> None:
    estimator, strategy = LearnedTokenEstimator(), object()
    for length in [70] * 6 + [20] * 94:
        estimator.learn(strategy, "x" * 400, usage(100, length))
    assert estimator.estimate(strategy, "x" * 400) == pytest.approx(100 + 70)
    estimator.learn(strategy, "x" * 400, usage(100, 20))
    assert estimator.estimate(strategy, "x" * 400) == pytest.approx(100 + 20)


def test_a_busy_strategy_does_not_outweigh_the_others_for_ever() -> None:
    estimator, busy = LearnedTokenEstimator(), object()
    for length in [10] * 20 + [900] * 100:
        estimator.learn(busy, "x" * 400, usage(100, length))
    assert estimator.estimate(busy, "x" * 400) == pytest.approx(100 + 900)
    assert estimator.estimate(object(), "x" * 400) == pytest.approx(100 + 10)


@pytest.mark.parametrize("prompt", [123_456_789, ["a", "b"], {"question": "why?"}])
def test_a_prompt_need_not_be_a_text(prompt: Any) -> None:
    estimator, strategy = LearnedTokenEstimator(), object()
    for _ in range(3):
        estimator.learn(strategy, prompt, usage(70, 5))
    assert estimator.estimate(strategy, prompt) == pytest.approx(70 + 5)


def test_it_need_not_be_told_of_each_answer_for_ever() -> None:
    estimator, busy = LearnedTokenEstimator(), object()
    assert estimator.to_skip == 0
    assert not estimator.is_asked_each_time
    for _ in range(99):
        estimator.learn(busy, "x" * 400, usage(100, 10))
        assert estimator.to_skip == 0
    estimator.learn(busy, "x" * 400, usage(100, 10))
    assert estimator.to_skip == 15
    estimator.learn(object(), "x" * 400, usage(100, 10))
    assert estimator.to_skip == 0


def test_an_empty_prompt_has_one_token() -> None:
    estimator, strategy = LearnedTokenEstimator(), object()
    estimator.learn(strategy, "", {"total_tokens": 10})
    assert estimator.estimate(strategy, "") == 1 + 9


def test_what_was_learned_of_a_strategy_is_never_taken_for_another_at_its_address() -> None:
    class Strategy:
        pass

    estimator, strategy = LearnedTokenEstimator(), Strategy()
    estimator.learn(strategy, "", {"total_tokens": 10})
    address, known = id(strategy), weakref.ref(strategy)
    del strategy
    assert known() is not None
    assert id(known()) == address
