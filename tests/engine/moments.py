"""A run that hangs at a chosen moment of an item's life."""

import asyncio
from typing import Any

from batch_llm import (
    BaseMiddleware,
    FixedDelayStrategy,
    WorkItemResult,
)
from tests.engine.support import (
    Item,
    Processor,
    Provider,
    Refused,
    script,
    settings,
)


def other_tasks() -> set[asyncio.Task[Any]]:
    current = asyncio.current_task()
    return {task for task in asyncio.all_tasks() if task is not current}


class Hooked(Provider):
    """Takes 100 s wherever it is told to, and otherwise none."""

    def __init__(self, slow: str, **options: Any) -> None:
        super().__init__(**options)
        self.slow = slow

    async def wait_in(self, hook: str) -> None:
        if hook == self.slow:
            await asyncio.sleep(100.0)

    async def prepare(self) -> None:
        await super().prepare()
        await self.wait_in("prepare")

    async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
        await self.wait_in("execute")
        return await super().execute(prompt, attempt, timeout)

    async def on_error(self, exception: BaseException, attempt: int) -> None:
        await self.wait_in("on_error")

    async def cleanup(self) -> None:
        await super().cleanup()
        await self.wait_in("cleanup")


class SlowMiddleware(BaseMiddleware[str, Any, Any]):
    def __init__(self, slow: str) -> None:
        self.slow = slow

    async def before_process(self, work_item: Item) -> Item:
        await asyncio.sleep(100.0 if self.slow == "before_process" else 0.0)
        return work_item

    async def after_process(self, result: Any) -> Any:
        await asyncio.sleep(100.0 if self.slow == "after_process" else 0.0)
        return result


MOMENTS = [
    "prepare",
    "execute",
    "on_error",
    "retry",
    "cooldown",
    "slow start",
    "pacing",
    "before_process",
    "after_process",
    "post_processor",
    "on_rate_limit",
]


def stuck_at(moment: str) -> tuple[Processor, Provider]:
    """A processor and a provider which, at 10 s, hang at that moment of an item's life."""
    steps = {
        "on_error": [ConnectionError()],
        "retry": [ConnectionError()],
        "cooldown": [Refused(100)],
        "slow start": [Refused(1)],
        "on_rate_limit": [Refused()],
    }
    provider = Hooked(moment, answer=script(*steps.get(moment, [])))
    config = settings(3)
    if moment == "retry":
        config.retry.initial_wait = config.retry.max_wait = 100.0
    if moment == "pacing":
        config.max_requests_per_minute = 0.1

    async def post_process(result: WorkItemResult[Any, Any]) -> None:
        await asyncio.sleep(50.0 if moment == "post_processor" else 0.0)

    class Strategy(FixedDelayStrategy):
        async def on_rate_limit(self, worker_id: int, consecutive_limit_count: int) -> float:
            await asyncio.sleep(100.0 if moment == "on_rate_limit" else 0.0)
            return 1.0

    processor = Processor(
        config=config,
        post_processor=post_process,
        middlewares=[SlowMiddleware(moment)],
        rate_limit_strategy=Strategy(10.0, 100.0),
    )
    return processor, provider
