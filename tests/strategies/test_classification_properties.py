"""What holds of every exception that a provider's client may raise."""

import math
import string
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from batch_llm.strategies import DefaultErrorClassifier, ErrorInfo

MONTH = 31 * 86_400.0
RATE_LIMITS = ["quota", "rate limit", "Too Many Requests", "RESOURCE_EXHAUSTED", "HTTP 429"]
TIMEOUTS = ["timed out", "Time-out", "read timeout"]
# Around a word: what ends neither it nor another.
PADDING = st.text(" .,;!?\n\t", max_size=20)
TYPES = {
    TimeoutError: "api_timeout",
    ConnectionResetError: "connection_error",
    ValueError: "logic_error",
    KeyError: "logic_error",
    ZeroDivisionError: "logic_error",
}


class Refusing:
    """Cannot be read at all."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no attribute")

    def get(self, name: str) -> Any:
        raise RuntimeError("no header")


class ProviderError(Exception):
    """An exception with a text and attributes of any kind."""

    def __init__(self, text: Any = "", /, **attributes: Any) -> None:
        super().__init__(text)
        self.__dict__.update(attributes)


class MuteError(Refusing, ProviderError):
    """Another that cannot be read."""


TEXTS = st.text() | st.sampled_from(RATE_LIMITS + TIMEOUTS)
STATUSES = st.integers(-1000, 1000) | st.none() | st.text() | st.floats() | st.just(10**400)
HEADER = (
    st.text()
    | st.floats().map(str)
    | st.integers().map(str)
    | st.datetimes().map(lambda moment: moment.strftime("%a, %d %b %Y %H:%M:%S GMT"))
    | st.integers(1).map(lambda year: f"Sun, 09 Sep {year} 01:46:40 GMT")
    | st.none()
)
HEADERS = st.dictionaries(st.sampled_from(["Retry-After", "retry-after", "Date"]), HEADER)
RESPONSES = HEADERS.map(lambda headers: SimpleNamespace(headers=headers)) | st.sampled_from(
    [None, "response", Refusing(), SimpleNamespace(headers=Refusing())]
)


@st.composite
def failures(draw: st.DrawFn, kinds: Any = (ProviderError, MuteError)) -> Exception:
    """Exceptions with any text, status and response, with causes and in groups."""
    attributes = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "code": STATUSES,
                "status_code": STATUSES,
                "status": STATUSES,
                "response": RESPONSES,
            },
        )
    )
    error: Exception = draw(st.sampled_from(kinds))(draw(TEXTS), **attributes)
    if draw(st.booleans()):
        error.__cause__ = draw(st.sampled_from([TimeoutError("quota"), ProviderError(code=429)]))
    if draw(st.booleans()):
        error = ExceptionGroup(draw(TEXTS), [error])
    return error


def classify(error: Exception) -> ErrorInfo:
    return DefaultErrorClassifier().classify(error)


def is_sound(info: ErrorInfo) -> bool:
    """Whether it is a verdict that the engine can work with."""
    flags = (info.is_retryable, info.is_rate_limit, info.is_timeout)
    wait = info.suggested_wait
    return (
        all(type(flag) is bool for flag in flags)
        and bool(info.error_category)
        and (wait is None or (math.isfinite(wait) and 0 <= wait <= MONTH))
        and (wait is None or info.is_rate_limit)
    )


@given(failures())
def test_every_exception_is_something(error: Exception) -> None:
    assert is_sound(classify(error))


@given(st.sampled_from(list(TYPES)), TEXTS, STATUSES)
def test_a_type_goes_before_status_and_text(kind: type[Exception], text: str, status: Any) -> None:
    error: Any = kind(text)
    error.code = status
    assert classify(error).error_category == TYPES[kind]


@given(st.integers(400, 599), TEXTS, TEXTS)
def test_a_status_goes_before_the_text(status: int, text: str, other: str) -> None:
    assert classify(ProviderError(text, code=status)) == classify(ProviderError(other, code=status))


@given(st.sampled_from(RATE_LIMITS + TIMEOUTS), PADDING, PADDING)
def test_words_mean_the_same_wherever_they_stand(words: str, before: str, after: str) -> None:
    info = classify(ProviderError(f"{before} {words} {after}"))
    assert info == classify(ProviderError(words))
    assert info.is_rate_limit == (words in RATE_LIMITS)
    assert info.is_timeout == (words in TIMEOUTS)


@given(
    st.sampled_from(["quota", "too many requests", "resource exhausted"]),
    st.text(string.ascii_letters, min_size=1, max_size=5),
    st.text(string.ascii_letters, min_size=1, max_size=5),
)
def test_words_within_words_mean_nothing(words: str, before: str, after: str) -> None:
    assert classify(ProviderError(f"{before}{words}{after}")).error_category == "unknown"


@given(st.text(string.digits, max_size=4), st.text(string.digits, min_size=1, max_size=4))
def test_a_number_that_holds_429_means_nothing(some: str, more: str) -> None:
    for number in (f"{some}429{more}", f"{more}429{some}"):
        text = f"record {number} of HTTP {number}"
        assert classify(ProviderError(text)).error_category == "unknown"


@given(RESPONSES)
def test_a_rate_limit_is_one_whatever_its_headers(response: Any) -> None:
    info = classify(ProviderError(code=429, response=response))
    assert is_sound(info)
    assert info.is_rate_limit


@given(st.floats(0, MONTH))
def test_a_wait_that_can_be_meant_is_taken(seconds: float) -> None:
    response = SimpleNamespace(headers={"Retry-After": str(seconds)})
    assert classify(ProviderError(code=429, response=response)).suggested_wait == seconds


@given(st.floats(MONTH, exclude_min=True) | st.floats(max_value=0, exclude_max=True))
def test_one_that_cannot_be_is_not(seconds: float) -> None:
    response = SimpleNamespace(headers={"Retry-After": str(seconds)})
    assert classify(ProviderError(code=429, response=response)).suggested_wait is None
