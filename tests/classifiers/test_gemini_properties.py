"""What holds of every error of the Gemini API, however its body looks."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm import GeminiErrorClassifier
from batch_llm.classifiers.gemini import tells_cache_gone, tells_caching_refused
from batch_llm.strategies import DefaultErrorClassifier, ErrorInfo
from batch_llm.strategies._http import text_of
from tests.strategies.test_classification_properties import (
    MONTH,
    STATUSES,
    MuteError,
    ProviderError,
    failures,
    is_sound,
)

pytestmark = pytest.mark.gemini


class ClientError(ProviderError):
    """The SDK's own, known by its name."""


class ServerError(ProviderError):
    """The same."""


class MuteClientError(MuteError, ClientError):
    """The same, and it cannot be read."""


SDK_ERRORS = (ClientError, ServerError, MuteClientError, ProviderError)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["7s", "9" * 400 + "s", "RetryInfo", "QuotaFailure", "RequestsPerDay"])
)
KEYS = st.sampled_from(
    ["error", "details", "@type", "retryDelay", "violations", "quotaId", "message"]
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
BODIES = JSON | JSON.map(lambda details: {"error": {"details": details}})

# The definition: of caches and, before or behind, of what is not to be had. It takes
# quadratic time, which is why it stands here and not in the library.
REFUSED = re.compile(
    r"cach.*?(?:too small|not support|unsupported|not available|minimum token count)"
    r"|(?:not support|unsupported).*?cach",
    re.IGNORECASE | re.DOTALL,
)
PHRASES = ["cach", "Cached content", "too small", "not supported", "unsupported", "not available"]


def classify(error: Exception) -> ErrorInfo:
    return GeminiErrorClassifier().classify(error)


@given(failures(SDK_ERRORS), BODIES)
def test_every_exception_is_something(error: Any, details: Any) -> None:
    error.details = details
    assert is_sound(classify(error))
    assert type(tells_cache_gone(error)) is bool
    assert type(tells_caching_refused(error)) is bool


@given(st.integers(400, 599), st.sampled_from(["quota", "timeout", "504 Gateway", "text"]), BODIES)
def test_an_api_errors_status_goes_before_its_text(status: int, text: str, details: Any) -> None:
    info = classify(ClientError(text, code=status, details=details))
    assert info.is_rate_limit == (status == 429)
    assert info.is_timeout == (status == 504)
    assert info.is_retryable == (status >= 500)


@given(st.sampled_from(SDK_ERRORS[:2]), STATUSES, BODIES, st.sampled_from(["", "quota: ", "\n"]))
def test_a_cache_that_is_gone_goes_before_everything(
    kind: type[ProviderError], status: Any, details: Any, before: str
) -> None:
    error = kind(f"{before}CACHED CONTENT 7 has Expired", code=status, details=details)
    assert classify(error) == ErrorInfo(True, False, False, "cache_expired")


@given(failures(), st.text())
def test_what_is_not_the_apis_is_judged_as_by_default(error: Exception, text: str) -> None:
    """Unless it speaks of a cache, or begins with a status as the API's errors do."""
    for other in (error, ProviderError(f"It says: {text}")):
        if not tells_cache_gone(other) and not re.match(r"[45]\d\d ", text_of(other)):
            assert classify(other) == DefaultErrorClassifier().classify(other)


@given(st.decimals(0, int(MONTH), places=4))
def test_the_apis_own_delay_is_taken(seconds: Any) -> None:
    details = [{"@type": "google.rpc.RetryInfo", "retryDelay": f"{seconds}s"}]
    error = ClientError(code=429, details={"error": {"details": details}})
    assert classify(error).suggested_wait == float(seconds)


@given(st.integers(int(MONTH) + 1))
def test_unless_nobody_can_mean_it(seconds: int) -> None:
    details = [{"@type": "google.rpc.RetryInfo", "retryDelay": f"{seconds}s"}]
    error = ClientError(code=429, details={"error": {"details": details}})
    assert classify(error).suggested_wait is None


@given(st.lists(st.sampled_from([*PHRASES, " of ", "\n", "NOT SUPPORT", "é"]), max_size=8))
def test_a_refused_cache_is_known_by_its_words_in_either_order(words: list[str]) -> None:
    text = "".join(words)
    assert tells_caching_refused(ClientError(text, code=400)) == bool(REFUSED.search(text))
