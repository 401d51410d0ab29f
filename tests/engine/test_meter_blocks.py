"""High limits: calls are let out in blocks, and still no more of them than the limit says."""

import asyncio
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm import LLMCallStrategy, ProcessorConfig
from batch_llm._engine.meters import Meters
from tests.engine.support import Processor, items, now

BLOCK_SECONDS = 0.01


class Door:
    """Lets calls out as the gate does."""

    def __init__(self, requests: float | None, tokens: float | None, *, most: int = 100) -> None:
        self.meters, self.most = Meters(), most
        self.meters.resize(requests, tokens, 0.0)

    def admits(self, at: float, tokens: float = 0.0) -> bool:
        meters = self.meters
        if meters.permits and at < meters.valid_until:
            meters.permits -= 1
            return True
        return meters.take_block(at, tokens, most=self.most)

    def at_once(self, at: float, tokens: float = 0.0) -> int:
        """How many calls may go out in one moment."""
        return next(number for number in range(10**6) if not self.admits(at, tokens))


@pytest.mark.parametrize(
    ("requests", "tokens", "cost", "calls"),
    [
        pytest.param(60_000, None, 0, 10, id="ten requests in a hundredth of a second"),
        pytest.param(6_000, None, 0, 1, id="one request in a hundredth of a second"),
        pytest.param(600, None, 0, 1, id="none"),
        pytest.param(None, 6_000_000, 500, 2, id="the tokens of two calls"),
        pytest.param(60_000, 6_000_000, 500, 2, id="the less of both"),
        pytest.param(6_000, 600_000_000, 500, 1, id="of requests too"),
        pytest.param(1e9, 1e12, 500, 100, id="a hundred at most"),
        pytest.param(60_000, 6_000_000, 0, 10, id="calls that cost no tokens"),
        pytest.param(60_000, None, 500, 10, id="calls whose tokens do not matter"),
    ],
)
def test_a_block_is_what_a_hundredth_of_a_second_brings(
    requests: float | None, tokens: float | None, cost: float, calls: int
) -> None:
    door = Door(requests, tokens)
    assert door.admits(0.0, cost)
    assert door.meters.permits == calls - 1
    assert door.meters.booked == cost


# In powers of two, so that no sum is rounded.
CALLS, TOKENS, COST = 1_024, 2**17, 512


def test_calls_of_a_block_may_go_out_within_its_time() -> None:
    door = Door(60 * CALLS, None)
    assert door.admits(1.0)
    door.meters.permits = 1
    assert door.admits(1.0 + BLOCK_SECONDS / 2)
    assert door.meters.permits == 0
    assert door.meters.valid_until == 1.0 + BLOCK_SECONDS


def test_what_is_left_of_a_block_after_its_time_is_given_back() -> None:
    door = Door(60 * CALLS, None)
    assert door.at_once(0.0) == CALLS - 1
    assert door.admits(0.5)
    # Of what half a second and another 16 calls' time bring, one was used.
    assert door.at_once(0.5 + 16 / CALLS) == CALLS // 2 + 16 - 1


def test_on_a_new_clock_nothing_is_left_of_a_block() -> None:
    door = Door(60 * CALLS, None)
    assert door.admits(1_000.0)
    door.meters.reset()
    assert door.at_once(0.0) == CALLS - 1


def test_a_block_is_given_back_as_what_it_was_taken_for() -> None:
    door = Door(None, 60 * TOKENS)
    assert door.at_once(0.0, COST) == TOKENS / COST
    door = Door(None, 60 * TOKENS)
    assert door.admits(0.0, COST)
    assert door.meters.permits == 1
    assert door.meters.take_block(0.0, TOKENS - COST)
    assert not door.meters.take_block(0.0, 1.0)


def test_a_resized_limit_gets_the_rest_of_a_block_back() -> None:
    door = Door(60 * CALLS, 60 * TOKENS)
    assert door.admits(0.0, COST)
    door.meters.resize(60 * CALLS / 2, 60 * TOKENS * 2, 0.0)
    assert door.meters.permits == 0
    assert not door.meters.take_block(0.0, TOKENS - COST + 1)
    assert door.meters.take_block(0.0, TOKENS - COST)
    assert door.meters.ready_at(0.0, calls=CALLS // 2 - 2) == 0.0


def test_where_a_block_is_too_much_single_calls_go_out() -> None:
    door = Door(60 * CALLS, None)
    # Of what a second brings less one call, a hundred and two blocks leave three.
    assert sum(door.admits(0.0) for _ in range(1_020)) == 1_020
    assert door.at_once(0.0) == 3


def test_an_estimator_that_is_asked_each_time_gets_no_blocks() -> None:
    door = Door(60 * CALLS, None, most=1)
    assert door.admits(0.0)
    assert door.meters.permits == 0


@given(
    st.floats(60_000, 1e6),
    st.lists(st.sampled_from([0.0, 0.0, 0.0, 1e-4, 0.003, 0.01]) | st.floats(0, 0.1), max_size=300),
)
def test_no_window_holds_more_than_its_share_a_burst_and_a_block_s_time(
    per_minute: float, gaps: list[float]
) -> None:
    door, rate, at = Door(per_minute, None), per_minute / 60, 0.0
    burst, number, least = rate - 1, 0, math.inf
    for gap in gaps:
        at += gap
        for _ in range(200):
            if not door.admits(at):
                break
            least = min(least, number - rate * at)
            number += 1
            assert number - rate * at - least <= burst + rate * BLOCK_SECONDS + 1e-6


@pytest.mark.parametrize("limits", [{"requests": 120_000}, {"tokens": 1_800_000}])
async def test_a_run_keeps_to_a_high_limit(limits: dict[str, Any]) -> None:
    class Swift(LLMCallStrategy[str]):
        async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
            started.append(now())
            await asyncio.sleep(0.001)
            return prompt, {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}

    started: list[float] = []
    config = ProcessorConfig(
        max_workers=100, **{f"max_{name}_per_minute": limit for name, limit in limits.items()}
    )
    async with Processor(config=config) as processor:
        for item in items(Swift(), 6_000):
            await processor.add_work(item)
        result = await processor.process_all()
    assert result.succeeded == 6_000
    # Both limits let two thousand calls a second out, after a burst of as many.
    assert started[-1] == pytest.approx(2.0, rel=0.05)
    for first, last in zip(started, started[2_400:], strict=False):
        assert last - first >= 0.2 - 2 * BLOCK_SECONDS
