"""Caches at the provider: how to find, make, extend and delete one, and when it ends."""

import inspect
from collections.abc import AsyncIterator, Collection
from datetime import UTC, datetime
from typing import Any, cast

from batch_llm.core.clock import wall_time
from batch_llm.llm_strategies._gemini_config import GeminiConfigs


def epoch_of(value: object) -> float | None:
    """A provider's time in seconds since the epoch, None for anything that is no time."""
    if not isinstance(value, datetime):
        return None
    return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()


def end_of(cache: Any, *, created_at: float | None, ttl_seconds: float) -> float | None:
    """When a cache ends, in our own epoch seconds; None if nobody knows.

    Its expire_time counts. Where our note of its creation and its own differ, the clocks
    do, or the note was changed: the end is moved by as much.
    """
    created = epoch_of(getattr(cache, "create_time", None))
    expires = epoch_of(getattr(cache, "expire_time", None))
    if created_at is None:
        created_at = created
    if expires is None:
        return None if created_at is None else created_at + ttl_seconds
    if created_at is None or created is None:
        return expires
    return created_at + (expires - created)


class GeminiCaches:
    """The caches of one client for one model."""

    def __init__(self, client: Any, model: str, configs: GeminiConfigs, ttl_seconds: float) -> None:
        self._client = client
        self._model = model
        self._configs = configs
        self._ttl_seconds = ttl_seconds

    async def find(
        self, display_name: str, *, without: Collection[str], min_life_seconds: float
    ) -> Any | None:
        """The cache of this name and model that lives longest, if any lives long enough."""
        longest, latest_end = None, wall_time() + min_life_seconds
        async for cache in self._list():
            end = end_of(cache, created_at=None, ttl_seconds=self._ttl_seconds)
            if (
                end is not None
                and end > latest_end
                and getattr(cache, "display_name", None) == display_name
                and _same_model(getattr(cache, "model", None), self._model)
                and cache.name
                and cache.name not in without
            ):
                longest, latest_end = cache, end
        return longest

    async def _list(self) -> AsyncIterator[Any]:
        config = self._configs.for_caches("ListCachedContentsConfig")
        options = {} if config is None else {"config": config}
        found = await self._client.aio.caches.list(**options)
        if isinstance(found, list):
            for cache in cast("list[Any]", found):
                yield cache
        else:
            seen: set[Any] = set()
            async for cache in found:
                if cache.name in seen:
                    # A page that names itself as the next: there would be no end.
                    return
                seen.add(cache.name)
                yield cache

    async def create(self, **fields: Any) -> Any:
        """A new cache, whatever exists already."""
        create = self._client.aio.caches.create
        arguments: dict[str, Any] = {"model": self._model}
        if "contents" in _parameters_of(create):
            arguments["contents"] = fields.pop("contents")
        ttl = f"{self._ttl_seconds}s"
        arguments["config"] = self._configs.for_caches(
            "CreateCachedContentConfig", ttl=ttl, **fields
        )
        return await create(**arguments)

    async def extend(self, name: str) -> None:
        """Let a live cache live for a whole ttl from now."""
        ttl = f"{self._ttl_seconds}s"
        config = self._configs.for_caches("UpdateCachedContentConfig", ttl=ttl)
        await self._client.aio.caches.update(name=name, config=config)

    async def delete(self, name: str) -> None:
        """Delete a cache by its name."""
        await self._client.aio.caches.delete(name=name)


def _same_model(found: object, wanted: str) -> bool:
    """Whether two model names end alike: "models/X" is X, and "X-lite" is not."""
    return isinstance(found, str) and found.rpartition("/")[2] == wanted.rpartition("/")[2]


def _parameters_of(function: Any) -> Collection[str]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return ()
