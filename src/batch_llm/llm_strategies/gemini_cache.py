"""Gemini models with a long common beginning, which the provider keeps in a cache."""

import asyncio
import logging
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Generic, Literal, overload

from batch_llm.base import TokenUsage, TOutput
from batch_llm.classifiers.gemini import tells_cache_gone, tells_caching_refused
from batch_llm.core.clock import wall_time
from batch_llm.llm_strategies._gemini_cache_info import (
    CacheCosts,
    CacheInfo,
    CacheOrigin,
    CachePrices,
    prices_of,
)
from batch_llm.llm_strategies._gemini_cache_options import (
    check_tools,
    checked_buffer,
    checked_calls,
    checked_prices,
    checked_tags,
    warn_of_old_sdk,
)
from batch_llm.llm_strategies._gemini_caches import (
    GeminiCaches,
    Listing,
    end_of,
    epoch_of,
    token_count_of,
    without_times,
)
from batch_llm.llm_strategies._gemini_config import IN_CACHE, get_field
from batch_llm.llm_strategies._gemini_content import as_list, display_name_of, estimate_tokens
from batch_llm.llm_strategies._gemini_response import GeminiResponse
from batch_llm.llm_strategies.gemini import GeminiStrategy, TParsed
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
    since the API refuses those beside a cache. A live cache of the same model, contents and
    tags is reused, from other processes too. It is renewed before it ends: extended if it still
    lives, else made anew. ``cleanup()`` keeps it for the next run; `delete_cache` ends it.

    Where the provider refuses a cache for good (contents below the model's minimum, a model
    without explicit caching, a key that may not create any), the run goes on without:
    the contents are sent with every request at full price, and one warning is logged that
    says so. Pass ``require_cache=True`` to have the items fail instead. `cache_info` tells at
    any time which cache is in use, why, and what it saves.

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
        require_cache: Whether items fail where no cache can be had. The provider is then
            asked for one in any case, however small the contents or few the calls.
        cache_tags: What else a cache must have in common to be reused, such as
            ``{"prompt_version": "3"}``; shown in the provider's list of caches as far as
            there is room. At most 50, with keys of up to 128 and values of up to 256
            characters.
        expected_calls: How many calls are expected within ``cache_ttl_seconds``. Where so few
            cannot save what a new cache costs, none is created, and one warning says so. None
            leaves that unchecked.
        cache_prices: The model's prices, for the costs and savings that are told and checked;
            None takes what is documented for models of its kind.
        include_metadata: Whether the output is a `GeminiResponse`, which has the parser's
            output, the safety ratings and the SDK's response.

    Raises:
        TypeError: What was passed is no client, no function, no config, no dict of texts, no
            number of calls, or no prices.
        ValueError: A duration is not a positive number, a key of the tags is blank or a tag
            too long, the calls are below 0, or a tool is a Python function, which no cache
            can hold.
    """

    @overload
    def __init__(
        self,
        model: str,
        client: Any,
        response_parser: Callable[[Any], TOutput],
        cached_content: Any,
        cache_ttl_seconds: float = ...,
        cache_refresh_threshold: float = ...,
        config: Any = ...,
        *,
        cache_renewal_buffer_seconds: float = ...,
        auto_renew: bool = ...,
        require_cache: bool = ...,
        cache_tags: Mapping[str, str] | None = ...,
        expected_calls: int | None = ...,
        cache_prices: CachePrices | None = ...,
        include_metadata: Literal[False] = ...,
    ) -> None: ...

    @overload
    def __init__(
        self: "GeminiCachedStrategy[GeminiResponse[TParsed]]",
        model: str,
        client: Any,
        response_parser: Callable[[Any], TParsed],
        cached_content: Any,
        cache_ttl_seconds: float = ...,
        cache_refresh_threshold: float = ...,
        config: Any = ...,
        *,
        cache_renewal_buffer_seconds: float = ...,
        auto_renew: bool = ...,
        require_cache: bool = ...,
        cache_tags: Mapping[str, str] | None = ...,
        expected_calls: int | None = ...,
        cache_prices: CachePrices | None = ...,
        include_metadata: Literal[True],
    ) -> None: ...

    def __init__(  # noqa: PLR0913 - the contract's positional order
        self,
        model: str,
        client: Any,
        response_parser: Callable[[Any], Any],
        cached_content: Any,
        cache_ttl_seconds: float = 3600,
        cache_refresh_threshold: float = _NOT_GIVEN,
        config: Any = None,
        *,
        cache_renewal_buffer_seconds: float = 300,
        auto_renew: bool = True,
        require_cache: bool = False,
        cache_tags: Mapping[str, str] | None = None,
        expected_calls: int | None = None,
        cache_prices: CachePrices | None = None,
        include_metadata: bool = False,
    ) -> None:
        super().__init__(model, client, response_parser, config)
        self.include_metadata = include_metadata
        if cache_refresh_threshold is not _NOT_GIVEN:
            warnings.warn(
                "cache_refresh_threshold has no effect; use cache_renewal_buffer_seconds",
                DeprecationWarning,
                stacklevel=2,
            )
        check_tools(config)
        self.cached_content = cached_content
        self.cache_ttl_seconds = cache_ttl_seconds
        self.cache_refresh_threshold = cache_refresh_threshold
        self.cache_renewal_buffer_seconds: float = checked_buffer(
            cache_renewal_buffer_seconds, cache_ttl_seconds
        )
        self.auto_renew = auto_renew
        self.require_cache = require_cache
        self.cache_tags: dict[str, str] = checked_tags(cache_tags)
        self.expected_calls: int | None = checked_calls(expected_calls)
        self.cache_prices: CachePrices | None = checked_prices(cache_prices)
        self._api_version = self._detect_google_genai_version()
        warn_of_old_sdk(self._api_version)
        self._cache: Any = None
        self._origin = CacheOrigin("none", "prepare() has not run yet")
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
        """Find a live cache of the same model, contents and tags, or create one.

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
        self._origin = CacheOrigin("none", f"{name} was deleted")
        try:
            await self._caches.delete(name)
        except Exception as error:
            _log.warning("cache %s could not be deleted: %s", name, _short(error))

    def cache_info(self) -> CacheInfo:
        """Say which cache is in use at this moment, why, and what it costs and saves.

        It asks nobody: the provider may have lost a cache that it does not know of yet.
        """
        cache, costs = self._cache, self._costs
        tokens = None if cache is None else token_count_of(cache)
        saving = costs.expected_saving(is_new=self._origin.status == "created")
        return CacheInfo(
            status=self._origin.status,
            reason=self._origin.reason,
            model=self.model,
            tags=dict(self.cache_tags),
            name=None if cache is None else str(cache.name),
            age_seconds=self._origin.age_seconds(wall_time()),
            remaining_seconds=None if cache is None else max(0.0, self._remaining_seconds()),
            token_count=tokens,
            rejected=dict(self._origin.rejected),
            saved_tokens_per_call=None if tokens is None else tokens * costs.saved_by_call,
            break_even_calls_per_hour=costs.break_even_calls_per_hour,
            expected_calls=self.expected_calls,
            expected_saving_tokens=(None if tokens is None or saving is None else tokens * saving),
        )

    @property
    def _costs(self) -> CacheCosts:
        prices = self.cache_prices or prices_of(self.model)
        return CacheCosts(prices, self.cache_ttl_seconds, self.expected_calls)

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
            before = self._origin
            if self._remaining_seconds() > 0:
                await self._extend()
            # Also if it was lost, or ended, while it was to be extended.
            if self._remaining_seconds() <= 0:
                await self._open()
            if self._cache is not None and self._origin is not before:
                _log.info("%s", self.cache_info())
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
        left = self._remaining_seconds()
        try:
            await self._caches.extend(name)
        except Exception as error:
            _log.warning("cache %s could not be extended: %s", name, _short(error))
            await self._replace(name)
            return
        if self._cache is not None:
            # The times that it came with are over.
            self._cache, self._cache_created_at = without_times(self._cache), asked_at
            reason = f"{left:.0f} s were left"
            self._origin = replace(self._origin, status="extended", reason=reason)

    async def _replace(self, name: str) -> None:
        """Make a new cache in the place of one that could not be extended."""
        failure = self._costs.why_not_to_create()
        if failure is None:
            try:
                await self._create()
            except Exception as error:
                failure = _short(error)
            else:
                reason = f"{name} could not be extended"
                self._origin = CacheOrigin("created", reason, created_at=self._cache_created_at)
                return
        _log.warning(
            "no new cache could be created: %s; cache %s is used for the %.0f s it has left",
            failure,
            name,
            self._remaining_seconds(),
        )

    async def _open(self) -> None:
        """Adopt a live cache or create one; go on without where that is refused for good."""
        self._cache, self._origin = None, CacheOrigin("none", "it is being looked for")
        if self._lost_in_a_row >= _MOST_LOST_IN_A_ROW:
            self._go_on_uncached(f"the last {self._lost_in_a_row} were gone before they served")
            return
        listing = await self._find()
        if listing.cache is not None:
            created_at = epoch_of(getattr(listing.cache, "create_time", None))
            self._cache, self._cache_created_at = listing.cache, created_at or wall_time()
            self._origin = CacheOrigin("found", listing.reason, listing.rejected, created_at)
            return
        self._origin = CacheOrigin("none", listing.reason, listing.rejected)
        if self._is_creation_ruled_out():
            return
        try:
            await self._create()
        except Exception as error:
            if not tells_caching_refused(error):
                self._origin = replace(self._origin, reason=f"creation failed: {_short(error)}")
                raise
            self._go_on_uncached(_short(error), error)
            return
        self._origin = replace(self._origin, status="created", created_at=self._cache_created_at)

    async def _find(self) -> Listing:
        try:
            return await self._caches.find(
                display_name_of(self._parts(), self.cache_tags),
                without=self._dead_names,
                min_life_seconds=self.cache_renewal_buffer_seconds,
            )
        except Exception as error:
            _log.warning(
                "caches could not be listed: %s; a new one is created even if one exists",
                _short(error),
            )
            return Listing(None, {}, "caches could not be listed")

    def _is_creation_ruled_out(self) -> bool:
        """Go on uncached where a cache would surely be refused, or cost more than it saves."""
        loss = self._costs.why_not_to_create()
        if self.require_cache:
            if loss:
                _log.warning("a cache of %s is created as required, though %s", self.model, loss)
            return False
        if shortage := self._caches.shortage(self._parts()):
            self._go_on_uncached(shortage)
        elif loss:
            self._stay_uncached("no cache is created", loss, "to create one all the same")
        return self._uncached

    async def _create(self) -> None:
        parts = self._parts()
        created_at = wall_time()
        cache = await self._caches.create(
            **parts | {"contents": self.cached_content or None},
            display_name=display_name_of(parts, self.cache_tags),
        )
        if not cache.name:
            raise EmptyResponseError("the answer to the creation of a cache names none; try again")
        self._cache, self._cache_created_at = cache, created_at
        if self._remaining_seconds() <= 0:
            # A newborn is not dead: believing its times, each call would create another.
            self._cache = without_times(cache)

    def _parts(self) -> dict[str, Any]:
        """All that the cache holds."""
        config = self._configs.as_model(self.config)
        parts = {name: get_field(config, name) for name in IN_CACHE}
        return {"contents": as_list(self.cached_content), **parts}

    def _forget(self, name: str) -> None:
        """Take a cache for dead, unless another took its place already."""
        self._dead_names.add(name)
        if self._cache is not None and str(self._cache.name) == name:
            self._cache, self._origin = None, CacheOrigin("none", f"{name} is gone")
            self._lost_in_a_row += 1
            _log.warning("cache %s is gone", name)

    def _go_on_uncached(self, reason: str, error: Exception | None = None) -> None:
        """Send the contents with each request from now on, unless that was ruled out."""
        self._origin = replace(self._origin, reason=reason)
        if self.require_cache:
            raise CacheUnavailableError(
                f"no cache can be had for {self.model}: {reason}; leave out require_cache to "
                "send the contents with each request instead"
            ) from error
        self._stay_uncached("no cache can be had", reason, "to stop instead")

    def _stay_uncached(self, verdict: str, reason: str, effect_of_requiring: str) -> None:
        self._uncached = True
        self._origin = replace(self._origin, status="uncached", reason=reason)
        counted = _TOKEN_COUNT.search(reason)
        _log.warning(
            "%s for %s: %s. The run goes on without: about %d tokens are sent with each request "
            "at full price instead of about %.0f %% of it. Pass require_cache=True %s.",
            verdict,
            self.model,
            reason,
            int(counted[1]) if counted else estimate_tokens(self._parts()),
            100 * (1.0 - self._costs.saved_by_call),
            effect_of_requiring,
        )


def _short(error: Exception) -> str:
    """The status and message of an error, without the whole body that the SDK prints."""
    code, message = getattr(error, "code", None), getattr(error, "message", None)
    if not isinstance(message, str):
        # Not the API's own word: its text may quote anything.
        return type(error).__name__
    text = f"{code} {message}"
    return text if len(text) <= 300 else f"{text[:299]}…"
