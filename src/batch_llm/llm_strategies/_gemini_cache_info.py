"""Which cache is in use and why, and what it costs and saves."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from batch_llm.llm_strategies._gemini_caches import Mismatch

CacheStatus = Literal["found", "created", "extended", "uncached", "none"]

_SECONDS_PER_HOUR = 3600.0

_GENERATION_OF_DEARER_CACHED_INPUT = re.compile(r"gemini-2\.0\b")
_DEARER_STORAGE = re.compile(r"-pro\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePrices:
    """A model's prices per million tokens, all in one currency, whichever it is.

    Attributes:
        input: Price of input that is not cached; creating a cache costs as much.
        cached_input: Price of cached input.
        storage_per_hour: Price of keeping it cached for an hour.

    Raises:
        ValueError: A price is negative or no number, or cached input is no cheaper.
    """

    input: float
    cached_input: float
    storage_per_hour: float

    def __post_init__(self) -> None:
        for name in ("input", "cached_input", "storage_per_hour"):
            price: object = getattr(self, name)
            if not (isinstance(price, int | float) and math.isfinite(price) and price >= 0):
                raise ValueError(
                    f"{name} must be a number >= 0 (got {price!r}); pass the price of a million "
                    "tokens"
                )
        if self.input <= self.cached_input:
            raise ValueError(
                "input must be above cached_input, or caching saves nothing (got "
                f"{self.input} and {self.cached_input}); pass the prices of a million tokens"
            )


@dataclass(frozen=True, slots=True)
class CacheOrigin:
    """How the cache in use came to be used, or why there is none.

    Attributes:
        status: As in `CacheInfo`.
        reason: As in `CacheInfo`.
        rejected: As in `CacheInfo`.
        created_at: When the provider made it, in epoch seconds; None if nobody knows.
    """

    status: CacheStatus
    reason: str
    rejected: Mapping[Mismatch, int] = field(default_factory=dict[Mismatch, int])
    created_at: float | None = None

    def age_seconds(self, now: float) -> float | None:
        """As in `CacheInfo`."""
        return None if self.created_at is None else max(0.0, now - self.created_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheInfo:
    """Which cache a strategy uses at one moment, why, and what that saves.

    What is saved is told in input tokens that are not cached: times the price of such a token
    it is money.

    Attributes:
        status: ``"found"`` (an earlier run or another process made it), ``"created"``,
            ``"extended"``; ``"uncached"`` where the contents are sent with each call instead,
            ``"none"`` where there is no cache yet or any more.
        reason: Why so, in words.
        model: Name of the model.
        tags: The strategy's ``cache_tags``.
        name: Name at the provider; None without a cache.
        age_seconds: Time since its creation; None without a cache or where nobody knows.
        remaining_seconds: Time until it ends, 0.0 if it did; None without a cache.
        token_count: Tokens it holds, as the provider counts; None without a cache or where it
            does not tell.
        rejected: How many caches the last list showed that could not be used, by the first
            reason that held: ``"other_model"``, ``"other_contents"``, ``"other_tags"``,
            ``"known_dead"`` (deleted, or the provider said that it is gone), ``"ends_soon"``
            (within the renewal buffer, or nobody knows when).
        saved_tokens_per_call: What one call is billed less; None where ``token_count`` is.
        break_even_calls_per_hour: So many calls an hour save what keeping the cache costs.
        expected_calls: The strategy's ``expected_calls``.
        expected_saving_tokens: What that many calls save, less what ``cache_ttl_seconds`` of
            keeping cost and, if it was created, its creation; below 0 if it costs more. None
            where either number is.
    """

    status: CacheStatus
    reason: str
    model: str
    tags: Mapping[str, str]
    name: str | None
    age_seconds: float | None
    remaining_seconds: float | None
    token_count: int | None
    rejected: Mapping[Mismatch, int]
    saved_tokens_per_call: float | None
    break_even_calls_per_hour: float
    expected_calls: int | None
    expected_saving_tokens: float | None

    def __str__(self) -> str:
        """All of it on one line, as it is logged."""
        text = ", ".join([*self._use(), *self._figures()])
        # A provider's reason may have several.
        return " ".join(text.split())

    def _use(self) -> list[str]:
        subject = "no cache" if self.name is None else f"cache {self.name} ({self.status})"
        use = [f"{subject} for {self.model}: {self.reason}"]
        if self.tags:
            use.append("tags " + " ".join(f"{key}={tag!r}" for key, tag in self.tags.items()))
        if self.rejected:
            counts = [f"{count} {why.replace('_', ' ')}" for why, count in self.rejected.items()]
            use.append(f"others listed: {' + '.join(counts)}")
        return use

    def _figures(self) -> list[str]:
        figures: list[str] = []
        if self.token_count is not None:
            figures.append(f"{self.token_count} tokens")
        if self.age_seconds is not None:
            figures.append(f"{self.age_seconds:.0f} s old")
        if self.remaining_seconds is not None:
            figures.append(f"{self.remaining_seconds:.0f} s left")
        if self.saved_tokens_per_call is not None:
            figures.append(f"saves {self.saved_tokens_per_call:.0f} input tokens a call")
        if self.expected_saving_tokens is not None:
            saving = f"{self.expected_saving_tokens:.0f} net"
            figures.append(f"{saving} with {self.expected_calls} expected calls")
        elif self.expected_calls is None:
            figures.append(f"breaks even at {self.break_even_calls_per_hour:.1f} calls an hour")
        return figures


def prices_of(model: str) -> CachePrices:
    """What is documented of a model's prices, in units of its own input price.

    Cached input costs a quarter with Gemini 2.0 and a tenth from 2.5 on. As many calls an hour
    save what storage costs: one (flash) or two and a half (pro).
    """
    cached_input = 0.25 if _GENERATION_OF_DEARER_CACHED_INPUT.search(model) else 0.1
    break_even = 2.5 if _DEARER_STORAGE.search(model) else 1.0
    return CachePrices(
        input=1.0,
        cached_input=cached_input,
        storage_per_hour=break_even * (1.0 - cached_input),
    )


@dataclass(frozen=True, slots=True)
class CacheCosts:
    """What a cache costs and saves; all of it as shares of sending its tokens once without."""

    prices: CachePrices
    ttl_seconds: float
    expected_calls: int | None

    @property
    def saved_by_call(self) -> float:
        """What a call saves."""
        return 1.0 - self.prices.cached_input / self.prices.input

    @property
    def break_even_calls_per_hour(self) -> float:
        """Calls an hour that save as much as storage costs."""
        return self._stored_for_hour / self.saved_by_call

    @property
    def _stored_for_hour(self) -> float:
        return self.prices.storage_per_hour / self.prices.input

    @property
    def _stored_for_ttl(self) -> float:
        return self._stored_for_hour * self.ttl_seconds / _SECONDS_PER_HOUR

    def expected_saving(self, *, is_new: bool) -> float | None:
        """What the expected calls save in one ttl; a new cache had to be created for it."""
        if self.expected_calls is None:
            return None
        creation = 1.0 if is_new else 0.0
        return self.expected_calls * self.saved_by_call - self._stored_for_ttl - creation

    def why_not_to_create(self) -> str | None:
        """That a new cache costs more than it saves; None if it does not or nobody knows."""
        saving = self.expected_saving(is_new=True)
        if saving is None or saving >= 0:
            return None
        needed = (1.0 + self._stored_for_ttl) / self.saved_by_call
        return (
            f"it cannot pay back: {self.expected_calls} calls are expected within "
            f"{self.ttl_seconds:g} s, and it takes {needed:.1f}"
        )
