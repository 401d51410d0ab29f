"""What is asked about a book, and what is an answer?"""

from collections.abc import Callable
from enum import StrEnum
from importlib.resources import files
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field

from batch_llm.cli.books import Book
from batch_llm.llm_strategies import parse_json


class Genre(StrEnum):
    """What kind of book it is."""

    LITERARY_FICTION = "literary fiction"
    CLASSIC = "classic"
    CONTEMPORARY_FICTION = "contemporary fiction"
    HISTORICAL_FICTION = "historical fiction"
    FANTASY = "fantasy"
    SCIENCE_FICTION = "science fiction"
    DYSTOPIAN = "dystopian"
    HORROR = "horror"
    PARANORMAL = "paranormal"
    MYSTERY = "mystery"
    THRILLER = "thriller"
    ROMANCE = "romance"
    ADVENTURE = "adventure"
    HUMOR = "humor"
    SHORT_STORIES = "short stories"
    POETRY_AND_DRAMA = "poetry and drama"
    GRAPHIC_NOVEL = "graphic novel"
    PICTURE_BOOK = "picture book"
    BIOGRAPHY_AND_MEMOIR = "biography and memoir"
    HISTORY = "history"
    SCIENCE_AND_NATURE = "science and nature"
    PHILOSOPHY_AND_RELIGION = "philosophy and religion"
    PSYCHOLOGY_AND_SELF_HELP = "psychology and self-help"
    BUSINESS_AND_SOCIETY = "business and society"
    ESSAYS_AND_JOURNALISM = "essays and journalism"
    ART_AND_LIVING = "art and living"


class Audience(StrEnum):
    """For whom it was written."""

    CHILDREN = "children"
    MIDDLE_GRADE = "middle grade"
    YOUNG_ADULT = "young adult"
    ADULT = "adult"
    ALL_AGES = "all ages"


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


_Line = Annotated[str, AfterValidator(_on_one_line)]


class BookEnrichment(BaseModel):
    """What the model says about a book.

    Attributes:
        genres: The most fitting first.
        themes: What the book keeps coming back to.
        audience: For whom it was written.
        summary: One sentence on one line.
    """

    genres: list[Genre] = Field(min_length=1, max_length=3)
    themes: list[_Line] = Field(min_length=1, max_length=5)
    audience: Audience
    # More than the instructions allow: an answer a few characters too long is not asked for again.
    summary: _Line = Field(min_length=1, max_length=240)


def instructions() -> str:
    """The style guide that all prompts share, about 5,000 tokens: it goes into the cache."""
    return files("batch_llm.cli").joinpath("data", "instructions.md").read_text(encoding="utf-8")


def prompt_for(book: Book) -> str:
    """What the model is told about one book."""
    return (
        f"Title: {_on_one_line(book.title)}\n"
        f"Authors: {_on_one_line(book.authors)}\n"
        f"First published: {_year_in_words(book.year)}\n"
        f"Language: {book.language or 'unknown'}"
    )


def request_config() -> dict[str, Any]:
    """The part of a request that asks for an answer of the right shape."""
    return {
        "response_mime_type": "application/json",
        "response_schema": BookEnrichment,
        "temperature": 0.2,
    }


parse_answer: Callable[[Any], BookEnrichment] = parse_json(BookEnrichment)
"""The answer in a response of the google-genai SDK."""


def _year_in_words(year: str) -> str:
    if year.startswith("-"):
        return f"{year[1:]} BC"
    return year or "unknown"
