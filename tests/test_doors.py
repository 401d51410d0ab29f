"""Bad input is a clear error at the door: what came, what must be, what to do."""

import asyncio
import functools
import math
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import closing
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock, MagicMock

import pytest

from batch_llm import (
    BaseMiddleware,
    BaseObserver,
    BatchLLMError,
    DefaultErrorClassifier,
    FixedDelayStrategy,
    LLMCallStrategy,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    StrategyContractError,
)
from batch_llm._engine import doors
from tests.helpers import ANSWER, Script, run_batch

Processor = ParallelBatchProcessor[str, Any, Any]


class SyncStrategy(LLMCallStrategy[str]):
    """Forgot its async."""

    def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
        raise AssertionError("called")


class GeneratorStrategy(LLMCallStrategy[str]):
    """Streams, which is another contract."""

    async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
        yield prompt


async def refusal(item: Any, kind: type[Exception]) -> str:
    """What add_work says; nothing may be queued by it."""
    processor = Processor()
    with pytest.raises(kind) as caught:
        await processor.add_work(item)
    assert (await processor.get_stats())["total"] == 0
    assert (await processor.process_all()).total_items == 0
    return str(caught.value)


@pytest.mark.parametrize("item", [None, "prompt", {"item_id": "a"}, ("a", 1), LLMWorkItem], ids=str)
async def test_only_work_items_are_work(item: Any) -> None:
    said = await refusal(item, TypeError)
    assert said.startswith(f"add_work got a {type(item).__name__}; it must be an LLMWorkItem: ")


async def test_a_prompt_is_not_none() -> None:
    said = await refusal(LLMWorkItem("a", Script(), cast("Any", None)), TypeError)
    assert said.startswith("item 'a': prompt must be a text, or what the strategy takes for one (")


async def test_a_prompt_may_have_parts_where_the_strategy_takes_them() -> None:
    strategy, parts = Script(), cast("Any", [{"text": "a"}, {"text": "b"}])
    async with Processor() as processor:
        await processor.add_work(LLMWorkItem("a", strategy, parts))
        assert (await processor.process_all()).succeeded == 1
    assert strategy.calls[0][0] is parts


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        (None, r"strategy must be an instance of an LLMCallStrategy (got None); create one"),
        (Script, "strategy must be an instance of an LLMCallStrategy (got the class Script); "),
        ("gemini", "item 'a': no strategy is registered as 'gemini' (registered: none); await "),
        (object(), "strategy must have an async execute(prompt, attempt, timeout) (got a object "),
        (SimpleNamespace(execute="no function"), "strategy must have an async execute("),
        (SyncStrategy(), "SyncStrategy.execute must be async (got a plain function); define it "),
        (GeneratorStrategy(), "GeneratorStrategy.execute must be async (got "),
    ],
    ids=["None", "class", "str", "object", "not callable", "sync", "generator"],
)
async def test_a_strategy_is_an_instance_with_an_async_execute(strategy: Any, said: str) -> None:
    heard = await refusal(LLMWorkItem("a", strategy, "prompt"), StrategyContractError)
    assert heard.startswith(said)
    assert "; " in heard


def test_the_error_for_a_strategy_has_both_its_parents() -> None:
    assert issubclass(StrategyContractError, TypeError)
    assert issubclass(StrategyContractError, BatchLLMError)


@functools.wraps(Script.execute)
def traced(self: Script, *args: Any) -> Any:
    return Script.execute(self, *args)


def promised(self: Script, *args: Any) -> Awaitable[Any]:
    return Script.execute(self, *args)


def promised_as_coroutine(self: Script, *args: Any) -> Coroutine[Any, Any, Any]:
    return Script.execute(self, *args)


def promised_in_text(self: Script, *args: Any) -> "Awaitable[Any]":
    return Script.execute(self, *args)


def promised_as_coroutine_in_text(self: Script, *args: Any) -> "Coroutine[Any, Any, Any]":
    return Script.execute(self, *args)


def promised_bare(self: Script, *args: Any) -> Awaitable:
    return Script.execute(self, *args)


@pytest.mark.parametrize(
    "execute",
    [
        traced,
        promised,
        promised_as_coroutine,
        promised_in_text,
        promised_as_coroutine_in_text,
        promised_bare,
    ],
)
async def test_a_function_that_gives_a_coroutine_will_do(execute: Callable[..., Any]) -> None:
    execute.__name__ = "execute"  # under another name it would be let in unseen
    strategy = type("Decorated", (Script,), {"execute": execute})()
    assert (await run_batch(strategy)).results[0].output == "answer"


class Lazy:
    """A function whose annotations name what is imported for type checkers only."""

    __name__ = "execute"

    @property
    def __annotations__(self) -> dict[str, Any]:  # type: ignore[override]
        raise NameError("name 'Answer' is not defined")


async def test_a_promise_of_something_else_is_refused() -> None:
    def execute(self: Script, *args: Any) -> "tuple[str, Any]":
        return ANSWER

    strategy = type("Plain", (Script,), {"execute": execute})()
    said = await refusal(LLMWorkItem("a", strategy), StrategyContractError)
    assert said.startswith("Plain.execute must be async (got a plain function); ")


def test_what_is_compiled_is_let_in_unseen() -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        doors.check_strategy(connection)


async def test_annotations_that_cannot_be_evaluated_are_no_reason_to_refuse() -> None:
    def execute(self: Script, *args: Any) -> Any:
        return Script.execute(self, *args)

    vars(execute)["__wrapped__"] = Lazy()
    strategy = type("Decorated", (Script,), {"execute": execute})()
    assert (await run_batch(strategy)).results[0].output == "answer"


class CallableExecute:
    """An object in the place of the method."""

    async def __call__(self, prompt: str, attempt: int, timeout: float) -> Any:
        return ANSWER


@pytest.mark.parametrize(
    "strategy",
    [
        MagicMock(execute=AsyncMock(return_value=ANSWER), prepare=AsyncMock(), cleanup=AsyncMock()),
        AsyncMock(execute=AsyncMock(return_value=ANSWER)),
        SimpleNamespace(execute=AsyncMock(return_value=ANSWER)),
        SimpleNamespace(execute=CallableExecute()),
        SimpleNamespace(execute=functools.partial(asyncio.sleep, 0)),
        SimpleNamespace(execute=Script().execute),
    ],
    ids=["MagicMock", "AsyncMock", "namespace", "callable object", "partial", "borrowed"],
)
async def test_duck_typed_strategies_and_mocks_are_let_in(strategy: Any) -> None:
    if isinstance(strategy.execute, functools.partial):
        strategy.execute = functools.partial(Script().execute)
    assert (await run_batch(strategy)).results[0].output == "answer"


@pytest.mark.parametrize(
    ("returned", "got"),
    [
        ("only the text", "str"),
        (None, "NoneType"),
        ({"output": 1}, "dict"),
        (["text", {}], "list"),
        (("text",), "tuple of 1"),
        (("text", {}, None, "more"), "tuple of 4"),
    ],
    ids=repr,
)
async def test_a_wrong_return_is_found_at_the_first_call_and_ends_the_strategy(
    returned: Any, got: str
) -> None:
    strategy = Script(returned)
    batch = await run_batch(strategy, count=20, config=ProcessorConfig(max_workers=1))
    assert len(strategy.calls) == 1
    for result in batch.results:
        assert result.error is not None
        assert result.error.startswith(
            f"StrategyContractError: Script.execute returned a {got}; it must return the tuple "
            "(output, token_usage), such as "
        )
        assert result.exception.returned == returned


async def test_an_execute_that_looks_async_but_is_not_is_found_at_the_first_call() -> None:
    execute = MagicMock(return_value=ANSWER)
    config = ProcessorConfig(max_workers=1)
    batch = await run_batch(SimpleNamespace(execute=execute), count=5, config=config)
    assert execute.call_count == 1
    assert "SimpleNamespace.execute is not async: it returned a tuple" in batch.results[4].error
    assert batch.results[0].exception.returned is ANSWER


class Partial:
    """Has nothing that anybody calls."""


LACKS = "(got a Partial without); pass an object that has it"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"post_processor": 7}, "post_processor must be callable or None (got a int); pass a "),
        ({"progress_callback": "x"}, "progress_callback must be callable or None (got a str); "),
        (
            {"error_classifier": DefaultErrorClassifier},
            "error_classifier must be an instance (got the class DefaultErrorClassifier); pass D",
        ),
        ({"error_classifier": Partial()}, f"error_classifier must have classify() {LACKS}"),
        (
            {"rate_limit_strategy": FixedDelayStrategy},
            "rate_limit_strategy must be an instance (got the class FixedDelayStrategy); pass ",
        ),
        (
            {"rate_limit_strategy": Partial()},
            f"rate_limit_strategy must have on_rate_limit() {LACKS}",
        ),
        (
            {"middlewares": BaseMiddleware()},
            "middlewares must be a list (got a BaseMiddleware); put it into brackets",
        ),
        (
            {"middlewares": [BaseMiddleware(), Partial()]},
            "each of middlewares must have before_process() or after_process() or on_error() (got ",
        ),
        (
            {"middlewares": [BaseMiddleware]},
            "each of middlewares must be an instance (got the class BaseMiddleware); pass ",
        ),
        ({"observers": BaseObserver()}, "observers must be a list (got a BaseObserver); put "),
        ({"observers": [None]}, "each of observers must have on_event() (got a NoneType without)"),
        ({"config": {"max_workers": 5}}, "config must have validate() (got a dict without); pass "),
        ({"config": ProcessorConfig}, "config must be an instance (got the class ProcessorConfig)"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_collaborators_can_do_what_is_asked_of_them(options: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError) as caught:
        Processor(**options)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_workers": 0}, "max_workers must be >= 1 (got 0); "),
        ({"max_workers": -1}, "max_workers must be >= 1 (got -1); "),
        ({"max_workers": "5"}, "max_workers must be >= 1 (got '5'); "),
        ({"timeout_per_item": 0}, "timeout_per_item must be > 0 (got 0); "),
        ({"timeout_per_item": math.nan}, "timeout_per_item must be > 0 (got nan); "),
        ({"rate_limit_cooldown": -1}, "cooldown_seconds must be >= 0 (got -1); "),
        ({"rate_limit_cooldown": math.inf}, "cooldown_seconds must be >= 0 (got inf); "),
        ({"config": ProcessorConfig(timeout_per_item=math.nan)}, "timeout_per_item must be > 0 "),
    ],
    ids=repr,
)
def test_settings_are_checked(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        Processor(**options)
    assert str(caught.value).startswith(said)


class Duck:
    """Does everything and inherits nothing."""

    def __getattr__(self, name: str) -> Any:
        return AsyncMock(return_value=None)


@pytest.mark.parametrize("duck", [MagicMock, AsyncMock, Duck])
def test_duck_typed_collaborators_and_mocks_are_let_in(duck: Callable[[], Any]) -> None:
    processor = Processor(
        post_processor=MagicMock(),
        error_classifier=duck(),
        rate_limit_strategy=duck(),
        middlewares=[duck()],
        observers=(duck(),),
        progress_callback=AsyncMock(),
    )
    assert len(processor.middlewares) == len(processor.observers) == 1


def test_what_is_none_is_not_checked() -> None:
    doors.check_callback("post_processor", None)
    doors.check_list("observers", [])


async def test_an_execute_under_another_name_is_a_wrapper_and_is_tried() -> None:
    async def answer(*_: Any) -> Any:
        return ANSWER

    def promised(*_: Any) -> "Awaitable[Any]":
        return answer()

    promised.__name__ = "execute"  # by its name it might be a plain function
    for execute in (lambda *_: answer(), promised):
        result = await run_batch(cast("Any", SimpleNamespace(execute=execute)))
        assert result.succeeded == 1
