"""The post-processor: once per finished item, with the very result, and without harm."""

import asyncio
import logging
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest

from batch_llm import (
    BaseMiddleware,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    WorkItemResult,
)
from batch_llm.core.clock import loop_time
from tests.helpers import ANSWER, Script, run_batch

Result = WorkItemResult[Any, Any]


class Skipping(BaseMiddleware[str, Any, Any]):
    """Skips the items of one strategy."""

    def __init__(self, strategy: Script) -> None:
        self.strategy = strategy

    async def before_process(
        self, work_item: LLMWorkItem[str, Any, Any]
    ) -> LLMWorkItem[str, Any, Any] | None:
        return None if work_item.strategy is self.strategy else work_item


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_it_gets_each_result_once_and_the_very_object(asynchronous: bool) -> None:
    seen: list[Result] = []

    async def keep(result: Result) -> None:
        seen.append(result)

    skipped = Script()
    batch = await run_batch(
        Script(RuntimeError(), ANSWER),
        Script(ValueError("bad")),
        skipped,
        count=4,
        middlewares=[Skipping(skipped)],
        post_processor=keep if asynchronous else seen.append,
    )
    assert len(seen) == len(batch.results) == 12
    assert {id(result) for result in seen} == {id(result) for result in batch.results}
    assert batch.succeeded == 4
    assert [result.error for result in seen].count("Skipped by middleware") == 4


async def test_it_may_change_the_result() -> None:
    def change(result: Result) -> None:
        result.output = "changed"

    batch = await run_batch(Script(), post_processor=change)
    assert batch.results[0].output == "changed"


@pytest.mark.parametrize("mock", [MagicMock(), AsyncMock(return_value="passed over")])
async def test_a_mock_will_do(mock: Any) -> None:
    batch = await run_batch(Script(), post_processor=mock)
    mock.assert_called_once_with(batch.results[0])


@pytest.mark.parametrize(
    "error", [ValueError("quotes answer"), asyncio.CancelledError(), GeneratorExit()], ids=repr
)
@pytest.mark.parametrize("mock", [MagicMock, AsyncMock])
async def test_its_failure_is_logged_and_the_item_stays_as_it_was(
    error: BaseException, mock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    batch = await run_batch(Script(), count=3, post_processor=mock(side_effect=error))
    assert [(result.success, result.output) for result in batch.results] == [(True, "answer")] * 3
    errors = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
    assert sorted(errors) == [
        f"item {number}: post_processor failed with {type(error).__name__}" for number in range(3)
    ]


async def test_it_has_90_seconds(caplog: pytest.LogCaptureFixture) -> None:
    ends: list[float] = []

    async def slow(result: Result) -> None:
        try:
            await asyncio.sleep(89 if result.item_id == "0" else 91)
        finally:
            ends.append(loop_time())

    batch = await run_batch(Script(), count=2, post_processor=slow)
    assert batch.succeeded == 2
    assert [round(end) for end in ends] == [89, 90]
    assert "item 1: post_processor failed with FrameworkTimeoutError" in caplog.text
    assert "item 0" not in caplog.text


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_an_interrupt_comes_out_of_the_run(kind: type[BaseException]) -> None:
    with pytest.raises(kind):
        await run_batch(Script(), count=9, post_processor=MagicMock(side_effect=kind))


@pytest.mark.parametrize("max_queue_size", [0, 1])
async def test_it_may_add_work_to_the_run(max_queue_size: int) -> None:
    strategy = Script()

    async def follow_up(result: Result) -> None:
        if len(result.item_id) < 5:
            for letter in "ab":
                await processor.add_work(LLMWorkItem(result.item_id + letter, strategy))

    async with ParallelBatchProcessor[str, Any, Any](
        post_processor=follow_up, config=ProcessorConfig(max_queue_size=max_queue_size)
    ) as processor:
        await processor.add_work(LLMWorkItem("root", strategy))
        batch = await processor.process_all()
        stats = await processor.get_stats()
    assert sorted(result.item_id for result in batch.results) == ["root", "roota", "rootb"]
    assert stats["total"] == 3
