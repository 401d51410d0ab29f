"""Default answers fit the schema that the real SDK sends for a model, and read well."""

import random
from collections.abc import Mapping
from datetime import date, datetime, time
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from google.genai import errors, types
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter

from batch_llm.testing.gemini import GeminiEmulator
from batch_llm.testing.gemini.answers import compose
from batch_llm.testing.gemini.words import split_name, suited

MODEL = "gemini-2.5-flash"
PROMPTS = [f"Book number {number}" for number in range(12)]


class Audience(Enum):
    CHILDREN = "children"
    TEENAGERS = "young adult"
    ADULTS = "adult"


class Rating(BaseModel):
    stars: int = Field(ge=1, le=5)
    confidence: float = Field(ge=0, le=1)


class Enriched(BaseModel):
    genres: list[str] = Field(min_length=1, max_length=3)
    themes: list[str]
    audience: Audience
    one_line_summary: str = Field(max_length=60)
    level: Literal["easy", "hard"]
    year: int | None
    series: str | None = None
    rating: Rating
    other_ratings: list[Rating] = Field(min_length=2, max_length=2)
    price: int | str
    in_print: bool


class Formats(BaseModel):
    day: date
    moment: AwareDatetime
    hour: time
    id: UUID
    link: str = Field(json_schema_extra={"format": "uri"})


class Constrained(BaseModel):
    model_config = ConfigDict(extra="forbid")

    even: int = Field(multiple_of=2, gt=10, lt=14)
    quarter: float = Field(multiple_of=0.25, ge=0, le=1)
    above: int = Field(gt=500)
    below: float = Field(lt=-3)
    code: str = Field(min_length=3, max_length=4)
    long: str = Field(min_length=200)
    one: Literal["only"]
    numbers: dict[str, int]
    pair: tuple[int, str]
    unique: set[Literal["a", "b", "c"]] = Field(min_length=3)
    few: list[str] = Field(max_length=0)


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    tricks: list[str]


class Shelter(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


class Tree(BaseModel):
    name: str
    parent: "Tree | None"
    children: list["Tree"]


async def answered(config: Mapping[str, Any], prompts: list[str] = PROMPTS) -> list[Any]:
    async with GeminiEmulator() as server:
        client = server.client()
        return [
            await client.aio.models.generate_content(
                model=MODEL,
                contents=prompt,
                config=types.GenerateContentConfig(
                    **{"response_mime_type": "application/json", **config}
                ),
            )
            for prompt in prompts
        ]


class TestThroughTheSdk:
    async def test_a_response_schema(self) -> None:
        responses = await answered({"response_schema": Enriched})
        assert all(isinstance(response.parsed, Enriched) for response in responses)
        texts = {response.text for response in responses}
        assert len(texts) == len(PROMPTS)
        assert {response.parsed.audience for response in responses} == set(Audience)

    async def test_a_list_of_models(self) -> None:
        (response,) = await answered({"response_schema": list[Rating]}, PROMPTS[:1])
        assert response.parsed
        assert all(isinstance(rating, Rating) for rating in response.parsed)

    async def test_an_enum(self) -> None:
        config = {"response_mime_type": "text/x.enum", "response_schema": Audience}
        for response in await answered(config):
            assert response.parsed in Audience

    async def test_a_recursive_schema_has_an_end(self) -> None:
        config = {"response_json_schema": Tree.model_json_schema()}
        for response in await answered(config):
            Tree.model_validate_json(response.text)

    @pytest.mark.parametrize("model", [Enriched, Formats, Constrained, Shelter])
    async def test_a_json_schema(self, model: type[BaseModel]) -> None:
        for response in await answered({"response_json_schema": model.model_json_schema()}):
            model.model_validate_json(response.text)

    @pytest.mark.parametrize(
        ("schema", "message"),
        [
            ({"$ref": "#/$defs/Missing"}, r"refers to '#/\$defs/Missing'"),
            ({"$ref": "#"}, "leads back to itself"),
            ({"properties": {"me": {"$ref": "#"}}, "required": ["me"]}, r"nests deeper .* at 'me'"),
        ],
    )
    async def test_an_impossible_schema_is_refused(self, schema: Any, message: str) -> None:
        with pytest.raises(errors.ClientError, match=message) as caught:
            await answered({"response_json_schema": schema})
        assert caught.value.code == 400


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "INTEGER", "minimum": 3, "maximum": 3}, 3),
        ({"const": [1]}, [1]),
        ({"enum": ["only"]}, "only"),
        ({"type": "null"}, None),
        ({"type": ["null", "boolean"], "enum": [True]}, True),
        ({"type": "array", "maxItems": 0}, []),
        ({"type": "ARRAY", "min_items": "2", "max_items": "2", "items": {"enum": [1]}}, [1, 1]),
        ({"prefixItems": [{"const": 1}, {"const": 2}], "type": "array"}, [1, 2]),
        ({"oneOf": [{"type": "null"}, {"const": 7}]}, 7),
        ({"any_of": [{"const": 7}]}, 7),
        ({"type": "OBJECT"}, {}),
        ({"type": ["null", "integer"], "minimum": 5, "maximum": 5}, 5),
        (
            {
                "allOf": [
                    {"properties": {"a": {"const": 1}}},
                    {"$ref": "#/$defs/B"},
                ],
                "$defs": {"B": {"properties": {"b": {"const": 2}}}},
            },
            {"a": 1, "b": 2},
        ),
        (
            {
                "type": "OBJECT",
                "properties": {"b": {"enum": [2]}, "a": {"enum": [1]}},
                "property_ordering": ["a", "b"],
            },
            {"a": 1, "b": 2},
        ),
    ],
)
def test_schemas_with_one_answer(schema: dict[str, Any], expected: Any) -> None:
    made = compose(schema, random.Random(1))
    assert made == expected
    if isinstance(expected, dict):
        assert list(made) == list(expected)


@pytest.mark.parametrize(
    ("format_", "kind"),
    [("date", date), ("date-time", datetime), ("time", time), ("uuid", UUID)],
)
def test_formats(format_: str, kind: type) -> None:
    made = compose({"type": "STRING", "format": format_}, random.Random(1))
    assert TypeAdapter(kind).validate_python(made)


def test_choices_come_from_the_generator() -> None:
    schema = Enriched.model_json_schema()
    first, again, other = (compose(schema, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_lengths_are_kept() -> None:
    for seed in range(50):
        schema = {"type": "STRING", "minLength": 10, "maxLength": 10}
        assert len(compose(schema, random.Random(seed), name="summary")) == 10


def test_a_shortened_text_ends_with_a_word() -> None:
    schema = {"type": "STRING", "maxLength": 30}
    for seed in range(50):
        short = compose(schema, random.Random(seed), name="summary")
        whole = compose({"type": "STRING"}, random.Random(seed), name="summary")
        assert whole.startswith(short)
        assert whole[len(short)] in " ,."


def test_optional_recursion_has_an_end() -> None:
    schema = {"properties": {"name": {"type": "STRING"}, "child": {"$ref": "#"}}}
    assert compose(schema, random.Random(1))["child"]["child"]["name"]


def test_items_of_an_array_differ() -> None:
    for seed in range(50):
        themes = compose({"items": {"type": "STRING"}}, random.Random(seed), name="themes")
        assert len(set(themes)) == len(themes) >= 2


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("one_line_summary", ["one", "line", "summary"]),
        ("targetAudience", ["target", "audience"]),
        ("ISBNCode", ["isbn", "code"]),
        ("", []),
    ],
)
def test_names_are_split(name: str, words: list[str]) -> None:
    assert split_name(name) == words


def test_texts_suit_their_names() -> None:
    rng = random.Random(1)
    summary = suited("one_line_summary", rng)
    assert summary[0].isupper()
    assert summary.endswith(".")
    assert summary.count(" ") > 5
    title = suited("book_title", rng)
    assert title == title.title()
    assert suited("genres", random.Random(2)) == suited("genre", random.Random(2))
    assert suited("whatever", rng).count(" ") == 1
