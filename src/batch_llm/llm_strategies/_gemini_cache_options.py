"""What a caller may ask of a cache: checked when it is handed over."""

import math
import re
import warnings
from collections.abc import Mapping
from typing import cast

from batch_llm.core.extras import require
from batch_llm.llm_strategies._gemini_cache_info import CachePrices
from batch_llm.llm_strategies._gemini_config import holds_functions, sdk_types

_MOST_TAGS = 50
_MOST_CHARACTERS_OF_A_KEY = 128
_MOST_CHARACTERS_OF_A_VALUE = 256


def checked_buffer(buffer_seconds: float, ttl_seconds: float) -> float:
    """The buffer, cut to half the ttl if the cache would never be out of it."""
    if not (math.isfinite(ttl_seconds) and ttl_seconds > 0):
        raise ValueError(f"cache_ttl_seconds must be > 0 (got {ttl_seconds}); 3600 is an hour")
    if not (math.isfinite(buffer_seconds) and buffer_seconds >= 0):
        raise ValueError(
            f"cache_renewal_buffer_seconds must be >= 0 (got {buffer_seconds}); 300 is usual"
        )
    if buffer_seconds < ttl_seconds:
        return buffer_seconds
    warnings.warn(
        f"cache_renewal_buffer_seconds must be below cache_ttl_seconds (got {buffer_seconds} and "
        f"{ttl_seconds}); {ttl_seconds / 2} is used",
        UserWarning,
        stacklevel=3,
    )
    return ttl_seconds / 2


def checked_tags(tags: object) -> dict[str, str]:
    """A copy of the tags; empty where there are none."""
    if tags is None:
        return {}
    if not isinstance(tags, Mapping):
        raise TypeError(
            f"cache_tags must be a dict of texts (got {type(tags).__name__}); "
            "pass for instance {'prompt_version': '3'}"
        )
    copy = dict(cast("Mapping[str, str]", tags))
    if len(copy) > _MOST_TAGS:
        raise ValueError(
            f"cache_tags must be at most {_MOST_TAGS} (got {len(copy)}); leave out those that "
            "no cache has to be told apart by"
        )
    for key, value in copy.items():
        _check_tag(key, value)
    return copy


def _check_tag(key: object, value: object) -> None:
    if not (isinstance(key, str) and isinstance(value, str)):
        raise TypeError(
            f"cache_tags must be texts (got {type(key).__name__} and {type(value).__name__}); "
            "pass for instance {'prompt_version': str(version)}"
        )
    if not key.strip():
        raise ValueError(f"a key in cache_tags must not be blank (got {key!r}); name the tag")
    _check_length("key", key, _MOST_CHARACTERS_OF_A_KEY)
    _check_length("value", value, _MOST_CHARACTERS_OF_A_VALUE)


def _check_length(what: str, text: str, most: int) -> None:
    if len(text) > most:
        raise ValueError(
            f"a {what} in cache_tags must have at most {most} characters (got {len(text)}); name "
            "a version or a purpose, and put what the model is to read into cached_content"
        )


def checked_calls(expected_calls: object) -> int | None:
    """The number of calls."""
    if expected_calls is None:
        return None
    if isinstance(expected_calls, bool) or not isinstance(expected_calls, int):
        raise TypeError(
            f"expected_calls must be an int or None (got {expected_calls!r}); pass how many calls "
            "are expected within cache_ttl_seconds"
        )
    if expected_calls < 0:
        raise ValueError(
            f"expected_calls must be >= 0 (got {expected_calls}); None leaves it unchecked"
        )
    return expected_calls


def checked_prices(prices: object) -> CachePrices | None:
    """The prices."""
    if prices is None or isinstance(prices, CachePrices):
        return prices
    raise TypeError(
        f"cache_prices must be a CachePrices or None (got {type(prices).__name__}); pass "
        "CachePrices(input=..., cached_input=..., storage_per_hour=...)"
    )


def check_tools(config: object) -> None:
    """Refuse tools that no cache can hold."""
    if holds_functions(config):
        raise ValueError(
            "config.tools holds Python functions, which a cache cannot; pass their "
            "declarations (types.FunctionDeclaration.from_callable) or use GeminiStrategy"
        )


def warn_of_old_sdk(api_version: str) -> None:
    """Warn the caller's caller where google-genai is one that nobody tests any more."""
    if sdk_types() is None:
        return
    version = str(getattr(require("google.genai", extra="gemini"), "__version__", ""))
    numbers = re.match(r"(\d+)\.(\d+)", version)
    is_old = numbers is not None and (int(numbers[1]), int(numbers[2])) < (1, 46)
    if is_old or api_version == "v1.45":
        warnings.warn(
            f"google-genai before 1.46 (installed: {version}) is not tested any more; "
            'upgrade with: pip install "batch-llm[gemini]"',
            DeprecationWarning,
            stacklevel=3,
        )
