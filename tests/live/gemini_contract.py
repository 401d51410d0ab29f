"""What both the Gemini API and its emulator do: one set of assertions for the two."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google.genai import Client, errors, types
from pydantic import BaseModel, Field

TEXT = "The library opens at nine and closes at six. Every reader may borrow four books. "
CACHED = TEXT * 200
TOO_SMALL = "Too short to be cached."


class Book(BaseModel):
    title: str
    genres: list[str] = Field(min_length=1, max_length=3)
    year: int | None


class GeminiContract:
    """Each target has a subclass that says how it is reached."""

    model: str

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Client]:
        """A client of the target."""
        raise NotImplementedError
        yield

    async def ask(self, client: Client, prompt: str, **config: Any) -> Any:
        config.setdefault("max_output_tokens", 1024)
        return await client.aio.models.generate_content(
            model=self.model, contents=prompt, config=types.GenerateContentConfig(**config)
        )

    @asynccontextmanager
    async def cached(self, client: Client, **config: Any) -> AsyncIterator[Any]:
        """A cache that is gone afterwards, whatever happened to it."""
        cache = await client.aio.caches.create(
            model=self.model, config={"contents": CACHED, "ttl": "300s", **config}
        )
        try:
            yield cache
        finally:
            try:
                await client.aio.caches.delete(name=cache.name or "")
            except errors.ClientError as error:
                assert error.code == 403  # noqa: PT017 (only a cache that is gone may refuse)

    async def test_an_answer_and_its_usage(self) -> None:
        async with self.connected() as client:
            response = await self.ask(client, "Name a colour.")
        usage = response.usage_metadata
        assert response.text
        assert response.candidates[0].finish_reason == types.FinishReason.STOP
        assert usage.prompt_token_count > 0
        assert usage.cached_content_token_count is None
        assert usage.total_token_count == billed(usage)

    async def test_a_cache_lives(self) -> None:
        async with (
            self.connected() as client,
            self.cached(client, display_name="batch-llm contract") as cache,
        ):
            assert cache.name.startswith("cachedContents/")
            assert cache.model == f"models/{self.model}"
            assert cache.display_name == "batch-llm contract"
            assert cache.usage_metadata.total_token_count > 1024
            life = cache.expire_time - cache.create_time
            assert life.total_seconds() == pytest.approx(300, abs=5)

            shown = await client.aio.caches.get(name=cache.name)
            assert shown.name == cache.name
            assert TEXT not in shown.model_dump_json()
            assert cache.name in [c.name async for c in await client.aio.caches.list()]

            updated = await client.aio.caches.update(name=cache.name, config={"ttl": "900s"})
            gained = updated.expire_time - cache.expire_time
            assert gained.total_seconds() >= 590
            assert updated.create_time == cache.create_time

    async def test_a_cache_is_used(self) -> None:
        async with self.connected() as client, self.cached(client) as cache:
            response = await self.ask(
                client, "When does the library open?", cached_content=cache.name
            )
        usage = response.usage_metadata
        assert usage.cached_content_token_count == pytest.approx(
            cache.usage_metadata.total_token_count, abs=20
        )
        assert usage.prompt_token_count > usage.cached_content_token_count
        assert usage.total_token_count == billed(usage)

    async def test_a_deleted_cache_is_forbidden(self) -> None:
        async with self.connected() as client, self.cached(client) as cache:
            await client.aio.caches.delete(name=cache.name)
            with pytest.raises(errors.ClientError, match="CachedContent not found") as caught:
                await self.ask(client, "When does it open?", cached_content=cache.name)
            assert cache.name not in [c.name async for c in await client.aio.caches.list()]
        assert (caught.value.code, caught.value.status) == (403, "PERMISSION_DENIED")

    async def test_a_cache_takes_no_instruction_beside_it(self) -> None:
        async with self.connected() as client, self.cached(client) as cache:
            with pytest.raises(errors.ClientError, match="system_instruction, tools") as caught:
                await self.ask(
                    client, "Hello", cached_content=cache.name, system_instruction="Be brief."
                )
        assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")

    async def test_a_cache_has_a_least_size(self) -> None:
        async with self.connected() as client:
            with pytest.raises(errors.ClientError, match=r"too small.*min_total_t") as caught:
                async with self.cached(client, contents=TOO_SMALL):
                    pass
        assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")

    async def test_an_answer_follows_its_schema(self) -> None:
        async with self.connected() as client:
            response = await self.ask(
                client,
                "Describe Moby Dick.",
                response_mime_type="application/json",
                response_schema=Book,
            )
        assert isinstance(response.parsed, Book)
        assert json.loads(response.text)["title"] == response.parsed.title

    async def test_an_answer_can_be_too_long(self) -> None:
        async with self.connected() as client:
            response = await self.ask(client, "Tell a long story.", max_output_tokens=5)
        assert response.candidates[0].finish_reason == types.FinishReason.MAX_TOKENS

    async def test_an_unknown_model(self) -> None:
        async with self.connected() as client:
            with pytest.raises(errors.ClientError, match="is not found for API") as caught:
                await client.aio.models.generate_content(model="no-such-model", contents="Hello")
        assert (caught.value.code, caught.value.status) == (404, "NOT_FOUND")


def billed(usage: Any) -> int:
    """The sum of the counts that make up a total; the cached ones are part of the prompt."""
    parts = (
        usage.prompt_token_count,
        usage.candidates_token_count,
        usage.thoughts_token_count,
        usage.tool_use_prompt_token_count,
    )
    return sum(count or 0 for count in parts)
