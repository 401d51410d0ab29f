"""What a type checker must see of strategies that prepare once or have a state; never run."""

from typing import assert_type

from batch_llm import (
    LLMCallStrategy,
    LLMWorkItem,
    ParallelBatchProcessor,
    PrepareOnceMixin,
    RetryState,
    TokenUsage,
    prepare_once,
)


class Decorated(LLMCallStrategy[str]):
    """Prepares once by the decorator, and asks for the item's state."""

    @prepare_once
    async def prepare(self) -> None:
        """Get ready."""

    async def execute(
        self, prompt: str, attempt: int, timeout: float, state: RetryState | None = None
    ) -> tuple[str, TokenUsage]:
        """Answer."""
        return prompt, {}

    async def on_error(
        self, exception: Exception, attempt: int, state: RetryState | None = None
    ) -> None:
        """Remember."""


class Mixed(PrepareOnceMixin, LLMCallStrategy[str]):
    """Prepares once by the mixin."""

    async def _prepare_once(self) -> None:
        """Get ready."""

    async def execute(self, prompt: str, attempt: int, timeout: float) -> tuple[str, TokenUsage]:
        """Answer."""
        return prompt, {}


async def named(processor: ParallelBatchProcessor[str, str, int]) -> None:
    """Items take a strategy or its name, and what they have is a strategy."""
    await processor.register_strategy("mixed", Mixed())
    item = LLMWorkItem[str, str, int]("1", strategy="mixed", prompt="p", context=7)
    assert_type(item.strategy, LLMCallStrategy[str])
    assert_type(LLMWorkItem[str, str, int]("2", Decorated()).context, int | None)
    await processor.add_work(item)
