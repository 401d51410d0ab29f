"""What an exception of any HTTP client tells: status, text, headers. No client is imported.

Clients are known by the names of their exception classes only, since a strategy may use
any of them, or one that is not installed here.
"""

import re
from typing import Any

# "quotation" and "record 14290" are no rate limits: words count at word boundaries, and
# a bare number only where a status stands.
_RATE_LIMIT = (
    r"(?:^|\(|\b(?:http|status|code|error|returned|got)\W{0,3}(?:code\W{0,3})?)429\b"
    r"|(?<![a-z])resource[ _]exhausted(?![a-z])"
    r"|(?<![a-z])quotas?(?![a-z])"
    r"|(?<![a-z])rate[ _-]?limit"
    r"|(?<![a-z])too[ _-]many[ _-]requests(?![a-z])"
)
_TIMEOUT = r"timeout|\btimed?[ _-]out\b"

_TIMEOUT_NAMES = frozenset({"TimeoutException", "APITimeoutError"})
_FAILURE_NAMES = frozenset(
    {"TransportError", "ClientConnectionError", "ClientPayloadError", "APIConnectionError"}
)

# A month: no quota renews more slowly, so who asks for more has made a mistake.
_LONGEST_WAIT_SECONDS = 31 * 86_400.0


def attribute(exception: BaseException, name: str) -> Any:
    """An exception's attribute; None where there is none, or where it cannot be read."""
    try:
        return getattr(exception, name, None)
    except Exception:
        return None


def text_of(exception: BaseException) -> str:
    """An exception's text, empty where it cannot tell it."""
    try:
        return str(exception)
    except Exception:
        return ""


def status_of(exception: BaseException) -> int | None:
    """The HTTP status that an exception carries, None without one."""
    for name in ("status_code", "code", "status"):
        value = attribute(exception, name)
        if isinstance(value, int) and 100 <= value <= 599:
            return int(value)
    return None


def tells_rate_limit(text: str) -> bool:
    """Whether an error text speaks of a rate limit."""
    return re.search(_RATE_LIMIT, text, re.IGNORECASE) is not None


def tells_timeout(text: str) -> bool:
    """Whether an error text speaks of a timeout."""
    return re.search(_TIMEOUT, text, re.IGNORECASE) is not None


def is_transport_timeout(exception: BaseException) -> bool:
    """Whether an HTTP client gave up waiting."""
    return not _TIMEOUT_NAMES.isdisjoint(_class_names(exception))


def is_transport_failure(exception: BaseException) -> bool:
    """Whether a connection failed or broke."""
    return not _FAILURE_NAMES.isdisjoint(_class_names(exception))


def _class_names(exception: BaseException) -> set[str]:
    return {cls.__name__ for cls in type(exception).__mro__}


def believed(wait_seconds: float) -> float | None:
    """A wait that a server asks for, None where it cannot mean it."""
    return wait_seconds if 0 <= wait_seconds <= _LONGEST_WAIT_SECONDS else None


def retry_after_of(exception: BaseException) -> float | None:
    """Seconds that the response's Retry-After header asks to wait, None without a valid one.

    A date is taken relative to the response's own Date header: the two come from one
    clock, which ours need not agree with.
    """
    try:
        headers = getattr(attribute(exception, "response"), "headers", None)
        value = _header(headers, "Retry-After")
        date = None if value is None else _header(headers, "Date")
    except Exception:
        # The headers are an object of some client's.
        return None
    if value is None:
        return None
    try:
        return believed(float(value))
    except ValueError:
        seconds = _seconds_between(date, value)
    return None if seconds is None else believed(seconds)


def _header(headers: object, name: str) -> str | None:
    get = getattr(headers, "get", None)
    if not callable(get):
        return None
    # A plain dict knows only one spelling.
    value = get(name) or get(name.lower())
    return value if isinstance(value, str) else None


def _seconds_between(start: str | None, end: str) -> float | None:
    if start is None:
        return None
    # Only now: its import takes longer than that of the rest of this room.
    from email.utils import parsedate_to_datetime  # noqa: PLC0415

    try:
        moments = [parsedate_to_datetime(text) for text in (start, end)]
        return max(0.0, (moments[1] - moments[0]).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None
