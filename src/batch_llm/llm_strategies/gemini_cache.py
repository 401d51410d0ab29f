"""Gemini models with a long common beginning, which the provider keeps in a cache."""

import asyncio
import logging
import math
import re
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Generic

from batch_llm.base import TokenUsage, TOutput
from batch_llm.classifiers.gemini import tells_cache_gone, tells_caching_refused
from batch_llm.core.clock import wall_time
from batch_llm.core.extras import require
from batch_llm.llm_strategies._gemini_caches import GeminiCaches, end_of, epoch_of
from batch_llm.llm_strategies._gemini_config import (
    IN_CACHE,
    get_field,
    holds_functions,
    sdk_types,
)
from batch_llm.llm_strategies._gemini_content import as_list, display_name_of, estimate_tokens
from batch_llm.llm_strategies.gemini import GeminiStrategy
from batch_llm.strategies.errors import CacheUnavailableError, EmptyResponseError

_log = logging.getLogger(__name__)

# Told from the same number given by a caller by its identity.
_NOT_GIVEN = 0.1

# How long a cache that could not be renewed is used as it is before the next try.
_RENEWAL_PAUSE_SECONDS = 30.0

# Each creation is billed: when caches keep dying unused, stop making them.
_MOST_LOST_IN_A_ROW = 5

_TOKEN_COUNT = re.compile(r"\b(?:total_token_count|requested)=(\d+)")


class GeminiCachedStrategy(GeminiStrategy[TOutput], Generic[TOutput]):
    """Asks a Gemini model about contents that are sent once and kept at the provider.

    The contents go into the cache together with the config's system instruction and tools,
    since the API refuses those beside a cache. A live cache of the same contents and model
    is reused, from other processes too. It is renewed before it ends: extended if it still
    lives, else made anew. ``cleanup()`` keeps it for the next run; `delete_cache` ends it.

    Where the provider refuses a cache for good (contents below the model's minimum, a model
    without explicit caching, a key that may not create any), the run goes on without:
    the contents are sent with every request at full price, and one warning is logged that
    says so. Pass ``require_cache=True`` to have the items fail instead.

    Args:
        model: Name of the model, such as ``"gemini-2.5-flash"``.
        client: A ``google.genai.Client``. One client serves any number of strategies.
        response_parser: Makes the output from the SDK's response. It gets only answers
            that ended normally; an exception it raises fails the attempt.
        cached_content: What all prompts have in common: a text, a part, a content, or a
            list of them. May be empty where the config has a system instruction.
        cache_ttl_seconds: How long the cache lives from its creation or renewal.
        cache_refresh_threshold: Deprecated and without effect.
        config: A ``GenerateContentConfig``, the same as a dict, or None. It is read anew
            for each call and never changed.
        cache_renewal_buffer_seconds: Remaining life at which the cache is renewed.
        auto_renew: Whether ``execute`` renews; without, only ``prepare`` does.
        require_cache: Whether items fail where no cache can be had.

    Raises:
        TypeError: What was passed is no client, no function, or no config.
        ValueError: A duration is not a positive number, or a tool is a Python function,
            which no cache can hold.
    """

    def __init__(  # noqa: PLR0913 - the contract's positional order
        self,
        model: str,
        client: Any,
        response_parser: Callable[[Any], TOutput],
        cached_content: Any,
        cache_ttl_seconds: float = 3600,
        cache_refresh_threshold: float = _NOT_GIVEN,
        config: Any = None,
        *,
        cache_renewal_buffer_seconds: float = 300,
        auto_renew: bool = True,
        require_cache: bool = False,
    ) -> None:
        super().__init__(model, client, response_parser, config)
        if cache_refresh_threshold is not _NOT_GIVEN:
            warnings.warn(
                "cache_refresh_threshold has no effect; use cache_renewal_buffer_seconds",
                DeprecationWarning,
                stacklevel=2,
            )
        if holds_functions(config):
            raise ValueError(
                "config.tools holds Python functions, which a cache cannot; pass their "
                "declarations (types.FunctionDeclaration.from_callable) or use GeminiStrategy"
            )
        self.cached_content = cached_content
        self.cache_ttl_seconds = cache_ttl_seconds
        self.cache_refresh_threshold = cache_refresh_threshold
        self.cache_renewal_buffer_seconds: float = _checked_buffer(
            cache_renewal_buffer_seconds, cache_ttl_seconds
        )
        self.auto_renew = auto_renew
        self.require_cache = require_cache
        self._api_version = self._detect_google_genai_version()
        _warn_of_old_sdk(self._api_version)
        self._cache: Any = None
        self._cache_created_at: float | None = None
        self._uncached = False
        self._dead_names: set[str] = set()
        self._lost_in_a_row = 0
        self._renewal_paused_until = 0.0
        self._lock_of_loop: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    @staticmethod
    def _detect_google_genai_version() -> str:
        """``"v1.46+"``, or ``"v1.45"`` where the SDK has no type for a new cache's config."""
        try:
            # The import statement's own road, so that a test can bar it.
            types = __import__("google.genai.types", fromlist=["CreateCachedContentConfig"])
        except ImportError:
            return "v1.45"
        return "v1.46+" if hasattr(types, "CreateCachedContentConfig") else "v1.45"

    async def prepare(self) -> None:
        """Find a live cache of the same contents and model, or create one.

        Raises:
            CacheUnavailableError: The provider refuses a cache for good, and
                ``require_cache`` is set. Other errors of a creation come as they are.
        """
        await self._ensure_cache()

    async def execute(
        self, prompt: str, attempt: int, timeout: float
    ) -> tuple[TOutput, TokenUsage]:
        """Ask the model, with a cache that lives.

        Raises:
            CacheUnavailableError: There is no cache and ``auto_renew`` is off, or the
                provider refuses one for good and ``require_cache`` is set.
            ResponseError: The prompt was blocked, or the answer withheld, cut off or empty.
        """
        if self.auto_renew:
            await self._ensure_cache()
        if self._uncached:
            return self._read(await self._generate([*as_list(self.cached_content), prompt]))
        if self._cache is None:
            raise CacheUnavailableError(
                "there is no cache and auto_renew is off; call prepare() before execute(), "
                "or leave auto_renew on"
            )
        name = str(self._cache.name)
        try:
            response = await self._generate(prompt, name)
        except Exception as error:
            if tells_cache_gone(error):
                self._forget(name)
            raise
        self._lost_in_a_row = 0
        return self._read(response)

    async def delete_cache(self) -> None:
        """Delete the cache at the provider, also for others that use it.

        A failure is logged: the cache then ends by itself after its time to live.
        """
        cache, self._cache = self._cache, None
        self._cache_created_at = None
        if cache is None:
            return
        name = str(cache.name)
        self._dead_names.add(name)
        try:
            await self._caches.delete(name)
        except Exception as error:
            _log.warning("cache %s could not be deleted: %s", name, _short(error))

    @property
    def _caches(self) -> GeminiCaches:
        return GeminiCaches(self.client, self.model, self._configs, self.cache_ttl_seconds)

    def _is_cache_expired(self) -> bool:
        """Whether there is no cache, or one that ends within the buffer."""
        return self._remaining_seconds() <= self.cache_renewal_buffer_seconds

    def _remaining_seconds(self) -> float:
        if self._cache is None:
            return 0.0
        end = end_of(
            self._cache, created_at=self._cache_created_at, ttl_seconds=self.cache_ttl_seconds
        )
        return 0.0 if end is None else end - wall_time()

    def _is_renewal_due(self) -> bool:
        if not self._is_cache_expired():
            return False
        return self._remaining_seconds() <= 0 or wall_time() >= self._renewal_paused_until

    async def _ensure_cache(self) -> None:
        """Have a cache that lives: one worker renews it, once for all who wait."""
        if self._uncached or not self._is_renewal_due():
            return
        async with self._lock():
            if self._uncached or not self._is_renewal_due():
                return
            if self._remaining_seconds() > 0:
                await self._extend()
            else:
                await self._open()
            if self._is_cache_expired():
                self._renewal_paused_until = wall_time() + _RENEWAL_PAUSE_SECONDS

    def _lock(self) -> asyncio.Lock:
        """The lock of the running loop: a lock serves one loop only, a strategy several."""
        loop = asyncio.get_running_loop()
        if self._lock_of_loop is None or self._lock_of_loop[0] is not loop:
            self._lock_of_loop = (loop, asyncio.Lock())
        return self._lock_of_loop[1]

    async def _extend(self) -> None:
        """Extend the live cache or make a new one; if neither can be, keep it while it lives."""
        name, asked_at = str(self._cache.name), wall_time()
        try:
            await self._caches.extend(name)
            # The times that it came with are over.
            self._cache, self._cache_created_at = _without_times(self._cache), asked_at
            return
        except Exception as error:
            _log.warning("cache %s could not be extended: %s", name, _short(error))
        try:
            await self._create()
        except Exception as error:
            _log.warning(
                "no new cache could be created: %s; cache %s is used for the %.0f s it has left",
                _short(error),
                name,
                self._remaining_seconds(),
            )

    async def _open(self) -> None:
        """Adopt a live cache or create one; go on without where that is refused for good."""
        self._cache = None
        if self._lost_in_a_row >= _MOST_LOST_IN_A_ROW:
            self._go_on_uncached(f"the last {self._lost_in_a_row} were gone before they served")
            return
        found = await self._find()
        if found is not None:
            self._cache = found
            self._cache_created_at = epoch_of(getattr(found, "create_time", None)) or wall_time()
            return
        try:
            await self._create()
        except Exception as error:
            if not tells_caching_refused(error):
                raise
            self._go_on_uncached(_short(error), error)

    async def _find(self) -> Any:
        try:
            return await self._caches.find(
                display_name_of(self._parts()),
                without=self._dead_names,
                min_life_seconds=self.cache_renewal_buffer_seconds,
            )
        except Exception as error:
            _log.warning(
                "caches could not be listed: %s; a new one is created even if one exists",
                _short(error),
            )
            return None

    async def _create(self) -> None:
        parts = self._parts()
        created_at = wall_time()
        cache = await self._caches.create(
            **parts | {"contents": self.cached_content or None},
            display_name=display_name_of(parts),
        )
        if not cache.name:
            raise EmptyResponseError("the answer to the creation of a cache names none; try again")
        self._cache, self._cache_created_at = cache, created_at
        if self._remaining_seconds() <= 0:
            # A newborn is not dead: believing its times, each call would create another.
            self._cache = _without_times(cache)
        _log.info("cache %s created for %s", cache.name, self.model)

    def _parts(self) -> dict[str, Any]:
        """All that the cache holds."""
        config = self._configs.as_model(self.config)
        parts = {name: get_field(config, name) for name in IN_CACHE}
        return {"contents": as_list(self.cached_content), **parts}

    def _forget(self, name: str) -> None:
        """Take a cache for dead, unless another took its place already."""
        self._dead_names.add(name)
        if self._cache is not None and str(self._cache.name) == name:
            self._cache = None
            self._lost_in_a_row += 1
            _log.warning("cache %s is gone", name)

    def _go_on_uncached(self, reason: str, error: Exception | None = None) -> None:
        """Send the contents with each request from now on, unless that was ruled out."""
        if self.require_cache:
            raise CacheUnavailableError(
                f"no cache can be had for {self.model}: {reason}; leave out require_cache to "
                "send the contents with each request instead"
            ) from error
        self._uncached = True
        counted = _TOKEN_COUNT.search(reason)
        _log.warning(
            "no cache can be had for %s: %s. The run goes on without: about %d tokens are sent "
            "with each request at full price instead of about 10 %% of it. Pass "
            "require_cache=True to stop instead.",
            self.model,
            reason,
            int(counted[1]) if counted else estimate_tokens(self._parts()),
        )


def _checked_buffer(buffer_seconds: float, ttl_seconds: float) -> float:
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


def _warn_of_old_sdk(api_version: str) -> None:
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


def _without_times(cache: Any) -> Any:
    """A cache that has its ttl on our own clock."""
    usage = getattr(cache, "usage_metadata", None)
    return SimpleNamespace(name=cache.name, usage_metadata=usage)


def _short(error: Exception) -> str:
    """The status and message of an error, without the whole body that the SDK prints."""
    code, message = getattr(error, "code", None), getattr(error, "message", None)
    if not isinstance(message, str):
        # Not the API's own word: its text may quote anything.
        return type(error).__name__
    text = f"{code} {message}"
    return text if len(text) <= 300 else f"{text[:299]}…"
