"""What can go wrong, and what to make of it.

The library's own errors::

    BatchLLMError
    ├── FrameworkTimeoutError (TimeoutError)   a deadline of the library's ran out
    ├── RateLimitExceededError (RuntimeError)  one item was rate limited too often
    ├── CacheUnavailableError (RuntimeError)   there is no cache, and none can be made
    ├── StrategyContractError (TypeError)      a strategy returned no (output, usage), or is none
    └── ResponseError (ValueError)             the provider answered, but without a usable answer
        ├── ResponseBlockedError               the prompt or the answer was blocked
        ├── ResponseTruncatedError             the answer ended at the token limit
        └── EmptyResponseError                 the answer holds nothing
"""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from batch_llm.strategies import _http

if TYPE_CHECKING:
    from batch_llm.base import TokenUsage


class BatchLLMError(Exception):
    """The root of the library's own errors."""


class FrameworkTimeoutError(BatchLLMError, TimeoutError):
    """A deadline that the library itself set ran out; a provider's timeouts are other types."""


class RateLimitExceededError(BatchLLMError, RuntimeError):
    """An item was refused for the rate limit more often than the configuration allows."""


class CacheUnavailableError(BatchLLMError, RuntimeError):
    """A strategy that needs a provider's cache has none, and may or can make none."""


class StrategyContractError(BatchLLMError, TypeError):
    """A strategy has no async ``execute``, or returned something else than (output, usage).

    Attributes:
        returned: What ``execute`` returned, so that nothing paid for is lost.
    """

    def __init__(self, message: str, *, returned: Any = None) -> None:
        super().__init__(message)
        self.returned = returned


class ResponseError(BatchLLMError, ValueError):
    """The provider answered and billed, but there is no usable answer.

    Attributes:
        reason: The provider's own word for it, such as ``"SAFETY"``.
        usage: Tokens of the call.
        safety_ratings: Probability by category, as the provider rated the prompt or the
            answer; None where it did not.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        usage: "TokenUsage | None" = None,
        safety_ratings: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.usage = usage
        self.safety_ratings = safety_ratings


class ResponseBlockedError(ResponseError):
    """The provider blocked the prompt or withheld the answer."""


class ResponseTruncatedError(ResponseError):
    """The answer ended at the token limit, before it was complete."""


class EmptyResponseError(ResponseError):
    """The answer holds no candidate, or a candidate without content."""


@dataclass(frozen=True)
class ErrorInfo:
    """A classified failure.

    Attributes:
        is_retryable: Whether another attempt may help.
        is_rate_limit: Whether the provider refused the call for its rate limit; such a
            call is repeated after a cooldown whatever ``is_retryable`` says.
        is_timeout: Whether time ran out, on either side.
        error_category: One word for logs and metrics.
        suggested_wait: Seconds the provider asked to wait, None if it named none.
        message: What a person should know of a rate limit, where it is more than the
            exception's own text; an item that gives up waiting fails with it.
        ends_run: Whether no call will be let in for hours, such as when the day's quota is
            spent: a run that learns its limits then ends instead of waiting.
    """

    is_retryable: bool
    is_rate_limit: bool
    is_timeout: bool
    error_category: str
    suggested_wait: float | None = None
    message: str | None = None
    ends_run: bool = False


class ErrorClassifier(ABC):
    """Knows what the errors of one provider mean."""

    @abstractmethod
    def classify(self, exception: Exception) -> ErrorInfo:
        """Say what kind of failure an exception is."""


_LOGIC_ERRORS = (
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
    NameError,
    ZeroDivisionError,
    AssertionError,
)

# A recitation depends on the sampling: another try often passes.
_REASONS_WORTH_A_RETRY = frozenset({"RECITATION"})


def _permanent(category: str) -> ErrorInfo:
    return ErrorInfo(False, False, False, category)


def _retryable(category: str, *, is_timeout: bool = False) -> ErrorInfo:
    return ErrorInfo(True, False, is_timeout, category)


class DefaultErrorClassifier(ErrorClassifier):
    """Goes by the exception's type, then by an HTTP status it carries, then by its text."""

    def classify(self, exception: Exception) -> ErrorInfo:
        """Say what kind of failure an exception is; anything unknown is retryable."""
        return (
            self._by_own_type(exception)
            or self._by_type(exception)
            or self._by_status(exception)
            or self._by_text(exception)
            or _retryable("unknown")
        )

    def _by_own_type(self, exception: Exception) -> ErrorInfo | None:
        match exception:
            case FrameworkTimeoutError():
                return _retryable("framework_timeout", is_timeout=True)
            case RateLimitExceededError():
                return _permanent("rate_limit_exceeded")
            case CacheUnavailableError():
                return _permanent("cache_unavailable")
            case StrategyContractError():
                return _permanent("strategy_contract")
            case ResponseBlockedError(reason=reason):
                return ErrorInfo(reason in _REASONS_WORTH_A_RETRY, False, False, "response_blocked")
            case ResponseTruncatedError():
                return _permanent("response_truncated")
            case EmptyResponseError():
                return _retryable("empty_response")
            case _:
                return None

    def _by_type(self, exception: Exception) -> ErrorInfo | None:
        if isinstance(exception, ValidationError | json.JSONDecodeError):
            return _retryable("validation_error")
        if isinstance(exception, TimeoutError):
            return _retryable("api_timeout", is_timeout=True)
        if isinstance(exception, ConnectionError):
            return _retryable("connection_error")
        if isinstance(exception, _LOGIC_ERRORS):
            return _permanent("logic_error")
        return None

    def _by_status(self, exception: Exception) -> ErrorInfo | None:
        status = _http.status_of(exception)
        if status is None or status < 400:
            return None
        if status == 429:
            return self._rate_limit(exception)
        if status >= 500 or status in (408, 409):
            return ErrorInfo(True, False, status in (408, 504), "server_error")
        return _permanent("client_error")

    def _by_text(self, exception: Exception) -> ErrorInfo | None:
        text = _http.text_of(exception)
        if _http.tells_rate_limit(text):
            return self._rate_limit(exception)
        if _http.is_transport_timeout(exception) or _http.tells_timeout(text):
            return _retryable("api_timeout", is_timeout=True)
        if _http.is_transport_failure(exception):
            return _retryable("connection_error")
        return None

    def _rate_limit(self, exception: Exception) -> ErrorInfo:
        return ErrorInfo(False, True, False, "rate_limit", _http.retry_after_of(exception))
