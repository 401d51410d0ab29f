"""OpenAI by its own SDK: structured output, cached tokens, limits as its headers tell them.

An empty account is told apart from a limit.

Run it: pip install "batch-llm[openai]" && python examples/openai_strategy.py
With OPENAI_API_KEY set it asks OpenAI, else a local server that plays it.
"""

import asyncio
import json
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Literal

from _fake_server import Answer, fake_server
from openai import AsyncOpenAI, RateLimitError
from openai.types import CompletionUsage
from pydantic import BaseModel, ConfigDict, ValidationError

from batch_llm import (
    DefaultErrorClassifier,
    ErrorInfo,
    LLMCallStrategy,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    RateLimitConfig,
    ResponseBlockedError,
    ResponseTruncatedError,
    TokenUsage,
)

# OpenAI caches the beginning that prompts have in common by itself, from 1,024 tokens on.
INSTRUCTIONS = "Tell the sentiment of a review.\n" + "Mind the irony of reviewers.\n" * 200
REVIEWS = {
    "row-1": "Loved every page.",
    "row-2": "Could not finish it.",
    "row-3": "A masterpiece.",
    "row-4": "Not for me.",
    "row-5": "Great, if you cannot sleep.",
}


class Review(BaseModel):
    model_config = ConfigDict(extra="forbid")  # OpenAI's strict mode asks for this

    sentiment: Literal["good", "bad"]


class OpenAIStrategy(LLMCallStrategy[Review]):
    """Asks for a Review."""

    def __init__(self, client: AsyncOpenAI, model: str) -> None:
        self.client = client
        self.model = model
        self.quota = f"openai/{model}"

    async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
        response = await self.client.chat.completions.with_raw_response.create(
            model=self.model,
            messages=[
                {"role": "system", "content": INSTRUCTIONS},
                {"role": "user", "content": prompt},
            ],
            response_format={
                "type": "json_schema",
                "json_schema": {
                    "name": "review",
                    "strict": True,
                    "schema": Review.model_json_schema(),
                },
            },
        )
        completion = response.parse()
        usage = tokens_of(completion.usage)
        choice = completion.choices[0]
        if choice.finish_reason == "length":
            raise ResponseTruncatedError("the answer was cut off", usage=usage)
        if choice.finish_reason == "content_filter" or choice.message.refusal:
            raise ResponseBlockedError(choice.message.refusal or "filtered", usage=usage)
        try:
            review = Review.model_validate_json(choice.message.content or "")
        except ValidationError as error:
            # A failed attempt is billed too: from here the processor reads its tokens.
            error.usage = usage  # type: ignore[attr-defined]
            raise
        # From the headers the run reads how many requests and tokens are left.
        return review, usage, {"headers": response.headers}


def tokens_of(usage: CompletionUsage | None) -> TokenUsage:
    """Tokens as OpenAI counts them: the cached ones are among the prompt's."""
    if usage is None:
        return {}
    details = usage.prompt_tokens_details
    return {
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "cached_input_tokens": (details and details.cached_tokens) or 0,
    }


class OpenAIErrorClassifier(DefaultErrorClassifier):
    """An empty account answers 429 as well, but no waiting will fill it."""

    def classify(self, exception: Exception) -> ErrorInfo:
        if isinstance(exception, RateLimitError) and exception.code == "insufficient_quota":
            return ErrorInfo(
                is_retryable=False,
                is_rate_limit=False,
                is_timeout=False,
                error_category="insufficient_quota",
            )
        return super().classify(exception)


@asynccontextmanager
async def open_client() -> AsyncGenerator[AsyncOpenAI, None]:
    """A client that leaves all retries to the processor."""
    if os.environ.get("OPENAI_API_KEY"):
        async with AsyncOpenAI(max_retries=0) as client:
            yield client
    else:
        async with (
            fake_server(PlayedOpenAI().answer) as url,
            AsyncOpenAI(api_key="none", base_url=url, max_retries=0) as client,
        ):
            yield client


async def main() -> None:
    config = ProcessorConfig(max_workers=2, rate_limit=RateLimitConfig(slow_start_items=0))
    async with (
        open_client() as client,
        ParallelBatchProcessor[str, Review, None](
            config=config, error_classifier=OpenAIErrorClassifier()
        ) as processor,
    ):
        strategy = OpenAIStrategy(client, "gpt-5-mini")
        for row, text in REVIEWS.items():
            await processor.add_work(LLMWorkItem(row, strategy, text))
        batch = await processor.process_all()
        stats = await processor.get_stats()

    for result in batch.results:
        answer = result.output.sentiment if result.output else result.error
        print(f"{result.item_id}  {answer:5} {REVIEWS[result.item_id]}")
    print(
        f"\n{batch.cache_hit_rate():.0f} % of {batch.total_input_tokens:,} input tokens were "
        f"cached.\nCalls refused for the rate limit, then repeated: {stats['rate_limit_count']}"
    )


class PlayedOpenAI:
    """Says what OpenAI would, in its words; refuses the second call for 0.3 seconds."""

    def __init__(self) -> None:
        self.calls = 0

    def answer(self, body: dict[str, Any]) -> Answer:
        self.calls += 1
        if self.calls == 2:
            error = {"message": "Rate limit reached", "type": "requests", "code": "rate_limit"}
            return 429, {"error": error}, {"Retry-After": "0.3"}
        review = body["messages"][-1]["content"]
        good = review in (REVIEWS["row-1"], REVIEWS["row-3"])
        content = json.dumps({"sentiment": "good" if good else "bad"})
        prompt_tokens = len(json.dumps(body["messages"])) // 4
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": 8,
            "total_tokens": prompt_tokens + 8,
            "prompt_tokens_details": {"cached_tokens": 1280 if self.calls > 1 else 0},
        }
        message = {"role": "assistant", "content": content}
        return (
            200,
            {
                "id": f"chatcmpl-{self.calls}",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                "usage": usage,
            },
            {"x-ratelimit-remaining-requests": "495", "x-ratelimit-reset-requests": "600ms"},
        )


if __name__ == "__main__":
    asyncio.run(main())
