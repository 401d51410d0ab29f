"""One Gemini prompt cache, shared by all rows: made once, read by every call.

Run it: python examples/gemini_shared_cache.py
With GEMINI_API_KEY set it asks Gemini, else a local server that plays it.
"""

import asyncio

from _gemini import gemini_client
from pydantic import BaseModel, Field

from batch_llm import (
    GeminiCachedStrategy,
    GeminiErrorClassifier,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    parse_json,
)

# Yours is longer and better: a taxonomy, a style guide, a document.
STYLE_GUIDE = "\n".join(
    f"Rule {number}: judge a book by what is in it, never by its cover or its fame."
    for number in range(1, 201)
)
BOOKS = [
    ("1984", "George Orwell"),
    ("Beloved", "Toni Morrison"),
    ("Dune", "Frank Herbert"),
    ("Emma", "Jane Austen"),
    ("Middlemarch", "George Eliot"),
    ("Persepolis", "Marjane Satrapi"),
    ("Solaris", "Stanisław Lem"),
    ("The Trial", "Franz Kafka"),
]


class Verdict(BaseModel):
    genre: str = Field(max_length=30)
    stars: int = Field(ge=1, le=5)


async def main() -> None:
    async with (
        gemini_client() as client,
        ParallelBatchProcessor[str, Verdict, str](
            config=ProcessorConfig(max_workers=4), error_classifier=GeminiErrorClassifier()
        ) as processor,
    ):
        strategy = GeminiCachedStrategy(
            model="gemini-2.5-flash",
            client=client,
            response_parser=parse_json(Verdict),
            cached_content=STYLE_GUIDE,
            cache_ttl_seconds=600,
            config={"response_mime_type": "application/json", "response_schema": Verdict},
        )
        for title, author in BOOKS:
            item_id, prompt = title.lower(), f"Judge {title} by {author}."
            await processor.add_work(LLMWorkItem(item_id, strategy, prompt, context=title))
        batch = await processor.process_all()
        # Left alone it serves the next run too, until its ten minutes are over.
        await strategy.delete_cache()

    for result in batch.results:
        verdict = f"{'*' * result.output.stars:5} {result.output.genre}" if result.output else ""
        print(f"{result.context:12} {verdict or result.error}")
    print(
        f"\n{batch.succeeded} of {batch.total_items} books. {batch.cache_hit_rate():.0f} % of "
        f"{batch.total_input_tokens:,} input tokens came from the cache:\n"
        f"beside making it once, they are billed like {batch.effective_input_tokens():,}."
    )


if __name__ == "__main__":
    asyncio.run(main())
