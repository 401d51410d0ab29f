"""What a type checker must see of parse_json: read by mypy and pyright, never run."""

from collections.abc import Callable
from typing import Any, assert_type

from pydantic import BaseModel, TypeAdapter

from batch_llm import GeminiStrategy, StructuredOutputError, parse_json


class Book(BaseModel):
    """An output type of the user's own."""

    title: str


class Film(BaseModel):
    """Another one."""

    minutes: int


def parsers() -> None:
    """The parser of a type gives values of that type."""
    assert_type(parse_json(Book), Callable[[Any], Book])
    assert_type(parse_json(list[Book]), Callable[[Any], list[Book]])
    assert_type(parse_json(TypeAdapter[Book | Film](Book | Film)), Callable[[Any], Book | Film])
    assert_type(parse_json(Book | Film), Callable[[Any], Any])
    assert_type(parse_json(Book)("{}"), Book)


def strategies(client: Any) -> None:
    """A strategy takes its output type from its parser."""
    assert_type(GeminiStrategy("gemini-2.5-flash", client, parse_json(Book)), GeminiStrategy[Book])


def errors(error: StructuredOutputError) -> None:
    """An error tells in plain values."""
    assert_type(error.failing_fields, dict[str, str])
    assert_type(error.valid, dict[str, Any])
    assert_type(error.text, str)
    assert_type(error.truncated, bool)
