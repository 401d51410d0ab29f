"""What a type checker must see of Gemini's caches: read by mypy and pyright, never run."""

from collections.abc import Mapping
from typing import Any, Literal, assert_type

from batch_llm import CacheInfo, CachePrices, GeminiCachedStrategy


def cached(client: Any, tags: dict[str, str]) -> None:
    """What is told of a cache has its own types."""
    strategy = GeminiCachedStrategy(
        "gemini-2.5-flash",
        client,
        lambda response: 1,
        "A long text.",
        cache_tags=tags,
        expected_calls=200,
        cache_prices=CachePrices(input=0.3, cached_input=0.03, storage_per_hour=1),
    )
    assert_type(strategy, GeminiCachedStrategy[int])
    info = strategy.cache_info()
    assert_type(info, CacheInfo)
    assert_type(info.status, Literal["found", "created", "extended", "uncached", "none"])
    assert_type(info.tags, Mapping[str, str])
    assert_type(info.name, str | None)
    assert_type(info.remaining_seconds, float | None)
    assert_type(info.rejected.get("other_tags", 0), int)
    assert_type(info.expected_saving_tokens, float | None)
