"""State, names, preparing once, hedging and three-tuples with the real SDK over HTTP."""

import asyncio
from typing import Any

import pytest

from batch_llm import (
    GeminiCachedStrategy,
    GeminiStrategy,
    LLMWorkItem,
    ParallelBatchProcessor,
    PrepareOnceMixin,
    ProcessorConfig,
    RetryConfig,
    RetryState,
)
from batch_llm.testing.gemini import Fault, GeminiEmulator

pytestmark = pytest.mark.gemini

MODEL = "gemini-2.5-flash"
LONG_TEXT = "Judge like a careful editor. " * 600

Processor = ParallelBatchProcessor[str, Any, Any]


def text_of(response: Any) -> str:
    return str(response.text)


class CachedOnce(PrepareOnceMixin, GeminiCachedStrategy[str]):
    """Has one cache, whoever prepares it first."""

    async def _prepare_once(self) -> None:
        await GeminiCachedStrategy[str].prepare(self)


async def test_a_cache_is_prepared_once_by_the_caller_and_the_processor() -> None:
    async with GeminiEmulator() as server:
        strategy = CachedOnce(MODEL, server.client(), text_of, LONG_TEXT)
        async with Processor(config=ProcessorConfig(max_workers=5)) as processor:
            await processor.register_strategy("judge", strategy)
            for n in range(20):
                await processor.add_work(LLMWorkItem(str(n), "judge", f"Book {n}"))
            *_, result = await asyncio.gather(
                *[strategy.prepare() for _ in range(5)], processor.process_all()
            )
    assert result.succeeded == 20
    assert result.total_cached_tokens > 0
    created = [r for r in server.requests if r.method == "POST" and "cachedContents" in r.path]
    assert len(created) == 1


class Escalating(GeminiStrategy[str]):
    """Asks again in other words, and says with the answer how often it asked."""

    async def execute(
        self, prompt: str, attempt: int, timeout: float, state: RetryState | None = None
    ) -> Any:
        assert state is not None
        state["asked"] = state.get("asked", 0) + 1
        output, usage = await super().execute(f"{prompt}, try {state['asked']}", attempt, timeout)
        return output, usage, {"asked": state["asked"], "of": state.item_id}


async def test_a_state_lives_from_the_first_call_to_the_answer() -> None:
    async with GeminiEmulator() as server:
        server.script(Fault.status(503), Fault.status(503))
        strategy = Escalating(MODEL, server.client(), text_of)
        config = ProcessorConfig(max_workers=1, retry=RetryConfig(max_attempts=3, jitter=False))
        async with Processor(config=config) as processor:
            for n in range(2):
                await processor.add_work(LLMWorkItem(str(n), strategy, f"Book {n}"))
            result = await processor.process_all()
    first, second = result.results
    assert first.metadata == {"asked": 3, "of": "0"}
    assert second.metadata == {"asked": 1, "of": "1"}
    assert first.retry_state == {"asked": 3}
    assert [r.prompt for r in server.requests] == [
        *[f"Book 0, try {n}" for n in (1, 2, 3)],
        "Book 1, try 1",
    ]


async def test_a_slow_answer_is_asked_for_once_more() -> None:
    async with GeminiEmulator() as server:
        server.script(*[Fault.slow(1.0)] * 39, Fault.slow(300.0))
        strategy = GeminiStrategy(MODEL, server.client(), text_of)
        config = ProcessorConfig(max_workers=4, hedge_after=0.9, timeout_per_item=600.0)
        async with Processor(config=config) as processor:
            for n in range(40):
                await processor.add_work(LLMWorkItem(str(n), strategy, f"Book {n}"))
            result = await processor.process_all()
            stats = await processor.get_stats()
    assert result.succeeded == 40
    assert stats["hedged_calls"] == 1
    assert len(server.requests) == 41
    assert asyncio.get_running_loop().time() < 100
    usages = [entry.token_usage for entry in result.results]
    read, again = (usage.get("input_tokens", 0) for usage in (usages[0], usages[-1]))
    assert again > read > 0
