"""Token counts out of the many shapes that providers and frameworks give them."""

import logging
from collections.abc import Mapping
from typing import Any, cast

from batch_llm.base import TokenUsage

_log = logging.getLogger(__name__)

_NAMES = {
    "input_tokens": ("input_tokens", "request_tokens"),
    "output_tokens": ("output_tokens", "response_tokens"),
    "total_tokens": ("total_tokens",),
    "cached_input_tokens": ("cached_input_tokens", "cache_read_tokens"),
}


# Rates are computed with floats, so sums of counts have to stay within what a float holds.
_TOO_MANY = 1e300


class ReportedUsage(dict[str, int]):
    """Token counts, equal to a plain dict of them, that bring along what else was reported.

    Attributes:
        metadata: What the provider says of its answer, by name.
    """

    __slots__ = ("metadata",)

    def __init__(self, counts: TokenUsage, metadata: dict[str, Any]) -> None:
        super().__init__(cast("dict[str, int]", counts))
        self.metadata = metadata


def count(value: object) -> int:
    """A token count as an int: None, mocks and values that count nothing are 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    return int(value) if 0 <= value < _TOO_MANY else 0


def is_plain(usage: Any) -> bool:
    """Whether it is a dict of whole numbers already, the total among them."""
    if type(usage) is not dict:
        return False
    counts = cast("dict[str, object]", usage)
    try:
        return (
            type(counts["input_tokens"]) is int
            and type(counts["output_tokens"]) is int
            and type(counts["total_tokens"]) is int
        )
    except KeyError:
        return False


def read_usage(source: Any) -> TokenUsage:
    """Token counts of a usage object or mapping, or of a callable that gives one.

    Understands input_/output_tokens and the older request_/response_tokens; a missing
    total is the sum of the two. Gives ``{}`` when there is nothing to read, since a
    count that cannot be read must never cost an answer.
    """
    try:
        found = _read_counts(source)
        if not found and callable(source):
            found = _read_counts(source())
    except Exception as error:
        _log.debug("usage could not be read: %r", error)
        return {}
    if found and "total_tokens" not in found:
        found["total_tokens"] = found.get("input_tokens", 0) + found.get("output_tokens", 0)
    return cast("TokenUsage", found)


def _read_counts(source: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for key, names in _NAMES.items():
        for name in names:
            if isinstance(source, Mapping):
                value = cast("Mapping[str, object]", source).get(name)
            else:
                value = getattr(source, name, None)
            if isinstance(value, int | float):
                found[key] = count(value)
                break
    return found
