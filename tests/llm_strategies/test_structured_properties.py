"""parse_json: whatever stands around an answer or is missing from it, no value is ever another."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, JsonValue

from batch_llm import EmptyResponseError, StructuredOutputError, parse_json

# What could be mistaken for structure is as likely as all other characters together.
texts = st.text(st.one_of(st.sampled_from('{}[]",:\\`\n\t\ufeff '), st.characters(codec="utf-8")))


class Author(BaseModel):
    name: str
    born: date | None


class Book(BaseModel):
    title: str
    pages: int
    rating: float
    price: Decimal
    authors: list[Author]
    remarks: dict[str, str]


books = st.builds(
    Book,
    title=texts,
    pages=st.integers(),
    rating=st.floats(allow_nan=False, allow_infinity=False),
    price=st.decimals(allow_nan=False, allow_infinity=False, places=2),
    authors=st.lists(st.builds(Author, name=texts, born=st.none() | st.dates()), max_size=3),
    remarks=st.dictionaries(texts, texts, max_size=3),
)
parse_book = parse_json(Book)

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
values = st.recursive(
    scalars.filter(lambda value: value not in (float("inf"), float("-inf"))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)
objects = st.dictionaries(texts, values, min_size=1, max_size=4)
parse_anything: Callable[[Any], JsonValue] = parse_json(Any)

words = st.text(st.characters(codec="utf-8", exclude_characters='{}[]"\\\\'))
prose = words | st.builds('{} "{}" {}'.format, words, words, words)
fences = st.sampled_from(["", "```json\n", "```\n", "``` JSON \n", "\ufeff"])


@given(books, prose, prose, fences, st.sampled_from([None, 0, 2]))
def test_an_answer_is_found_in_prose_and_fences(
    book: Book, before: str, behind: str, fence: str, indent: int | None
) -> None:
    answer = book.model_dump_json(indent=indent)
    assert parse_book(f"{before}.\n{fence}{answer}\n```\n.{behind}") == book
    assert parse_book(f"{fence}{answer}\n") == book


@given(values, fences)
def test_a_value_of_any_kind_is_found_in_a_fence(value: JsonValue, fence: str) -> None:
    assert parse_anything(f"{fence}{json.dumps(value)}\n```") == value


def dumped(value: JsonValue, comma: str) -> str:
    """JSON with something behind the last element of each list and object, and raw line breaks."""
    if isinstance(value, list):
        return f"[{', '.join(dumped(item, comma) for item in value)}{comma if value else ''}]"
    if isinstance(value, dict):
        fields = (f"{dumped(key, comma)}: {dumped(item, comma)}" for key, item in value.items())
        return f"{{{', '.join(fields)}{comma if value else ''}}}"
    if isinstance(value, str):
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{quoted}"'
    return json.dumps(value)


@given(objects, st.sampled_from(["", ",", " ,\n"]))
def test_last_commas_and_raw_line_breaks_change_nothing(
    value: dict[str, JsonValue], comma: str
) -> None:
    assert parse_anything(dumped(value, comma)) == value


@given(objects, st.data(), fences, st.sampled_from(["", ","]))
def test_an_object_that_was_cut_off_is_told_and_never_completed(
    value: dict[str, JsonValue], data: st.DataObject, fence: str, comma: str
) -> None:
    text = dumped(value, comma)
    cut = data.draw(st.integers(1, len(text) - 1))
    with pytest.raises(StructuredOutputError) as caught:
        parse_anything(fence + text[:cut])
    assert caught.value.truncated
    assert all(value[name] == field for name, field in caught.value.valid.items())


@given(objects, st.data(), st.sampled_from('{}[]",:\\ \n') | st.just(""))
def test_a_damaged_answer_is_read_as_it_stands_or_not_at_all(
    value: dict[str, JsonValue], data: st.DataObject, put: str
) -> None:
    text = json.dumps(value, ensure_ascii=False)
    at = data.draw(st.integers(0, len(text)))
    left_out = data.draw(st.integers(0, 1)) if put else 1
    before, behind = text[:at], text[at + left_out :]
    damaged = before + put + behind
    with suppress(StructuredOutputError, EmptyResponseError):
        # What was put in may also be prose.
        assert parse_anything(damaged) in [*readings(damaged), *readings(before + behind)]


def readings(text: str) -> Iterator[JsonValue]:
    """What a text says as it stands, or with one comma fewer."""
    commas = (at for at, character in enumerate(text) if character == ",")
    for read in (text, *(text[:at] + text[at + 1 :] for at in commas)):
        with suppress(json.JSONDecodeError):
            yield json.loads(read, strict=False)


@given(st.text(st.sampled_from('{}[]",:\\`1 a\n\ufeff')))
def test_any_text_is_an_answer_or_an_error_of_ours(text: str) -> None:
    with suppress(StructuredOutputError, EmptyResponseError):
        parse_anything(text)
