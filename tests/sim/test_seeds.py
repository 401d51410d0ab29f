"""Two thousand generated runs, every invariant checked after each."""

import pytest

from batch_llm.testing.simulate.soak import play_seeds

SEEDS = 2_000
PARTS = 8


# A tracer would double the time, and what it could see is seen elsewhere.
@pytest.mark.no_cover
@pytest.mark.parametrize("part", range(PARTS))
def test_every_invariant_holds(part: int) -> None:
    tally = play_seeds(range(part, SEEDS, PARTS))
    assert tally.seeds == SEEDS // PARTS
    assert tally.calls > tally.seeds
    assert not tally.failures, str(tally)


def test_a_quota_that_hardly_lets_anybody_in_takes_no_years() -> None:
    """It refuses for the size of each call, at whatever pace."""
    assert not (tally := play_seeds([77444])).failures, str(tally)
