"""The table of the default classifier: type first, then status, then text."""

import email.utils
import http
import json
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm.strategies import (
    CacheUnavailableError,
    DefaultErrorClassifier,
    EmptyResponseError,
    ErrorInfo,
    FrameworkTimeoutError,
    RateLimitExceededError,
    ResponseBlockedError,
    ResponseError,
    ResponseTruncatedError,
    StrategyContractError,
)

RATE_LIMIT = ErrorInfo(False, True, False, "rate_limit")
FRAMEWORK_TIMEOUT = ErrorInfo(True, False, True, "framework_timeout")
API_TIMEOUT = ErrorInfo(True, False, True, "api_timeout")
CONNECTION = ErrorInfo(True, False, False, "connection_error")
VALIDATION = ErrorInfo(True, False, False, "validation_error")
LOGIC = ErrorInfo(False, False, False, "logic_error")
SERVER = ErrorInfo(True, False, False, "server_error")
SERVER_TIMEOUT = ErrorInfo(True, False, True, "server_error")
CLIENT = ErrorInfo(False, False, False, "client_error")
UNKNOWN = ErrorInfo(True, False, False, "unknown")


class ProviderError(Exception):
    """A provider's error with whatever attributes its SDK gives it."""

    def __init__(self, text: str = "", **attributes: Any) -> None:
        super().__init__(text)
        vars(self).update(attributes)


def classify(error: Exception) -> ErrorInfo:
    return DefaultErrorClassifier().classify(error)


def described(value: Any) -> str:
    """A short test id."""
    return str(value.error_category if isinstance(value, ErrorInfo) else repr(value))[:60]


def invalid() -> pydantic.ValidationError:
    with pytest.raises(pydantic.ValidationError) as caught:
        pydantic.TypeAdapter(int).validate_python("429 quota")
    return caught.value


def named(name: str, text: str = "", base: type[Exception] = Exception) -> Exception:
    """An error of an HTTP client that need not be installed."""
    made: Exception = type(name, (base,), {})(text)
    return made


@pytest.mark.parametrize(
    ("error", "info"),
    [
        (FrameworkTimeoutError("429 quota"), FRAMEWORK_TIMEOUT),
        (TimeoutError(), API_TIMEOUT),
        (TimeoutError("429 quota"), API_TIMEOUT),
        (ConnectionError(), CONNECTION),
        (ConnectionResetError("timeout"), CONNECTION),
        (BrokenPipeError(), CONNECTION),
        (invalid(), VALIDATION),
        (json.JSONDecodeError("429 quota", "doc", 0), VALIDATION),
        (ValueError("timeout"), LOGIC),
        (UnicodeError(), LOGIC),
        (TypeError("429 Too Many Requests"), LOGIC),
        (AttributeError(), LOGIC),
        (KeyError("quota"), LOGIC),
        (IndexError(), LOGIC),
        (NameError(), LOGIC),
        (UnboundLocalError(), LOGIC),
        (ZeroDivisionError(), LOGIC),
        (AssertionError(), LOGIC),
        (Exception("something"), UNKNOWN),
        (RuntimeError(), UNKNOWN),
        (OSError("disk"), UNKNOWN),
        (LookupError(), UNKNOWN),
        (ExceptionGroup("several", [ValueError()]), UNKNOWN),
        (ResponseError("?"), LOGIC),
        (RateLimitExceededError("429"), ErrorInfo(False, False, False, "rate_limit_exceeded")),
        (CacheUnavailableError("timeout"), ErrorInfo(False, False, False, "cache_unavailable")),
        (StrategyContractError("quota"), ErrorInfo(False, False, False, "strategy_contract")),
        (ResponseBlockedError("no"), ErrorInfo(False, False, False, "response_blocked")),
        (
            ResponseBlockedError("recited", reason="RECITATION"),
            ErrorInfo(True, False, False, "response_blocked"),
        ),
        (ResponseTruncatedError("…"), ErrorInfo(False, False, False, "response_truncated")),
        (EmptyResponseError(""), ErrorInfo(True, False, False, "empty_response")),
    ],
    ids=described,
)
def test_the_type_comes_first(error: Exception, info: ErrorInfo) -> None:
    assert classify(error) == info


@pytest.mark.parametrize("attribute", ["code", "status_code", "status"])
@pytest.mark.parametrize(
    ("status", "info"),
    [
        (429, RATE_LIMIT),
        (http.HTTPStatus.TOO_MANY_REQUESTS, RATE_LIMIT),
        (408, SERVER_TIMEOUT),
        (409, SERVER),
        (500, SERVER),
        (503, SERVER),
        (504, SERVER_TIMEOUT),
        (599, SERVER),
        (400, CLIENT),
        (401, CLIENT),
        (403, CLIENT),
        (404, CLIENT),
        (422, CLIENT),
        (499, CLIENT),
        (200, UNKNOWN),
        (302, UNKNOWN),
        (99, UNKNOWN),
        (600, UNKNOWN),
        (None, UNKNOWN),
        (True, UNKNOWN),
        ("rate_limit_exceeded", UNKNOWN),
    ],
    ids=described,
)
def test_then_the_status(attribute: str, status: Any, info: ErrorInfo) -> None:
    assert classify(ProviderError(**{attribute: status})) == info


@pytest.mark.parametrize("text", ["quota exceeded", "timeout", "429 Too Many Requests"])
def test_the_status_outdoes_the_text(text: str) -> None:
    assert classify(ProviderError(text, code=400)) == CLIENT
    assert classify(ProviderError(text, status_code=500)) == SERVER


def test_the_type_outdoes_the_status() -> None:
    class StatusValueError(ProviderError, ValueError):
        """A ValueError that carries a status."""

    assert classify(StatusValueError(code=503)) == LOGIC


def test_a_mocked_status_is_none() -> None:
    assert classify(ProviderError("text", code=MagicMock(), status_code=lambda: 429)) == UNKNOWN


@pytest.mark.parametrize(
    "text",
    [
        "429 RESOURCE_EXHAUSTED",
        "429",
        "HTTP 429",
        "HTTP error 429: slow down",
        "status code: 429",
        "Error code: 429 - {'error': …}",
        "RESOURCE_EXHAUSTED",
        "status=RESOURCE_EXHAUSTED.",
        "Resource exhausted",
        "You exceeded your current quota, please check your plan",
        "QUOTA",
        "quotas are used up",
        "insufficient_quota",
        "quota_exceeded",
        "Rate limit reached",
        "rate-limited",
        "rate_limit_error",
        "RateLimitError",
        "Too Many Requests",
        "too_many_requests",
        "timeout after a rate limit",
    ],
)
def test_texts_of_rate_limits(text: str) -> None:
    assert classify(ProviderError(text)) == RATE_LIMIT
    assert classify(ProviderError(f"{text} ({text})")) == RATE_LIMIT


@pytest.mark.parametrize(
    "text",
    [
        "quotation mark expected",
        "bad quote",
        "unquotable",
        "record 14290 is broken",
        "record 429 is broken",
        "4290",
        "1429",
        "error 4291",
        "accurate limit",
        "corporate limits",
        "too many requested rows",
        "resource exhaustedly used",
        "a limit of the rate",
        "sometimes outside",
        "untimed output",
        "",
    ],
)
def test_words_count_at_word_boundaries_only(text: str) -> None:
    assert classify(ProviderError(text)) == UNKNOWN


@pytest.mark.parametrize(
    "text",
    ["timeout", "Read Timeout", "ReadTimeoutError", "504 Gateway Timeout", "timed out", "Time-out"],
)
def test_texts_of_timeouts(text: str) -> None:
    assert classify(ProviderError(text)) == API_TIMEOUT


@pytest.mark.parametrize(
    ("name", "info"),
    [
        ("TimeoutException", API_TIMEOUT),  # httpx
        ("APITimeoutError", API_TIMEOUT),  # openai, anthropic
        ("TransportError", CONNECTION),  # httpx
        ("ClientConnectionError", CONNECTION),  # aiohttp
        ("ClientPayloadError", CONNECTION),
        ("APIConnectionError", CONNECTION),  # openai, anthropic
        ("SomethingElse", UNKNOWN),
    ],
)
def test_errors_of_http_clients_are_known_by_name(name: str, info: ErrorInfo) -> None:
    error = named(name)
    assert classify(error) == info
    assert classify(named("Narrower", base=type(error))) == info
    assert classify(named(name, "429 Too Many Requests")) == RATE_LIMIT


def waiting(**headers: Any) -> ProviderError:
    """A 429 whose response has headers, their names written with underscores."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ProviderError(code=429, response=SimpleNamespace(headers=named))


@given(st.floats(0, 1e6))
def test_the_header_names_the_wait_in_seconds(seconds: float) -> None:
    assert classify(waiting(Retry_After=str(seconds))).suggested_wait == seconds


@pytest.mark.parametrize("seconds", [0, 30, 86_400])
def test_the_header_names_the_end_of_the_wait(seconds: int) -> None:
    now, end = (email.utils.formatdate(1e9 + later, usegmt=True) for later in (0, seconds))
    assert classify(waiting(Retry_After=end, Date=now)).suggested_wait == seconds
    assert classify(waiting(Retry_After=now, Date=end)).suggested_wait == 0.0


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Retry_After": "-1"},
        {"Retry_After": "nan"},
        {"Retry_After": "inf"},
        {"Retry_After": "soon", "Date": "Sun, 09 Sep 2001 01:46:40 GMT"},
        {"Retry_After": "Sun, 09 Sep 2001 01:46:40 GMT"},
        {"Retry_After": "Sun, 09 Sep 2001 01:46:40 GMT", "Date": "today"},
        {"Retry_After": "Sun, 09 Sep 2001 01:46:40 GMT", "Date": "9 Sep 2001 01:46:40 -0000"},
        pytest.param({"Retry_After": MagicMock()}, id="mock"),
    ],
    ids=repr,
)
def test_a_header_that_cannot_be_read_is_none(headers: dict[str, Any]) -> None:
    assert classify(waiting(**headers)) == RATE_LIMIT


@pytest.mark.parametrize("response", [None, MagicMock(), SimpleNamespace(headers=None)], ids=type)
def test_a_response_that_has_no_headers_is_none(response: Any) -> None:
    assert classify(ProviderError("quota", response=response)) == RATE_LIMIT


@given(st.text())
def test_every_text_has_one_category(text: str) -> None:
    info = classify(ProviderError(text))
    assert info in (RATE_LIMIT, API_TIMEOUT, UNKNOWN)


@given(st.integers())
def test_every_status_is_judged_by_its_number(status: int) -> None:
    info = classify(ProviderError(code=status))
    assert info.is_rate_limit == (status == 429)
    assert (info.error_category == "unknown") == (not 400 <= status <= 599)
    assert info.is_retryable == (status in (408, 409) or not 400 <= status <= 499)


@pytest.mark.parametrize("name", ["Retry-After", "retry-after"])
def test_a_plain_dict_of_headers_may_have_either_spelling(name: str) -> None:
    error: Any = Exception("429")
    error.response = SimpleNamespace(headers={name: "3"})
    assert DefaultErrorClassifier().classify(error).suggested_wait == 3.0
