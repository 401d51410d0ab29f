"""When a Gemini cache ends and is renewed: whatever its times, it is never used dead."""

import asyncio
import warnings
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm import GeminiCachedStrategy
from batch_llm.llm_strategies._gemini_cache_options import checked_buffer
from batch_llm.llm_strategies._gemini_caches import end_of
from batch_llm.testing.gemini import GeminiEmulator
from tests.fuzz.support import BOOK, MODEL, SETTINGS, client_of, text_of

pytestmark = pytest.mark.gemini

# Whole seconds, so that both clocks agree about the very instant.
TTLS = st.integers(2, 7200)
TIMES = st.floats(1e9, 4e9)
SHIFTS = st.floats(-1e6, 1e6)


def cached(server: GeminiEmulator, ttl: int, buffer: int) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "cache_renewal_buffer_seconds must be below")
        return GeminiCachedStrategy(
            MODEL,
            client_of(server),
            text_of,
            BOOK,
            ttl,
            cache_renewal_buffer_seconds=buffer,
        )


def stamped(created: float | None, expires: float | None) -> Any:
    def moment(seconds: float | None) -> datetime | None:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)

    return SimpleNamespace(create_time=moment(created), expire_time=moment(expires))


@given(st.floats(0, 1e9, exclude_min=True), st.floats(0, 1e9))
def test_a_new_cache_is_never_inside_the_buffer(ttl: float, buffer: float) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        used = checked_buffer(buffer, ttl)
    assert 0 <= used < ttl
    assert (used == buffer) == (not caught)
    assert bool(caught) == (buffer >= ttl)


@given(st.none() | TIMES, st.none() | TIMES, st.none() | TIMES, st.floats(1, 1e6), SHIFTS)
def test_a_cache_ends_as_much_later_as_all_its_times_are(
    noted: float | None, created: float | None, expires: float | None, ttl: float, shift: float
) -> None:
    def later(seconds: float | None) -> float | None:
        return None if seconds is None else seconds + shift

    end = end_of(stamped(created, expires), created_at=noted, ttl_seconds=ttl)
    moved = end_of(
        stamped(later(created), later(expires)), created_at=later(noted), ttl_seconds=ttl
    )
    assert moved == (None if end is None else pytest.approx(end + shift, abs=1e-3))
    assert (end is None) == (noted is None and created is None and expires is None)


@given(TIMES, st.floats(0, 1e6), SHIFTS, st.floats(1, 1e6))
def test_a_providers_clock_that_is_wrong_changes_no_life(
    noted: float, life: float, error: float, ttl: float
) -> None:
    """What counts is how long it lives from when we saw it made."""
    cache = stamped(noted + error, noted + error + life)
    assert end_of(cache, created_at=noted, ttl_seconds=ttl) == pytest.approx(noted + life, abs=1e-3)


@SETTINGS
@given(
    TTLS,
    st.floats(0, 1.5),
    st.lists(st.floats(0, 1.3), min_size=1, max_size=8),
    st.integers(0, 10_000),
)
async def test_it_is_renewed_in_time_and_no_more_often(
    ttl: int, buffer_share: float, pauses: list[float], clock_error: int
) -> None:
    """Every call meets a live cache: extended when inside the buffer, made anew when dead."""
    creates, updates = 0, 0
    async with GeminiEmulator() as server:
        server.advance(clock_error)
        strategy = cached(server, ttl, int(ttl * buffer_share))
        buffer, remaining = strategy.cache_renewal_buffer_seconds, 0
        for pause in pauses:
            seconds = int(ttl * pause)
            await asyncio.sleep(seconds)
            remaining -= seconds
            if remaining <= 0:
                creates, remaining = creates + 1, ttl
            elif remaining <= buffer:
                updates, remaining = updates + 1, ttl
            await strategy.execute("Who?", 1, 60.0)
            assert strategy._remaining_seconds() == pytest.approx(remaining, abs=1e-3)
            assert not strategy._is_cache_expired()
        assert (server.count("cache_create"), server.count("cache_update")) == (creates, updates)
        assert all(request.status == 200 for request in server.requests)


@SETTINGS
@given(TTLS, TTLS, st.floats(0, 0.99), st.floats(0, 1.2))
async def test_one_is_adopted_only_outside_the_buffer(
    there: int, ttl: int, buffer_share: float, age_share: float
) -> None:
    age, buffer = int(there * age_share), int(ttl * buffer_share)
    async with GeminiEmulator() as server:
        await cached(server, there, 0).prepare()
        await asyncio.sleep(age)
        strategy = cached(server, ttl, buffer)
        await strategy.prepare()
        adopts = there - age > buffer
        assert server.count("cache_create") == (1 if adopts else 2)
        assert not strategy._is_cache_expired()
        expected = there - age if adopts else ttl
        assert strategy._remaining_seconds() == pytest.approx(expected, abs=1e-3)
