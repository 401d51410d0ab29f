"""What does the emulator say about a book? Something plausible, made up from its title.

Nothing here is knowledge about a book: words in the title, the year and chance decide.
"""

import json
import random
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from batch_llm.cli.enrichment import Genre

_LAST_YEAR_OF_CLASSICS = 1949
_FIELD = re.compile(r"^(Title|First published): (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Kind:
    """Books of one kind, as far as a title tells.

    Attributes:
        words: Pattern in a title that speaks for this kind, in any case.
        genres: The first is certain, the second likely.
        themes: Themes to draw from.
        audiences: Audiences to draw from.
        who: Beginnings of a summary.
        what: Its ends.
    """

    words: str
    genres: list[str]
    themes: list[str]
    audiences: list[str]
    who: list[str]
    what: list[str]

    def fits(self, title: str) -> bool:
        """Whether the title speaks for this kind."""
        return re.search(self.words, title, re.IGNORECASE) is not None


@cache
def kinds() -> list[Kind]:
    """All kinds of books; the first that fits counts, and the last fits every title."""
    listed = files("batch_llm.cli").joinpath("data", "inventions.json")
    return [Kind(**kind) for kind in json.loads(listed.read_text(encoding="utf-8"))]


def answer_for(prompt: str, *, seed: int) -> dict[str, Any]:
    """An invented answer in the shape that was asked for; equal prompts get equal answers."""
    fields = dict(_FIELD.findall(prompt))
    rng = random.Random(f"{seed}\0{prompt}")
    kind = next(kind for kind in kinds() if kind.fits(fields["Title"]))
    genres = kind.genres[: rng.randint(1, 2)]
    if _is_classic(fields["First published"]):
        genres.append(Genre.CLASSIC)
    return {
        "genres": genres,
        "themes": rng.sample(kind.themes, rng.randint(2, 3)),
        "audience": rng.choice(kind.audiences),
        "summary": f"{rng.choice(kind.who)} {rng.choice(kind.what)}",
    }


def _is_classic(published: str) -> bool:
    if published.endswith(" BC"):
        return True
    return published.isdecimal() and int(published) <= _LAST_YEAR_OF_CLASSICS
