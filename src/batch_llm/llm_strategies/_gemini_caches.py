"""Caches at the provider: how to find, make, extend and delete one, and when it ends."""

import inspect
import re
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Literal, cast

from batch_llm.core.clock import wall_time
from batch_llm.llm_strategies._gemini_config import GeminiConfigs
from batch_llm.llm_strategies._gemini_content import most_tokens, names_same_contents
from batch_llm.llm_strategies._usage import count

# The smallest minimum of all models of these generations: Pro models ask for up to four times
# as much. What other models ask for, only the provider can tell.
_KNOWN_GENERATIONS = re.compile(r"\bgemini-[23]\b")
_SMALLEST_MINIMUM_TOKENS = 1024

Mismatch = Literal["other_model", "other_contents", "other_tags", "known_dead", "ends_soon"]


@dataclass(frozen=True, slots=True)
class Listing:
    """What a list of caches had to offer.

    Attributes:
        cache: The one that may be used and lives longest, None if there is none.
        rejected: How many could not be used, by the first thing that was wrong with them.
        reason: Why the cache may be used, or why there is none.
    """

    cache: Any
    rejected: Mapping[Mismatch, int]
    reason: str


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


def token_count_of(cache: Any) -> int | None:
    """How many tokens a cache holds, None if it does not tell."""
    usage = getattr(cache, "usage_metadata", None)
    return count(getattr(usage, "total_token_count", None)) or None


def without_times(cache: Any) -> Any:
    """A cache that has its ttl on our own clock."""
    usage = getattr(cache, "usage_metadata", None)
    return SimpleNamespace(name=cache.name, usage_metadata=usage)


class GeminiCaches:
    """The caches of one client for one model."""

    def __init__(self, client: Any, model: str, configs: GeminiConfigs, ttl_seconds: float) -> None:
        self._client = client
        self._model = model
        self._configs = configs
        self._ttl_seconds = ttl_seconds

    async def find(
        self, display_name: str, *, without: Collection[str], min_life_seconds: float
    ) -> Listing:
        """Look for caches of this name and model that live long enough."""
        longest, latest_end = None, float("-inf")
        rejected: Counter[Mismatch] = Counter()
        earliest_end = wall_time() + min_life_seconds
        async for cache in self._list():
            end = end_of(cache, created_at=None, ttl_seconds=self._ttl_seconds)
            mismatch = self._mismatch(cache, display_name)
            if mismatch is not None:
                rejected[mismatch] += 1
            elif not cache.name or cache.name in without:
                rejected["known_dead"] += 1
            elif end is None or end <= earliest_end:
                rejected["ends_soon"] += 1
            elif end > latest_end:
                longest, latest_end = cache, end
        if longest is None:
            return Listing(None, dict(rejected), "none that can be used was listed")
        return Listing(longest, dict(rejected), "it has the same model, contents and tags")

    def _mismatch(self, cache: Any, display_name: str) -> Mismatch | None:
        if not _same_model(getattr(cache, "model", None), self._model):
            return "other_model"
        name = getattr(cache, "display_name", None)
        if name == display_name:
            return None
        return "other_tags" if names_same_contents(name, display_name) else "other_contents"

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

    def shortage(self, parts: Mapping[str, Any]) -> str | None:
        """Why the provider would surely find contents too small, None where it has to be asked.

        Nothing is known of a client that is not the SDK's own, such as a mock.
        """
        is_sdk = type(self._client).__module__.startswith("google.genai")
        if not (is_sdk and _KNOWN_GENERATIONS.search(self._model)):
            return None
        tokens = most_tokens(parts)
        if tokens is None or tokens >= _SMALLEST_MINIMUM_TOKENS:
            return None
        return (
            f"the contents are too small, at most {tokens} tokens where "
            f"{_SMALLEST_MINIMUM_TOKENS} are the least"
        )

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
