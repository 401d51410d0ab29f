"""What does the API allow to be done with caches?"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from batch_llm.testing.gemini import errors
from batch_llm.testing.gemini.caches import CacheRecord, CacheStore
from batch_llm.testing.gemini.clock import EmulatorClock
from batch_llm.testing.gemini.errors import ApiError
from batch_llm.testing.gemini.models import Models
from batch_llm.testing.gemini.routes import Route
from batch_llm.testing.gemini.tokens import request_tokens

DEFAULT_TTL_SECONDS = 3600.0
MAX_DISPLAY_NAME_CHARACTERS = 128
_DURATION = re.compile(r"-?\d+(?:\.\d{1,9})?s")
_LAST_REPRESENTABLE_SECOND = 253402300799.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRules:
    """What holds for all caches of one emulator.

    Attributes:
        min_tokens: Smallest cache of a model without a number of its own.
        allow_creation: False answers every create as the free tier does.
        page_size: Most caches in one page of a list.
    """

    min_tokens: int
    allow_creation: bool
    page_size: int


class CacheApi:
    """The methods of ``cachedContents``, and what generating with a cache demands."""

    def __init__(
        self, store: CacheStore, *, rules: CacheRules, models: Models, clock: EmulatorClock
    ) -> None:
        self._store = store
        self._rules = rules
        self._models = models
        self._clock = clock

    def create(self, route: Route, body: dict[str, Any]) -> dict[str, Any]:
        """Create a cache and show it.

        Raises:
            ApiError: The request is not valid, or its model or tier has no caches.
        """
        now = self._clock.wall()
        model = _name_of_model(body)
        model_rules = self._models.rules(model, version=route.version, method="createCachedContent")
        if not model_rules.explicit_caching:
            raise errors.model_not_found(model, version=route.version, method="createCachedContent")
        display_name = body.get("displayName", "")
        if not isinstance(display_name, str) or len(display_name) > MAX_DISPLAY_NAME_CHARACTERS:
            raise errors.invalid_argument(
                f"display_name must be at most {MAX_DISPLAY_NAME_CHARACTERS} characters long.",
                field="cached_content.display_name",
            )
        expire_time = _expire_time(body, now)
        tokens = request_tokens(body)
        if not self._rules.allow_creation:
            raise errors.cache_storage_denied(model, tokens)
        minimum = model_rules.min_cache_tokens
        if minimum is None:
            minimum = self._rules.min_tokens
        if tokens < minimum:
            raise errors.cache_too_small(tokens, minimum)
        record = CacheRecord(
            name=self._store.new_name(route.parent),
            model=route.full_model(model),
            display_name=display_name or None,
            token_count=tokens,
            create_time=now,
            update_time=now,
            expire_time=now + DEFAULT_TTL_SECONDS if expire_time is None else expire_time,
            body=body,
        )
        self._store.put(record)
        return record.to_wire()

    def list(self, route: Route, query: Mapping[str, str]) -> dict[str, Any]:
        """One page of the live caches; ``{}`` when there are none.

        Raises:
            ApiError: The page's size or token is not valid.
        """
        asked = _number(query.get("pageSize", "0"), "page_size")
        after = _number(query.get("pageToken") or "0", "page_token")
        records, more_after = self._store.page(
            route.parent,
            after=after,
            size=min(asked, self._rules.page_size) or self._rules.page_size,
            now=self._clock.wall(),
        )
        page: dict[str, Any] = {}
        if records:
            page["cachedContents"] = [record.to_wire() for record in records]
        if more_after is not None:
            page["nextPageToken"] = str(more_after)
        return page

    def get(self, route: Route) -> dict[str, Any]:
        """Show a cache.

        Raises:
            ApiError: It does not live.
        """
        return self._living(route.cache or "", vertex=route.vertex).to_wire()

    def update(self, route: Route, body: Mapping[str, Any]) -> dict[str, Any]:
        """Give a live cache another end, a ttl counting from now.

        Raises:
            ApiError: It does not live, or anything but its end is to change.
        """
        record = self._living(route.cache or "", vertex=route.vertex)
        now = self._clock.wall()
        expire_time = _expire_time(body, now)
        if expire_time is None or body.keys() - {"ttl", "expireTime", "name"}:
            raise errors.invalid_argument("Only the expiration of a CachedContent can be updated.")
        extended = replace(record, expire_time=expire_time, update_time=now)
        self._store.put(extended)
        return extended.to_wire()

    def delete(self, route: Route) -> dict[str, Any]:
        """Delete a live cache.

        Raises:
            ApiError: It does not live.
        """
        self._store.remove(self._living(route.cache or "", vertex=route.vertex).name)
        return {}

    def lose(self, name: str | None, *, expired: bool, vertex: bool) -> ApiError:
        """Take a cache away behind its users' backs; what a request for it is answered then."""
        if name is not None:
            self._store.remove(name, expired=expired)
        error = errors.cache_expired if expired else errors.cache_not_found
        return error(name or "cachedContents/0", vertex=vertex)

    def for_generation(
        self, name: str | None, route: Route, body: Mapping[str, Any]
    ) -> CacheRecord | None:
        """The cache a generate request uses, None if it uses none.

        Raises:
            ApiError: The cache does not live or is another model's, or the request repeats
                what belongs into the cache.
        """
        if name is None:
            return None
        if any(body.get(field) for field in ("systemInstruction", "tools", "toolConfig")):
            raise errors.cache_with_own_settings()
        record = self._living(name, vertex=route.vertex, generating=True)
        requested = route.full_model(route.model or "")
        if requested != record.model:
            raise errors.cache_of_other_model(requested, record.model)
        return record

    def _living(self, name: str, *, vertex: bool, generating: bool = False) -> CacheRecord:
        record = self._store.get(name, self._clock.wall())
        if record is not None:
            return record
        if generating and self._store.has_expired(name):
            raise errors.cache_expired(name, vertex=vertex)
        raise errors.cache_not_found(name, vertex=vertex)


def _name_of_model(body: Mapping[str, Any]) -> str:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise errors.invalid_argument(
            "* CreateCachedContentRequest.cached_content.model: model is not specified\n"
        )
    return model.rpartition("/")[2]


def _expire_time(body: Mapping[str, Any], now: float) -> float | None:
    """When a cache ends by its ``ttl`` or ``expireTime``; None if neither is there."""
    ttl, expire_time = body.get("ttl"), body.get("expireTime")
    if ttl is not None and expire_time is not None:
        raise errors.invalid_argument(
            "Invalid value at 'cached_content' (oneof), oneof field 'expiration' is already "
            "set. Cannot set 'ttl'",
            field="cached_content",
        )
    if ttl is not None:
        end = now + _seconds(ttl)
    elif expire_time is not None:
        end = _moment(expire_time)
    else:
        return None
    if not now < end < _LAST_REPRESENTABLE_SECOND:
        raise errors.invalid_argument(
            "The expiration of a CachedContent has to be in the future.",
            field="cached_content.expiration",
        )
    return end


def _seconds(ttl: Any) -> float:
    if not isinstance(ttl, str) or not _DURATION.fullmatch(ttl):
        raise errors.invalid_argument(
            "Invalid value at 'cached_content.ttl' "
            f"(type.googleapis.com/google.protobuf.Duration), {ttl!r}",
            field="cached_content.ttl",
        )
    return float(ttl[:-1])


def _moment(expire_time: Any) -> float:
    try:
        moment = datetime.fromisoformat(expire_time)
    except (TypeError, ValueError):
        moment = None
    if moment is None or moment.tzinfo is None:
        raise errors.invalid_argument(
            "Invalid value at 'cached_content.expire_time' "
            f"(type.googleapis.com/google.protobuf.Timestamp), {expire_time!r}",
            field="cached_content.expire_time",
        )
    return moment.timestamp()


def _number(text: str, name: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise errors.invalid_argument(f"Invalid {name}: {text!r}.", field=name)
    return int(text)
