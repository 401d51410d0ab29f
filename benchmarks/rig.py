"""The measured run and, beside it, the least that any pool of workers has to do."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
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

Item = LLMWorkItem[str, str, None]
Run = Callable[[], Awaitable[object]]


class Echo(LLMCallStrategy[str]):
    """Answers with the prompt after some seconds; 0 gives way to other tasks once."""

    def __init__(self, seconds: float = 0) -> None:
        self.seconds = seconds

    async def execute(self, prompt: str, attempt: int, timeout: float) -> tuple[str, TokenUsage]:
        await asyncio.sleep(self.seconds)
        return prompt, {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}


def work_items(count: int, seconds: float = 0) -> list[Item]:
    """Items that share one strategy."""
    strategy = Echo(seconds)
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
    processor = await filled(items, workers, observers, **settings)
    return processor.process_all


async def streamed(items: Sequence[Item], workers: int) -> Run:
    """The same results as they are made, kept one by one."""
    processor = await filled(items, workers)

    async def run() -> list[object]:
        stream = processor._stream()  # pyright: ignore[reportPrivateUsage]
        async with aclosing(stream) as results:
            return [result async for result in results]

    return run


async def filled(
    items: Sequence[Item],
    workers: int,
    observers: Sequence[ProcessorObserver] = (),
    **settings: Any,
) -> ParallelBatchProcessor[str, str, None]:
    """A processor that has the items already."""
    config = ProcessorConfig(max_workers=workers, timeout_per_item=TIMEOUT_SECONDS, **settings)
    processor = ParallelBatchProcessor[str, str, None](config=config, observers=list(observers))
    for item in items:
        await processor.add_work(item)
    return processor
