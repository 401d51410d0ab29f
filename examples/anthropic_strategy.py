"""Anthropic by its own SDK, with its prompt cache.

Run it: pip install "batch-llm[anthropic]" && python examples/anthropic_strategy.py
With ANTHROPIC_API_KEY set it asks Anthropic, else a local server that plays it.
"""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from _fake_server import Answer, fake_server
from anthropic import AsyncAnthropic
from anthropic.types import Usage

from batch_llm import (
    LLMCallStrategy,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    ResponseBlockedError,
    ResponseTruncatedError,
    RetryConfig,
    TokenUsage,
)

# Long enough to be cached; the least is 1,024 to 4,096 tokens, depending on the model.
INSTRUCTIONS = "Translate into one word of French.\n" + "Prefer the everyday word.\n" * 800
FRENCH = {
    "bread": "pain",
    "cheese": "fromage",
    "moon": "lune",
    "rain": "pluie",
    "house": "maison",
    "dream": "rêve",
}


class AnthropicStrategy(LLMCallStrategy[str]):
    """Asks for a text, with instructions that all prompts share."""

    def __init__(self, client: AsyncAnthropic, model: str, instructions: str) -> None:
        self.client = client
        self.model = model
        self.instructions = instructions
        self.quota = f"anthropic/{model}"

    async def execute(self, prompt: str, attempt: int, timeout: float) -> tuple[str, TokenUsage]:
        message = await self.client.messages.create(
            model=self.model,
            max_tokens=100,
            system=[
                {
                    "type": "text",
                    "text": self.instructions,
                    "cache_control": {"type": "ephemeral"},
                }
            ],
            messages=[{"role": "user", "content": prompt}],
        )
        usage = tokens_of(message.usage)
        if message.stop_reason == "max_tokens":
            raise ResponseTruncatedError("the answer was cut off", usage=usage)
        if message.stop_reason == "refusal":
            raise ResponseBlockedError("the model refused to answer", usage=usage)
        return "".join(block.text for block in message.content if block.type == "text"), usage


def tokens_of(usage: Usage) -> TokenUsage:
    """Anthropic counts what a cache took or gave apart; our input tokens include it."""
    cached = usage.cache_read_input_tokens or 0
    input_tokens = usage.input_tokens + (usage.cache_creation_input_tokens or 0) + cached
    return {
        "input_tokens": input_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": input_tokens + usage.output_tokens,
        "cached_input_tokens": cached,
    }


@asynccontextmanager
async def open_client() -> AsyncGenerator[AsyncAnthropic, None]:
    """A client that leaves all retries to the processor."""
    if os.environ.get("ANTHROPIC_API_KEY"):
        async with AsyncAnthropic(max_retries=0) as client:
            yield client
    else:
        async with (
            fake_server(PlayedAnthropic().answer) as url,
            AsyncAnthropic(api_key="none", base_url=url, max_retries=0) as client,
        ):
            yield client


async def main() -> None:
    config = ProcessorConfig(max_workers=2, retry=RetryConfig(initial_wait=0.3))
    async with (
        open_client() as client,
        # The default error classifier goes by HTTP statuses, which is all Anthropic needs.
        ParallelBatchProcessor[str, str, None](config=config) as processor,
    ):
        strategy = AnthropicStrategy(client, "claude-haiku-4-5", INSTRUCTIONS)
        for word in FRENCH:
            await processor.add_work(LLMWorkItem(word, strategy, word))
        batch = await processor.process_all()

    for result in batch.results:
        print(f"{result.item_id:8} {result.output or result.error} (attempt {result.attempts})")
    print(
        f"\n{batch.cache_hit_rate():.0f} % of {batch.total_input_tokens:,} input tokens were "
        f"cached: they are billed like {batch.effective_input_tokens():,}."
    )


class PlayedAnthropic:
    """Says what Anthropic would, in its words; is overloaded at the third call."""

    def __init__(self) -> None:
        self.calls = 0

    def answer(self, body: dict[str, Any]) -> Answer:
        self.calls += 1
        if self.calls == 3:
            error = {"type": "overloaded_error", "message": "Overloaded"}
            return 529, {"type": "error", "error": error}, {}
        shared_tokens = len(body["system"][0]["text"]) // 4
        usage = {
            "input_tokens": 4,
            "output_tokens": 3,
            "cache_creation_input_tokens": shared_tokens if self.calls == 1 else 0,
            "cache_read_input_tokens": shared_tokens if self.calls > 1 else 0,
        }
        return (
            200,
            {
                "id": f"msg_{self.calls}",
                "type": "message",
                "role": "assistant",
                "model": body["model"],
                "content": [{"type": "text", "text": FRENCH[body["messages"][0]["content"]]}],
                "stop_reason": "end_turn",
                "usage": usage,
            },
            {},
        )


if __name__ == "__main__":
    asyncio.run(main())
