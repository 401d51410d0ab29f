"""Answers sorted by Gemini's safety ratings: kept, put aside for a person to read, or dropped.

A children's library wants blurbs. Gemini is told to block nothing, since the library has limits
of its own; what is blocked all the same has ratings too. An answer without any is for a person.

Run it: python examples/content_filtering.py
With GEMINI_API_KEY set it asks Gemini, else a local server that plays it.
"""

import asyncio
from enum import IntEnum

from _gemini import gemini_client

from batch_llm import (
    GeminiStrategy,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    ResponseBlockedError,
    WorkItemResult,
)
from batch_llm.cli.books import Book, read_books
from batch_llm.testing.gemini import RecordedRequest, Reply

HARASSMENT = "HARM_CATEGORY_HARASSMENT"
HATE_SPEECH = "HARM_CATEGORY_HATE_SPEECH"
SEXUAL = "HARM_CATEGORY_SEXUALLY_EXPLICIT"
DANGEROUS = "HARM_CATEGORY_DANGEROUS_CONTENT"
CATEGORIES = (HARASSMENT, HATE_SPEECH, SEXUAL, DANGEROUS)

PROBABILITIES = ("NEGLIGIBLE", "LOW", "MEDIUM", "HIGH")
# The probability from which on a person reads an answer, and the one from which on nobody does.
USUAL_LIMITS = ("MEDIUM", "HIGH")
LIMITS = {SEXUAL: ("LOW", "MEDIUM")}


class Shelf(IntEnum):
    """Where an answer goes; the greater, the worse."""

    KEEP = 0
    REVIEW = 1
    DROP = 2


def shelf_for(ratings: dict[str, str] | None) -> Shelf:
    """The worst rating decides; without any, a person does."""
    if not ratings:
        return Shelf.REVIEW
    return max(_shelf_for(category, ratings[category]) for category in ratings)


def _shelf_for(category: str, probability: str) -> Shelf:
    if probability not in PROBABILITIES:
        return Shelf.REVIEW
    review_from, drop_from = map(PROBABILITIES.index, LIMITS.get(category, USUAL_LIMITS))
    found = PROBABILITIES.index(probability)
    if found >= drop_from:
        return Shelf.DROP
    return Shelf.REVIEW if found >= review_from else Shelf.KEEP


class Sorter:
    """The post-processor: yours would write each answer to the file of its shelf."""

    def __init__(self) -> None:
        self.shelves: dict[Shelf, list[WorkItemResult[str, Book]]] = {shelf: [] for shelf in Shelf}
        self.failed: list[WorkItemResult[str, Book]] = []

    def sort(self, result: WorkItemResult[str, Book]) -> None:
        if result.success:
            self.shelves[shelf_for(result.gemini_safety_ratings)].append(result)
        elif isinstance(result.exception, ResponseBlockedError):
            self.shelves[Shelf.DROP].append(result)
        else:
            self.failed.append(result)  # says nothing of the content: run it again


async def main() -> None:
    sorter = Sorter()
    async with (
        gemini_client(played_answer) as client,
        ParallelBatchProcessor[str, str, Book](
            config=ProcessorConfig(max_workers=8), post_processor=sorter.sort
        ) as processor,
    ):
        strategy = GeminiStrategy(
            model="gemini-2.5-flash",
            client=client,
            response_parser=lambda response: str(response.text),
            config={
                "safety_settings": [
                    {"category": category, "threshold": "BLOCK_NONE"} for category in CATEGORIES
                ]
            },
        )
        for book in read_books(40):
            prompt = f"Write a blurb of two sentences for {book.title} by {book.authors}."
            await processor.add_work(LLMWorkItem(book.book_id, strategy, prompt, context=book))
        await processor.process_all()

    for shelf, results in sorter.shelves.items():
        print(f"{shelf.name.lower():6} {len(results):3}")
        if shelf is not Shelf.KEEP:
            for result in sorted(results, key=lambda result: int(result.item_id)):
                print(f"           {result.context.title:55} {reason_for(result)}")
    print(f"failed {len(sorter.failed):3}")


def reason_for(result: WorkItemResult[str, Book]) -> str:
    """What a person wants to know: the ratings that are not harmless, and who blocked it."""
    ratings = result.gemini_safety_ratings
    found = [
        f"{category.removeprefix('HARM_CATEGORY_').lower()}: {probability}"
        for category, probability in (ratings or {}).items()
        if probability != "NEGLIGIBLE"
    ]
    if ratings is None:
        found.append("not rated")
    if not result.success:
        found.append("blocked by Gemini")
    return ", ".join(found)


# Played, not known: Gemini itself may judge otherwise.
PLAYED: dict[str, dict[str, str]] = {
    "Hunger Games": {DANGEROUS: "MEDIUM"},
    "Dragon Tattoo": {SEXUAL: "MEDIUM", DANGEROUS: "MEDIUM"},
    "Lord of the Flies": {HARASSMENT: "MEDIUM"},
    "Gone Girl": {DANGEROUS: "LOW"},
    "Geisha": {SEXUAL: "LOW"},
    "Fifty Shades": {SEXUAL: "HIGH"},
    "Game of Thrones": {SEXUAL: "MEDIUM", DANGEROUS: "HIGH"},
}


def played_answer(request: RecordedRequest) -> Reply:
    """What the local server answers: ratings by title, one prompt and one answer blocked."""
    prompt = request.prompt
    if "1984" in prompt:
        return Reply("The clocks strike thirteen.")
    ratings = dict.fromkeys(CATEGORIES, "NEGLIGIBLE")
    for words, found in PLAYED.items():
        if words in prompt:
            ratings |= found
    rated = [{"category": name, "probability": ratings[name]} for name in ratings]
    if "Fifty Shades" in prompt:
        return Reply(block_reason="SAFETY", safety_ratings=rated)
    if "Game of Thrones" in prompt:
        return Reply(finish_reason="SAFETY", safety_ratings=rated)
    return Reply("A book worth its shelf. Read it twice.", safety_ratings=rated)


if __name__ == "__main__":
    asyncio.run(main())
