"""What is told of an item, and of whom it is told."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from batch_llm import LLMCallStrategy, ProcessingEvent
from tests.engine.support import Call, Provider, errors, items, run, settings
from tests.helpers import Recorder, Script


async def test_an_item_s_duration_is_counted_from_when_a_worker_took_it() -> None:
    async def answer(call: Call) -> Any:
        await asyncio.sleep(float(call.prompt.removeprefix("prompt ")) + 1)

    recorder = Recorder()
    await run(*items(Provider(answer), 3), config=settings(1), observers=[recorder])
    completed = recorder.of(ProcessingEvent.ITEM_COMPLETED)
    assert [data["duration"] for data in completed] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"input_tokens": 7, "output_tokens": 3, "total_tokens": 12}, 12),
        ({"input_tokens": 7, "output_tokens": 3}, 10),
        ({}, 0),
    ],
)
async def test_what_is_told_of_an_item_with_an_answer(usage: dict[str, int], tokens: int) -> None:
    recorder = Recorder()
    await run(*items(Script(("answer", usage))), config=settings(), observers=[recorder])
    assert recorder.of(ProcessingEvent.ITEM_COMPLETED) == [
        {"item_id": "0", "duration": 0.0, "tokens": tokens}
    ]


async def test_whatever_can_be_awaited_is_a_call() -> None:
    class Futures(LLMCallStrategy[str]):
        def execute(self, prompt: str, attempt: int, timeout: float) -> Awaitable[Any]:  # type: ignore[override]
            answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            answer.set_result((prompt, {}))
            return answer

    result = await run(*items(Futures(), 2))
    assert [each.output for each in result.results] == ["prompt 0", "prompt 1"]


async def test_a_dry_run_of_the_wrong_shape_is_called_by_its_name() -> None:
    class Half(Provider):
        async def dry_run(self, prompt: str) -> Any:
            return prompt

    result = await run(*items(Half()), config=settings(dry_run=True))
    assert errors(result)[0].startswith("StrategyContractError: Half.dry_run returned a str")
