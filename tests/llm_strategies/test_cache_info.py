"""What a strategy tells of its Gemini cache: which it is, why, and what it costs and saves."""

import asyncio
import dataclasses
import logging
import pickle
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest
from google.genai import types
from hypothesis import given
from hypothesis import strategies as st

from batch_llm import (
    CacheInfo,
    CachePrices,
    CacheUnavailableError,
    GeminiCachedStrategy,
    LLMWorkItem,
    ParallelBatchProcessor,
)
from batch_llm.llm_strategies._gemini_cache_info import CacheCosts
from batch_llm.testing.gemini import Fault, GeminiEmulator, ModelRules

pytestmark = pytest.mark.gemini

MODEL = "gemini-2.5-flash"
BOOK = "It was the best of times, it was the worst of times. " * 100
TOKENS = 1325
GONE = Fault.status(403, "CachedContent not found (or permission denied)")


def text_of(response: Any) -> str:
    return str(response.text)


def cached(server: GeminiEmulator, content: Any = BOOK, **options: Any) -> Any:
    client = server.client(vertex=options.pop("vertex", False))
    return GeminiCachedStrategy(options.pop("model", MODEL), client, text_of, content, **options)


async def ask(strategy: Any, prompt: str = "Who?") -> Any:
    return await strategy.execute(prompt, 1, 60.0)


def logged(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == level and record.name.startswith("batch_llm")
    ]


@pytest.fixture(autouse=True)
def _informed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="batch_llm")


class TestWhichCache:
    def test_none_before_it_is_prepared(self) -> None:
        strategy = GeminiCachedStrategy(MODEL, MagicMock(), text_of, BOOK, cache_tags={"a": "b"})
        assert strategy.cache_info() == CacheInfo(
            status="none",
            reason="prepare() has not run yet",
            model=MODEL,
            tags={"a": "b"},
            name=None,
            age_seconds=None,
            remaining_seconds=None,
            token_count=None,
            rejected={},
            saved_tokens_per_call=None,
            break_even_calls_per_hour=pytest.approx(1.0),
            expected_calls=None,
            expected_saving_tokens=None,
        )

    @pytest.mark.parametrize("vertex", [False, True])
    async def test_one_that_was_created(self, vertex: bool) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server, vertex=vertex)
            await strategy.prepare()
            await asyncio.sleep(100)
            info = strategy.cache_info()
            assert [info.name] == list(server.caches)
        assert (info.status, info.reason) == ("created", "none that can be used was listed")
        assert info.age_seconds == pytest.approx(100)
        assert info.remaining_seconds == pytest.approx(3500)
        assert info.token_count == TOKENS

    async def test_one_that_was_found_is_as_old_as_it_is(self) -> None:
        async with GeminiEmulator() as server:
            await cached(server).prepare()
            await asyncio.sleep(1000)
            strategy = cached(server)
            await strategy.prepare()
            info = strategy.cache_info()
            assert [info.name] == list(server.caches)
        assert info.status == "found"
        assert info.reason == "it has the same model, contents and tags"
        assert info.age_seconds == pytest.approx(1000)
        assert info.remaining_seconds == pytest.approx(2600)
        assert info.token_count == TOKENS

    async def test_one_that_was_extended_keeps_its_age(self) -> None:
        async with GeminiEmulator() as server:
            await cached(server).prepare()
            await asyncio.sleep(1000)
            strategy = cached(server)
            await strategy.prepare()
            for age in (3400.0, 6800.0):
                await asyncio.sleep(age - strategy.cache_info().age_seconds)
                await ask(strategy)
                info = strategy.cache_info()
                assert info.status == "extended"
                assert info.age_seconds == pytest.approx(age)
                assert info.remaining_seconds == pytest.approx(3600)
                assert info.token_count == TOKENS
        assert info.reason == "200 s were left"

    async def test_one_in_the_place_of_another_that_could_not_be_extended(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            await strategy.prepare()
            old = strategy.cache_info().name
            await asyncio.sleep(3400)
            server.script(Fault.status(500), operation="cache_update")
            await ask(strategy)
            info = strategy.cache_info()
        assert info.name != old
        assert (info.status, info.reason) == ("created", f"{old} could not be extended")
        assert info.age_seconds == 0.0

    async def test_one_that_could_not_be_renewed_at_all_stays_what_it_was(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            await strategy.prepare()
            before = strategy.cache_info()
            await asyncio.sleep(3400)
            server.script(Fault.status(500), operation="cache_update")
            server.script(Fault.status(500), operation="cache_create")
            await ask(strategy)
            info = strategy.cache_info()
        assert (info.name, info.status, info.reason) == (before.name, "created", before.reason)
        assert info.remaining_seconds == pytest.approx(200)
        assert len(logged(caplog, logging.INFO)) == 1

    async def test_none_where_it_was_lost_or_deleted(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            await strategy.prepare()
            name = strategy.cache_info().name
            server.script(GONE)
            with pytest.raises(Exception, match="CachedContent not found"):
                await ask(strategy)
            info = strategy.cache_info()
            assert (info.status, info.reason, info.name) == ("none", f"{name} is gone", None)
            await ask(strategy)
            name = strategy.cache_info().name
            await strategy.delete_cache()
            info = strategy.cache_info()
        assert (info.status, info.reason, info.name) == ("none", f"{name} was deleted", None)
        assert (info.age_seconds, info.remaining_seconds, info.token_count) == (None, None, None)

    async def test_none_where_creation_failed(self) -> None:
        async with GeminiEmulator() as server:
            server.script(Fault.status(503), operation="cache_create")
            strategy = cached(server)
            with pytest.raises(Exception, match="overloaded"):
                await strategy.prepare()
            info = strategy.cache_info()
        assert (info.status, info.name) == ("none", None)
        assert info.reason.startswith("creation failed: 503 The model is overloaded")

    async def test_none_while_one_is_looked_for(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            await strategy.prepare()
            await asyncio.sleep(3600)
            server.script(Fault.slow(10), operation="cache_list")
            renewal = asyncio.create_task(strategy.prepare())
            await asyncio.sleep(1)
            info = strategy.cache_info()
            assert (info.status, info.reason) == ("none", "it is being looked for")
            await renewal
        assert strategy.cache_info().status == "created"

    async def test_none_where_it_is_refused_for_good(self) -> None:
        async with GeminiEmulator(min_cache_tokens=4096) as server:
            for require_cache, status in ((False, "uncached"), (True, "none")):
                strategy = cached(server, require_cache=require_cache)
                try:
                    await strategy.prepare()
                except CacheUnavailableError:
                    assert require_cache
                info = strategy.cache_info()
                assert (info.status, info.name) == (status, None)
                assert "total_token_count=1325, min_total_token_count=4096" in info.reason

    async def test_one_that_has_ended_unnoticed_has_no_life_left(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            await strategy.prepare()
            await asyncio.sleep(4000)
            info = strategy.cache_info()
        assert (info.age_seconds, info.remaining_seconds) == (pytest.approx(4000), 0.0)

    async def test_mocks_tell_no_tokens_and_no_age(self) -> None:
        client = MagicMock()
        client.aio.caches.create = AsyncMock(return_value=MagicMock())
        client.aio.caches.list = AsyncMock(return_value=[])
        strategy = GeminiCachedStrategy(MODEL, client, text_of, BOOK, expected_calls=10)
        await strategy.prepare()
        info = strategy.cache_info()
        assert (info.status, info.age_seconds) == ("created", 0.0)
        assert (info.token_count, info.saved_tokens_per_call) == (None, None)
        assert info.expected_saving_tokens is None
        listed = SimpleNamespace(
            name="cachedContents/there",
            model=f"models/{MODEL}",
            display_name=client.aio.caches.create.await_args.kwargs["config"].display_name,
            expire_time=types.CachedContent(expire_time="2100-01-01T00:00:00Z").expire_time,
        )
        client.aio.caches.list = AsyncMock(return_value=[listed])
        strategy = GeminiCachedStrategy(MODEL, client, text_of, BOOK)
        await strategy.prepare()
        info = strategy.cache_info()
        assert (info.name, info.status) == ("cachedContents/there", "found")
        assert (info.age_seconds, info.token_count) == (None, None)

    def test_it_is_a_value(self) -> None:
        strategy = GeminiCachedStrategy(MODEL, MagicMock(), text_of, BOOK, cache_tags={"a": "b"})
        info: Any = strategy.cache_info()
        assert pickle.loads(pickle.dumps(info)) == info
        with pytest.raises(dataclasses.FrozenInstanceError):
            info.name = "another"
        info.tags["a"] = "c"
        assert strategy.cache_info().tags == {"a": "b"}


class TestWhyOthersDidNotMatch:
    async def test_each_is_counted_by_the_first_reason(self) -> None:
        async with GeminiEmulator(page_size=2) as server:
            client = server.client()
            for model in (MODEL, MODEL, f"{MODEL}-lite"):
                await client.aio.caches.create(model=model, config={"contents": BOOK})
            await cached(server, f"Another. {BOOK}").prepare()
            await cached(server, cache_tags={"prompt_version": "1"}).prepare()
            strategy = cached(server, cache_tags={"prompt_version": "2"})
            await strategy.prepare()
            server.script(GONE)
            with pytest.raises(Exception, match="CachedContent not found"):
                await ask(strategy)
            await strategy._create()
            await asyncio.sleep(3300)
            strategy._cache = None
            await ask(strategy)
            info = strategy.cache_info()
        assert info.status == "created"
        assert info.rejected == {
            "other_model": 1,
            "other_contents": 3,
            "other_tags": 1,
            "known_dead": 1,
            "ends_soon": 1,
        }

    async def test_also_of_one_that_was_found(self) -> None:
        async with GeminiEmulator() as server:
            await cached(server, model=f"{MODEL}-lite").prepare()
            for _ in range(2):
                await cached(server)._create()
            strategy = cached(server)
            await strategy.prepare()
            info = strategy.cache_info()
        assert (info.status, info.rejected) == ("found", {"other_model": 1})

    async def test_nobody_knows_where_they_could_not_be_listed(self) -> None:
        async with GeminiEmulator() as server:
            server.script(Fault.status(500), operation="cache_list")
            strategy = cached(server)
            await strategy.prepare()
            info = strategy.cache_info()
        assert (info.status, info.reason) == ("created", "caches could not be listed")
        assert info.rejected == {}


class TestTheLog:
    async def test_has_a_line_for_each_cache_that_comes_into_use(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with GeminiEmulator() as server:
            await cached(server, f"Another. {BOOK}").prepare()
            caplog.clear()
            strategy = cached(server, cache_tags={"prompt_version": "3"})
            await asyncio.gather(*(ask(strategy, f"{n}?") for n in range(5)))
            await asyncio.sleep(3400)
            await asyncio.gather(*(ask(strategy, f"{n}?") for n in range(5)))
            await asyncio.sleep(1000)
            other = cached(server, cache_tags={"prompt_version": "3"}, expected_calls=10)
            await other.prepare()
            name = strategy.cache_info().name
        tags, others = "tags prompt_version='3'", "others listed: 1 other contents"
        saved, even = "saves 1192 input tokens a call", "breaks even at 1.0 calls an hour"
        created, extended, found = logged(caplog, logging.INFO)
        assert created == (
            f"cache {name} (created) for {MODEL}: none that can be used was listed, {tags}, "
            f"{others}, 1325 tokens, 0 s old, 3600 s left, {saved}, {even}"
        )
        assert extended == (
            f"cache {name} (extended) for {MODEL}: 200 s were left, {tags}, "
            f"{others}, 1325 tokens, 3400 s old, 3600 s left, {saved}, {even}"
        )
        assert found == (
            f"cache {name} (found) for {MODEL}: it has the same model, contents and tags, {tags}, "
            f"1325 tokens, 4400 s old, 2600 s left, {saved}, 10732 net with 10 expected calls"
        )

    async def test_has_one_line_whatever_the_provider_says(self) -> None:
        faults: Any = lambda r: Fault.status(403, "Not\nhere") if "create" in r.operation else None  # noqa: E731
        async with GeminiEmulator(faults=faults) as server:
            strategy = cached(server, cache_tags={"a\nb": "c\nd"})
            await strategy.prepare()
        assert str(strategy.cache_info()) == (
            f"no cache for {MODEL}: 403 Not here, tags a b='c\\nd', "
            "breaks even at 1.0 calls an hour"
        )

    async def test_warns_once_and_no_more_where_there_is_none(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with GeminiEmulator(allow_cache_creation=False) as server:
            strategy = cached(server)
            await strategy.prepare()
            await ask(strategy)
        assert len(logged(caplog, logging.WARNING)) == 1
        assert logged(caplog, logging.INFO) == []
        assert str(strategy.cache_info()).startswith(f"no cache for {MODEL}: 429 ")
        assert str(strategy.cache_info()).endswith("breaks even at 1.0 calls an hour")


class TestSavings:
    @pytest.mark.parametrize(
        ("model", "share", "break_even"),
        [
            ("gemini-2.5-flash", 0.9, 1.0),
            ("gemini-3-pro-preview", 0.9, 2.5),
            ("gemini-2.0-flash", 0.75, 1.0),
            ("gemini-2.0-flash-lite", 0.75, 1.0),
            ("models/gemini-2.5-pro", 0.9, 2.5),
            ("gemini-flash-latest", 0.9, 1.0),
        ],
    )
    async def test_by_the_documented_figures(
        self, model: str, share: float, break_even: float
    ) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server, model=model)
            await strategy.prepare()
            info = strategy.cache_info()
        assert info.saved_tokens_per_call == pytest.approx(share * TOKENS)
        assert info.break_even_calls_per_hour == pytest.approx(break_even)
        assert info.expected_saving_tokens is None

    async def test_by_prices_that_are_given(self) -> None:
        prices = CachePrices(input=2.0, cached_input=0.5, storage_per_hour=3.0)
        async with GeminiEmulator() as server:
            strategy = cached(
                server, cache_ttl_seconds=7200, cache_prices=prices, expected_calls=10
            )
            await strategy.prepare()
            created = strategy.cache_info()
            again = cached(server, cache_ttl_seconds=7200, cache_prices=prices, expected_calls=10)
            await again.prepare()
            found = again.cache_info()
        assert created.saved_tokens_per_call == 0.75 * TOKENS
        assert created.break_even_calls_per_hour == 2.0
        # Ten calls save 7.5 times its tokens, two hours cost 3 times as much, its creation once.
        assert created.expected_saving_tokens == 3.5 * TOKENS
        assert found.expected_saving_tokens == 4.5 * TOKENS

    @given(
        st.floats(0.01, 100),
        st.floats(0, 0.99),
        st.floats(0, 10),
        st.floats(1, 1e6),
        st.integers(0, 10_000),
    )
    def test_are_the_difference_of_two_bills(
        self, price: float, cached_share: float, storage: float, ttl: float, calls: int
    ) -> None:
        prices = CachePrices(
            input=price, cached_input=cached_share * price, storage_per_hour=storage
        )
        costs = CacheCosts(prices, ttl, calls)
        without = calls * prices.input
        using = calls * prices.cached_input + prices.storage_per_hour * ttl / 3600
        for is_new, creation in ((True, prices.input), (False, 0.0)):
            saving = costs.expected_saving(is_new=is_new)
            assert saving is not None
            bill = using + creation
            assert saving * price == pytest.approx(without - bill, abs=1e-9 * (without + bill))

    async def test_are_what_a_run_saves(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            async with ParallelBatchProcessor[str, str, None](max_workers=4) as processor:
                for number in range(20):
                    await processor.add_work(LLMWorkItem(str(number), strategy, "Who?"))
                batch = await processor.process_all()
        saved = batch.total_input_tokens - batch.effective_input_tokens()
        assert 20 * strategy.cache_info().saved_tokens_per_call == pytest.approx(saved, abs=1)

    @pytest.mark.parametrize(
        ("prices", "message"),
        [
            ((0.3, 0.3, 1.0), r"input must be above cached_input.* \(got 0.3 and 0.3\)"),
            ((0.03, 0.3, 1.0), "input must be above cached_input"),
            ((float("inf"), 0.3, 1.0), r"^input must be a number >= 0 \(got inf\)"),
            ((float("nan"), 0.3, 1.0), "^input must be a number >= 0"),
            ((0.3, -0.1, 1.0), r"cached_input must be a number >= 0 \(got -0.1\)"),
            ((0.3, 0.03, -1.0), r"storage_per_hour must be a number >= 0 \(got -1.0\)"),
            ((0.3, 0.03, float("inf")), r"storage_per_hour must be a number >= 0 \(got inf\)"),
            ((0.3, 0.03, "1.0"), r"storage_per_hour must be a number >= 0 \(got '1.0'\)"),
        ],
    )
    def test_what_is_no_price_is_refused(self, prices: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            CachePrices(input=prices[0], cached_input=prices[1], storage_per_hour=prices[2])

    def test_nor_is_anything_else_a_set_of_prices(self) -> None:
        with pytest.raises(TypeError, match=r"must be a CachePrices or None \(got dict\)"):
            GeminiCachedStrategy(MODEL, MagicMock(), text_of, BOOK, cache_prices={})  # type: ignore[call-overload]


class TestContentsBelowTheMinimum:
    """No token is shorter than a byte, so fewer bytes than the smallest minimum are too few."""

    @pytest.mark.parametrize(
        ("content", "config"),
        [
            ("x" * 1023, None),
            ("x" * 500, {"system_instruction": "y" * 523}),
            ([types.Content(role="user", parts=[types.Part(text="x" * 1019)])], None),
            ([{"role": "user", "parts": [{"text": "x" * 1019}]}], None),
            (["x" * 1000, types.Part(text="y" * 23)], {"tools": []}),
            ("本" * 341, None),
        ],
        ids=["text", "instruction", "content", "dict", "parts", "bytes"],
    )
    async def test_are_sent_uncached_without_asking_for_a_cache(
        self, content: Any, config: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with GeminiEmulator(min_cache_tokens=1) as server:
            strategy = cached(server, content, config=config)
            async with ParallelBatchProcessor[str, str, None](max_workers=2) as processor:
                for number in range(3):
                    await processor.add_work(LLMWorkItem(str(number), strategy, "Who?"))
                batch = await processor.process_all()
            assert (server.count("cache_create"), server.count("generate")) == (0, 3)
        assert (batch.succeeded, batch.total_cached_tokens) == (3, 0)
        (warning,) = logged(caplog, logging.WARNING)
        assert "the contents are too small, at most 1023 tokens where 1024 are the least" in warning
        assert "at full price instead of about 10 % of it" in warning
        assert "Pass require_cache=True to stop instead" in warning
        info = strategy.cache_info()
        assert (info.status, info.name) == ("uncached", None)
        assert info.reason.startswith("the contents are too small")

    @pytest.mark.parametrize(
        ("content", "options"),
        [
            ("x" * 1024, {}),
            ("本" * 342, {}),
            ([types.Part.from_uri(file_uri="gs://a/b.pdf", mime_type="application/pdf")], {}),
            ([types.Part.from_bytes(data=b"\x00", mime_type="image/png")], {}),
            ([{"inline_data": {"data": "AA==", "mime_type": "image/png"}}], {}),
            ("Short.", {"config": {"tools": [{"google_search": {}}]}}),
            ("Short.", {"model": "gemini-flash-latest"}),
            ("Short.", {"model": "gemini-20-flash"}),
            ("Short.", {"require_cache": True}),
        ],
        ids=["text", "bytes", "file", "image", "dict", "tool", "model", "20", "required"],
    )
    async def test_where_they_may_be_enough_the_provider_is_asked(
        self, content: Any, options: Any
    ) -> None:
        model = options.get("model", MODEL)
        rules = {model: ModelRules(explicit_caching=True, min_cache_tokens=1)}
        async with GeminiEmulator(models=rules) as server:
            strategy = cached(server, content, **options)
            await strategy.prepare()
            assert server.count("cache_create") == 1
        assert strategy.cache_info().status == "created"

    async def test_a_client_that_is_not_the_sdks_is_asked(self) -> None:
        client = MagicMock()
        client.aio.caches.list = AsyncMock(return_value=[])
        client.aio.caches.create = AsyncMock(return_value=MagicMock())
        strategy = GeminiCachedStrategy(MODEL, client, text_of, "Short.")
        await strategy.prepare()
        assert client.aio.caches.create.await_count == 1

    async def test_a_cache_that_is_there_is_used_all_the_same(self) -> None:
        async with GeminiEmulator(min_cache_tokens=1) as server:
            await cached(server, "Short.", require_cache=True).prepare()
            strategy = cached(server, "Short.")
            await strategy.prepare()
            assert strategy.cache_info().status == "found"

    async def test_contents_the_sdk_does_not_know_are_its_own_affair(self) -> None:
        async with GeminiEmulator() as server:
            with pytest.raises(Exception):  # noqa: B017, PT011 (the SDK's own)
                await cached(server, [object()]).prepare()
            assert not [r for r in server.requests if r.operation == "cache_create"]


class TestPayingBack:
    @pytest.mark.parametrize(
        ("options", "too_few", "needed"),
        [
            ({}, 2, "2.1"),
            ({"model": "gemini-2.5-pro"}, 3, "3.6"),
            ({"model": "gemini-2.0-flash"}, 2, "2.3"),
            ({"cache_ttl_seconds": 36_000}, 11, "11.1"),
            ({"cache_ttl_seconds": 600}, 1, "1.3"),
            (
                {"cache_prices": CachePrices(input=0.3, cached_input=0.03, storage_per_hour=1.0)},
                4,
                "4.8",
            ),
        ],
        ids=["flash", "pro", "2.0", "ten hours", "ten minutes", "prices"],
    )
    async def test_no_cache_is_created_for_too_few_calls(
        self, options: Any, too_few: int, needed: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server, expected_calls=too_few, **options)
            await strategy.prepare()
            _, usage = await ask(strategy)
            assert usage["cached_input_tokens"] == 0
            assert server.count("cache_create") == 0
            enough = cached(server, expected_calls=too_few + 1, **options)
            await enough.prepare()
            assert server.count("cache_create") == 1
        (warning,) = logged(caplog, logging.WARNING)
        ttl = options.get("cache_ttl_seconds", 3600)
        reason = (
            f"it cannot pay back: {too_few} calls are expected within {ttl} s, "
            f"and it takes {needed}"
        )
        assert warning.startswith("no cache is created for ")
        assert reason in warning
        assert "about 1329 tokens" in warning
        assert warning.endswith("Pass require_cache=True to create one all the same.")
        assert (strategy.cache_info().status, strategy.cache_info().reason) == ("uncached", reason)
        assert enough.cache_info().expected_saving_tokens > 0

    async def test_exactly_even_is_enough(self) -> None:
        prices = CachePrices(input=2.0, cached_input=1.0, storage_per_hour=1.0)
        async with GeminiEmulator() as server:
            strategy = cached(server, expected_calls=3, cache_prices=prices)
            await strategy.prepare()
        assert strategy.cache_info().status == "created"
        assert strategy.cache_info().expected_saving_tokens == 0.0

    async def test_where_one_is_required_it_is_created_with_a_warning(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server, expected_calls=0, require_cache=True)
            await strategy.prepare()
        info = strategy.cache_info()
        assert info.status == "created"
        assert info.expected_saving_tokens == pytest.approx(-1.9 * TOKENS)
        (warning,) = logged(caplog, logging.WARNING)
        assert warning.startswith(f"a cache of {MODEL} is created as required, though it cannot")

    async def test_one_that_is_there_is_used_and_extended_but_not_replaced(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with GeminiEmulator() as server:
            await cached(server).prepare()
            strategy = cached(server, expected_calls=1)
            await ask(strategy)
            assert strategy.cache_info().status == "found"
            await asyncio.sleep(3400)
            await ask(strategy)
            assert strategy.cache_info().status == "extended"
            assert not logged(caplog, logging.WARNING)
            await asyncio.sleep(3400)
            server.script(Fault.status(500), operation="cache_update")
            await ask(strategy)
            assert server.count("cache_create") == 1
        refused = logged(caplog, logging.WARNING)[1]
        assert refused.startswith("no new cache could be created: it cannot pay back: 1 calls are")
        assert refused.endswith("is used for the 200 s it has left")

    @pytest.mark.parametrize(
        ("calls", "error", "message"),
        [
            (-1, ValueError, r"must be >= 0 \(got -1\)"),
            (1.5, TypeError, r"must be an int or None \(got 1.5\)"),
            (True, TypeError, "must be an int or None"),
            ("10", TypeError, "must be an int or None"),
        ],
    )
    def test_what_is_no_number_of_calls_is_refused(
        self, calls: Any, error: Any, message: str
    ) -> None:
        with pytest.raises(error, match=message):
            GeminiCachedStrategy(MODEL, MagicMock(), text_of, BOOK, expected_calls=calls)


class TestLossDuringRenewal:
    async def test_a_cache_that_is_lost_while_it_is_extended_is_replaced(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            await strategy.prepare()
            lost = strategy.cache_info().name
            await asyncio.sleep(3295)
            server.script(GONE.after(10))
            server.script(Fault.slow(10), operation="cache_update")
            early = asyncio.create_task(ask(strategy))
            await asyncio.sleep(6)
            _, usage = await ask(strategy)
            with pytest.raises(Exception, match="CachedContent not found"):
                await early
            assert usage["cached_input_tokens"] == TOKENS
            assert server.count("cache_create") == 2
        assert strategy.cache_info().status == "created"
        assert strategy.cache_info().name != lost
        assert strategy.cache_info().rejected == {"known_dead": 1}

    async def test_so_is_one_that_ends_while_its_renewal_fails(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            await strategy.prepare()
            await asyncio.sleep(3590)
            server.script(Fault.status(503).after(20), operation="cache_update")
            server.script(Fault.status(503), operation="cache_create")
            _, usage = await ask(strategy)
            assert usage["cached_input_tokens"] == TOKENS
            assert [r.status for r in server.requests if r.operation == "generate"] == [200]
