"""Token counts out of whatever a provider or framework gives."""

import math
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm.llm_strategies._usage import count, read_usage

TOKENS = {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, 7),
        (7.9, 7),
        (0, 0),
        (None, 0),
        (-1, 0),
        (True, 0),
        ("7", 0),
        (math.nan, 0),
        (math.inf, 0),
        ([], 0),
        (10**30, 10**30),
    ],
    ids=repr,
)
def test_a_count_is_a_number_or_nothing(value: Any, expected: int) -> None:
    assert count(value) == expected


@pytest.mark.parametrize(
    "source",
    [
        {"input_tokens": 7, "output_tokens": 5},
        {"request_tokens": 7, "response_tokens": 5},
        SimpleNamespace(input_tokens=7, output_tokens=5),
        SimpleNamespace(request_tokens=7, response_tokens=5),
        lambda: {"input_tokens": 7, "output_tokens": 5},
        lambda: SimpleNamespace(request_tokens=7, response_tokens=5),
    ],
    ids=["dict", "old dict", "object", "old object", "function", "old function"],
)
def test_every_shape(source: Any) -> None:
    assert read_usage(source) == TOKENS


def test_the_new_name_goes_before_the_old() -> None:
    assert read_usage({"request_tokens": 1, "input_tokens": 7, "output_tokens": 5}) == TOKENS


def test_a_total_that_is_told_is_kept() -> None:
    assert read_usage({"input_tokens": 7, "total_tokens": 20})["total_tokens"] == 20


def test_what_is_not_told_is_left_out() -> None:
    assert read_usage({"output_tokens": 5}) == {"output_tokens": 5, "total_tokens": 5}
    assert read_usage({"input_tokens": None, "output_tokens": 5}) == {
        "output_tokens": 5,
        "total_tokens": 5,
    }


def test_cached_tokens_under_either_name() -> None:
    for name in ("cached_input_tokens", "cache_read_tokens"):
        assert read_usage({name: 3})["cached_input_tokens"] == 3


class Broken:
    @property
    def input_tokens(self) -> int:
        raise RuntimeError("no usage")


@pytest.mark.parametrize(
    "source",
    [None, {}, [], "7", 7, Broken(), MagicMock(), Decimal(7), lambda _: {}],
    ids=lambda source: type(source).__name__,
)
def test_what_cannot_be_read_is_nothing(source: Any) -> None:
    assert read_usage(source) == {}


@given(
    st.dictionaries(
        st.sampled_from(["input_tokens", "response_tokens", "total_tokens"]),
        st.one_of(st.none(), st.integers(), st.floats(), st.text(), st.booleans()),
    )
)
def test_counts_are_never_negative_nor_anything_but_whole(source: dict[str, Any]) -> None:
    usage = read_usage(source)
    assert all(type(tokens) is int and tokens >= 0 for tokens in usage.values())
