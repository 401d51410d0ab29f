"""How long cooldowns are, and how the calls after them are spaced."""

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm import ExponentialBackoffStrategy, FixedDelayStrategy, RateLimitStrategy

NAMES = (
    "initial_cooldown",
    "max_cooldown",
    "backoff_multiplier",
    "slow_start_items",
    "slow_start_initial_delay",
    "slow_start_final_delay",
)


def attributes(strategy: RateLimitStrategy, *names: str) -> list[Any]:
    return [getattr(strategy, name) for name in names]


def test_exponential_defaults_and_positional_order() -> None:
    made = attributes(ExponentialBackoffStrategy(), *NAMES)
    assert made == [60.0, 600.0, 2.0, 50, 2.0, 0.1]
    assert attributes(ExponentialBackoffStrategy(1, 2, 3, 4, 5, 6), *NAMES) == [1, 2, 3, 4, 5, 6]


def test_fixed_defaults_and_positional_order() -> None:
    assert attributes(FixedDelayStrategy(), "cooldown", "delay") == [300.0, 1.0]
    assert attributes(FixedDelayStrategy(7, 8), "cooldown", "delay") == [7, 8]
    assert FixedDelayStrategy(delay_between_requests=0).delay == 0


async def test_cooldowns_double_up_to_the_longest() -> None:
    strategy = ExponentialBackoffStrategy()
    waits = [await strategy.on_rate_limit(0, consecutive) for consecutive in range(1, 7)]
    assert waits == [60, 120, 240, 480, 600, 600]


@pytest.mark.parametrize("consecutive", [0, -1])
async def test_a_count_below_one_is_a_first_cooldown(consecutive: int) -> None:
    assert await ExponentialBackoffStrategy().on_rate_limit(0, consecutive) == 60


@pytest.mark.parametrize(("initial", "cooldown"), [(0, 0), (1e-9, 600)])
async def test_a_long_outage_makes_no_number_too_large(initial: float, cooldown: float) -> None:
    assert await ExponentialBackoffStrategy(initial).on_rate_limit(0, 10_000) == cooldown


@given(
    initial=st.floats(0, 1e4),
    longest=st.floats(0, 1e4),
    multiplier=st.floats(1, 10) | st.integers(1, 10),
    consecutive=st.integers(1, 10_000),
)
async def test_cooldowns_never_shrink_and_never_pass_the_longest(
    initial: float, longest: float, multiplier: float, consecutive: int
) -> None:
    strategy = ExponentialBackoffStrategy(initial, longest, multiplier)
    wait = await strategy.on_rate_limit(3, consecutive)
    following = await strategy.on_rate_limit(0, consecutive + 1)
    assert min(initial, longest) <= wait <= following <= longest
    assert initial > 0 or following == 0


def test_slow_start_falls_in_a_line_and_ends() -> None:
    strategy = ExponentialBackoffStrategy()
    delays = [strategy.should_apply_slow_start(item) for item in range(52)]
    assert delays[0] == (True, 2.0)
    assert delays[25] == (True, pytest.approx(1.05))
    assert delays[49] == (True, pytest.approx(0.138))
    assert delays[50:] == [(False, 0.0), (False, 0.0)]
    falls = [earlier[1] - later[1] for earlier, later in itertools.pairwise(delays[:50])]
    assert falls == [pytest.approx(0.038)] * 49


def test_no_items_mean_no_slow_start() -> None:
    strategy = ExponentialBackoffStrategy(slow_start_items=0)
    assert strategy.should_apply_slow_start(0) == (False, 0.0)


@given(
    items=st.integers(0, 1000),
    delays=st.tuples(st.floats(0, 100), st.floats(0, 100)).map(sorted),
    item=st.integers(0, 2000),
)
def test_every_delay_lies_between_the_two(items: int, delays: list[float], item: int) -> None:
    final, initial = delays
    strategy = ExponentialBackoffStrategy(
        slow_start_items=items, slow_start_initial_delay=initial, slow_start_final_delay=final
    )
    applies, delay = strategy.should_apply_slow_start(item)
    assert applies == (item < items)
    if applies:
        assert final - 1e-9 <= delay <= initial


@given(consecutive=st.integers(0, 100), item=st.integers(0, 10_000))
async def test_the_fixed_strategy_never_changes(consecutive: int, item: int) -> None:
    strategy = FixedDelayStrategy(cooldown=7.0, delay_between_requests=0.5)
    assert await strategy.on_rate_limit(1, consecutive) == 7.0
    assert strategy.should_apply_slow_start(item) == (True, 0.5)


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "60", None, True], ids=repr)
@pytest.mark.parametrize(
    ("kind", "name", "rule"),
    [
        (ExponentialBackoffStrategy, name, f"{name} must be >= {int(name == NAMES[2])}")
        for name in NAMES
    ]
    + [
        (FixedDelayStrategy, "cooldown", "cooldown must be >= 0"),
        (FixedDelayStrategy, "delay_between_requests", "delay_between_requests must be >= 0"),
    ],
    ids=str,
)
def test_what_is_no_number_in_range_is_refused(
    kind: type[RateLimitStrategy], name: str, rule: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=r"; pass a finite number$") as caught:
        kind(**{name: value})
    assert str(caught.value).startswith(f"{rule} (got {value!r})")


def test_a_multiplier_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^backoff_multiplier must be >= 1"):
        ExponentialBackoffStrategy(backoff_multiplier=0.99)
    ExponentialBackoffStrategy(0, 0, 1, 0, 0, 0)


@pytest.mark.parametrize("method", ["on_rate_limit", "should_apply_slow_start"])
def test_a_strategy_has_to_decide_both(method: str) -> None:
    methods = dict.fromkeys(("on_rate_limit", "should_apply_slow_start"), print)
    del methods[method]
    incomplete: Any = type("Incomplete", (RateLimitStrategy,), methods)
    with pytest.raises(TypeError, match=method):
        incomplete()
