"""What many tests need: a strategy that plays a script, an observer that remembers."""

from collections.abc import Callable
from typing import Any

from batch_llm import (
    BaseObserver,
    BatchResult,
    LLMCallStrategy,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessingEvent,
)

ANSWER: tuple[str, dict[str, int]] = (
    "answer",
    {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15},
)


class Script(LLMCallStrategy[Any]):
    """Plays one step per call and the last one for ever: raises it, calls it, or returns it."""

    def __init__(self, *steps: Any) -> None:
        self.steps = steps or (ANSWER,)
        self.calls: list[tuple[str, int, float]] = []

    async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
        step = self.steps[min(len(self.calls), len(self.steps) - 1)]
        self.calls.append((prompt, attempt, timeout))
        if isinstance(step, BaseException):
            raise step
        return await step() if isinstance(step, Callable) else step


class Recorder(BaseObserver):
    """Remembers every event."""

    def __init__(self) -> None:
        self.seen: list[tuple[ProcessingEvent, dict[str, Any]]] = []

    async def on_event(self, event: ProcessingEvent, data: dict[str, Any]) -> None:
        self.seen.append((event, data))

    def of(self, event: ProcessingEvent) -> list[dict[str, Any]]:
        return [data for seen, data in self.seen if seen is event]


async def run_batch(
    *strategies: LLMCallStrategy[Any], count: int = 1, **options: Any
) -> BatchResult[Any, Any]:
    """A run of its own with ``count`` items ("0", "1", …) of each strategy."""
    async with ParallelBatchProcessor[str, Any, Any](**options) as processor:
        for number in range(count * len(strategies)):
            strategy = strategies[number % len(strategies)]
            await processor.add_work(LLMWorkItem(str(number), strategy, prompt=f"prompt {number}"))
        return await processor.process_all()
