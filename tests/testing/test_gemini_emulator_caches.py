"""Caches of the emulated service through the real SDK."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.genai import Client, errors, types

from batch_llm.testing.gemini import Fault, GeminiEmulator, ModelRules

MODEL = "gemini-2.5-flash"
CONTENTS = "x" * 4096
DEV_GONE = "CachedContent not found .or permission denied."


async def create(client: Client, *, model: str = MODEL, **config: Any) -> types.CachedContent:
    config = {"contents": CONTENTS, "ttl": "300s", **config}
    return await client.aio.caches.create(model=model, config=config)


async def ask(client: Client, cache: str | None, *, model: str = MODEL, **config: Any) -> Any:
    return await client.aio.models.generate_content(
        model=model,
        contents="Hello",
        config=types.GenerateContentConfig(cached_content=cache, **config),
    )


def seconds_of(moment: datetime | None) -> float:
    assert moment is not None
    return moment.timestamp()


class TestCreate:
    async def test_what_is_shown(self) -> None:
        async with GeminiEmulator() as server:
            cache = await create(server.client(), display_name="books", system_instruction="Be")
            now = server.wall_time()
        assert cache.name is not None
        assert cache.name.startswith("cachedContents/")
        assert cache.model == f"models/{MODEL}"
        assert cache.display_name == "books"
        assert cache.usage_metadata is not None
        assert cache.usage_metadata.total_token_count == 1025
        assert cache.create_time == cache.update_time
        assert seconds_of(cache.create_time) == pytest.approx(now, abs=60)
        assert seconds_of(cache.expire_time) - seconds_of(cache.create_time) == 300

    async def test_what_tests_see(self) -> None:
        async with GeminiEmulator() as server:
            cache = await create(server.client(), display_name="books")
            (record,) = server.caches.values()
            (request,) = server.requests
        assert record.name == cache.name
        assert (record.display_name, record.token_count) == ("books", 1024)
        assert record.expire_time - record.create_time == 300
        assert record.body["contents"][0]["parts"] == [{"text": CONTENTS}]
        assert (request.operation, request.model) == ("cache_create", MODEL)

    async def test_contents_are_never_echoed(self) -> None:
        async with GeminiEmulator() as server:
            client = server.client()
            cache = await create(client)
            assert CONTENTS not in (await client.aio.caches.get(name=cache.name)).model_dump_json()

    async def test_equal_creates_make_two_caches(self) -> None:
        async with GeminiEmulator() as server:
            first, second = await asyncio.gather(*(create(server.client()) for _ in range(2)))
            assert first.name != second.name
            assert len(server.caches) == 2

    async def test_an_hour_by_default(self) -> None:
        async with GeminiEmulator() as server:
            cache = await create(server.client(), ttl=None)
        assert seconds_of(cache.expire_time) - seconds_of(cache.create_time) == 3600

    async def test_an_end_instead_of_a_ttl(self) -> None:
        async with GeminiEmulator() as server:
            end = datetime.fromtimestamp(server.wall_time(), UTC) + timedelta(hours=2)
            cache = await create(server.client(), ttl=None, expire_time=end)
        assert cache.expire_time == end

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"contents": "x" * 4092}, r"too small\. total_token_count=1023, min_total_t.*=1024"),
            ({"ttl": "300"}, "Invalid value at 'cached_content.ttl'"),
            ({"ttl": "0s"}, "has to be in the future"),
            ({"ttl": "-5s"}, "has to be in the future"),
            ({"expire_time": "2040-01-01T00:00:00Z"}, "Cannot set 'ttl'"),
            ({"ttl": None, "expire_time": "2001-01-01T00:00:00Z"}, "has to be in the future"),
            ({"ttl": None, "expire_time": "2040-01-01T00:00:00"}, "cached_content.expire_time"),
            ({"display_name": "n" * 129}, "at most 128 characters"),
        ],
    )
    async def test_invalid_requests(self, config: dict[str, Any], message: str) -> None:
        async with GeminiEmulator() as server:
            with pytest.raises(errors.ClientError, match=message) as caught:
                await create(server.client(), **config)
            assert not server.caches
        assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")

    async def test_a_display_name_may_have_128_characters(self) -> None:
        async with GeminiEmulator() as server:
            cache = await create(server.client(), display_name="n" * 128)
        assert cache.display_name == "n" * 128

    async def test_a_number_is_no_ttl(self) -> None:
        body = {"ttl": 300}
        async with GeminiEmulator() as server:
            with pytest.raises(errors.ClientError, match=r"Invalid value .*Duration.*, 300"):
                await create(server.client(http_options={"extra_body": body}))

    async def test_a_word_is_no_time(self) -> None:
        body = {"expireTime": "soon"}
        async with GeminiEmulator() as server:
            with pytest.raises(errors.ClientError, match=r"Invalid value .*Timestamp.*, 'soon'"):
                await create(server.client(http_options={"extra_body": body}), ttl=None)

    async def test_the_free_tier_has_none(self) -> None:
        async with GeminiEmulator(allow_cache_creation=False) as server:
            with pytest.raises(errors.ClientError, match="limit=0, requested=1024") as caught:
                await create(server.client())
        assert (caught.value.code, caught.value.status) == (429, "RESOURCE_EXHAUSTED")

    @pytest.mark.parametrize("model", ["gemini-4-argon", "gemini-5-flash", "gemini-x", "gpt-x"])
    async def test_some_models_have_none(self, model: str) -> None:
        rules = {"gemini-x": ModelRules(explicit_caching=False)}
        async with GeminiEmulator(models=rules) as server:
            with pytest.raises(errors.ClientError, match="createCachedContent") as caught:
                await create(server.client(), model=model)
        assert (caught.value.code, caught.value.status) == (404, "NOT_FOUND")

    async def test_a_model_has_its_own_minimum(self) -> None:
        rules = {"gemini-3-pro": ModelRules(min_cache_tokens=4096)}
        async with GeminiEmulator(models=rules, min_cache_tokens=1) as server:
            await create(server.client(), contents="tiny")
            with pytest.raises(errors.ClientError, match="min_total_token_count=4096"):
                await create(server.client(), model="gemini-3-pro")


class TestUse:
    async def test_the_prompt_includes_what_is_cached(self) -> None:
        async with GeminiEmulator(lambda _: "1234") as server:
            client = server.client()
            cache = await create(client)
            usage = (await ask(client, cache.name)).usage_metadata
            assert server.requests[-1].cached_content == cache.name
        assert usage.cached_content_token_count == 1024
        assert usage.prompt_token_count == 1026
        assert usage.total_token_count == 1027

    @pytest.mark.parametrize(
        "config",
        [
            {"system_instruction": "Be brief."},
            {"tools": [{"google_search": {}}]},
            {"tool_config": {"function_calling_config": {"mode": "ANY"}}},
        ],
    )
    async def test_a_cache_stands_alone(self, config: dict[str, Any]) -> None:
        async with GeminiEmulator() as server:
            client = server.client()
            cache = await create(client)
            with pytest.raises(errors.ClientError, match="can not be used with Gen") as caught:
                await ask(client, cache.name, **config)
        assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")

    async def test_a_cache_is_one_models(self) -> None:
        async with GeminiEmulator() as server:
            client = server.client()
            cache = await create(client)
            with pytest.raises(errors.ClientError, match="has to be the same") as caught:
                await ask(client, cache.name, model="gemini-2.5-pro")
        assert caught.value.code == 400
        assert "(models/gemini-2.5-pro) and CachedContent (models/gemini-2.5-flash)" in str(
            caught.value
        )


class TestEnd:
    @pytest.mark.parametrize("end", ["expired", "deleted", "unknown"])
    async def test_a_cache_that_is_gone_is_forbidden(self, end: str) -> None:
        async with GeminiEmulator() as server:
            client = server.client()
            name = (await create(client)).name
            if end == "expired":
                server.advance(300)
            elif end == "deleted":
                await client.aio.caches.delete(name=name)
            else:
                name = "cachedContents/unknown"
            with pytest.raises(errors.ClientError, match=DEV_GONE) as generating:
                await ask(client, name)
            with pytest.raises(errors.ClientError, match=DEV_GONE) as getting:
                await client.aio.caches.get(name=name)
            with pytest.raises(errors.ClientError, match=DEV_GONE):
                await client.aio.caches.update(name=name, config={"ttl": "60s"})
            with pytest.raises(errors.ClientError, match=DEV_GONE):
                await client.aio.caches.delete(name=name)
        for caught in (generating, getting):
            assert (caught.value.code, caught.value.status) == (403, "PERMISSION_DENIED")

    async def test_vertex_says_which_end_it_was(self) -> None:
        async with GeminiEmulator() as server:
            client = server.client(vertex=True)
            old, gone = await create(client), await create(client, ttl="900s")
            server.advance(300)
            await client.aio.caches.delete(name=gone.name)
            with pytest.raises(errors.ClientError, match=r"Cache content \d+ is expired\.") as end:
                await ask(client, old.name)
            with pytest.raises(errors.ClientError, match="Not found: cached content meta") as lost:
                await ask(client, gone.name)
        assert (end.value.code, lost.value.code) == (400, 404)

    async def test_vertex_knows_no_expired_caches_by_name(self) -> None:
        async with GeminiEmulator() as server:
            client = server.client(vertex=True)
            cache = await create(client)
            server.advance(300)
            with pytest.raises(errors.ClientError, match="Not found: cached content") as caught:
                await client.aio.caches.get(name=cache.name)
        assert caught.value.code == 404

    async def test_delete_answers_nothing(self) -> None:
        async with GeminiEmulator() as server:
            client = server.client()
            cache = await create(client)
            await client.aio.caches.delete(name=cache.name)
            assert not server.caches
            assert server.requests[-1].operation == "cache_delete"
            assert server.requests[-1].cached_content == cache.name

    async def test_the_expired_leave_the_list_and_the_view(self) -> None:
        async with GeminiEmulator() as server:
            client = server.client()
            await create(client)
            later = await create(client, ttl="301s")
            server.advance(300.5)
            assert [c.name async for c in await client.aio.caches.list()] == [later.name]
            assert list(server.caches) == [later.name]

    async def test_the_view_cannot_be_changed(self) -> None:
        async with GeminiEmulator() as server:
            with pytest.raises(TypeError):
                server.caches["a"] = None  # type: ignore[index]


class TestUpdate:
    async def test_a_ttl_counts_from_now(self) -> None:
        async with GeminiEmulator() as server:
            client = server.client()
            cache = await create(client)
            server.advance(200)
            updated = await client.aio.caches.update(name=cache.name, config={"ttl": "900s"})
            shown = await client.aio.caches.get(name=cache.name)
            assert updated == shown
            assert server.count("cache_update") == 1
        assert updated.create_time == cache.create_time
        gained = seconds_of(updated.update_time) - seconds_of(cache.create_time)
        assert gained == pytest.approx(200, abs=60)
        assert seconds_of(updated.expire_time) - seconds_of(updated.update_time) == 900

    async def test_an_end_can_be_set(self) -> None:
        async with GeminiEmulator() as server:
            client = server.client()
            cache = await create(client)
            end = datetime.fromtimestamp(server.wall_time(), UTC) + timedelta(hours=2)
            updated = await client.aio.caches.update(name=cache.name, config={"expire_time": end})
        assert updated.expire_time == end

    @pytest.mark.parametrize("body", [{}, {"displayName": "new"}, {"ttl": "60"}])
    async def test_nothing_else_can_be_updated(self, body: dict[str, Any]) -> None:
        async with GeminiEmulator() as server:
            cache = await create(server.client())
            client = server.client(http_options={"extra_body": body})
            with pytest.raises(errors.ClientError) as caught:
                await client.aio.caches.update(name=cache.name, config={})
        assert caught.value.code == 400


class TestList:
    async def test_empty(self) -> None:
        async with GeminiEmulator() as server:
            pager = await server.client().aio.caches.list()
            assert [cache async for cache in pager] == []

    async def test_all_pages_oldest_first(self) -> None:
        async with GeminiEmulator(page_size=2) as server:
            client = server.client()
            names = [(await create(client)).name for _ in range(5)]
            pager = await client.aio.caches.list()
            assert len(pager) == 2
            assert [cache.name async for cache in pager] == names
            assert server.count("cache_list") == 3

    async def test_the_client_may_ask_for_smaller_pages(self) -> None:
        async with GeminiEmulator(page_size=2) as server:
            client = server.client()
            for _ in range(3):
                await create(client)
            assert len(await client.aio.caches.list(config={"page_size": 1})) == 1
            assert len(await client.aio.caches.list(config={"page_size": 100})) == 2

    async def test_a_deletion_between_pages_loses_none(self) -> None:
        async with GeminiEmulator(page_size=2) as server:
            client = server.client()
            names = [(await create(client)).name for _ in range(4)]
            pager = await client.aio.caches.list()
            await client.aio.caches.delete(name=names[0])
            assert [cache.name async for cache in pager] == names

    @pytest.mark.parametrize("config", [{"page_size": -1}, {"page_token": "?"}])
    async def test_invalid_pages(self, config: dict[str, Any]) -> None:
        async with GeminiEmulator() as server:
            with pytest.raises(errors.ClientError, match="Invalid page_") as caught:
                await server.client().aio.caches.list(config=config)
        assert caught.value.code == 400


class TestVertex:
    async def test_names_are_full(self) -> None:
        parent = "projects/emulator/locations/us-central1"
        async with GeminiEmulator() as server:
            client = server.client(vertex=True)
            cache = await create(client)
            assert cache.name is not None
            assert cache.name.startswith(f"{parent}/cachedContents/")
            assert cache.model == f"{parent}/publishers/google/models/{MODEL}"
            usage = (await ask(client, cache.name)).usage_metadata
            assert usage.cached_content_token_count == 1024
            updated = await client.aio.caches.update(name=cache.name, config={"ttl": "900s"})
            assert updated.name == cache.name
            await client.aio.caches.delete(name=cache.name)
            assert not server.caches

    async def test_projects_do_not_see_each_other(self) -> None:
        async with GeminiEmulator() as server:
            mine, other = server.client(vertex=True), server.client(vertex=True, project="other")
            cache = await create(mine)
            await create(server.client())
            assert [c.name async for c in await mine.aio.caches.list()] == [cache.name]
            assert [c.name async for c in await other.aio.caches.list()] == []


class TestLosingCaches:
    async def test_an_expired_cache_is_really_gone(self) -> None:
        async with GeminiEmulator() as server:
            client = server.client()
            cache = await create(client)
            server.script(Fault.cache_expired())
            for _ in range(2):
                with pytest.raises(errors.ClientError, match=DEV_GONE):
                    await ask(client, cache.name)
            assert not server.caches

    @pytest.mark.parametrize(
        ("fault", "code", "message"),
        [
            (Fault.cache_expired(), 400, "is expired"),
            (Fault.cache_gone(), 404, "Not found: cached content metadata"),
            (Fault.cache_expired(vertex=False), 403, DEV_GONE),
            (Fault.cache_gone(vertex=False), 403, DEV_GONE),
        ],
    )
    async def test_on_vertex(self, fault: Fault, code: int, message: str) -> None:
        async with GeminiEmulator() as server:
            client = server.client(vertex=True)
            cache = await create(client)
            server.script(fault)
            with pytest.raises(errors.ClientError, match=message) as caught:
                await ask(client, cache.name)
            assert not server.caches
        assert caught.value.code == code

    async def test_without_a_cache_only_the_error_comes(self) -> None:
        async with GeminiEmulator() as server:
            client = server.client()
            await create(client)
            server.script(Fault.cache_gone())
            with pytest.raises(errors.ClientError, match=DEV_GONE):
                await ask(client, None)
            assert len(server.caches) == 1
