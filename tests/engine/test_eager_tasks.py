"""A loop whose tasks begin before anybody knows them."""

import asyncio
import sys
from typing import Any

import pytest

from batch_llm import BaseMiddleware
from tests.engine.support import (
    Call,
    Item,
    Processor,
    Provider,
    Refused,
    items,
    run,
    run_with,
    script,
    settings,
)
from tests.helpers import Recorder

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="asyncio.eager_task_factory is new in Python 3.12"
)


def begin_tasks_at_once() -> None:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009 - not yet in 3.11


class Bare:
    """Awaits nothing that would give others a turn."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
        return await self.answer(Call(0.0, prompt, attempt, timeout)), {}


async def test_a_whole_run() -> None:
    begin_tasks_at_once()

    class Adding(BaseMiddleware[str, Any, Any]):
        async def before_process(self, work_item: Item) -> Item:
            if work_item.item_id == "0":
                for item in items(Provider(), 5):
                    item.item_id = "added"
                    await processor.add_work(item)
            return work_item

    async def answer(call: Call) -> str:
        await asyncio.sleep(1e6 if call.prompt == "prompt 3" else 0.0)
        return await steps(call)

    steps = script("ok", ConnectionError(), Refused(5), asyncio.CancelledError())
    recorder, told = Recorder(), list[int]()

    async def report(completed: int, total: int, item_id: str) -> None:
        told.append(completed)

    config = settings(1, timeout_per_item=10.0, progress_interval=1, max_queue_size=10)
    processor = Processor(
        config=config, middlewares=[Adding()], observers=[recorder], progress_callback=report
    )
    async with processor:
        result = await run_with(processor, *items(Provider(answer), 10))
    assert (result.succeeded, result.failed) == (14, 1)
    assert told == list(range(1, 16))
    assert recorder.seen[-1][0].value == "batch_completed"


async def test_a_call_that_ends_in_a_cancellation_at_once() -> None:
    begin_tasks_at_once()
    steps = script(asyncio.CancelledError(), "ok", asyncio.CancelledError())
    work: Any = items(Bare(steps), 3)  # type: ignore[arg-type]
    result = await asyncio.wait_for(run(*work), 100.0)
    assert result.succeeded == 3


async def test_a_call_may_add_work_to_a_full_queue() -> None:
    begin_tasks_at_once()

    async def answer(call: Call) -> str:
        if call.prompt == "seed":
            for item in items(bare, 5):
                await processor.add_work(item)
        return call.prompt

    bare: Any = Bare(answer)
    [seed] = items(bare)
    seed.prompt = "seed"
    async with Processor(config=settings(1, max_queue_size=2)) as processor:
        result = await asyncio.wait_for(run_with(processor, seed), 100.0)
    assert result.succeeded == 6
