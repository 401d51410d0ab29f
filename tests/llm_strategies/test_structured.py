"""parse_json: what it takes for an answer, what it refuses, and what its errors tell."""

import copy
import json
import pickle
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Annotated, Any, Literal
from unittest.mock import MagicMock

import pytest
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from batch_llm import (
    BatchLLMError,
    DefaultErrorClassifier,
    EmptyResponseError,
    ErrorInfo,
    GeminiErrorClassifier,
    ResponseTruncatedError,
    StructuredOutputError,
    TruncatedOutputError,
    parse_json,
)

ANSWER = '{"title": "Emma", "pages": 474, "tags": ["a", "b"]}'
MANY = 1 << 18


class Author(BaseModel):
    name: str


class Book(BaseModel):
    title: str
    pages: int = Field(gt=0)
    tags: list[str] = []
    author: Author | None = None


EMMA = Book(title="Emma", pages=474, tags=["a", "b"])
parse_book = parse_json(Book)
parse_anything = parse_json(Any)


def refusal(text: Any, parse: Any = parse_book) -> StructuredOutputError:
    with pytest.raises(StructuredOutputError) as caught:
        parse(text)
    return caught.value


@pytest.mark.parametrize(
    "text",
    [
        ANSWER,
        f"\ufeff{ANSWER}\n",
        f"```json\n{ANSWER}\n```",
        f"```\n{ANSWER}```\n",
        f"```json\n{ANSWER}",
        f"{ANSWER}\n```",
        f"Sure [1], by {{name}} for {{}}:\n\n```json\n{ANSWER}\n```\nAs [2] says.",
        f"The answer: {ANSWER} It's done.",
        f'Beside "[x", "{{x" and "\\"}}": so {ANSWER} And "}}".',
        f"42 {ANSWER}",
        f"NaN: {ANSWER}",
        '{"title": "Emma", "pages": 474, "tags": ["a", "b" ,\n],}',
    ],
    ids=[
        "bare",
        "byte order mark",
        "fence",
        "fence without a language",
        "fence without an end",
        "fence without a beginning",
        "fence in prose",
        "prose",
        "brackets in quotes",
        "number before it",
        "no number before it",
        "trailing commas",
    ],
)
def test_an_answer_is_found(text: str) -> None:
    assert parse_book(text) == EMMA


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ('{"title": "```json\\n{}\\n```", "pages": 1}', "```json\n{}\n```"),
        ('Here: {"title": "```json\\n{}\\n```", "pages": 1} Bye', "```json\n{}\n```"),
        ('{"title": "a, ] b,}", "pages": 1,}', "a, ] b,}"),
        ('{"title": "\\",]", "pages": 1,}', '",]'),
        ('{"title": "two\nlines\tand\x00", "pages": 1}', "two\nlines\tand\x00"),
        ('x {"title": "two\r\nlines", "pages": 1,}', "two\r\nlines"),
    ],
    ids=["fence", "fence in prose", "commas", "quote", "line break", "line break in prose"],
)
def test_a_text_in_the_answer_stays_as_it_is(text: str, title: str) -> None:
    assert parse_book(text) == Book(title=title, pages=1)


@dataclass
class Point:
    x: int


@pytest.mark.parametrize(
    ("output_type", "text", "output"),
    [
        (list[Book], f"[{ANSWER}]", [EMMA]),
        (list[Book], f"Two:\n[{ANSWER}, {ANSWER}]", [EMMA, EMMA]),
        (list[int], "```json\n[1, 2]\n```", [1, 2]),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (Point, 'So: {"x": 1}', Point(1)),
        (int, " 42\n", 42),
        (str, '"a"', "a"),
        (Literal["yes", "no"], '```\n"no"\n```', "no"),
        (None, "null", None),
        (Annotated[int, Field(lt=5)], "4", 4),
        (Book | Point, '{"x": 1}', Point(1)),
        (TypeAdapter(list[int]), "[1]", [1]),
        (Any, "{}", {}),
        (Any, "[[1], []]", [[1], []]),
    ],
    ids=str,
)
def test_any_type_that_pydantic_knows(output_type: Any, text: str, output: object) -> None:
    assert parse_json(output_type)(text) == output


def test_a_response_is_read_by_its_text() -> None:
    assert parse_book(SimpleNamespace(text=ANSWER)) == EMMA
    assert parse_book(MagicMock(text=ANSWER)) == EMMA


@pytest.mark.parametrize("text", ["", " \n", "\ufeff", None])
def test_an_answer_without_text_is_an_empty_one(text: str | None) -> None:
    with pytest.raises(EmptyResponseError, match="no text"):
        parse_book(SimpleNamespace(text=text))


@pytest.mark.parametrize("response", [None, b"{}", SimpleNamespace(text=7), {"text": "{}"}])
def test_what_has_no_text_is_a_mistake_of_the_caller(response: object) -> None:
    with pytest.raises(TypeError, match="hand it the answer's text"):
        parse_book(response)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("I cannot say.", "Expecting value at line 1, column 1"),
        ("Yes, 42 is right.\n{title} [1]", "Expecting value at line 1, column 1"),
        ('{"title": "Emma" "pages": 474}', "at line 1, column 18"),
        ('So:\n{"title": "Emma",\n "pages" 474}', "at line 3, column 10"),
        ('{"title": "Emma",, "pages": 474}', "at line 1, column 18"),
        ('{"title": "Emma", "pages": 474,,}', "at line 1, column"),
        ("[,]", "at line 1, column"),
        ('{"tags": [,]}', "at line 1, column 11"),
        ('{"author": {,}}', "at line 1, column"),
        ('{"pages":,}', "at line 1, column"),
        ('So: {"tags": ["a",], "pages" 474}', "at line 1, column 30"),
        ("{'title': 'Emma'}", "at line 1, column 2"),
        (f"{{'answer': {ANSWER}}}", "at line 1, column 2"),
        (f'"author": {ANSWER}', "at line 1, column 9"),
        (f'"Emma", {ANSWER}', "at line 1, column 7"),
        (f"[see {ANSWER}]", "at line 1, column 2"),
        (f'{ANSWER}, "author": "Austen"', "More of the value"),
        (f"{ANSWER}}}", "More of the value"),
        # Each is JSON with one character wrong, and brackets in its strings.
        ('{ }": "{x"}', "Extra data at line 1, column 4"),
        ('{}{x": ", ", "k": "\\""}', "Extra data at line 1, column 3"),
        ('["a"]", "[x"]', "More of the value"),
        ('["a"]x", "[x"]', "More of the value"),
        ('["a"] 1, "[x"]', "More of the value"),
        ('[" "1, "]", ["a"]]', "at line 1, column"),
        (f'say "so: {ANSWER}', "Expecting value at line 1, column 1"),
        (f"{ANSWER}\n{ANSWER}", "More than one value"),
        (f'Either {ANSWER} or [""].', "More than one value"),
        ('{"pages": 1, "pages": 2}', "'pages' twice"),
        ('[{"author": {"name": "a", "name": "a"}}]', "'name' twice"),
        ('{"pages": NaN}', "NaN, which is no number"),
        ('So: {"pages": [-Infinity]}', "-Infinity, which is no number"),
        ("[" * 100_000, "Nested too deeply"),
        ('{"author": ' * 100_000, "Nested too deeply"),
        (f'{{"pages": {"9" * 5_000}}}', "4300 digits"),
    ],
    ids=lambda value: f"{value[:24]}~{value[-24:]}",
)
def test_what_would_be_a_guess_is_refused(text: str, reason: str) -> None:
    error = refusal(text)
    assert reason in str(error)
    assert error.text == text
    assert (error.truncated, error.failing_fields, error.valid) == (False, {}, {})


@pytest.mark.parametrize(
    "text",
    ['{"title": "\\ud83d", "pages": 1}', '{"tags": ' + "[" * 300 + "]" * 300 + "}"],
    ids=["half a character", "too deep for pydantic"],
)
def test_what_only_pydantic_cannot_read_is_refused_too(text: str) -> None:
    assert refusal(text).failing_fields[""].startswith("Invalid JSON: ")


def test_an_error_tells_the_failing_fields_and_the_valid_ones() -> None:
    text = '{"title": "Emma", "pages": 0, "author": {}, "tags": ["a", 1], "more": [1.5]}'
    error = refusal(f"Here you are: {text}")
    assert error.failing_fields == {
        "pages": "Input should be greater than 0",
        "author.name": "Field required",
        "tags.1": "Input should be a valid string",
    }
    assert error.valid == {"title": "Emma", "more": [1.5]}
    assert str(error) == (
        "the answer does not fit Book: pages: Input should be greater than 0; tags.1: Input should "
        "be a valid string; author.name: Field required; ask again, or for these fields alone"
    )
    assert isinstance(error.__cause__, ValidationError)


def test_what_was_valid_and_what_was_repaired_make_an_answer() -> None:
    error = refusal('{"title": "Emma", "tags": ["a", "b"]}')
    assert error.failing_fields == {"pages": "Field required"}
    assert parse_book(json.dumps(error.valid | {"pages": 474})) == EMMA


class Renamed(BaseModel):
    pages: int = Field(alias="pageCount")
    title: str


class Kitten(BaseModel):
    kind: Literal["cat"]
    age: int


class Puppy(BaseModel):
    kind: Literal["dog"]
    age: int


class Range(BaseModel):
    low: int
    high: int

    @model_validator(mode="after")
    def _in_order(self) -> "Range":
        if self.low > self.high:
            raise ValueError("low must not be above high")
        return self


Pet = Annotated[Kitten | Puppy, Field(discriminator="kind")]


@pytest.mark.parametrize(
    ("output_type", "text", "failing", "valid"),
    [
        (Renamed, '{"pageCount": "x", "title": "T"}', ["pageCount"], {"title": "T"}),
        (Renamed, '{"title": "T"}', ["pageCount"], {"title": "T"}),
        (Range, '{"low": 2, "high": 1}', [""], {}),
        (Range | int, '{"low": 2, "high": 1}', ["function-after[_in_order(), Range]", "int"], {}),
        (Pet, '{"kind": "cat", "age": "old"}', ["cat.age"], {}),
        (Pet, '{"kind": "cat"}', ["cat.age"], {}),
        (Kitten | Puppy, '{"kind": "dog"}', ["Kitten.kind", "Kitten.age", "Puppy.age"], {}),
        (dict[str, int], '{"a": 1, "b": "x"}', ["b"], {"a": 1}),
        (list[int], '[1, "x"]', ["1"], {}),
        (Book, "[]", [""], {}),
    ],
    ids=[
        "alias",
        "missing alias",
        "model",
        "model or number",
        "tag",
        "missing in tag",
        "union",
        "dict",
        "list",
        "not",
    ],
)
def test_nothing_is_called_valid_that_may_be_wrong(
    output_type: Any, text: str, failing: list[str], valid: dict[str, Any]
) -> None:
    error = refusal(text, parse_json(output_type))
    assert list(error.failing_fields) == failing
    assert error.valid == valid


def test_reasons_for_one_path_are_told_together() -> None:
    outside = Annotated[int, Field(lt=3)] | Annotated[int, Field(gt=5)]
    assert refusal("[4]", parse_json(list[outside])).failing_fields == {
        "0.constrained-int": "Input should be less than 3; Input should be greater than 5"
    }


@pytest.mark.parametrize(
    ("text", "failing", "valid"),
    [
        ("{", {"title", "pages"}, {}),
        ("So:\n{ ", {"title", "pages"}, {}),
        ("So:\n[", set(), {}),
        ('{"title": "Em', {"title", "pages"}, {}),
        ('{"title": "Emma", "pages": 47', {"pages"}, {"title": "Emma"}),
        (ANSWER[:-1], set(), {"title": "Emma", "pages": 474}),
        ('{"title": "Emma", "pages": 0, "tags": [', {"pages"}, {"title": "Emma"}),
        (
            'So:\n```json\n{"title": "two\nlines", "tags": ["a",], "pa',
            {"pages"},
            {"title": "two\nlines", "tags": ["a"]},
        ),
        ('{"title": "Emma", "title": "Anna", "pages": 474, "ta', set(), {}),
        ('[{"title": "Emma", ', set(), {}),
        ("[1, 2", set(), {}),
        ('"Em', set(), {}),
        ("tru", set(), {}),
    ],
)
def test_an_answer_that_ends_early(text: str, failing: set[str], valid: dict[str, Any]) -> None:
    error = refusal(text)
    assert error.truncated
    assert isinstance(error, TruncatedOutputError)
    assert (set(error.failing_fields), error.valid) == (failing, valid)
    assert f"ends amid its JSON after {len(text)} characters" in str(error)


def test_a_validator_that_needs_what_was_cut_off_does_no_harm() -> None:
    class Strict(BaseModel):
        a: int
        b: int

        @model_validator(mode="before")
        @classmethod
        def _look(cls, data: dict[str, int]) -> dict[str, int]:
            return data | {"sum": data["a"] + data["b"]}

    error = refusal('{"a": 1, "b": ', parse_json(Strict))
    assert error.truncated
    assert (error.failing_fields, error.valid) == ({}, {})


def response(text: str, finish_reason: object) -> SimpleNamespace:
    return SimpleNamespace(text=text, candidates=[SimpleNamespace(finish_reason=finish_reason)])


VALIDATION_ERROR = ErrorInfo(True, False, False, "validation_error")
RESPONSE_TRUNCATED = ErrorInfo(False, False, False, "response_truncated")


@pytest.mark.parametrize("classifier", [DefaultErrorClassifier(), GeminiErrorClassifier()])
@pytest.mark.parametrize(
    ("answer", "info"),
    [
        ("no JSON", VALIDATION_ERROR),
        ("{}", VALIDATION_ERROR),
        ("503 Unavailable: {}", VALIDATION_ERROR),
        ('{"title": "E', RESPONSE_TRUNCATED),
        (response('{"title": "E', "MAX_TOKENS"), RESPONSE_TRUNCATED),
        (response('{"title": "E', None), RESPONSE_TRUNCATED),
        (SimpleNamespace(text='{"title": "E', candidates=None), RESPONSE_TRUNCATED),
        (MagicMock(text='{"title": "E'), RESPONSE_TRUNCATED),
        # The model says that nothing cut it off, so that another try may end well.
        (response('{"title": "E', "STOP"), VALIDATION_ERROR),
    ],
)
def test_another_attempt_is_made_where_it_may_help(
    answer: Any, info: ErrorInfo, classifier: DefaultErrorClassifier
) -> None:
    assert classifier.classify(refusal(answer)) == info


def test_the_kinds_of_error() -> None:
    assert issubclass(StructuredOutputError, BatchLLMError)
    assert issubclass(StructuredOutputError, json.JSONDecodeError)
    assert issubclass(TruncatedOutputError, ResponseTruncatedError)
    error = refusal("So:\n{]")
    assert (error.doc, error.lineno, error.colno) == ("So:\n{]", 1, 1)
    assert (error.usage, error.reason, error.safety_ratings) == (None, "", None)


@pytest.mark.parametrize("text", ['{"pages": 0, "title": "Emma"}', '{"title": "Emma", "pa'])
def test_an_error_survives_copies_and_pickles(text: str) -> None:
    error = refusal(text)
    error.usage = {"input_tokens": 3}
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert (str(twin), vars(twin)) == (str(error), vars(error))


class Many(BaseModel):
    items: list[Literal["a"]]
    kinds: dict[str, int] = {}
    pet: Pet | None = None


@pytest.mark.parametrize(
    "text",
    [
        "secret" * 10_000,
        f'{{"items": {json.dumps(["secret"] * 900)}}}',
        f'{{"items": {json.dumps(["secret"] * 2_000)}}}',
        f'{{"items": [], "kinds": {{"{"k" * 10_000}": "secret"}}}}',
        f'{{"items": [], "{"secret" * 1_000}": 1, "{"secret" * 1_000}": 2}}',
        f'{{"items": "{"secret" * 1_000}',
        f'{{"items": [], "pet": {{"kind": "{"secret" * 1_000}"}}}}',
    ],
    ids=["prose", "mistakes", "too many mistakes", "long key", "double key", "cut off", "quoted"],
)
def test_a_message_is_short_and_does_not_quote_the_answer(text: str) -> None:
    message = str(refusal(text, parse_json(Many)))
    assert len(message) <= 1_000
    assert message.count("secret") <= 40


def test_a_thousand_mistakes_are_listed_and_a_million_counted() -> None:
    few, many = (
        refusal(json.dumps({"items": ["b"] * count, "kinds": {}}), parse_json(Many))
        for count in (1_000, 1_001)
    )
    assert len(few.failing_fields) == 1_000
    assert few.valid == {"kinds": {}}
    assert "; and 995 more;" in str(few)
    assert many.failing_fields == {"": "1,001 values are not what they must be"}
    assert many.valid == {}


@pytest.mark.parametrize(
    "text",
    [
        '{"' + '\\"' * MANY,
        '["",' + '"",' * MANY,
        "{ " * MANY,
        "{" + " " * MANY,
        "x {" + ", " * MANY,
        "{} " * MANY,
        "[[]] " * MANY,
        '[{"a":' * MANY,
        "```json\n" * MANY,
        "\ufeff\n" * MANY + "x",
        '{"a": "' + "\n" * MANY,
        "9" * MANY,
    ],
    ids=lambda text: repr(text[:9]),
)
def test_no_text_takes_long(text: str) -> None:
    refusal(text, parse_anything)
