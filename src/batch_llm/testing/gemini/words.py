"""Readable English for answers: what suits a property, going by its name."""

import random
import re
from collections.abc import Callable, Iterable

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")

_ADJECTIVES = (
    "quiet", "vivid", "tender", "restless", "luminous", "wry", "haunting", "generous",
    "unhurried", "fearless", "intimate", "sweeping", "playful", "thoughtful", "bracing",
)  # fmt: skip
_NOUNS = (
    "portrait", "journey", "mystery", "chronicle", "adventure", "meditation", "fable",
    "romance", "tale", "study", "comedy", "debut", "saga", "memoir", "drama",
)  # fmt: skip
_GENRES = (
    "Literary Fiction", "Mystery", "Fantasy", "Science Fiction", "Historical Fiction",
    "Thriller", "Romance", "Memoir", "Adventure", "Horror", "Classics", "Biography",
    "Young Adult", "Popular Science", "Essays",
)  # fmt: skip
_THEMES = (
    "friendship", "loss", "identity", "courage", "belonging", "memory", "justice", "ambition",
    "family", "forgiveness", "power", "survival", "freedom", "first love", "loyalty",
    "growing up", "grief", "resilience",
)  # fmt: skip
_AUDIENCES = (
    "adult readers", "young adults", "book clubs", "curious teenagers", "middle-grade readers",
    "fans of slow-burning stories", "lovers of history", "general readers",
)  # fmt: skip
_PLACES = (
    "a small coastal town", "a city under siege", "a remote mountain village",
    "a crowded family house", "wartime London", "the American South", "a distant colony",
    "a boarding school", "the edge of a great forest",
)  # fmt: skip
_MOODS = (
    "hopeful", "melancholy", "suspenseful", "warm", "dark", "humorous", "bittersweet", "serene",
)  # fmt: skip
_LANGUAGES = ("English", "French", "German", "Spanish", "Italian", "Portuguese", "Japanese")
_PERIODS = ("the Victorian era", "the 1920s", "the post-war years", "the present day")
_LEVELS = ("easy", "moderate", "challenging")
_FIRST_NAMES = ("Ada", "Clara", "Elias", "Hugo", "Ines", "Jonas", "Mara", "Nora", "Samuel", "Theo")
_LAST_NAMES = ("Bennett", "Calloway", "Doyle", "Hartley", "Lindqvist", "Marsh", "Okafor", "Vance")


def suited(name: str, rng: random.Random) -> str:
    """A short text that suits a property of this name.

    The last known word of the name decides, as in "target_audience" or "one_line_summary".
    """
    for word in reversed(split_name(name)):
        write = _WRITERS.get(word) or _WRITERS.get(word.removesuffix("s"))
        if write is not None:
            return write(rng)
    return f"{rng.choice(_ADJECTIVES)} {rng.choice(_NOUNS)}"


def sentence(rng: random.Random) -> str:
    """One sentence, as a reviewer would write it."""
    adjective, noun = rng.choice(_ADJECTIVES), rng.choice(_NOUNS)
    first, second = rng.sample(_THEMES, 2)
    article = "An" if adjective[0] in "aeiou" else "A"
    return f"{article} {adjective} {noun} about {first} and {second}, set in {rng.choice(_PLACES)}."


def split_name(name: str) -> list[str]:
    """The words of a property's name in lower case, snake or camel case alike."""
    return [word.lower() for word in _WORD.findall(name)]


def _one_of(choices: tuple[str, ...]) -> Callable[[random.Random], str]:
    return lambda rng: rng.choice(choices)


def _title(rng: random.Random) -> str:
    return f"The {rng.choice(_ADJECTIVES)} {rng.choice(_NOUNS)}".title()


def _person(rng: random.Random) -> str:
    return f"{rng.choice(_FIRST_NAMES)} {rng.choice(_LAST_NAMES)}"


def _by_word(
    *groups: tuple[Callable[[random.Random], str], Iterable[str]],
) -> dict[str, Callable[[random.Random], str]]:
    return {word: write for write, words in groups for word in words}


_WRITERS = _by_word(
    (_one_of(_GENRES), ("genre", "subgenre", "category", "categories")),
    (_one_of(_THEMES), ("theme", "topic", "subject", "tag", "keyword", "motif")),
    (_one_of(_AUDIENCES), ("audience", "reader", "readership")),
    (_one_of(_PLACES), ("setting", "place", "location")),
    (_one_of(_MOODS), ("mood", "tone", "sentiment", "emotion")),
    (_one_of(_LANGUAGES), ("language",)),
    (_one_of(_PERIODS), ("period", "era")),
    (_one_of(_LEVELS), ("level", "difficulty")),
    (_title, ("title", "headline", "heading", "series")),
    (_person, ("author", "name", "person", "character", "protagonist")),
    (
        sentence,
        (
            "summary", "description", "synopsis", "overview", "abstract", "blurb", "pitch",
            "line", "reason", "reasoning", "explanation", "comment", "note", "text", "answer",
            "message", "review", "content", "plot",
        ),
    ),
)  # fmt: skip
