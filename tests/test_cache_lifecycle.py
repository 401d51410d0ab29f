"""A Gemini cache's life: found or made, shared, kept for the next run, deleted."""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest
from google.genai import errors, types

from batch_llm.core.clock import wall_time
from batch_llm.llm_strategies import GeminiCachedStrategy
from batch_llm.testing.gemini import Fault, GeminiEmulator

pytestmark = pytest.mark.gemini

MODEL = "gemini-2.5-flash"
BOOK = "It was the best of times, it was the worst of times. " * 100
OTHER_BOOK = "Call me Ishmael. Some years ago, never mind how long. " * 100


def text_of(response: Any) -> str:
    return str(response.text)


def cached(server: GeminiEmulator, content: Any = BOOK, **options: Any) -> Any:
    client = server.client(vertex=options.pop("vertex", False))
    return GeminiCachedStrategy(options.pop("model", MODEL), client, text_of, content, **options)


def mocked(**caches: Any) -> Any:
    client = MagicMock()
    client.aio.caches.list = AsyncMock(return_value=[])
    client.aio.caches.create = AsyncMock(return_value=MagicMock())
    client.aio.caches.create.return_value.name = "cachedContents/new"
    client.aio.models.generate_content = AsyncMock(return_value=MagicMock(text="Hi"))
    for name, value in caches.items():
        setattr(client.aio.caches, name, value)
    return client


@pytest.fixture
def far_east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose local time is far from UTC."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


def generated_with(server: GeminiEmulator) -> list[str | None]:
    return [r.cached_content for r in server.requests if r.operation == "generate"]


class TestPrepare:
    async def test_the_first_run_creates_and_later_ones_reuse(self) -> None:
        async with GeminiEmulator() as server:
            first, second = cached(server), cached(server)
            for strategy in (first, second):
                await strategy.prepare()
                await strategy.execute("Who?", 1, 60.0)
            assert first._cache.name == second._cache.name
            assert generated_with(server) == [first._cache.name] * 2
            assert server.count("cache_create") == 1

    async def test_again_on_the_same_strategy_asks_nobody(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            await strategy.prepare()
            await strategy.cleanup()
            asked = len(server.requests)
            await strategy.prepare()
            assert len(server.requests) == asked
            assert len(server.caches) == 1

    @pytest.mark.parametrize(
        ("there", "wanted"),
        [
            ({"content": OTHER_BOOK}, {}),
            ({"content": [BOOK, "More"]}, {}),
            ({"model": "gemini-2.5-flash-lite"}, {}),
            ({}, {"model": "gemini-2.5-flash-lite"}),
            ({"config": {"system_instruction": "Be brief"}}, {}),
            (
                {"config": {"system_instruction": "Be brief"}},
                {"config": {"system_instruction": ""}},
            ),
            ({}, {"config": {"tools": [{"google_search": {}}]}}),
            ({}, {"config": {"tool_config": {"function_calling_config": {"mode": "NONE"}}}}),
        ],
        ids=str,
    )
    async def test_a_cache_of_anything_else_is_left_alone(self, there: Any, wanted: Any) -> None:
        async with GeminiEmulator() as server:
            await cached(server, **there).prepare()
            await cached(server, **wanted).prepare()
            assert server.count("cache_create") == 2

    @pytest.mark.parametrize("vertex", [False, True])
    async def test_a_cache_on_the_last_of_many_pages_is_found(self, vertex: bool) -> None:
        async with GeminiEmulator(page_size=2) as server:
            for number in range(5):
                await cached(server, f"{number} {OTHER_BOOK}", vertex=vertex).prepare()
            await cached(server, vertex=vertex).prepare()
            lists, creates = server.count("cache_list"), server.count("cache_create")
            strategy = cached(server, vertex=vertex)
            await strategy.prepare()
            assert server.count("cache_list") - lists == 3
            assert server.count("cache_create") == creates
            await strategy.execute("Who?", 1, 60.0)

    async def test_the_longest_living_of_several_is_taken(self) -> None:
        async with GeminiEmulator() as server:
            names = []
            for ttl in (3600, 7200, 5400):
                strategy = cached(server, cache_ttl_seconds=ttl)
                await strategy._create()
                names.append(strategy._cache.name)
            strategy = cached(server)
            await strategy.prepare()
            assert strategy._cache.name == names[1]

    async def test_a_cache_inside_the_buffer_is_left_for_a_new_one(self) -> None:
        async with GeminiEmulator() as server:
            await cached(server).prepare()
            await asyncio.sleep(3299)
            await cached(server).prepare()
            assert server.count("cache_create") == 1
            await asyncio.sleep(1)
            strategy = cached(server)
            await strategy.prepare()
            assert server.count("cache_create") == 2
            assert not strategy._is_cache_expired()

    @pytest.mark.parametrize("fault", [Fault.status(500), Fault.status(403), Fault.cut()])
    async def test_a_list_that_fails_costs_no_more_than_a_warning(
        self, fault: Fault, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with GeminiEmulator() as server:
            server.script(fault, operation="cache_list")
            strategy = cached(server)
            await strategy.prepare()
            assert strategy._cache.name in server.caches
        (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
        assert "caches could not be listed" in record.getMessage()

    async def test_a_warning_quotes_no_error_that_is_not_the_apis(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)

            async def broken(**_: Any) -> Any:
                raise LookupError("a secret prompt")

            strategy.client.aio.caches.list = broken
            await strategy.prepare()
        (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
        assert record.getMessage().startswith("caches could not be listed: LookupError; ")

    async def test_a_creation_that_was_cancelled_is_found_by_the_next_try(self) -> None:
        async with GeminiEmulator() as server:
            server.script(Fault.slow(60), operation="cache_create")
            strategy = cached(server)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(strategy.prepare(), 30)
            await strategy.prepare()
            assert server.count("cache_create") == 1
            assert list(server.caches) == [strategy._cache.name]

    async def test_workers_that_start_without_it_make_one_cache(self) -> None:
        async with GeminiEmulator(latency_seconds=1.0) as server:
            strategy = cached(server)
            server.script(Fault.slow(5), operation="cache_create")
            await asyncio.gather(*(strategy.execute(f"{n}?", 1, 60.0) for n in range(20)))
            assert server.count("cache_create") == 1
            assert server.count("cache_list") == 1
            assert generated_with(server) == [strategy._cache.name] * 20


class TestReuseOfWhatAListTells:
    """Mocks give plain lists, and not always times."""

    @staticmethod
    async def display_name() -> str:
        client = mocked()
        await GeminiCachedStrategy(MODEL, client, text_of, BOOK).prepare()
        return str(client.aio.caches.create.await_args.kwargs["config"].display_name)

    @staticmethod
    def listed(display_name: Any, **fields: Any) -> SimpleNamespace:
        return SimpleNamespace(
            name="cachedContents/there",
            model=f"models/{MODEL}",
            display_name=display_name,
            **{"create_time": None, "expire_time": None, **fields},
        )

    async def strategy_finding(self, **fields: Any) -> Any:
        cache = self.listed(await self.display_name(), **fields)
        client = mocked(list=AsyncMock(return_value=[MagicMock(), cache]))
        strategy = GeminiCachedStrategy(MODEL, client, text_of, BOOK)
        await strategy.prepare()
        return strategy

    async def test_its_age_counts_from_its_own_creation(self) -> None:
        created = types.CachedContent(create_time=_ago(1800)).create_time
        strategy = await self.strategy_finding(create_time=created)
        assert strategy._cache.name == "cachedContents/there"
        assert strategy._cache_created_at == pytest.approx(wall_time() - 1800)
        await asyncio.sleep(1499)
        assert not strategy._is_cache_expired()
        await asyncio.sleep(1)
        assert strategy._is_cache_expired()

    async def test_its_expire_time_wins(self) -> None:
        strategy = await self.strategy_finding(create_time=_ago(7200), expire_time=_ago(-600))
        assert strategy._cache.name == "cachedContents/there"
        await asyncio.sleep(299)
        assert not strategy._is_cache_expired()
        await asyncio.sleep(1)
        assert strategy._is_cache_expired()

    async def test_an_expire_time_alone_will_do(self) -> None:
        strategy = await self.strategy_finding(expire_time=_ago(-600))
        assert strategy._cache.name == "cachedContents/there"
        assert strategy._cache_created_at == pytest.approx(wall_time())
        await asyncio.sleep(300)
        assert strategy._is_cache_expired()

    async def test_a_time_without_a_zone_is_utc(self, far_east: None) -> None:
        strategy = await self.strategy_finding(expire_time=_ago(-301).replace(tzinfo=None))
        assert strategy._cache.name == "cachedContents/there"

    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"create_time": MagicMock(), "expire_time": MagicMock()},
            {"create_time": "2026-01-01T00:00:00Z"},
        ],
        ids=["none", "mocks", "text"],
    )
    async def test_without_times_it_is_left_for_a_new_one(self, fields: Any) -> None:
        strategy = await self.strategy_finding(**fields)
        assert strategy._cache.name == "cachedContents/new"


def _ago(seconds: float) -> Any:
    return datetime.fromtimestamp(wall_time(), UTC) - timedelta(seconds=seconds)


class TestMocks:
    async def test_a_created_cache_whose_fields_are_all_mocks(self) -> None:
        client = mocked()
        strategy = GeminiCachedStrategy(MODEL, client, text_of, BOOK)
        await strategy.prepare()
        assert strategy._cache is client.aio.caches.create.return_value
        assert strategy._cache_created_at == pytest.approx(wall_time())
        assert not strategy._is_cache_expired()
        output, usage = await strategy.execute("Who?", 1, 60.0)
        assert output == "Hi"
        assert usage["cached_input_tokens"] == 0
        config = client.aio.models.generate_content.await_args.kwargs["config"]
        assert config.cached_content == "cachedContents/new"
        created = client.aio.caches.create.await_args.kwargs
        assert (created["model"], created["config"].ttl) == (MODEL, "3600s")

    @pytest.mark.parametrize("content", [[], "", ()], ids=repr)
    async def test_empty_contents(self, content: Any) -> None:
        client = mocked()
        strategy = GeminiCachedStrategy(MODEL, client, text_of, content)
        await strategy.prepare()
        assert client.aio.caches.create.await_args.kwargs["config"].contents is None
        assert strategy.cached_content == content

    async def test_a_list_that_cannot_be_awaited(self) -> None:
        strategy = GeminiCachedStrategy(MODEL, mocked(list=MagicMock()), text_of, BOOK)
        await strategy.prepare()
        assert strategy._cache.name == "cachedContents/new"

    async def test_a_list_that_is_a_mock_itself(self) -> None:
        strategy = GeminiCachedStrategy(MODEL, mocked(list=AsyncMock()), text_of, BOOK)
        await strategy.prepare()
        assert strategy._cache.name == "cachedContents/new"


class TestTheEnd:
    async def test_cleanup_keeps_the_cache(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            await strategy.prepare()
            await strategy.cleanup()
            assert list(server.caches) == [strategy._cache.name]

    async def test_delete_cache_deletes_it_once_by_name_and_forgets_it(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            await strategy.prepare()
            name = strategy._cache.name
            await asyncio.gather(strategy.delete_cache(), strategy.delete_cache())
            assert strategy._cache is None
            assert strategy._cache_created_at is None
            assert [r.cached_content for r in server.requests[-1:]] == [name]
            assert server.count("cache_delete") == 1
            assert not server.caches

    async def test_after_it_a_new_cache_is_made(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            await strategy.prepare()
            await strategy.delete_cache()
            await strategy.execute("Who?", 1, 60.0)
            assert list(server.caches) == [strategy._cache.name]

    async def test_a_failure_is_logged_and_the_cache_not_used_again(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            await strategy.prepare()
            name = strategy._cache.name
            server.script(Fault.status(500), operation="cache_delete")
            await strategy.delete_cache()
            assert f"{name} could not be deleted: 500" in caplog.text
            await strategy.prepare()
            assert strategy._cache.name != name

    async def test_without_a_cache_it_asks_nobody(self) -> None:
        async with GeminiEmulator() as server:
            await cached(server).delete_cache()
            assert not server.requests


class TestOneOwnerOfRetries:
    @pytest.mark.parametrize("operation", ["cache_list", "cache_create", "cache_update"])
    async def test_the_sdk_sends_a_failed_request_once(self, operation: Any) -> None:
        retries = types.HttpRetryOptions(attempts=3)
        faults: Any = lambda r: Fault.status(503) if r.operation == operation else None  # noqa: E731
        async with GeminiEmulator(faults=faults) as server:
            client = server.client(http_options=types.HttpOptions(retry_options=retries))
            strategy = GeminiCachedStrategy(MODEL, client, text_of, BOOK)
            with suppress(errors.ServerError):
                await strategy.prepare()
            await asyncio.sleep(3400)
            with suppress(errors.ServerError):
                await strategy.prepare()
            assert server.count(operation) == (2 if operation == "cache_create" else 1)


class TestWithoutAutoRenew:
    async def test_execute_needs_a_cache(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server, auto_renew=False)
            with pytest.raises(RuntimeError, match=r"call prepare\(\) before execute\(\)"):
                await strategy.execute("Who?", 1, 60.0)
            assert not server.requests

    async def test_execute_asks_nobody_for_another(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server, auto_renew=False)
            await strategy.prepare()
            await asyncio.sleep(3500)
            await strategy.execute("Who?", 1, 60.0)
            assert [r.operation for r in server.requests[-1:]] == ["generate"]
            await asyncio.sleep(101)
            with pytest.raises(Exception, match="CachedContent not found"):
                await strategy.execute("Who?", 1, 60.0)
            with pytest.raises(RuntimeError, match="auto_renew is off"):
                await strategy.execute("Who?", 2, 60.0)

    async def test_the_next_prepare_gets_one(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server, auto_renew=False)
            await strategy.prepare()
            await asyncio.sleep(3601)
            await strategy.prepare()
            _, usage = await strategy.execute("Who?", 1, 60.0)
        assert usage["cached_input_tokens"] > 1024


class TestConstruction:
    def test_the_old_positional_order_and_the_attributes(self) -> None:
        client, config = MagicMock(), types.GenerateContentConfig()
        with pytest.warns(DeprecationWarning, match="cache_refresh_threshold has no effect"):
            strategy = GeminiCachedStrategy(MODEL, client, text_of, BOOK, 1800, 0.2, config)
        assert strategy.model == MODEL
        assert strategy.client is client
        assert strategy.response_parser is text_of
        assert strategy.cached_content == BOOK
        assert strategy.cache_ttl_seconds == 1800
        assert strategy.cache_refresh_threshold == 0.2
        assert strategy.config is config
        assert strategy.cache_renewal_buffer_seconds == 300
        assert strategy.auto_renew is True
        assert strategy.require_cache is False
        assert strategy._cache is None
        assert strategy._cache_created_at is None
        assert strategy._is_cache_expired()

    def test_the_deprecated_default_warns_too_when_it_is_given(self) -> None:
        with pytest.warns(DeprecationWarning, match="cache_renewal_buffer_seconds"):
            GeminiCachedStrategy(MODEL, MagicMock(), text_of, BOOK, cache_refresh_threshold=0.1)

    def test_a_buffer_that_no_cache_would_ever_leave_is_cut(self) -> None:
        with pytest.warns(UserWarning, match="must be below cache_ttl_seconds") as caught:
            strategy = GeminiCachedStrategy(MODEL, MagicMock(), text_of, BOOK, 300)
        assert strategy.cache_renewal_buffer_seconds == 150
        assert caught[0].filename == __file__

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"cache_ttl_seconds": 0}, "cache_ttl_seconds must be > 0"),
            ({"cache_ttl_seconds": float("nan")}, "cache_ttl_seconds must be > 0"),
            ({"cache_renewal_buffer_seconds": -1}, "cache_renewal_buffer_seconds must be >= 0"),
            (
                {"cache_renewal_buffer_seconds": float("inf")},
                "cache_renewal_buffer_seconds must be >= 0",
            ),
        ],
    )
    def test_durations_that_are_none(self, options: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            GeminiCachedStrategy(MODEL, MagicMock(), text_of, BOOK, **options)
