"""The tree of our own errors: parents, attributes, pickling."""

import asyncio
import copy
import inspect
import pickle
from typing import Any

import pytest

import batch_llm
from batch_llm.strategies import errors
from batch_llm.strategies.errors import (
    BatchLLMError,
    CacheUnavailableError,
    EmptyResponseError,
    ErrorClassifier,
    ErrorInfo,
    FrameworkTimeoutError,
    RateLimitExceededError,
    ResponseBlockedError,
    ResponseError,
    ResponseTruncatedError,
    StrategyContractError,
)

TREE: dict[type[BatchLLMError], type[Exception]] = {
    FrameworkTimeoutError: TimeoutError,
    RateLimitExceededError: RuntimeError,
    CacheUnavailableError: RuntimeError,
    StrategyContractError: TypeError,
    ResponseError: ValueError,
    ResponseBlockedError: ResponseError,
    ResponseTruncatedError: ResponseError,
    EmptyResponseError: ResponseError,
}
FULL: list[BatchLLMError] = [
    BatchLLMError("text"),
    FrameworkTimeoutError("text"),
    RateLimitExceededError("text"),
    CacheUnavailableError("text"),
    StrategyContractError("text", returned=["paid", "for"]),
    ResponseError("text", reason="OTHER", usage={"input_tokens": 1}),
    ResponseBlockedError(
        "text", reason="SAFETY", usage={"input_tokens": 2}, safety_ratings={"HARM": "HIGH"}
    ),
    ResponseTruncatedError("text", reason="MAX_TOKENS", usage={"output_tokens": 3}),
    EmptyResponseError("text", usage={}),
]


def named(value: Any) -> str:
    """A short test id."""
    return value.__name__ if isinstance(value, type) else type(value).__name__


@pytest.mark.parametrize("kind", [StrategyContractError, ResponseError], ids=named)
def test_the_message_may_be_given_by_name(kind: Any) -> None:
    assert str(kind(message="text")) == "text"


@pytest.mark.parametrize(("kind", "parent"), TREE.items(), ids=named)
def test_each_error_has_our_root_and_its_builtin_parent(
    kind: type[BatchLLMError], parent: type[Exception]
) -> None:
    assert issubclass(kind, parent)
    assert issubclass(kind, BatchLLMError)


def test_the_tree_is_complete_and_drawn_in_the_module() -> None:
    defined = {
        kind
        for kind in vars(errors).values()
        if inspect.isclass(kind) and issubclass(kind, BatchLLMError)
    }
    assert defined == {BatchLLMError, *TREE}
    assert {type(error) for error in FULL} == defined
    assert all(kind.__name__ in (errors.__doc__ or "") for kind in defined)


def test_the_root_is_exported_at_the_top() -> None:
    assert batch_llm.BatchLLMError is BatchLLMError
    assert batch_llm.FrameworkTimeoutError is FrameworkTimeoutError


@pytest.mark.parametrize("error", FULL, ids=named)
@pytest.mark.parametrize("duplicate", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy])
def test_errors_survive_pickling_with_all_they_carry(error: BatchLLMError, duplicate: Any) -> None:
    twin = duplicate(error)
    assert type(twin) is type(error)
    assert str(twin) == "text"
    assert vars(twin) == vars(error)


def test_without_more_an_error_carries_only_its_text() -> None:
    assert StrategyContractError("text").returned is None
    assert vars(ResponseError("text")) == {"reason": "", "usage": None, "safety_ratings": None}


def test_a_framework_timeout_is_a_timeout_of_the_builtin_kind() -> None:
    with pytest.raises(asyncio.TimeoutError):
        raise FrameworkTimeoutError("late")


def test_error_info_has_an_order_and_defaults_and_is_a_value() -> None:
    info = ErrorInfo(True, False, True, "category")
    assert info == ErrorInfo(True, False, True, "category", None, None)
    assert (info.is_retryable, info.is_rate_limit, info.is_timeout) == (True, False, True)
    assert (info.error_category, info.suggested_wait, info.message) == ("category", None, None)
    assert ErrorInfo(True, False, True, "category", 1.5, "hint").suggested_wait == 1.5


def test_a_classifier_has_to_classify() -> None:
    incomplete: Any = type("Incomplete", (ErrorClassifier,), {})
    with pytest.raises(TypeError, match="classify"):
        incomplete()
