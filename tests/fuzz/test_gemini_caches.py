"""Whatever comes instead of a cache: the run goes on, or its items fail and say why."""

import asyncio
import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm import GeminiCachedStrategy
from batch_llm.core.clock import wall_time
from batch_llm.testing.gemini import Fault, GeminiEmulator, Operation
from tests.fuzz.answers import CACHE, CACHES, answers
from tests.fuzz.support import (
    ATTEMPTS,
    BOOK,
    MODEL,
    SETTINGS,
    answer_to,
    client_of,
    quiet,
    run_all,
    text_of,
)

ITEMS = [f"item {number}" for number in range(6)]
CACHE_OPERATIONS = tuple(name for name in get_args(Operation) if name.startswith("cache"))

Strategy = GeminiCachedStrategy[str]


def cached(server: GeminiEmulator) -> Strategy:
    return GeminiCachedStrategy(MODEL, client_of(server), text_of, BOOK)


def always(server: GeminiEmulator, operation: Operation, fault: Fault) -> None:
    """Answer so every time; a run of these items never asks more often."""
    server.script(*[fault] * 1_000, operation=operation)


@SETTINGS
@given(listed=answers(CACHES), created=answers(CACHE), times=st.sampled_from([1, 2, 1_000]))
async def test_any_answer_to_a_listing_and_a_creation(
    listed: Fault, created: Fault, times: int
) -> None:
    async with GeminiEmulator(answer_to) as server:
        server.script(*[listed] * times, operation="cache_list")
        server.script(*[created] * times, operation="cache_create")
        strategy = cached(server)
        batch = await run_all(strategy, ITEMS)
        assert batch.total_items == len(ITEMS)
        assert server.count("cache_create") <= ATTEMPTS * len(ITEMS)
        server.script(Fault.raw(b"[]", status=500), operation="cache_delete")
        await strategy.delete_cache()


@SETTINGS
@given(listed=answers(CACHES))
async def test_any_answer_to_a_listing_alone_costs_nothing(listed: Fault) -> None:
    async with GeminiEmulator(answer_to) as server:
        server.script(listed, operation="cache_list")
        batch = await run_all(cached(server), ITEMS)
        assert server.count("cache_list") <= 2
    assert batch.succeeded == len(ITEMS)


@SETTINGS
@given(updated=answers(CACHE), created=answers(CACHE))
async def test_any_answer_to_a_renewal_while_the_old_one_lives(
    updated: Fault, created: Fault
) -> None:
    async with GeminiEmulator(answer_to) as server:
        strategy = cached(server)
        assert (await run_all(strategy, ITEMS)).succeeded == len(ITEMS)
        await asyncio.sleep(3400)
        server.script(updated, operation="cache_update")
        server.script(created, operation="cache_create")
        assert (await run_all(strategy, ITEMS)).succeeded == len(ITEMS)
        assert server.count("cache_update") + server.count("cache_create") <= 2 * ATTEMPTS + 1


@SETTINGS
@given(deleted=answers(CACHE))
async def test_any_answer_to_a_deletion_is_survived(deleted: Fault) -> None:
    async with GeminiEmulator(answer_to) as server:
        strategy = cached(server)
        await strategy.prepare()
        server.script(deleted, operation="cache_delete")
        with quiet():
            await strategy.delete_cache()
        assert strategy._cache is None
        # httpx closes in a task what it could not unpack.
        await asyncio.sleep(1)


@pytest.mark.parametrize("name", [{}, {"name": None}, {"name": ""}], ids=repr)
async def test_a_created_cache_without_a_name_is_none(name: dict[str, Any]) -> None:
    nameless = {key: value for key, value in CACHE.items() if key != "name"} | name
    async with GeminiEmulator(answer_to) as server:
        always(server, "cache_create", Fault.raw(json.dumps(nameless).encode()))
        batch = await run_all(cached(server), ITEMS)
        assert server.count("generate") == 0
        assert server.count("cache_create") == ATTEMPTS
    for result in batch.results:
        assert (result.error or "").startswith("EmptyResponseError: the answer to the creation")


async def test_a_nameless_cache_in_a_listing_is_passed_over() -> None:
    async with GeminiEmulator(answer_to) as server:
        other = cached(server)
        await other.prepare()
        (record,) = server.caches.values()
        nameless = {**record.to_wire(), "name": ""}
        listed = {"cachedContents": [nameless, record.to_wire()]}
        server.script(Fault.raw(json.dumps(listed).encode()), operation="cache_list")
        strategy = cached(server)
        await strategy.prepare()
        assert strategy._cache.name == record.name


async def test_a_page_that_names_itself_as_the_next_is_read_once() -> None:
    async with GeminiEmulator(answer_to) as server:
        page = Fault.raw(json.dumps({**CACHES, "nextPageToken": "again"}).encode())
        always(server, "cache_list", page)
        batch = await run_all(cached(server), ITEMS)
        assert server.count("cache_list") == 2
    assert batch.succeeded == len(ITEMS)


@pytest.mark.parametrize("created", ["1969-12-31T23:00:00Z", None])
async def test_a_newborn_cache_is_not_taken_for_dead(created: str | None) -> None:
    async with GeminiEmulator(answer_to) as server:
        await cached(server).prepare()
        (record,) = server.caches.values()
        times = {"createTime": created, "expireTime": "1969-12-31T22:00:00Z"}
        always(server, "cache_create", Fault.raw(json.dumps(record.to_wire() | times).encode()))
        always(server, "cache_list", Fault.raw(b"{}"))
        strategy = cached(server)
        batch = await run_all(strategy, ITEMS)
        assert batch.succeeded == len(ITEMS)
        assert server.count("cache_create") == 2
        assert strategy._remaining_seconds() == pytest.approx(3600.0)
        assert strategy._cache_created_at == pytest.approx(wall_time())


@pytest.mark.parametrize("status", [200, 400, 403, 502])
@pytest.mark.parametrize("word", ["cach", "not supported ", "expired "])
async def test_a_page_of_many_kilobytes_instead_of_a_cache(word: str, status: int) -> None:
    page = Fault.raw(word.encode() * 30_000, status=status)
    async with GeminiEmulator(answer_to) as server:
        for operation in CACHE_OPERATIONS:
            always(server, operation, page)
        batch = await run_all(cached(server), ITEMS)
    assert batch.total_items == len(ITEMS)
    goes_on = status == 403
    assert batch.succeeded == (len(ITEMS) if goes_on else 0)
