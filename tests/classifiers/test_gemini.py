"""What Gemini's errors mean: those of the real SDK over HTTP, and those known by name only."""

import sys
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from batch_llm.classifiers import GeminiErrorClassifier
from batch_llm.classifiers.gemini import tells_cache_gone, tells_caching_refused
from batch_llm.strategies import (
    CacheUnavailableError,
    ErrorInfo,
    FrameworkTimeoutError,
    ResponseBlockedError,
    ResponseTruncatedError,
)
from batch_llm.testing.gemini import Fault, GeminiEmulator

pytestmark = pytest.mark.gemini

MODEL = "gemini-2.5-flash"


class ClientError(Exception):
    """The SDK's refusal as it looks where the SDK is not installed."""

    def __init__(self, code: int | None, text: str = "", details: Any = None) -> None:
        super().__init__(text or f"{code} refused")
        if code is not None:
            self.code = code
        self.details = details


class ServerError(ClientError):
    pass


class UnexpectedModelBehavior(Exception):  # noqa: N818 (its name in pydantic-ai)
    pass


def classify(exception: Exception) -> ErrorInfo:
    return GeminiErrorClassifier().classify(exception)


def verdict(info: ErrorInfo) -> tuple[str, bool, bool, bool]:
    return info.error_category, info.is_retryable, info.is_rate_limit, info.is_timeout


async def failure(fault: Fault, *, vertex: bool = False) -> Exception:
    """What the real SDK raises when this goes wrong with a request."""
    async with GeminiEmulator(min_cache_tokens=1) as server:
        client = server.client(vertex=vertex)
        cache = await client.aio.caches.create(model=MODEL, config={"contents": ["Text"]})
        server.script(fault)
        with pytest.raises(Exception) as caught:  # noqa: PT011 (each fault has its own)
            await client.aio.models.generate_content(
                model=MODEL, contents="Hello", config={"cached_content": cache.name}
            )
    return caught.value


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault.status(400), ("client_error", False, False, False)),
        (Fault.status(401), ("client_error", False, False, False)),
        (Fault.status(403), ("client_error", False, False, False)),
        (Fault.status(404), ("client_error", False, False, False)),
        (Fault.status(429), ("rate_limit", False, True, False)),
        (Fault.rate_limit(bare=True), ("rate_limit", False, True, False)),
        (Fault.status(500), ("server_error", True, False, False)),
        (Fault.status(503), ("server_error", True, False, False)),
        (Fault.status(504), ("server_error", True, False, True)),
        (Fault.html(502), ("server_error", True, False, False)),
        (Fault.malformed_json(), ("validation_error", True, False, False)),
        (Fault.cut(), ("connection_error", True, False, False)),
    ],
)
async def test_errors_of_the_sdk(fault: Fault, expected: tuple[str, bool, bool, bool]) -> None:
    assert verdict(classify(await failure(fault))) == expected


@pytest.mark.parametrize("vertex", [False, True])
@pytest.mark.parametrize("fault", [Fault.cache_expired(), Fault.cache_gone()])
async def test_a_cache_that_is_gone(fault: Fault, vertex: bool) -> None:
    error = await failure(fault, vertex=vertex)
    assert verdict(classify(error)) == ("cache_expired", True, False, False)


@pytest.mark.parametrize(
    "text",
    [
        "CachedContent not found (or permission denied)",
        "Cache content 17 is expired.",
        "Invalid resource state for cache content 17.",
        "Not found: cached content metadata for 17.",
        "the CACHE has EXPIRED",
    ],
)
def test_a_cache_that_is_gone_by_its_text(text: str) -> None:
    for error in (Exception(text), ClientError(403, text), ClientError(429, text)):
        assert verdict(classify(error)) == ("cache_expired", True, False, False)


@pytest.mark.parametrize(
    "text",
    [
        "models/x is not found for API version v1, or is not supported for createCachedContent",
        "The API key expired",
        "Cached content is too small. total_token_count=3, min_total_token_count=1024",
    ],
)
def test_other_texts_are_about_no_lost_cache(text: str) -> None:
    assert not tells_cache_gone(ClientError(400, text))


async def test_the_servers_own_delay_is_suggested() -> None:
    info = classify(await failure(Fault.rate_limit(45.8379)))
    assert (info.suggested_wait, info.message) == (45.8379, None)


async def test_a_rate_limit_without_a_hint_suggests_nothing() -> None:
    assert classify(await failure(Fault.rate_limit())).suggested_wait is None


async def test_a_daily_quota_says_so_and_its_short_delay_is_not_believed() -> None:
    info = classify(await failure(Fault.rate_limit(3, per_day=True)))
    assert verdict(info) == ("rate_limit", False, True, False)
    assert info.suggested_wait is None
    assert info.message is not None
    assert "GenerateRequestsPerDayPerProjectPerModel" in info.message
    assert info.ends_run
    assert not classify(await failure(Fault.rate_limit(3))).ends_run


def test_a_quota_of_zero_says_so() -> None:
    info = classify(ClientError(429, "Quota exceeded for metric: requests, limit: 0, model: x"))
    assert verdict(info) == ("rate_limit", False, True, False)
    assert info.message is not None
    assert "the quota is 0" in info.message
    assert info.ends_run
    for text in ("limit: 0.5, model: x", "limit: 10", "limit=05"):
        assert classify(ClientError(429, text)).message is None


def rate_limit_with(details: Any) -> ClientError:
    return ClientError(429, details={"error": {"details": details}})


@pytest.mark.parametrize(
    ("details", "seconds"),
    [
        ([{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "45s"}], 45.0),
        ([{"@type": "google.rpc.Help"}, {"@type": "RetryInfo", "retryDelay": "0.5s"}], 0.5),
        ([{"@type": "RetryInfo", "retryDelay": "-1s"}], None),
        ([{"@type": "RetryInfo", "retryDelay": "soon"}], None),
        ([{"@type": "RetryInfo", "retryDelay": "9" * 400 + "s"}], None),
        ([{"@type": "RetryInfo"}], None),
        ([{"@type": "Other", "retryDelay": "45s"}], None),
        ([{"@type": "QuotaFailure", "violations": "none"}, 3, None], None),
        ([{"@type": "QuotaFailure", "violations": [None, {"quotaId": "PerMinute"}]}], None),
        ("none", None),
        (None, None),
    ],
)
def test_a_delay_is_taken_only_where_there_is_one(details: Any, seconds: float | None) -> None:
    info = classify(rate_limit_with(details))
    assert (info.suggested_wait, info.message) == (seconds, None)


@pytest.mark.parametrize("details", [None, "text", [], {"message": "<html>"}, {"error": "text"}])
def test_bodies_of_any_shape_are_survived(details: Any) -> None:
    assert classify(ClientError(429, details=details)).suggested_wait is None


def test_retry_after_counts_where_the_body_has_no_hint() -> None:
    error = ClientError(429)
    error.response = type("Response", (), {"headers": {"Retry-After": "12"}})()  # type: ignore[attr-defined]
    assert classify(error).suggested_wait == 12.0


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ClientError(None, "429 RESOURCE_EXHAUSTED"), ("rate_limit", False, True, False)),
        (ClientError(409), ("client_error", False, False, False)),
        (ClientError(400, "your quota"), ("client_error", False, False, False)),
        (ServerError(500), ("server_error", True, False, False)),
        (ServerError(504), ("server_error", True, False, True)),
        (Exception("504 Gateway Timeout"), ("api_timeout", True, False, True)),
        (Exception("429 RESOURCE_EXHAUSTED"), ("rate_limit", False, True, False)),
        (UnexpectedModelBehavior("quota"), ("validation_error", True, False, False)),
        (FrameworkTimeoutError("late"), ("framework_timeout", True, False, True)),
        (ConnectionResetError(), ("connection_error", True, False, False)),
        (ValueError("no 'quota' in the answer"), ("logic_error", False, False, False)),
        (Exception("strange"), ("unknown", True, False, False)),
        (ResponseBlockedError("no", reason="SAFETY"), ("response_blocked", False, False, False)),
        (ResponseTruncatedError("no"), ("response_truncated", False, False, False)),
        (CacheUnavailableError("none"), ("cache_unavailable", False, False, False)),
    ],
    ids=repr,
)
def test_errors_known_by_type_name_and_text(
    error: Exception, expected: tuple[str, bool, bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "google.genai", None)
    monkeypatch.setitem(sys.modules, "google.genai.errors", None)
    assert verdict(classify(error)) == expected


def test_an_answer_that_does_not_validate_is_retried() -> None:
    class Book(BaseModel):
        pages: int

    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Book).validate_json('{"pages": "429 RESOURCE_EXHAUSTED"}')
    assert verdict(classify(caught.value)) == ("validation_error", True, False, False)


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (ClientError(400, "Cached content is too small. total_token_count=3"), True),
        (ClientError(400, "The cached content is of 8 tokens. The minimum token count is"), True),
        (ClientError(400, "Model x does not support explicit caching"), True),
        (ClientError(400, "User location is not supported for the API use."), False),
        (ClientError(400, "API key not valid."), False),
        (ClientError(401, "Who?"), False),
        (ClientError(403, "The caller does not have permission"), True),
        (ClientError(404, "models/x is not found"), True),
        (ClientError(429, "TotalCachedContentStorageTokens exceeded: limit=0, requested=9"), True),
        (ClientError(429, "Resource has been exhausted"), False),
        (ServerError(503, "cached content not supported just now"), False),
        (TimeoutError("cache not supported"), False),
    ],
    ids=repr,
)
def test_what_refuses_a_cache_for_good(error: Exception, refused: bool) -> None:
    assert tells_caching_refused(error) is refused


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("503 UNAVAILABLE", ("server_error", True, False)),
        ("500 INTERNAL", ("server_error", True, False)),
        ("400 INVALID_ARGUMENT", ("client_error", False, False)),
        ("429 RESOURCE_EXHAUSTED", ("rate_limit", False, True)),
        ("503 books were read", ("unknown", True, False)),
    ],
)
def test_a_leading_status_counts_where_there_is_only_a_text(
    text: str, expected: tuple[str, bool, bool]
) -> None:
    info = GeminiErrorClassifier().classify(Exception(text))
    assert (info.error_category, info.is_retryable, info.is_rate_limit) == expected


def test_an_invalid_answer_may_speak_of_an_expired_cache() -> None:
    class Entry(BaseModel):
        cache_expired: bool

    with pytest.raises(ValidationError) as caught:
        Entry.model_validate({})
    assert GeminiErrorClassifier().classify(caught.value).error_category == "validation_error"
