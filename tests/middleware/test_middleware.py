"""Middleware: order, what it may change, and what its failures cost."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest

from batch_llm import (
    BaseMiddleware,
    FrameworkTimeoutError,
    LLMWorkItem,
    Middleware,
    ParallelBatchProcessor,
    ProcessorConfig,
    RetryConfig,
    WorkItemResult,
)
from tests.helpers import ANSWER, Script, run_batch

Item = LLMWorkItem[str, Any, Any]
Result = WorkItemResult[Any, Any]


class Noting(BaseMiddleware[str, Any, Any]):
    """Writes down under its name whatever it is called for."""

    def __init__(self, name: str = "", notes: list[tuple[Any, ...]] | None = None) -> None:
        self.name = name
        self.notes: list[tuple[Any, ...]] = [] if notes is None else notes

    async def before_process(self, work_item: Item) -> Item | None:
        self.notes.append((self.name, "before", work_item.item_id))
        return work_item

    async def after_process(self, result: Result) -> Result:
        self.notes.append((self.name, "after", result.output))
        return result

    async def on_error(self, work_item: Item, exception: Exception) -> Result | None:
        self.notes.append((self.name, "on_error", exception))
        return None


def middleware(**methods: Callable[..., Any]) -> BaseMiddleware[str, Any, Any]:
    """A middleware with some methods of its own."""
    mocks = {name: staticmethod(AsyncMock(side_effect=does)) for name, does in methods.items()}
    made: BaseMiddleware[str, Any, Any] = type("Made", (BaseMiddleware,), mocks)()
    return made


def raising(error: BaseException) -> Callable[..., Any]:
    return MagicMock(side_effect=error)


async def run_one(*middlewares: Any, strategy: Script | None = None, **options: Any) -> Result:
    batch = await run_batch(strategy or Script(), middlewares=list(middlewares), **options)
    [result] = batch.results
    return result


async def test_before_runs_in_list_order_and_after_in_reverse() -> None:
    notes: list[tuple[Any, ...]] = []
    await run_one(Noting("outer", notes), Noting("inner", notes))
    assert notes == [
        ("outer", "before", "0"),
        ("inner", "before", "0"),
        ("inner", "after", "answer"),
        ("outer", "after", "answer"),
    ]


async def test_hooks_run_once_per_item_whatever_the_attempts() -> None:
    noting = Noting()
    strategy = Script(RuntimeError("once"), RuntimeError("twice"), ANSWER)
    result = await run_one(noting, strategy=strategy)
    assert result.success
    assert [note[1] for note in noting.notes] == ["before", "after"]


async def test_none_skips_an_item() -> None:
    later = Noting()
    strategy = Script()
    result = await run_one(middleware(before_process=lambda item: None), later, strategy=strategy)
    assert result == WorkItemResult("0", False, error="Skipped by middleware")
    assert strategy.calls == []
    assert later.notes == []


async def test_a_skipped_item_keeps_its_context_and_is_counted_as_failed() -> None:
    skipping = middleware(before_process=lambda item: None)
    async with ParallelBatchProcessor[str, Any, Any](middlewares=[skipping]) as processor:
        await processor.add_work(LLMWorkItem("id", Script(), context="mine"))
        batch = await processor.process_all()
        stats = await processor.get_stats()
    assert batch.results[0].context == "mine"
    assert (batch.failed, stats["failed"], stats["processed"]) == (1, 1, 1)
    assert stats["error_counts"] == {"Skipped by middleware": 1}


async def test_an_item_may_be_changed_in_place() -> None:
    def change(item: Item) -> Item:
        item.prompt, item.context, item.item_id = "changed", {"new": 1}, "renamed"
        return item

    strategy = Script()
    result = await run_one(middleware(before_process=change), strategy=strategy)
    assert (result.item_id, result.context) == ("renamed", {"new": 1})
    assert strategy.calls[0][0] == "changed"


async def test_a_new_item_with_another_strategy_is_honoured() -> None:
    accepted, other = Script(), Script(("other", {}))
    accepted.prepare = AsyncMock()
    other.prepare = other.cleanup = AsyncMock()
    new = LLMWorkItem[str, Any, Any]("new", other, "other prompt", "other context")
    result = await run_one(middleware(before_process=lambda item: new), strategy=accepted)
    assert result == WorkItemResult("new", True, "other", None, "other context")
    assert [call[0] for call in other.calls] == ["other prompt"]
    assert other.prepare.await_count == 2
    assert accepted.calls == []
    accepted.prepare.assert_not_awaited()


async def test_the_next_middleware_sees_what_the_one_before_it_made() -> None:
    def append(letter: str) -> BaseMiddleware[str, Any, Any]:
        def before(item: Item) -> Item:
            return LLMWorkItem(item.item_id, item.strategy, item.prompt + letter)

        def after(result: Result) -> Result:
            return WorkItemResult(result.item_id, True, result.output + letter)

        return middleware(before_process=before, after_process=after)

    strategy = Script()
    result = await run_one(append("a"), append("b"), strategy=strategy)
    assert strategy.calls[0][0] == "prompt 0ab"
    assert result.output == "answerba"


async def test_after_process_may_turn_a_success_into_a_failure() -> None:
    def reject(result: Result) -> Result:
        result.success, result.error = False, "Rejected: too short"
        return result

    noting = Noting()
    async with ParallelBatchProcessor[str, Any, Any](
        middlewares=[noting, middleware(after_process=reject)]
    ) as processor:
        await processor.add_work(LLMWorkItem("id", Script()))
        batch = await processor.process_all()
        stats = await processor.get_stats()
    assert (batch.succeeded, batch.failed) == (0, 1)
    assert stats["error_counts"] == {"Rejected": 1}
    assert batch.total_input_tokens == stats["total_input_tokens"] == 10
    assert [note[1] for note in noting.notes] == ["before", "after"]


async def test_after_process_is_for_successes_only() -> None:
    noting = Noting()
    error = ValueError("bad")
    await run_one(noting, strategy=Script(error))
    assert noting.notes == [("", "before", "0"), ("", "on_error", error)]


async def test_on_error_runs_once_for_an_item_that_finally_failed() -> None:
    noting = Noting()
    config = ProcessorConfig(retry=RetryConfig(max_attempts=3))
    errors = [RuntimeError("1"), RuntimeError("2"), RuntimeError("3")]
    await run_one(noting, strategy=Script(*errors), config=config)
    assert noting.notes[1:] == [("", "on_error", errors[2])]


async def test_the_first_answer_to_a_failure_wins() -> None:
    asked = Noting()
    not_asked = Noting()
    fallback = WorkItemResult[Any, Any]("0", True, "fallback")
    result = await run_one(
        asked,
        middleware(on_error=lambda item, exception: fallback),
        not_asked,
        strategy=Script(ValueError("bad")),
    )
    assert result is fallback
    assert len(asked.notes) == 2
    assert [note[1] for note in not_asked.notes] == ["before"]


async def test_a_recovered_item_is_a_success_that_keeps_its_tokens() -> None:
    error = ValueError("bad")
    error.usage = {"input_tokens": 7}
    recovering = middleware(on_error=lambda item, _: WorkItemResult(item.item_id, True, "fallback"))
    async with ParallelBatchProcessor[str, Any, Any](middlewares=[recovering]) as processor:
        await processor.add_work(LLMWorkItem("id", Script(error)))
        batch = await processor.process_all()
        stats = await processor.get_stats()
    assert (batch.succeeded, stats["succeeded"], stats["error_counts"]) == (1, 1, {})
    assert batch.total_input_tokens == stats["total_input_tokens"] == 7


async def slow(*_: Any) -> None:
    await asyncio.sleep(1e6)


@pytest.mark.parametrize("method", ["before_process", "after_process", "on_error"])
@pytest.mark.parametrize(
    ("misbehaves", "logged"),
    [
        (raising(ValueError("mine")), "failed with ValueError"),
        (raising(asyncio.CancelledError()), "failed with CancelledError"),
        (slow, "failed with FrameworkTimeoutError"),
        (lambda *_: "wrong", "returned a str, which is passed over"),
    ],
    ids=["raises", "cancels", "hangs", "wrong type"],
)
async def test_a_middleware_that_misbehaves_is_logged_and_passed_over(
    method: str, misbehaves: Callable[..., Any], logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    noting = Noting()
    broken = middleware(**{method: misbehaves})
    failing = Script(KeyError("bad"))
    for strategy, success in ((Script(), True), (failing, False)):
        result = await run_one(broken, noting, broken, strategy=strategy)
        assert result.success is success
        assert result.output == ("answer" if success else None)
    assert [note[1] for note in noting.notes] == ["before", "after", "before", "on_error"]
    messages = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
    calls = 4 if method == "before_process" else 2
    assert messages == [f"item 0: Made.{method} {logged}"] * calls


async def test_why_a_middleware_failed_is_told_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="batch_llm")
    error = KeyError("row")
    await run_one(middleware(before_process=raising(error)))
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [error]


async def test_none_from_after_process_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    result = await run_one(middleware(after_process=lambda result: None))
    assert result.output == "answer"
    assert "returned a NoneType, which is passed over" in caplog.text


async def test_each_call_is_bounded_by_timeout_per_item() -> None:
    start = asyncio.get_running_loop().time()
    middlewares = [middleware(before_process=slow, after_process=slow)]
    await run_one(*middlewares, config=ProcessorConfig(timeout_per_item=7))
    assert asyncio.get_running_loop().time() - start == 14


async def test_a_timeout_reaches_on_error_as_the_frameworks_own() -> None:
    noting = Noting()
    config = ProcessorConfig(timeout_per_item=1, retry=RetryConfig(max_attempts=1))
    result = await run_one(noting, strategy=Script(lambda: asyncio.sleep(5)), config=config)
    [note] = noting.notes[1:]
    assert isinstance(note[2], FrameworkTimeoutError)
    assert result.exception is note[2]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("method", ["before_process", "after_process"])
async def test_an_interrupt_comes_out_of_the_run(method: str, kind: type[BaseException]) -> None:
    with pytest.raises(kind):
        await run_one(middleware(**{method: raising(kind())}))


@pytest.mark.parametrize("mock", [MagicMock(), AsyncMock()], ids=["MagicMock", "AsyncMock"])
async def test_a_mock_will_do(mock: Any) -> None:
    result = await run_one(mock)
    assert result.output == "answer"
    mock.before_process.assert_called_once()
    mock.after_process.assert_called_once_with(result)


async def test_synchronous_methods_will_do() -> None:
    class Sync:
        """A duck-typed middleware without a coroutine."""

        def before_process(self, item: Item) -> Item:
            item.prompt = "changed"
            return item

        def after_process(self, result: Result) -> Result:
            return result

        def on_error(self, item: Item, exception: Exception) -> None:
            return None

    strategy = Script()
    await run_one(Sync(), strategy=strategy)
    assert strategy.calls[0][0] == "changed"


async def test_the_base_changes_nothing() -> None:
    base = BaseMiddleware[str, Any, Any]()
    item = LLMWorkItem[str, Any, Any]("id", Script())
    result = WorkItemResult[Any, Any]("id", True)
    assert await base.before_process(item) is item
    assert await base.after_process(result) is result
    assert await base.on_error(item, ValueError()) is None
    assert isinstance(base, Middleware)
