"""What an exception of any HTTP client tells: status, text, headers. No client is imported.

Clients are known by the names of their exception classes only, since a strategy may use
any of them, or one that is not installed here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

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


def headers_of(exception: BaseException) -> object:
    """The headers of the response that an exception carries, None without one."""
    response = attribute(exception, "response")
    try:
        return getattr(response, "headers", None)
    except Exception:
        return None


def headers_in(metadata: object) -> object:
    """The headers in the metadata of an answer, None without any."""
    if not isinstance(metadata, Mapping):
        return None
    return cast("Mapping[str, object]", metadata).get("headers")


def retry_after_of(exception: BaseException) -> float | None:
    """Seconds that the response's Retry-After header asks to wait, None without a valid one.

    A date is taken relative to the response's own Date header: the two come from one
    clock, which ours need not agree with.
    """
    headers = headers_of(exception)
    try:
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


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a response tells of one limit.

    Attributes:
        of_tokens: Whether it limits tokens rather than requests.
        remaining: What was left when the response was made, the call itself deducted.
        reset_seconds: How long after that the limit is whole again.
    """

    of_tokens: bool
    remaining: float
    reset_seconds: float


# Whether of tokens, and the headers for what remains and for the time until it is whole again.
_ALLOWANCES = (
    (False, "X-RateLimit-Remaining-Requests", "X-RateLimit-Reset-Requests"),
    (True, "X-RateLimit-Remaining-Tokens", "X-RateLimit-Reset-Tokens"),
    (False, "Anthropic-RateLimit-Requests-Remaining", "Anthropic-RateLimit-Requests-Reset"),
    (True, "Anthropic-RateLimit-Tokens-Remaining", "Anthropic-RateLimit-Tokens-Reset"),
    (False, "X-RateLimit-Remaining", "X-RateLimit-Reset"),
    (False, "RateLimit-Remaining", "RateLimit-Reset"),
)
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:h|ms|m|s))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s)")
_UNIT_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
# Nobody resets in thirty years: a number above is a moment, in seconds since 1970.
_EPOCH_SECONDS = 1e9


def allowances_of(headers: object) -> list[Allowance]:
    """What a response's headers tell of the provider's limits, as far as it can be read.

    The headers of OpenAI and those who follow it ("Rate limits in headers" in its guide to
    rate limits; times as ``1s`` or ``6m0s``), of Anthropic ("Response headers" in its page
    on rate limits; times as RFC 3339), and the general ones (RateLimit-Remaining and
    RateLimit-Reset of draft-ietf-httpapi-ratelimit-headers-07, and their older X- forms;
    times in seconds, or since 1970). Moments are taken relative to the response's own Date.
    """
    found: list[Allowance] = []
    for of_tokens, remaining, reset in _ALLOWANCES:
        try:
            allowance = _allowance(headers, of_tokens, remaining, reset)
        except Exception:
            # The headers are an object of some client's, and their values of some server's.
            continue
        if allowance is not None:
            found.append(allowance)
    return found


def _allowance(headers: object, of_tokens: bool, remaining: str, reset: str) -> Allowance | None:
    left, moment = _header(headers, remaining), _header(headers, reset)
    if left is None or moment is None:
        return None
    amount, seconds = float(left), _seconds_until(moment, _header(headers, "Date"))
    if seconds is None or not 0 <= amount < float("inf"):
        return None
    return Allowance(of_tokens, amount, seconds)


def _seconds_until(reset: str, date: str | None) -> float | None:
    """Seconds until a moment that is told in one of many ways, None where it cannot be read."""
    text = reset.strip()
    if _DURATION.fullmatch(text):
        return believed(sum(float(n) * _UNIT_SECONDS[unit] for n, unit in _PART.findall(text)))
    # Only now: imports that few need.
    from datetime import datetime  # noqa: PLC0415
    from email.utils import parsedate_to_datetime  # noqa: PLC0415

    try:
        seconds = float(text)
    except ValueError:
        moment = datetime.fromisoformat(text).timestamp()
    else:
        if seconds < _EPOCH_SECONDS:
            return believed(seconds)
        moment = seconds
    if date is None:
        return None
    return believed(max(0.0, moment - parsedate_to_datetime(date).timestamp()))
