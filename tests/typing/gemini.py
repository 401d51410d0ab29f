"""What a type checker must see of the Gemini strategies: read by mypy and pyright, never run."""

from typing import Any, TypeVar, assert_type

from batch_llm import (
    BatchResult,
    GeminiCachedStrategy,
    GeminiResponse,
    GeminiStrategy,
    LLMCallStrategy,
    LLMWorkItem,
    ParallelBatchProcessor,
    TokenUsage,
)

T = TypeVar("T")


class Book:
    """An output type of the user's own."""


def parse(response: Any) -> Book:
    """Make the output."""
    return Book()


def plain(client: Any) -> None:
    """Without metadata the output is what the parser makes."""
    assert_type(GeminiStrategy("m", client, parse), GeminiStrategy[Book])
    assert_type(GeminiStrategy("m", client, parse, {}), GeminiStrategy[Book])
    assert_type(GeminiStrategy[Book]("m", client, parse), GeminiStrategy[Book])
    assert_type(GeminiStrategy("m", client, lambda response: Book()), GeminiStrategy[Book])
    assert_type(GeminiStrategy("m", client, parse, include_metadata=False), GeminiStrategy[Book])
    assert_type(GeminiCachedStrategy("m", client, parse, "text"), GeminiCachedStrategy[Book])
    assert_type(
        GeminiCachedStrategy("m", client, parse, "text", 600, config={}, include_metadata=False),
        GeminiCachedStrategy[Book],
    )


def with_metadata(client: Any) -> None:
    """With metadata it is a response that has it."""
    assert_type(
        GeminiStrategy("m", client, parse, include_metadata=True),
        GeminiStrategy[GeminiResponse[Book]],
    )
    assert_type(
        GeminiStrategy("m", client, lambda response: Book(), {}, include_metadata=True),
        GeminiStrategy[GeminiResponse[Book]],
    )
    assert_type(
        GeminiStrategy[GeminiResponse[Book]]("m", client, parse, include_metadata=True),
        GeminiStrategy[GeminiResponse[Book]],
    )
    assert_type(
        GeminiCachedStrategy("m", client, parse, "text", 600, include_metadata=True),
        GeminiCachedStrategy[GeminiResponse[Book]],
    )


async def execution(client: Any) -> None:
    """Execute gives two values in either mode."""
    strategy = GeminiStrategy("m", client, parse)
    assert_type(await strategy.execute("?", 1, 60.0), tuple[Book, TokenUsage])
    whole = GeminiStrategy("m", client, parse, include_metadata=True)
    response, usage = await whole.execute("?", 1, 60.0)
    assert_type(usage, TokenUsage)
    assert_type(response, GeminiResponse[Book])
    assert_type(response.output, Book)
    assert_type(response.safety_ratings, dict[str, str] | None)
    assert_type(response.finish_reason, str | None)
    assert_type(response.token_usage, TokenUsage)
    assert_type(response.model_version, str | None)


async def processing(client: Any) -> None:
    """The results carry what the strategy was built for."""
    strategy = GeminiStrategy("m", client, parse, include_metadata=True)
    async with ParallelBatchProcessor[str, GeminiResponse[Book], None]() as processor:
        await processor.add_work(LLMWorkItem("id", strategy, "?"))
        batch = await processor.process_all()
    assert_type(batch, BatchResult[GeminiResponse[Book], None])
    assert_type(batch.results[0].gemini_safety_ratings, dict[str, str] | None)


class Asking(GeminiStrategy[Book]):
    """A subclass that knows its output."""

    def __init__(self, client: Any) -> None:
        super().__init__("m", client, parse)

    async def execute(self, prompt: str, attempt: int, timeout: float) -> tuple[Book, TokenUsage]:
        """Ask."""
        book, usage = await super().execute(prompt, attempt, timeout)
        assert_type(book, Book)
        return book, usage


class AskingForAll(GeminiStrategy[GeminiResponse[Book]]):
    """A subclass that wants the whole response."""

    def __init__(self, client: Any) -> None:
        super().__init__("m", client, parse, include_metadata=True)


def take(strategy: LLMCallStrategy[GeminiResponse[Book]]) -> None:
    """Take a strategy whose output has metadata."""


class Caching(GeminiCachedStrategy[T]):
    """A subclass that leaves its output open."""


def subclasses(client: Any) -> None:
    """A subclass goes on with the output of its own."""
    assert_type(Caching("m", client, parse, "text"), Caching[Book])
    take(AskingForAll(client))
