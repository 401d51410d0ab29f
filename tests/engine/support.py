"""A strategy that notes the instant of everything it is asked to do, and what it plays."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from batch_llm import (
    BatchResult,
    LLMCallStrategy,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    RateLimitConfig,
    RetryConfig,
    TokenUsage,
)

Item = LLMWorkItem[str, Any, Any]
Processor = ParallelBatchProcessor[str, Any, Any]


@dataclass(frozen=True)
class Call:
    """One call of execute, and the loop time at which it was made."""

    at: float
    prompt: str
    attempt: int
    timeout: float


Answer = Callable[[Call], Awaitable[Any]]


def now() -> float:
    return asyncio.get_running_loop().time()


def script(*steps: Any) -> Answer:
    """Play one step per call, then "ok" for ever: exceptions are raised, the rest returned."""
    remaining = deque(steps)

    async def answer(call: Call) -> Any:
        step = remaining.popleft() if remaining else "ok"
        if isinstance(step, BaseException):
            raise step
        return step

    return answer


class Provider(LLMCallStrategy[Any]):
    """Takes ``seconds`` for each call, then answers with whatever ``answer`` returns."""

    def __init__(self, answer: Answer | None = None, *, seconds: float = 0.0) -> None:
        self.answer = answer or script()
        self.seconds = seconds
        self.calls: list[Call] = []
        self.prepared: list[float] = []
        self.cleaned: list[float] = []
        self.errors: list[tuple[BaseException, int]] = []

    async def prepare(self) -> None:
        self.prepared.append(now())

    async def execute(self, prompt: str, attempt: int, timeout: float) -> tuple[Any, TokenUsage]:
        call = Call(now(), prompt, attempt, timeout)
        self.calls.append(call)
        if self.seconds:
            await asyncio.sleep(self.seconds)
        return await self.answer(call), {}

    async def on_error(self, exception: BaseException, attempt: int) -> None:
        self.errors.append((exception, attempt))

    async def cleanup(self) -> None:
        self.cleaned.append(now())

    @property
    def instants(self) -> list[float]:
        return [call.at for call in self.calls]

    @property
    def attempts(self) -> list[int]:
        return [call.attempt for call in self.calls]


class Refused(Exception):  # noqa: N818
    """A provider's 429, with or without its hint."""

    code = 429

    def __init__(self, retry_after: float | None = None) -> None:
        super().__init__("slow down")
        if retry_after is not None:
            self.response = SimpleNamespace(headers={"Retry-After": str(retry_after)})


def settings(
    max_workers: int = 1, *, cooldown: float = 60.0, slow_start_items: int = 0, **fields: Any
) -> ProcessorConfig:
    """A config in which nothing is left to chance and slow start is off."""
    fields.setdefault("retry", RetryConfig(jitter=False))
    rate_limit = RateLimitConfig(
        cooldown_seconds=cooldown, slow_start_items=slow_start_items, backoff_multiplier=2.0
    )
    return ProcessorConfig(**{"rate_limit": rate_limit, **fields}, max_workers=max_workers)


def items(strategy: LLMCallStrategy[Any], count: int = 1) -> list[Item]:
    return [LLMWorkItem(str(number), strategy, f"prompt {number}") for number in range(count)]


async def run(*work: Item, config: ProcessorConfig | None = None, **options: Any) -> Any:
    """Process the items in a run of their own."""
    async with Processor(config=config or settings(), **options) as processor:
        return await run_with(processor, *work)


async def run_with(processor: Processor, *work: Item) -> BatchResult[Any, Any]:
    for item in work:
        await processor.add_work(item)
    return await processor.process_all()


async def start(processor: Processor, *work: Item) -> asyncio.Task[BatchResult[Any, Any]]:
    """Begin a run and let its workers take their first items."""
    for item in work:
        await processor.add_work(item)
    running = asyncio.create_task(processor.process_all())
    for _ in range(20):
        await asyncio.sleep(0)
    return running


def errors(result: BatchResult[Any, Any]) -> list[str | None]:
    return [entry.error for entry in result.results]


def outputs(result: BatchResult[Any, Any]) -> list[Any]:
    return [entry.output for entry in result.results]
