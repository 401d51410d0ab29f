"""Repeated attempts: how many, when, and what the strategy is told."""

import asyncio
import json
from itertools import pairwise
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from batch_llm import BaseMiddleware, ErrorInfo, RetryConfig
from batch_llm.strategies.errors import ResponseTruncatedError
from tests.engine.support import Call, Provider, Refused, errors, items, now, run, script, settings


def retrying(max_attempts: int = 3, **fields: Any) -> Any:
    fields.setdefault("jitter", False)
    return settings(retry=RetryConfig(max_attempts=max_attempts, **fields))


def always(error: BaseException) -> Provider:
    async def fail(call: Call) -> Any:
        raise error

    return Provider(fail)


class ParseError(Exception):
    pass


class UnexpectedModelBehavior(Exception):  # noqa: N818
    pass


def validation_error() -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(int).validate_python("seven")
    return caught.value


async def test_an_item_is_tried_up_to_max_attempts() -> None:
    provider = always(ConnectionError("reset"))
    result = await run(*items(provider), config=retrying(4))
    assert provider.attempts == [1, 2, 3, 4]
    assert errors(result) == ["ConnectionError: reset"]
    assert result.results[0].attempts == 4


async def test_a_success_ends_the_trying() -> None:
    provider = Provider(script(ConnectionError(), "second"))
    result = await run(*items(provider), config=retrying(4))
    assert provider.attempts == [1, 2]
    assert result.results[0].output == "second"
    assert result.results[0].attempts == 2


async def test_one_attempt_is_no_retry() -> None:
    provider = always(ConnectionError())
    await run(*items(provider), config=retrying(1))
    assert provider.attempts == [1]
    assert now() == 0.0


async def test_waits_grow_up_to_max_wait() -> None:
    provider = always(ConnectionError())
    config = retrying(7, initial_wait=2.0, exponential_base=3.0, max_wait=60.0)
    await run(*items(provider), config=config)
    waits = [2.0, 6.0, 18.0, 54.0, 60.0, 60.0]
    assert provider.instants == [sum(waits[:number]) for number in range(7)]


async def test_there_is_no_wait_after_the_last_attempt() -> None:
    await run(*items(always(ConnectionError())), config=retrying(2))
    assert now() == 1.0


async def test_a_thousand_attempts_do_not_overflow() -> None:
    provider = always(ConnectionError())
    await run(*items(provider), config=retrying(1100, exponential_base=4.0, max_wait=1.0))
    assert len(provider.calls) == 1100
    assert now() == 1099.0


async def test_jitter_shortens_a_wait_to_half_at_most() -> None:
    provider = always(ConnectionError())
    await run(*items(provider), config=retrying(1000, exponential_base=1.0, jitter=True))
    waits = [later - earlier for earlier, later in pairwise(provider.instants)]
    assert len(waits) == 999
    assert min(waits) >= 0.5 - 1e-9
    assert max(waits) < 1.0
    assert min(waits) < 0.55
    assert max(waits) > 0.95


@pytest.mark.parametrize(
    "error",
    [ParseError("x"), UnexpectedModelBehavior("x"), json.JSONDecodeError("x", "", 0)],
    ids=lambda error: type(error).__name__,
)
async def test_nothing_is_waited_for_after_a_malformed_answer(error: Exception) -> None:
    provider = always(error)
    await run(*items(provider))
    assert provider.attempts == [1, 2, 3]
    assert now() == 0.0


async def test_nothing_is_waited_for_after_a_validation_error() -> None:
    provider = always(validation_error())
    await run(*items(provider))
    assert provider.attempts == [1, 2, 3]
    assert now() == 0.0


async def test_the_category_alone_will_do() -> None:
    class Classifier:
        def classify(self, exception: Exception) -> ErrorInfo:
            return ErrorInfo(True, False, False, "validation_error")

    await run(*items(always(OSError())), error_classifier=Classifier())  # type: ignore[arg-type]
    assert now() == 0.0


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), KeyError("x"), ResponseTruncatedError("x")],
    ids=lambda error: type(error).__name__,
)
async def test_a_permanent_failure_is_not_repeated(error: Exception) -> None:
    provider = always(error)
    result = await run(*items(provider))
    assert provider.attempts == [1]
    assert errors(result) == [f"{type(error).__name__}: {error}"]
    assert result.results[0].exception is error


async def test_the_strategy_is_told_of_every_failed_attempt() -> None:
    failures = [ConnectionError("1"), Refused(1), ConnectionError("2"), ValueError("3")]
    provider = Provider(script(*failures))
    await run(*items(provider))
    assert provider.errors == list(zip(failures, [1, 2, 2, 3], strict=True))


async def test_the_strategy_is_not_told_of_a_success() -> None:
    provider = Provider()
    await run(*items(provider, 3))
    assert provider.errors == []


async def test_the_strategy_is_told_before_the_next_wait() -> None:
    told: list[float] = []

    class Telling(Provider):
        async def on_error(self, exception: BaseException, attempt: int) -> None:
            told.append(now())
            await asyncio.sleep(5.0)

    provider = Telling(script(ConnectionError()))
    await run(*items(provider))
    assert told == [0.0]
    assert provider.instants == [0.0, 6.0]


async def test_a_failing_on_error_is_logged_only(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Provider):
        async def on_error(self, exception: BaseException, attempt: int) -> None:
            raise LookupError("broken")

    provider = Failing(script(ConnectionError()))
    result = await run(*items(provider))
    assert result.succeeded == 1
    assert provider.attempts == [1, 2]
    assert "item 0: Failing.on_error failed with LookupError" in caplog.text


async def test_a_hanging_on_error_is_cut_off() -> None:
    class Hanging(Provider):
        async def on_error(self, exception: BaseException, attempt: int) -> None:
            await asyncio.sleep(1e6)

    provider = Hanging(script(ConnectionError()))
    result = await run(*items(provider), config=settings(timeout_per_item=10.0))
    assert result.succeeded == 1
    assert provider.instants == [0.0, 11.0]


async def test_other_items_go_on_while_one_waits() -> None:
    async def answer(call: Call) -> str:
        if call.prompt == "prompt 0" and call.attempt < 3:
            raise ConnectionError
        return call.prompt

    result = await run(*items(Provider(answer), 4), config=settings(2))
    assert [entry.item_id for entry in result.results] == ["1", "2", "3", "0"]


async def test_the_timeout_is_handed_over() -> None:
    provider = Provider(script(ConnectionError()))
    await run(*items(provider), config=settings(timeout_per_item=7.5))
    assert [call.timeout for call in provider.calls] == [7.5, 7.5]


async def test_a_failure_is_classified_once() -> None:
    seen: list[BaseException] = []

    class Classifier:
        def classify(self, exception: Exception) -> ErrorInfo:
            seen.append(exception)
            return ErrorInfo(True, False, False, "mine", message="call the office")

    failures = [OSError("1"), OSError("2"), OSError("3")]
    result = await run(
        *items(Provider(script(*failures))),
        error_classifier=Classifier(),  # type: ignore[arg-type]
    )
    assert seen == failures
    assert errors(result) == ["OSError: 3"]


async def test_the_error_is_kept_without_frames_that_pin_memory() -> None:
    async def inner() -> None:
        raise KeyError("inner")

    async def fail(call: Call) -> Any:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(inner())
        except ExceptionGroup as error:
            raise ValueError("outer") from error

    result = await run(*items(Provider(fail)))
    error: Any = result.results[0].exception
    assert error.__traceback__ is None
    assert error.__cause__.__traceback__ is None
    assert error.__cause__.exceptions[0].__traceback__ is None


async def test_an_error_that_causes_itself_is_kept() -> None:
    error = ValueError("round and round")
    error.__cause__ = LookupError("and round")
    error.__cause__.__cause__ = error
    result = await run(*items(always(error)))
    assert result.results[0].exception is error


async def test_middleware_sees_the_traceback_of_a_failure() -> None:
    seen: list[Any] = []

    class Logging(BaseMiddleware[str, Any, Any]):
        async def on_error(self, work_item: Any, exception: BaseException) -> None:
            seen.append(exception.__traceback__)

    result = await run(*items(always(ValueError())), middlewares=[Logging()])
    assert seen[0] is not None
    assert result.results[0].exception.__traceback__ is None
