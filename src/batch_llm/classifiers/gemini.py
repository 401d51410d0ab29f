"""What the errors of the Gemini API mean, on the Developer API and on Vertex AI.

Errors are known by class name, status and text: google-genai need not be installed.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from batch_llm.strategies import _http
from batch_llm.strategies.errors import BatchLLMError, DefaultErrorClassifier, ErrorInfo

_API_ERRORS = frozenset({"ClientError", "ServerError"})
# The SDK decodes the bodies of errors too: there as well, bytes that are no text come from outside.
_INVALID_ANSWERS = frozenset({"ValidationError", "UnexpectedModelBehavior", "UnicodeDecodeError"})

# The Developer API calls a cache that is gone forbidden, Vertex AI invalid or not found.
_CACHE_GONE = re.compile(
    r"cached ?content not found"
    r"|not found: cached ?content"
    r"|invalid resource state for cached? ?content",
    re.IGNORECASE,
)
_UNSUPPORTED = re.compile(r"not support|unsupported", re.IGNORECASE)
_REFUSED = re.compile(
    r"too small|not support|unsupported|not available|minimum token count", re.IGNORECASE
)
_CACH = re.compile("cach", re.IGNORECASE)
_LIMIT_ZERO = re.compile(r"\blimit\W{1,3}0(?![\d.])", re.IGNORECASE)
_LEADING_STATUS = re.compile(r"([45]\d\d) (?=[A-Z])")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)s")


class GeminiErrorClassifier(DefaultErrorClassifier):
    """Knows the errors of the Gemini API, and takes the API's own hints how long to wait.

    A cache that expired or is gone is ``cache_expired`` and retryable, whatever its status.
    A daily quota that is used up, and a quota of zero, are rate limits like any other, but
    ``ErrorInfo.message`` says that waiting for a minute does not help.
    """

    def classify(self, exception: Exception) -> ErrorInfo:
        """Say what kind of failure an exception is; anything unknown is retryable."""
        # An answer may speak of caches too.
        if invalid := self._by_invalid_answer(exception):
            return invalid
        if tells_cache_gone(exception):
            return ErrorInfo(True, False, False, "cache_expired")
        return (
            self._by_api_status(exception)
            or self._by_leading_status(exception)
            or super().classify(exception)
        )

    def _by_leading_status(self, exception: Exception) -> ErrorInfo | None:
        """What stands for the status where there is only a text, such as "503 UNAVAILABLE"."""
        found = _LEADING_STATUS.match(_http.text_of(exception))
        if found is None or isinstance(exception, BatchLLMError):
            return None
        if found[1] == "504":
            return ErrorInfo(True, False, True, "api_timeout")
        return self._of_status(int(found[1]), exception)

    def _by_api_status(self, exception: Exception) -> ErrorInfo | None:
        status = _http.status_of(exception)
        if status is None or status < 400 or _API_ERRORS.isdisjoint(_class_names(exception)):
            return None
        return self._of_status(status, exception)

    def _of_status(self, status: int, exception: Exception) -> ErrorInfo:
        if status == 429:
            return self._rate_limit(exception)
        if status >= 500:
            return ErrorInfo(True, False, status == 504, "server_error")
        return ErrorInfo(False, False, False, "client_error")

    def _by_invalid_answer(self, exception: Exception) -> ErrorInfo | None:
        if _INVALID_ANSWERS.isdisjoint(_class_names(exception)):
            return None
        return ErrorInfo(True, False, False, "validation_error")

    def _rate_limit(self, exception: Exception) -> ErrorInfo:
        details = list(_error_details(exception))
        if _tells_zero_quota(exception):
            message = (
                "the quota is 0: this key may not use the model or feature at all, so waiting "
                "does not help; use another model or a key with billing"
            )
            return ErrorInfo(False, True, False, "rate_limit", None, message, ends_run=True)
        if quota := _daily_quota(details):
            # Its retryDelay may be a few seconds, which only brings the same refusal again.
            message = (
                f"the quota for the whole day is used up ({quota}); it comes back at midnight "
                "Pacific time, or ask for a higher one"
            )
            return ErrorInfo(False, True, False, "rate_limit", None, message, ends_run=True)
        wait = _retry_delay(details)
        if wait is None:
            wait = _http.retry_after_of(exception)
        return ErrorInfo(False, True, False, "rate_limit", wait)


def tells_cache_gone(exception: BaseException) -> bool:
    """Whether an error says that the cache expired, was deleted or never existed."""
    text = _http.text_of(exception)
    lower = text.lower()
    return ("cache" in lower and "expired" in lower) or _CACHE_GONE.search(text) is not None


def tells_caching_refused(exception: BaseException) -> bool:
    """Whether a refused creation means that this cache can never be made.

    So it is for content below the model's minimum, a model without explicit caching, and a
    key that may not create caches. Anything else may be mended by another try.
    """
    match _http.status_of(exception):
        case 400:
            return _tells_cache_refused(_http.text_of(exception))
        case 403 | 404:
            return True
        case 429:
            return _tells_zero_quota(exception)
        case _:
            return False


def _tells_cache_refused(text: str) -> bool:
    """Whether a text speaks of caches and, before or behind that, of what is not to be had.

    Two searches, since one pattern for both would take quadratic time over a long page.
    """
    named = _CACH.search(text)
    if named is None:
        return False
    is_refused = _REFUSED.search(text, named.end()) or _UNSUPPORTED.search(text, 0, named.start())
    return is_refused is not None


def _class_names(exception: BaseException) -> set[str]:
    return {cls.__name__ for cls in type(exception).__mro__}


def _tells_zero_quota(exception: BaseException) -> bool:
    return _LIMIT_ZERO.search(_http.text_of(exception)) is not None


def _error_details(exception: BaseException) -> Iterator[Mapping[str, Any]]:
    """The google.rpc details of an error: e.details['error']['details']."""
    body = _http.attribute(exception, "details")
    error = _get(body, "error") or body
    for detail in _items(_get(error, "details")):
        if isinstance(detail, Mapping):
            yield cast("Mapping[str, Any]", detail)


def _get(body: object, key: str) -> Any:
    return cast("Mapping[str, Any]", body).get(key) if isinstance(body, Mapping) else None


def _items(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _is_a(detail: Mapping[str, Any], name: str) -> bool:
    return str(detail.get("@type", "")).endswith(name)


def _retry_delay(details: list[Mapping[str, Any]]) -> float | None:
    for detail in details:
        delay = _DURATION.fullmatch(str(detail.get("retryDelay")))
        if delay and _is_a(detail, "RetryInfo"):
            return _http.believed(float(delay[1]))
    return None


def _daily_quota(details: list[Mapping[str, Any]]) -> str | None:
    for detail in details:
        if _is_a(detail, "QuotaFailure"):
            for violation in _items(detail.get("violations")):
                quota = str(_get(violation, "quotaId"))
                if "PerDay" in quota:
                    return quota
    return None
