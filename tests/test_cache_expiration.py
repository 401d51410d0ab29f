"""When a Gemini cache ends, and how it is renewed before and after."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest

from batch_llm import LLMWorkItem, ParallelBatchProcessor, ProcessorConfig
from batch_llm.classifiers import GeminiErrorClassifier
from batch_llm.core.clock import wall_time
from batch_llm.llm_strategies import GeminiCachedStrategy
from batch_llm.testing.gemini import Fault, GeminiEmulator
from batch_llm.testing.loop import run

pytestmark = pytest.mark.gemini

MODEL = "gemini-2.5-flash"
BOOK = "It was the best of times, it was the worst of times. " * 100


def text_of(response: Any) -> str:
    return str(response.text)


def cached(server: GeminiEmulator, **options: Any) -> Any:
    client = server.client(vertex=options.pop("vertex", False))
    return GeminiCachedStrategy(MODEL, client, text_of, BOOK, **options)


def mocked(**options: Any) -> Any:
    """A strategy whose client is a mock that creates caches 1, 2, 3, …."""
    client = MagicMock()
    client.aio.caches.list = AsyncMock(return_value=[])
    client.aio.caches.create = AsyncMock(side_effect=_caches())
    client.aio.models.generate_content = AsyncMock(return_value=MagicMock(text="Hi"))
    return GeminiCachedStrategy(MODEL, client, text_of, BOOK, **options)


def _caches() -> Any:
    number = 0
    while True:
        number += 1
        cache = MagicMock()
        cache.name = f"cachedContents/{number}"
        yield cache


async def ask(strategy: Any, prompt: str = "Who?") -> Any:
    return await strategy.execute(prompt, 1, 60.0)


def moment(seconds_from_now: float) -> datetime:
    return datetime.fromtimestamp(wall_time(), UTC) + timedelta(seconds=seconds_from_now)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


class TestWhenItIsDue:
    async def test_from_the_buffer_on(self) -> None:
        strategy = mocked()
        assert strategy._is_cache_expired()
        await strategy.prepare()
        await asyncio.sleep(3299)
        assert not strategy._is_cache_expired()
        await asyncio.sleep(1)
        assert strategy._is_cache_expired()

    async def test_the_time_of_creation_can_be_written(self) -> None:
        strategy = mocked()
        strategy._cache = MagicMock()
        for age, due in ((0, False), (3299, False), (3300, True), (9999, True)):
            strategy._cache_created_at = wall_time() - age
            assert strategy._is_cache_expired() is due
        strategy._cache_created_at = None
        assert strategy._is_cache_expired()

    async def test_also_for_a_cache_that_tells_its_times(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            await strategy.prepare()
            strategy._cache_created_at -= 3299
            assert not strategy._is_cache_expired()
            strategy._cache_created_at -= 1
            assert strategy._is_cache_expired()
            await ask(strategy)
            assert not strategy._is_cache_expired()
            assert server.count("cache_update") == 1

    async def test_a_clock_that_differs_from_the_providers_changes_nothing(self) -> None:
        for difference in (-7200, 7200):
            strategy = mocked()
            created = SimpleNamespace(
                name="cachedContents/1",
                create_time=moment(difference),
                expire_time=moment(difference + 3600),
            )
            strategy.client.aio.caches.create = AsyncMock(return_value=created)
            await strategy.prepare()
            await asyncio.sleep(3299)
            assert not strategy._is_cache_expired()
            await asyncio.sleep(1)
            assert strategy._is_cache_expired()

    @pytest.mark.real_time
    async def test_in_real_time_too(self) -> None:
        strategy = mocked(cache_ttl_seconds=2, cache_renewal_buffer_seconds=1)
        await strategy.prepare()
        assert not strategy._is_cache_expired()
        strategy._cache_created_at -= 1.2
        assert strategy._is_cache_expired()


class TestRenewal:
    async def test_a_live_cache_is_extended(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            await strategy.prepare()
            name, tokens = strategy._cache.name, strategy._cache.usage_metadata.total_token_count
            for _ in range(3):
                await asyncio.sleep(3400)
                _, usage = await ask(strategy)
                assert usage["cached_input_tokens"] > 1024
                assert not strategy._is_cache_expired()
                assert server.caches[name].expire_time == pytest.approx(wall_time() + 3600)
                assert strategy._cache.usage_metadata.total_token_count == tokens > 1024
            assert server.count("cache_create") == 1
            assert server.count("cache_update") == 3

    async def test_not_before_it_is_due(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            await strategy.prepare()
            await asyncio.sleep(3299)
            await ask(strategy)
            assert server.count("cache_update") == 0

    async def test_prepare_renews_for_the_next_run(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server, auto_renew=False)
            await strategy.prepare()
            await asyncio.sleep(3400)
            await strategy.prepare()
            assert server.count("cache_update") == 1

    async def test_an_adopted_cache_is_extended_too(self) -> None:
        async with GeminiEmulator() as server:
            first = cached(server)
            await first.prepare()
            await asyncio.sleep(3400)
            await ask(first)
            strategy = cached(server)
            await strategy.prepare()
            assert strategy._cache.name == first._cache.name
            await asyncio.sleep(3300)
            await ask(strategy)
            assert (server.count("cache_create"), server.count("cache_update")) == (1, 2)
            await asyncio.sleep(3299)
            assert not strategy._is_cache_expired()
            await asyncio.sleep(1)
            assert strategy._is_cache_expired()

    async def test_once_for_all_workers(self) -> None:
        async with GeminiEmulator(latency_seconds=1.0) as server:
            strategy = cached(server)
            await strategy.prepare()
            await asyncio.sleep(3400)
            server.script(Fault.slow(5), operation="cache_update")
            await asyncio.gather(*(ask(strategy, f"{number}?") for number in range(20)))
            assert (server.count("cache_create"), server.count("cache_update")) == (1, 1)

    async def test_one_that_cannot_be_extended_is_made_anew(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            await strategy.prepare()
            old = strategy._cache.name
            await asyncio.sleep(3400)
            server.script(Fault.status(500), operation="cache_update")
            await ask(strategy)
            assert strategy._cache.name != old
            assert server.requests[-1].cached_content == strategy._cache.name
            assert not strategy._is_cache_expired()

    async def test_one_that_is_gone_is_made_anew(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            await strategy.prepare()
            await asyncio.sleep(3400)
            server.script(Fault.cache_gone(), operation="cache_update")
            await ask(strategy)
            assert server.count("cache_create") == 2

    async def test_one_whose_time_is_over_is_made_anew_at_once(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            await strategy.prepare()
            await asyncio.sleep(3600)
            await ask(strategy)
            assert (server.count("cache_create"), server.count("cache_update")) == (2, 0)

    async def test_or_that_of_another_process_is_taken(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            await strategy.prepare()
            await asyncio.sleep(3600)
            other = cached(server)
            await other.prepare()
            await ask(strategy)
            assert strategy._cache.name == other._cache.name


class TestRenewalThatFails:
    async def test_the_old_cache_serves_while_it_lives(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            await strategy.prepare()
            await asyncio.sleep(3400)
            server.script(Fault.status(503), operation="cache_update")
            server.script(Fault.status(503), operation="cache_create")
            _, usage = await ask(strategy)
            assert usage["cached_input_tokens"] > 1024
            assert warnings_in(caplog)[-1].endswith("is used for the 200 s it has left")
            caplog.clear()

            await asyncio.sleep(29)
            await asyncio.gather(ask(strategy), ask(strategy))
            assert server.count("cache_update") == 1
            assert not warnings_in(caplog)

            await asyncio.sleep(1)
            await ask(strategy)
            assert server.count("cache_update") == 2
            assert not strategy._is_cache_expired()

    async def test_once_it_is_dead_the_failure_is_the_items(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            await strategy.prepare()
            await asyncio.sleep(3590)
            server.script(Fault.status(503), operation="cache_update")
            server.script(Fault.status(503), Fault.status(503), operation="cache_create")
            await ask(strategy)
            await asyncio.sleep(10)
            with pytest.raises(Exception, match="overloaded"):
                await ask(strategy)
            _, usage = await ask(strategy)
        assert usage["cached_input_tokens"] > 1024

    async def test_a_cache_that_lives_is_not_given_up_for_a_refusal(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            await strategy.prepare()
            await asyncio.sleep(3400)
            server.script(Fault.status(403), operation="cache_update")
            server.script(Fault.status(403), operation="cache_create")
            _, usage = await ask(strategy)
            assert usage["cached_input_tokens"] > 1024
            await asyncio.sleep(200)
            server.script(Fault.status(403), operation="cache_create")
            _, usage = await ask(strategy)
            assert usage["cached_input_tokens"] == 0

    async def test_a_provider_that_grants_less_than_the_buffer_is_not_asked_all_the_time(
        self,
    ) -> None:
        strategy = mocked()
        strategy.client.aio.caches.create = AsyncMock(
            side_effect=lambda **_: SimpleNamespace(
                name="cachedContents/1", create_time=moment(0), expire_time=moment(200)
            )
        )
        for _ in range(10):
            await ask(strategy)
            await asyncio.sleep(3)
        assert strategy.client.aio.caches.create.await_count == 1
        await ask(strategy)
        assert strategy.client.aio.caches.create.await_count == 2


class TestACacheThatDies:
    @pytest.mark.parametrize("vertex", [False, True])
    @pytest.mark.parametrize("fault", [Fault.cache_expired(), Fault.cache_gone()])
    async def test_the_next_attempt_makes_a_new_one(self, fault: Fault, vertex: bool) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server, vertex=vertex)
            await strategy.prepare()
            server.script(fault)
            with pytest.raises(Exception) as caught:  # noqa: PT011 (each API has its own)
                await ask(strategy)
            info = GeminiErrorClassifier().classify(caught.value)
            assert (info.error_category, info.is_retryable) == ("cache_expired", True)
            assert strategy._is_cache_expired()
            _, usage = await ask(strategy)
            assert usage["cached_input_tokens"] > 1024
            assert server.count("cache_create") == 2

    async def test_the_dead_one_is_not_adopted_though_it_is_listed(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            await strategy.prepare()
            dead = strategy._cache.name
            server.script(Fault.status(403, "CachedContent not found (or permission denied)"))
            with pytest.raises(Exception, match="CachedContent not found"):
                await ask(strategy)
            assert dead in server.caches
            await ask(strategy)
            assert strategy._cache.name != dead

    async def test_errors_about_an_old_cache_leave_the_new_one_alone(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            await strategy.prepare()
            gone = Fault.status(403, "CachedContent not found (or permission denied)")
            server.script(gone, gone.after(10), gone.after(20))
            attempts = [asyncio.create_task(ask(strategy, f"{n}?")) for n in range(3)]
            await asyncio.wait(attempts, return_when=asyncio.FIRST_COMPLETED)
            await ask(strategy, "again")
            name = strategy._cache.name
            assert (
                len([e for e in await asyncio.gather(*attempts, return_exceptions=True) if e]) == 3
            )
            assert strategy._cache.name == name
            await ask(strategy, "and again")
            assert server.count("cache_create") == 2

    async def test_a_parser_that_speaks_of_an_expired_cache_kills_none(self) -> None:
        def parser(_: Any) -> str:
            raise ValueError("the answer says that the cache has expired")

        async with GeminiEmulator() as server:
            strategy = cached(server)
            await strategy.prepare()
            strategy.response_parser = parser
            with pytest.raises(ValueError, match="the answer says"):
                await ask(strategy)
            assert not strategy._is_cache_expired()

    async def test_other_errors_kill_none(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            await strategy.prepare()
            server.script(Fault.status(403), Fault.status(503), Fault.rate_limit(1))
            for _ in range(3):
                with pytest.raises(Exception):  # noqa: B017, PT011 (three different ones)
                    await ask(strategy)
            await ask(strategy)
            assert server.count("cache_create") == 1


class TestARun:
    async def test_survives_the_loss_of_its_cache(self) -> None:
        async with GeminiEmulator(latency_seconds=2.0) as server:
            strategy = cached(server)
            processor = ParallelBatchProcessor[str, str, None](
                config=ProcessorConfig(max_workers=5), error_classifier=GeminiErrorClassifier()
            )
            for number in range(20):
                await processor.add_work(LLMWorkItem(str(number), strategy, f"{number}?"))
            server.script(None, None, None, None, None, None, Fault.cache_gone())
            result = await processor.process_all()
            assert result.succeeded == 20
            assert server.count("cache_create") == 2
            assert result.cache_hit_rate() > 99

    async def test_that_outlives_its_cache_goes_on_with_the_same(self) -> None:
        async with GeminiEmulator(latency_seconds=100.0) as server:
            strategy = cached(server, cache_ttl_seconds=600)
            processor = ParallelBatchProcessor[str, str, None](
                config=ProcessorConfig(max_workers=5), error_classifier=GeminiErrorClassifier()
            )
            for number in range(100):
                await processor.add_work(LLMWorkItem(str(number), strategy, f"{number}?"))
            result = await processor.process_all()
            assert result.succeeded == 100
            assert (server.count("cache_create"), server.count("cache_update")) == (1, 6)


class TestMocks:
    async def test_an_update_that_cannot_be_awaited(self) -> None:
        strategy = mocked(cache_ttl_seconds=2, cache_renewal_buffer_seconds=1)
        caches = strategy.client.aio.caches
        await strategy.prepare()
        await ask(strategy)
        assert caches.create.await_count == 1
        await asyncio.sleep(1.2)
        await ask(strategy)
        assert caches.create.await_count == 2
        assert strategy._cache.name == "cachedContents/2"
        config = strategy.client.aio.models.generate_content.await_args.kwargs["config"]
        assert config.cached_content == "cachedContents/2"

    async def test_an_update_that_tells_nothing(self) -> None:
        strategy = mocked()
        caches = strategy.client.aio.caches
        caches.update = AsyncMock(return_value=MagicMock())
        await strategy.prepare()
        await asyncio.sleep(3400)
        await ask(strategy)
        assert caches.create.await_count == 1
        assert strategy._cache.name == "cachedContents/1"
        assert caches.update.await_args.kwargs["name"] == "cachedContents/1"
        assert caches.update.await_args.kwargs["config"].ttl == "3600s"
        await asyncio.sleep(3299)
        assert not strategy._is_cache_expired()
        await asyncio.sleep(1)
        assert strategy._is_cache_expired()


class TestAcrossRuns:
    def test_each_run_may_have_its_own_event_loop(self) -> None:
        strategy = mocked()
        create = strategy.client.aio.caches.create

        async def slowly(**_: Any) -> Any:
            await asyncio.sleep(1)
            return await create()

        strategy.client.aio.caches.create = slowly

        async def one_run() -> None:
            strategy._cache = None
            await asyncio.gather(*(ask(strategy) for _ in range(5)))

        run(one_run())
        run(one_run())
        assert create.await_count == 2

    async def test_a_cancelled_renewal_leaves_no_lock_behind(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            server.script(Fault.slow(60), Fault.slow(60), operation="cache_list")
            workers = [asyncio.create_task(ask(strategy)) for _ in range(3)]
            await asyncio.sleep(1)
            for worker in workers[:2]:
                worker.cancel()
            results = await asyncio.gather(*workers, return_exceptions=True)
            assert [type(result) for result in results[:2]] == [asyncio.CancelledError] * 2
            assert results[2][0]
            assert server.count("cache_create") == 1
