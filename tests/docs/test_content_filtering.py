"""The example of content filtering puts each book where its ratings say."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.gemini

EXAMPLES = Path(__file__).parents[2] / "examples"
HARASSMENT = "HARM_CATEGORY_HARASSMENT"
SEXUAL = "HARM_CATEGORY_SEXUALLY_EXPLICIT"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of the example, which plays the service itself where there is no key."""
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return runpy.run_path(str(EXAMPLES / "content_filtering.py"))


async def test_each_book_goes_where_its_ratings_say(
    example: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    await example["main"]()
    told = capsys.readouterr().out
    counts = dict(re.findall(r"^(\w+) +(\d+)$", told, re.MULTILINE))
    assert counts == {"keep": "31", "review": "6", "drop": "3", "failed": "0"}
    review, drop = told.split("review", 1)[1].split("drop", 1)
    assert "not rated" in review
    assert len(re.findall("Hunger Games.*dangerous_content: MEDIUM", review)) == 3
    assert re.search(r"Geisha +sexually_explicit: LOW", review)
    assert re.search(r"Dragon Tattoo.* sexually_explicit: MEDIUM, .*MEDIUM$", drop, re.MULTILINE)
    assert re.search(r"Fifty Shades.* sexually_explicit: HIGH, blocked by Gemini", drop)
    assert re.search(r"Game of Thrones.* dangerous_content: HIGH, blocked by Gemini", drop)
    assert "Gone Girl" not in told


@pytest.mark.parametrize(
    ("ratings", "shelf"),
    [
        ({HARASSMENT: "NEGLIGIBLE"}, "KEEP"),
        ({HARASSMENT: "LOW"}, "KEEP"),
        ({HARASSMENT: "MEDIUM"}, "REVIEW"),
        ({HARASSMENT: "HIGH"}, "DROP"),
        ({SEXUAL: "NEGLIGIBLE"}, "KEEP"),
        ({SEXUAL: "LOW"}, "REVIEW"),
        ({SEXUAL: "MEDIUM"}, "DROP"),
        ({HARASSMENT: "HIGH", SEXUAL: "NEGLIGIBLE"}, "DROP"),
        ({HARASSMENT: "CERTAIN"}, "REVIEW"),
        ({}, "REVIEW"),
        (None, "REVIEW"),
    ],
)
def test_the_limits(example: dict[str, Any], ratings: dict[str, str] | None, shelf: str) -> None:
    assert example["shelf_for"](ratings).name == shelf


def test_a_failure_that_says_nothing_of_the_content_is_not_sorted(example: dict[str, Any]) -> None:
    sorter = example["Sorter"]()
    result = example["WorkItemResult"]("1", success=False, error="ConnectionError: gone")
    sorter.sort(result)
    assert sorter.failed == [result]
    assert not any(sorter.shelves.values())
