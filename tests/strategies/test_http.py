"""What is read from an exception of any HTTP client."""

from types import SimpleNamespace

import pytest

from batch_llm.strategies import _http


class Silent(Exception):  # noqa: N818
    """Has no text to tell."""

    def __str__(self) -> str:
        raise RuntimeError


def test_the_text_of_an_exception_is_empty_where_it_cannot_tell_it() -> None:
    assert _http.text_of(KeyError("row")) == "'row'"
    assert _http.text_of(Silent()) == ""


class Carrying(Exception):  # noqa: N818
    """Carries what may be a status, behind what may be another one."""

    def __init__(self, code: object, status: int) -> None:
        self.code = code
        self.status = status


@pytest.mark.parametrize(
    ("code", "status"), [(99, 429), (100, 100), (599, 599), (600, 429), ("503", 429), (None, 429)]
)
def test_a_status_has_three_digits_and_begins_with_one_to_five(code: object, status: int) -> None:
    assert _http.status_of(Carrying(code, 429)) == status


DATE = "Sun, 22 Nov 2026 04:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (
            {"x-ratelimit-remaining-requests": "59", "x-ratelimit-reset-requests": "1s"},
            [_http.Allowance(False, 59.0, 1.0)],
        ),
        (
            {
                "x-ratelimit-remaining-requests": "59",
                "x-ratelimit-reset-requests": "6m0s",
                "x-ratelimit-remaining-tokens": "149984",
                "x-ratelimit-reset-tokens": "20ms",
            },
            [_http.Allowance(False, 59.0, 360.0), _http.Allowance(True, 149_984.0, 0.02)],
        ),
        (
            {"X-RateLimit-Remaining-Requests": "1", "X-RateLimit-Reset-Requests": "1h2m3.5s"},
            [_http.Allowance(False, 1.0, 3_723.5)],
        ),
        (
            {
                "date": DATE,
                "anthropic-ratelimit-requests-remaining": "5",
                "anthropic-ratelimit-requests-reset": "2026-11-22T04:00:07Z",
                "anthropic-ratelimit-tokens-remaining": "40000",
                "anthropic-ratelimit-tokens-reset": "2026-11-22T05:00:00+01:00",
            },
            [_http.Allowance(False, 5.0, 7.0), _http.Allowance(True, 40_000.0, 0.0)],
        ),
        (
            {"RateLimit-Remaining": "0", "RateLimit-Reset": "12.5"},
            [_http.Allowance(False, 0.0, 12.5)],
        ),
        (
            {"date": DATE, "x-ratelimit-remaining": "3", "x-ratelimit-reset": "1795320030"},
            [_http.Allowance(False, 3.0, 30.0)],
        ),
        # A moment that has passed is now.
        (
            {"date": DATE, "x-ratelimit-remaining": "3", "x-ratelimit-reset": "1795319000"},
            [_http.Allowance(False, 3.0, 0.0)],
        ),
    ],
    ids=["openai", "tokens", "hours", "anthropic", "ietf", "since 1970", "past"],
)
def test_what_is_left_is_read(headers: dict[str, str], expected: list[_http.Allowance]) -> None:
    assert _http.allowances_of(headers) == expected


@pytest.mark.parametrize(
    "headers",
    [
        None,
        "a text",
        {},
        {"x-ratelimit-remaining-requests": "59"},
        {"x-ratelimit-reset-requests": "1s"},
        {"x-ratelimit-remaining": 3, "x-ratelimit-reset": 3},
        {"x-ratelimit-remaining": "many", "x-ratelimit-reset": "3"},
        {"x-ratelimit-remaining": "nan", "x-ratelimit-reset": "3"},
        {"x-ratelimit-remaining": "inf", "x-ratelimit-reset": "3"},
        {"x-ratelimit-remaining": "-1", "x-ratelimit-reset": "3"},
        {"x-ratelimit-remaining": "3", "x-ratelimit-reset": "soon"},
        {"x-ratelimit-remaining": "3", "x-ratelimit-reset": "-3"},
        # A moment means nothing without the server's clock.
        {"x-ratelimit-remaining": "3", "x-ratelimit-reset": "1795320030"},
        {"x-ratelimit-remaining": "3", "x-ratelimit-reset": "2026-11-22T04:00:07Z"},
        {"date": "?", "x-ratelimit-remaining": "3", "x-ratelimit-reset": "1795320030"},
        # Nothing renews more slowly than in a month.
        {"x-ratelimit-remaining": "3", "x-ratelimit-reset": "9999h"},
    ],
)
def test_what_cannot_be_read_tells_nothing(headers: object) -> None:
    assert _http.allowances_of(headers) == []


def test_headers_are_found_in_an_error_and_in_metadata() -> None:
    error = Carrying(429, 429)
    assert _http.headers_of(error) is None
    error.response = SimpleNamespace(headers={"a": "b"})  # type: ignore[attr-defined]
    assert _http.headers_of(error) == {"a": "b"}
    assert _http.headers_in({"headers": {"a": "b"}}) == {"a": "b"}
    assert _http.headers_in({"model": "x"}) is None
    assert _http.headers_in("a text") is None


@pytest.mark.parametrize("missing", ["remaining", "reset"])
def test_one_limit_is_read_though_of_another_half_is_missing(missing: str) -> None:
    headers = {
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-remaining-tokens": "7",
        "x-ratelimit-reset-tokens": "2s",
    }
    del headers[f"x-ratelimit-{missing}-requests"]
    assert _http.allowances_of(headers) == [_http.Allowance(True, 7.0, 2.0)]


def test_one_limit_is_read_though_another_is_told_by_an_unknown_clock() -> None:
    headers = {
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-remaining": "3",
        "x-ratelimit-reset": "1795320030",
    }
    assert _http.allowances_of(headers) == [_http.Allowance(False, 59.0, 1.0)]


@pytest.mark.parametrize(
    "nonsense",
    [
        {"x-ratelimit-remaining-requests": "many"},
        {"x-ratelimit-reset-requests": "soon"},
        {"date": "today", "x-ratelimit-reset-requests": "1795320030"},
    ],
)
def test_one_limit_is_read_though_another_is_nonsense(nonsense: dict[str, str]) -> None:
    headers = {
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-remaining-tokens": "7",
        "x-ratelimit-reset-tokens": "2s",
    }
    assert _http.allowances_of(headers | nonsense) == [_http.Allowance(True, 7.0, 2.0)]


class Unreadable:
    """Headers that cannot be read."""

    def get(self, name: str) -> str:
        raise RuntimeError(name)


def test_headers_that_cannot_be_read_ask_for_nothing() -> None:
    error = Carrying(429, 429)
    error.response = SimpleNamespace(headers=Unreadable())  # type: ignore[attr-defined]
    assert _http.retry_after_of(error) is None
    assert _http.allowances_of(Unreadable()) == []
