"""Whatever user code raises or returns: one result for every item, and the run goes on."""

import asyncio
import logging
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from batch_llm import BaseMiddleware, LLMWorkItem, RateLimitStrategy, WorkItemResult
from batch_llm.strategies.errors import StrategyContractError
from tests.engine.support import (
    Call,
    Item,
    Processor,
    Provider,
    Refused,
    errors,
    items,
    now,
    outputs,
    run,
    run_with,
    script,
    settings,
)


class Odd(BaseException):
    """Neither an Exception nor one that ends the program."""


class SpeechlessError(Exception):
    """Cannot tell its text."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class TrappedError(Exception):
    """Whoever looks at its usage gets hurt."""

    @property
    def usage(self) -> Any:
        raise RuntimeError("ouch")


@dataclass(frozen=True)
class FrozenError(Exception):
    """Cannot be changed, which even raising it again would do."""

    text: str


class Returning(Provider):
    """Returns whatever it was given, as it is."""

    def __init__(self, returned: Any) -> None:
        super().__init__()
        self.returned = returned

    async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
        self.calls.append(Call(now(), prompt, attempt, timeout))
        return self.returned


class Hiding(Provider):
    """Its execute is no function, so that only a call shows that it is not async."""

    execute: Any = None

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.execute = MagicMock(side_effect=answer)


@pytest.mark.parametrize(
    "error",
    [
        asyncio.CancelledError("not yours"),
        GeneratorExit("not yours"),
        Odd("odd"),
        StopIteration("odd"),
        StopAsyncIteration("odd"),
        RecursionError("deep"),
        MemoryError("full"),
        ExceptionGroup("several", [OSError("1"), OSError("2")]),
        BaseExceptionGroup("several", [Odd("1"), OSError("2")]),
        Exception(),
        OSError("a: b: c"),
        BufferError("x" * 100_000),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_a_call_raises_is_its_items_failure(error: BaseException) -> None:
    async def answer(call: Call) -> Any:
        if call.prompt == "prompt 1":
            raise error
        return call.prompt

    async with Processor(config=settings()) as processor:
        result = await run_with(processor, *items(Provider(answer), 3))
        stats = await processor.get_stats()
    assert [entry.success for entry in result.results] == [True, False, True]
    assert (stats["succeeded"], stats["failed"]) == (2, 1)
    failed = result.results[1]
    assert failed.exception is not None
    assert str(failed.error).startswith(f"{type(failed.exception).__name__}: ")


async def test_what_is_raised_is_kept() -> None:
    async def answer(call: Call) -> Any:
        raise Odd("odd")

    provider = Provider(answer)
    result = await run(*items(provider))
    assert errors(result) == ["Odd: odd"]
    assert provider.attempts == [1, 2, 3]
    assert [type(error) for error, _ in provider.errors] == [Odd] * 3


async def test_a_stray_cancellation_is_retried() -> None:
    provider = Provider(script(asyncio.CancelledError()))
    result = await run(*items(provider))
    assert result.succeeded == 1
    assert provider.attempts == [1, 2]


async def test_a_call_that_awaits_something_cancelled() -> None:
    async def answer(call: Call) -> Any:
        inner = asyncio.create_task(asyncio.sleep(100.0))
        await asyncio.sleep(0)
        inner.cancel()
        return await inner

    result = await run(*items(Provider(answer), 2))
    assert errors(result) == ["CancelledError: "] * 2


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (SpeechlessError(), "SpeechlessError: (its text cannot be read: RuntimeError)"),
        (TrappedError("trap"), "TrappedError: trap"),
        (FrozenError("ice"), "FrozenError: ice"),
    ],
    ids=["text", "usage", "frozen"],
)
async def test_an_error_that_cannot_be_looked_at(error: Exception, text: str) -> None:
    async def answer(call: Call) -> Any:
        raise error

    result = await run(*items(Provider(answer), 2))
    assert errors(result) == [text] * 2


async def test_a_refusal_that_cannot_be_looked_at() -> None:
    class RefusalError(SpeechlessError):
        code = 429

    async def answer(call: Call) -> Any:
        raise RefusalError

    config = settings(cooldown=1.0)
    config.rate_limit.max_rate_limits_per_item = 2
    result = await run(*items(Provider(answer)), config=config)
    assert "rate limited 2 times" in str(result.results[0].error)


@pytest.mark.parametrize(
    ("returned", "named"),
    [
        (None, "a NoneType"),
        ("text", "a str"),
        (["text", {}], "a list"),
        (("text",), "a tuple of 1"),
        (("text", {}, None, 1), "a tuple of 4"),
        ((), "a tuple of 0"),
        ({"text": 1, "usage": 2}, "a dict"),
    ],
    ids=repr,
)
async def test_a_wrong_shape_fails_and_says_what_is_right(returned: Any, named: str) -> None:
    provider = Returning(returned)
    result = await run(*items(provider))
    [entry] = result.results
    assert str(entry.error).startswith(
        f"StrategyContractError: Returning.execute returned {named}; it must return the tuple "
        "(output, token_usage)"
    )
    assert isinstance(entry.exception, StrategyContractError)
    assert entry.exception.returned is returned
    assert len(provider.calls) == 1


async def test_the_first_wrong_shape_stops_the_paying() -> None:
    provider, other = Returning("text"), Provider()
    result = await run(*items(provider, 100), *items(other, 2))
    assert result.failed == 100
    assert len(provider.calls) == 1
    assert len(other.calls) == 2
    assert len({entry.error for entry in result.results if not entry.success}) == 1


async def test_a_wrong_shape_stops_even_when_the_classifier_would_go_on() -> None:
    class Optimist:
        def classify(self, exception: Exception) -> Any:
            return SimpleNamespace(
                is_retryable=True, is_rate_limit=False, is_timeout=False, error_category="fine"
            )

    provider = Returning("text")
    options: Any = {"error_classifier": Optimist()}
    result = await run(*items(provider, 3), **options)
    assert result.failed == 3
    assert len(provider.calls) == 1


async def test_the_next_run_gives_the_strategy_another_chance() -> None:
    provider = Returning("text")
    async with Processor(config=settings()) as processor:
        await run_with(processor, *items(provider, 3))
        provider.returned = ("text", {})
        assert (await run_with(processor, *items(provider, 3))).succeeded == 3


@pytest.mark.parametrize(
    "usage",
    [None, {}, "many", 7, ["input_tokens"], {"input_tokens": None}, {"input_tokens": "x"}],
    ids=repr,
)
async def test_a_strange_usage_never_costs_the_output(usage: Any) -> None:
    result = await run(*items(Returning(("text", usage))))
    assert outputs(result) == ["text"]
    assert result.total_input_tokens == 0


@pytest.mark.parametrize("output", [None, 0, "", [], ("a", {})], ids=repr)
async def test_any_output_is_an_output(output: Any) -> None:
    result = await run(*items(Returning((output, {}))))
    assert result.results[0].success
    assert outputs(result) == [output]


async def test_a_plain_function_cannot_hide_as_execute() -> None:
    provider = Hiding(lambda *args: ("text", {}))
    result = await run(*items(provider, 3))
    assert str(result.results[0].error).startswith(
        "StrategyContractError: Hiding.execute is not async: it returned a tuple that cannot "
        "be awaited; define it with 'async def'"
    )
    assert result.results[0].exception.returned == ("text", {})
    assert result.failed == 3
    provider.execute.assert_called_once()


async def test_a_call_that_fails_before_it_can_be_awaited() -> None:
    result = await run(*items(Hiding(LookupError("early")), 2), config=settings(2))
    assert errors(result) == ["LookupError: early"] * 2


async def test_a_signature_that_does_not_fit() -> None:
    class Short(Provider):
        async def execute(self, prompt: str) -> Any: ...  # type: ignore[override]

    result = await run(*items(Short(), 2))
    assert all("TypeError: " in str(error) for error in errors(result))


async def test_middleware_may_give_an_item_a_strategy_that_is_none() -> None:
    class Breaking(BaseMiddleware[str, Any, Any]):
        async def before_process(self, work_item: Item) -> Item:
            return LLMWorkItem(work_item.item_id, None)  # type: ignore[arg-type]

    result = await run(*items(Provider(), 2), middlewares=[Breaking()])
    assert errors(result) == ["AttributeError: 'NoneType' object has no attribute 'execute'"] * 2


async def test_middleware_may_report_a_failure_in_its_own_way() -> None:
    class Flipping(BaseMiddleware[str, Any, Any]):
        async def after_process(self, result: Any) -> Any:
            result.success = False
            result.error = reasons[int(result.item_id)]
            return result

    reasons = ["Mine: x", None, ValueError("not a text")]

    async with Processor(config=settings(), middlewares=[Flipping()]) as processor:
        result = await run_with(processor, *items(Provider(), 3))
        stats = await processor.get_stats()
    assert result.failed == 3
    assert stats["error_counts"] == {"Mine": 1, "unknown": 1, "not a text": 1}


async def test_an_error_of_middleware_that_cannot_be_read_costs_its_item_only() -> None:
    class Unspeakable:
        def __str__(self) -> str:
            raise LookupError

    class Garbling(BaseMiddleware[str, Any, Any]):
        async def after_process(self, result: WorkItemResult[Any, Any]) -> Any:
            result.success, result.error = False, Unspeakable()  # type: ignore[assignment]
            return result

    async with Processor(config=settings(), middlewares=[Garbling()]) as processor:
        assert (await run_with(processor, *items(Provider(), 2))).failed == 2
        assert (await processor.get_stats())["error_counts"] == {"Unspeakable": 2}


async def test_middleware_may_give_a_failure_an_exception_that_is_none() -> None:
    cause = ValueError("permanent")

    class Vague(BaseMiddleware[str, Any, Any]):
        async def on_error(self, work_item: Item, exception: BaseException) -> Any:
            result: Any = WorkItemResult(work_item.item_id, False)
            result.exception = "boom"
            return result

    result = await run(*items(Provider(script(cause)), 2), middlewares=[Vague()])
    assert [entry.success for entry in result.results] == [False, True]
    assert result.results[0].exception is cause


async def test_middleware_may_forget_the_tokens() -> None:
    class Forgetting(BaseMiddleware[str, Any, Any]):
        async def after_process(self, result: Any) -> Any:
            return WorkItemResult(result.item_id, True, "mine", token_usage=None)  # type: ignore[arg-type]

    result = await run(*items(Returning(("text", {"input_tokens": 7}))), middlewares=[Forgetting()])
    assert outputs(result) == ["mine"]
    assert result.total_input_tokens == 7


class Raising:
    """A classifier that does not do its work."""

    def __init__(self, returned: Any) -> None:
        self.returned = returned

    def classify(self, exception: Exception) -> Any:
        if isinstance(self.returned, Exception):
            raise self.returned
        return self.returned


@pytest.mark.parametrize(
    "returned",
    [
        LookupError("broken"),
        None,
        "retry",
        SimpleNamespace(is_retryable=1, is_rate_limit=0, is_timeout=0, error_category="x"),
    ],
    ids=["raises", "None", "text", "numbers"],
)
async def test_a_classifier_that_fails_is_passed_over(
    returned: Any, caplog: pytest.LogCaptureFixture
) -> None:
    provider = Provider(script(Refused(5), ConnectionError(), ValueError("permanent")))
    classifier: Any = Raising(returned)
    result = await run(*items(provider), error_classifier=classifier)
    assert provider.instants == [0.0, 5.0, 6.0]
    assert errors(result) == ["ValueError: permanent"]
    assert "the classifier failed with" in caplog.text


async def test_a_classifier_may_return_anything_that_looks_like_an_error_info() -> None:
    flags = {"is_retryable": False, "is_timeout": False, "error_category": "mine"}
    classifier: Any = Raising(SimpleNamespace(is_rate_limit=True, **flags))
    provider = Provider(script(OSError("1")))
    await run(*items(provider), error_classifier=classifier)
    assert provider.instants == [0.0, 60.0]

    classifier = Raising(SimpleNamespace(is_rate_limit=False, message="call us", **flags))
    result = await run(*items(Provider(script(OSError("1")))), error_classifier=classifier)
    assert errors(result) == ["OSError: 1"]


async def test_error_counts_go_by_the_name_of_the_error() -> None:
    steps = [ValueError("a: b"), KeyError("x"), ValueError("c")]
    async with Processor(config=settings()) as processor:
        await run_with(processor, *items(Provider(script(*steps)), 4))
        stats = await processor.get_stats()
    assert stats["error_counts"] == {"ValueError": 2, "KeyError": 1}


class Hostile(BaseMiddleware[str, Any, Any], RateLimitStrategy):
    """A middleware, observer, callback, post-processor, … of which each hook raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def before_process(self, work_item: Any) -> Any:
        raise self.error

    async def after_process(self, result: Any) -> Any:
        raise self.error

    async def on_error(self, *args: Any) -> Any:
        raise self.error

    async def on_event(self, event: Any, data: Any) -> None:
        raise self.error

    async def on_rate_limit(self, worker_id: int, consecutive_limit_count: int) -> float:
        raise self.error

    def should_apply_slow_start(self, items_since_resume: int) -> tuple[bool, float]:
        raise self.error

    def classify(self, exception: Exception) -> Any:
        raise self.error

    async def __call__(self, *args: Any) -> None:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), asyncio.CancelledError("x"), GeneratorExit("x"), Odd("x"), SpeechlessError()],
    ids=lambda error: type(error).__name__,
)
async def test_hooks_that_raise_cost_only_their_own_effect(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    hostile: Any = Hostile(error)

    class HostileProvider(Provider):
        on_error = cleanup = staticmethod(hostile)

    provider = HostileProvider(
        script(Refused(), Refused(1), ConnectionError(), "ok", ValueError("end"))
    )
    result = await run(
        *items(provider, 3),
        middlewares=[hostile, hostile],
        observers=[hostile, hostile],
        post_processor=hostile,
        progress_callback=hostile,
        rate_limit_strategy=hostile,
        error_classifier=hostile,
    )
    assert [entry.success for entry in result.results] == [True, False, True]
    assert result.results[1].error == "ValueError: end"


async def test_no_output_and_no_prompt_is_logged_above_debug(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "batch_llm")
    steps = [ConnectionError("SECRET"), ValueError("SECRET"), Refused(1), "SECRET"]
    hostile: Any = Hostile(ValueError("SECRET"))
    work: Item = LLMWorkItem("1", Provider(script(*steps)), "SECRET")
    await run(work, *items(Returning("SECRET")), middlewares=[hostile], post_processor=hostile)
    assert caplog.records
    assert "SECRET" not in caplog.text


async def test_a_wrong_shape_costs_its_item_only_where_the_strategy_has_answered() -> None:
    class Slipping(Provider):
        async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
            answer = await super().execute(prompt, attempt, timeout)
            return None if prompt == "prompt 1" else answer

    result = await run(*items(Slipping(), 3))
    assert [entry.success for entry in result.results] == [True, False, True]


@pytest.mark.parametrize(
    ("length", "told"),
    [(2_000, "x" * 2_000), (2_001, "x" * 2_000 + "… (2,001 characters)")],
)
async def test_a_long_text_of_an_error_is_cut(length: int, told: str) -> None:
    result = await run(*items(Provider(script(ValueError("x" * length)))))
    [error] = errors(result)
    assert error == f"ValueError: {told}"
