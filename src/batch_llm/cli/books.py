"""Which books?"""

import csv
import io
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice


@dataclass(frozen=True, slots=True)
class Book:
    """A row of the bundled list, its fields as they stand there, real-world mess included."""

    book_id: str
    title: str
    authors: str
    year: str
    language: str


def read_books(count: int) -> list[Book]:
    """The first books of the list; their licence stands in ``data/README.md``."""
    listed = files("batch_llm.cli").joinpath("data", "books.csv")
    with listed.open("rb") as raw, io.TextIOWrapper(raw, "utf-8", newline="") as file:
        return [Book(**row) for row in islice(csv.DictReader(file), count)]
