"""The two clocks follow the loop that runs."""

import asyncio
import time

import pytest

from batch_llm.core.clock import loop_time, wall_time


async def test_both_clocks_move_with_virtual_time() -> None:
    loop_start, wall_start = loop_time(), wall_time()
    await asyncio.sleep(3600)
    assert loop_time() - loop_start == 3600
    assert wall_time() - wall_start == pytest.approx(3600)


@pytest.mark.real_time
async def test_on_a_real_loop_the_clocks_are_the_systems() -> None:
    assert loop_time() == pytest.approx(time.monotonic(), abs=60)
    assert wall_time() == pytest.approx(time.time(), abs=60)


def test_without_a_loop_there_is_only_the_wall_clock() -> None:
    assert wall_time() == pytest.approx(time.time(), abs=60)
    with pytest.raises(RuntimeError):
        loop_time()
