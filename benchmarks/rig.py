"""The measured run and, beside it, the least that any pool of workers has to do."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from batch_llm import (
    BatchResult,
    LLMCallStrategy,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    ProcessorObserver,
    TokenUsage,
)

TIMEOUT_SECONDS = 120.0
_HEADERS = {
    "x-ratelimit-limit-requests": "1000000000",
    "x-ratelimit-remaining-requests": "999999999",
    "x-ratelimit-reset-requests": "1s",
}

Item = LLMWorkItem[str, str, None]
Run = Callable[[], Awaitable[object]]


class Echo(LLMCallStrategy[str]):
    """Answers with the prompt after some seconds; 0 gives way to other tasks once."""

    def __init__(self, seconds: float = 0) -> None:
        self.seconds = seconds

    async def execute(self, prompt: str, attempt: int, timeout: float) -> tuple[str, TokenUsage]:
        await asyncio.sleep(self.seconds)
        return prompt, {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}


class Told(Echo):
    """Says with its first answer that there is a limit, far above what is asked of it.

    From then on each call passes the gate and counts there.
    """

    async def prepare(self) -> None:
        self.has_told = False

    async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
        await asyncio.sleep(self.seconds)
        usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
        if self.has_told:
            return prompt, usage
        self.has_told = True
        return prompt, usage, {"headers": _HEADERS}


def work_items(count: int, seconds: float = 0, strategy: Echo | None = None) -> list[Item]:
    """Items that share one strategy."""
    strategy = strategy or Echo(seconds)
    return [LLMWorkItem(f"item {number}", strategy, "a prompt") for number in range(count)]


def floor(items: Sequence[Item], workers: int) -> Run:
    """N tasks that pull from one iterator, await the call and store the result."""

    async def run() -> list[str]:
        source, results = iter(items), list[str]()

        async def work() -> None:
            for item in source:
                output, _ = await item.strategy.execute(item.prompt, 1, TIMEOUT_SECONDS)
                results.append(output)

        await asyncio.gather(*[work() for _ in range(workers)])
        return results

    return run


async def queued(
    items: Sequence[Item],
    workers: int,
    observers: Sequence[ProcessorObserver] = (),
    **settings: Any,
) -> Callable[[], Awaitable[BatchResult[str, None]]]:
    """A processor's ``process_all``, with the items added already."""
    config = ProcessorConfig(max_workers=workers, timeout_per_item=TIMEOUT_SECONDS, **settings)
    processor = ParallelBatchProcessor[str, str, None](config=config, observers=list(observers))
    for item in items:
        await processor.add_work(item)
    return processor.process_all
