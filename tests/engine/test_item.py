"""What is told of an item, and of whom it is told."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from batch_llm import BaseMiddleware, LLMCallStrategy, ProcessingEvent, WorkItemResult
from tests.engine.support import Call, Provider, errors, items, now, run, script, settings
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


async def test_who_watches_is_told_of_a_start_at_once() -> None:
    class Timed(Recorder):
        async def on_event(self, event: ProcessingEvent, data: dict[str, Any]) -> None:
            await super().on_event(event, data)
            instants[event] = now()

    instants: dict[ProcessingEvent, float] = {}
    await run(*items(Provider(seconds=10.0)), observers=[Timed()])
    assert instants[ProcessingEvent.ITEM_STARTED] == 0.0
    assert instants[ProcessingEvent.ITEM_COMPLETED] == 10.0


async def test_a_dry_run_prepares_nothing() -> None:
    provider = Provider()
    result = await run(*items(provider, 3), config=settings(dry_run=True))
    assert (result.succeeded, provider.prepared, provider.cleaned) == (3, [], [])


class Replacing(BaseMiddleware[Any, Any, Any]):
    """Puts results of its own in the place of others."""

    def __init__(self, made: WorkItemResult[Any, Any]) -> None:
        self.made = made

    async def after_process(self, result: Any) -> Any:
        return self.made

    async def on_error(self, work_item: Any, error: Exception) -> Any:
        return self.made


async def test_a_failure_that_middleware_made_is_told_by_its_own_kind() -> None:
    recorder, made = Recorder(), WorkItemResult[Any, Any]("0", False, error="Rejected: no: never")
    await run(*items(Provider()), middlewares=[Replacing(made)], observers=[recorder])
    assert recorder.of(ProcessingEvent.ITEM_FAILED) == [{"item_id": "0", "error_type": "Rejected"}]


async def test_the_exception_of_a_failure_that_middleware_made_is_kept() -> None:
    made = WorkItemResult[Any, Any]("0", False, error="Rejected: no")
    made.exception = own = LookupError("my own")
    provider = Provider(script(ValueError("no")))
    result = await run(*items(provider), config=settings(), middlewares=[Replacing(made)])
    assert result.results[0].exception is own


@pytest.mark.parametrize(
    ("told", "found"), [({"HATE": "LOW"}, {"HATE": "LOW"}), ("LOW", None)], ids=["dict", "text"]
)
async def test_ratings_are_taken_from_an_error_or_an_answer(told: Any, found: Any) -> None:
    error = ValueError("blocked")
    vars(error)["safety_ratings"] = told
    result = await run(*items(Script(error, ("answer", {}, {"safety_ratings": told})), 2))
    assert [each.success for each in result.results] == [False, True]
    assert [each.gemini_safety_ratings for each in result.results] == [found, found]


async def test_a_kept_error_pins_no_frames_not_even_those_of_its_cause() -> None:
    def broken() -> None:
        raise LookupError

    async def answer(call: Call) -> Any:
        error = ValueError("no")
        try:
            broken()
        except LookupError as cause:
            error.__cause__ = cause
        raise error

    result = await run(*items(Provider(answer)))
    [error] = [each.exception for each in result.results]
    assert error.__traceback__ is error.__cause__.__traceback__ is None


async def test_an_item_that_was_never_called_has_no_usage() -> None:
    class Unready(Provider):
        async def prepare(self) -> None:
            raise ValueError("not today")

    result = await run(*items(Unready()))
    assert result.results[0].token_usage == {}
