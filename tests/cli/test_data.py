"""The bundled files fit each other and the code."""

import json
import re
from collections import Counter
from importlib.resources import files

import pytest

from batch_llm.cli.books import Book, read_books
from batch_llm.cli.enrichment import Audience, BookEnrichment, Genre, instructions, prompt_for
from batch_llm.cli.invented import answer_for, kinds
from batch_llm.cli.options import MOST_ITEMS

GUIDE = instructions()


def section(number: int) -> str:
    """The text of one section of the instructions."""
    return GUIDE.split(f"\n## {number}. ")[1].split("\n## ")[0]


def listed_themes() -> set[str]:
    return set(re.findall(r"`([a-z ]+)` \(", section(4)))


def test_there_are_as_many_books_as_may_be_asked_for() -> None:
    books = read_books(MOST_ITEMS + 1)
    assert len(books) == len({book.book_id for book in books}) == MOST_ITEMS
    assert all(book.title and book.authors for book in books)


def test_the_licence_note_is_with_the_books() -> None:
    note = files("batch_llm.cli").joinpath("data", "README.md").read_text(encoding="utf-8")
    assert "goodbooks-10k, Creative Commons Attribution-ShareAlike 4.0" in note


@pytest.mark.parametrize(
    ("book", "lines"),
    [
        (
            Book("1", " The  Odyssey\n", "Homer,  Robert Fagles", "-720", "eng"),
            [
                "Title: The Odyssey",
                "Authors: Homer, Robert Fagles",
                "First published: 720 BC",
                "Language: eng",
            ],
        ),
        (
            Book("2", "الفيل الأزرق", "أحمد مراد", "", ""),
            [
                "Title: الفيل الأزرق",
                "Authors: أحمد مراد",
                "First published: unknown",
                "Language: unknown",
            ],
        ),
    ],
    ids=["BC", "nothing known"],
)
def test_a_messy_row_makes_a_tidy_prompt(book: Book, lines: list[str]) -> None:
    assert prompt_for(book).splitlines() == lines


def test_the_instructions_are_worth_a_cache() -> None:
    assert 4_500 <= len(GUIDE) / 4 <= 5_500


def test_the_instructions_define_every_genre_and_audience() -> None:
    assert re.findall(r"^- `(.+?)`:", section(3), re.MULTILINE) == list(Genre)
    assert re.findall(r"^- `(.+?)`:", section(5), re.MULTILINE) == list(Audience)


def test_the_worked_examples_keep_the_rules() -> None:
    examples = [json.loads(line) for line in re.findall(r"^Answer: (.+)$", GUIDE, re.MULTILINE)]
    assert len(examples) >= 10
    for example in examples:
        answer = BookEnrichment.model_validate(example)
        assert len(answer.summary) <= 160
        assert set(answer.themes) <= listed_themes()


def test_inventions_keep_the_rules() -> None:
    for kind in kinds():
        assert set(kind.genres) <= set(Genre)
        assert set(kind.audiences) <= set(Audience)
        assert set(kind.themes) <= listed_themes()
        longest = max(map(len, kind.who)) + 1 + max(map(len, kind.what))
        assert longest <= 160


def test_every_book_gets_an_invented_answer_of_the_right_shape() -> None:
    genres: Counter[str] = Counter()
    for book in read_books(1_000):
        answer = answer_for(prompt_for(book), seed=0)
        genres.update(BookEnrichment.model_validate(answer).genres)
    assert len(genres) >= 20


@pytest.mark.parametrize(
    ("title", "year", "genre"),
    [
        ("A Storm of Swords (A Song of Ice and Fire, #3)", "2000", Genre.FANTASY),
        ("Murder on the Orient Express (Hercule Poirot, #10)", "1934", Genre.MYSTERY),
        ("A Short History of Nearly Everything", "2003", Genre.HISTORY),
        ("Beezus and Ramona (Ramona, #1)", "1955", Genre.ADVENTURE),
        ("Middlemarch", "1871", Genre.LITERARY_FICTION),
    ],
)
def test_an_invention_goes_by_the_title(title: str, year: str, genre: Genre) -> None:
    answer = answer_for(prompt_for(Book("1", title, "Somebody", year, "eng")), seed=0)
    assert answer["genres"][0] == genre
    assert (Genre.CLASSIC in answer["genres"]) == (int(year) < 1950)


def test_an_answer_is_put_on_one_line() -> None:
    answer = BookEnrichment(
        genres=[Genre.HORROR],
        themes=[" good \n and evil "],
        audience=Audience.ADULT,
        summary="A\nB",
    )
    assert (answer.themes, answer.summary) == (["good and evil"], "A B")
