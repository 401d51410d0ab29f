"""Who says what an error means, and what is told of it."""

import logging
from typing import Any
from unittest.mock import MagicMock

import pytest

from batch_llm import (
    BaseMiddleware,
    DefaultErrorClassifier,
    ErrorInfo,
    LLMWorkItem,
    ProcessingEvent,
    WorkItemResult,
)
from tests.engine.support import Provider, errors, items, run, script, settings
from tests.helpers import Recorder, Script, run_batch


class Permanent(DefaultErrorClassifier):
    """Calls everything permanent."""

    def classify(self, exception: Exception) -> ErrorInfo:
        return ErrorInfo(False, False, False, "permanent")


class WithItsOwn(Provider):
    error_classifier = Permanent()


def failing() -> Any:
    return script(ConnectionError("first"), ConnectionError("second"))


async def test_a_strategy_brings_its_own_classifier() -> None:
    strategy = WithItsOwn(failing())
    assert errors(await run(*items(strategy))) == ["ConnectionError: first"]
    assert strategy.attempts == [1]


async def test_the_classifier_given_to_the_processor_comes_first() -> None:
    strategy = WithItsOwn(failing())
    result = await run(*items(strategy), error_classifier=DefaultErrorClassifier())
    assert result.succeeded == 1
    assert strategy.attempts == [1, 2, 3]


@pytest.mark.parametrize("own", [None, object(), "classifier"])
async def test_what_is_no_classifier_is_not_asked(own: Any) -> None:
    strategy = WithItsOwn(failing())
    strategy.error_classifier = own
    assert (await run(*items(strategy))).succeeded == 1


async def test_a_classifier_that_cannot_be_had_is_passed_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Shy(Provider):
        @property
        def error_classifier(self) -> Any:
            raise RuntimeError("a secret")

    strategy = Shy(failing())
    assert (await run(*items(strategy))).succeeded == 1
    assert "error_classifier of the strategy failed with RuntimeError" in caplog.messages
    assert "a secret" not in caplog.text


@pytest.mark.parametrize(
    ("remark", "error"),
    [
        ("the day's quota is spent", "KeyError: 'row' (the day's quota is spent)"),
        ("'row'", "KeyError: 'row'"),
        (MagicMock(), "KeyError: 'row'"),
    ],
)
async def test_a_classifier_may_add_to_the_error(remark: Any, error: str) -> None:
    class Remarks(DefaultErrorClassifier):
        def classify(self, exception: Exception) -> ErrorInfo:
            return ErrorInfo(False, False, False, "logic_error", message=remark)

    failing = Provider(script(KeyError("row")))
    assert errors(await run(*items(failing), error_classifier=Remarks())) == [error]


class Explains(BaseMiddleware[str, Any, Any]):
    async def on_error(
        self, work_item: LLMWorkItem[str, Any, Any], exception: Exception
    ) -> WorkItemResult[Any, Any]:
        return WorkItemResult(work_item.item_id, False, error="not today")


async def test_the_event_names_the_exception_whatever_middleware_makes_of_the_text() -> None:
    recorder = Recorder()
    cause = KeyError("row")
    result = await run_batch(Script(cause), middlewares=[Explains()], observers=[recorder])
    assert result.results[0].error == "not today"
    assert result.results[0].exception is cause
    assert recorder.of(ProcessingEvent.ITEM_FAILED) == [{"item_id": "0", "error_type": "KeyError"}]


@pytest.mark.parametrize("detailed", [True, False])
async def test_answers_are_logged_on_request(
    detailed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="batch_llm")
    await run(*items(Provider()), config=settings(enable_detailed_logging=detailed))
    assert ("item 0: attempt 1: answer, {}" in caplog.messages) == detailed
