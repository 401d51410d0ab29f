"""Who says what an error means, and what is told of it."""

import asyncio
import logging
from types import SimpleNamespace
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
from tests.engine.support import Provider, Refused, errors, items, run, script, settings
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


async def test_a_classifier_that_fails_is_passed_over_and_told_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = RuntimeError("a secret")
    classifier = MagicMock()
    classifier.classify.side_effect = broken
    caplog.set_level(logging.DEBUG, logger="batch_llm")
    result = await run(*items(Provider(script(ValueError()))), error_classifier=classifier)
    assert errors(result) == ["ValueError: "]
    told = [record for record in caplog.records if "the classifier failed" in record.message]
    assert [record.message for record in told if record.levelno > logging.DEBUG] == [
        "item 0: the classifier failed with RuntimeError"
    ]
    assert [record.exc_info[1] for record in told if record.exc_info] == [broken]


async def test_only_exceptions_are_classified() -> None:
    classifier = MagicMock()
    classifier.classify.return_value = ErrorInfo(False, False, False, "permanent")
    cancelling = Provider(script(asyncio.CancelledError(), KeyError()))
    result = await run(*items(cancelling), error_classifier=classifier)
    assert cancelling.attempts == [1, 2]
    assert errors(result) == ["KeyError: "]
    [[error]] = [call.args for call in classifier.classify.call_args_list]
    assert isinstance(error, KeyError)


async def test_what_looks_like_an_error_info_is_one() -> None:
    info = SimpleNamespace(
        is_retryable=False,
        is_rate_limit=True,
        is_timeout=False,
        error_category="quota",
        suggested_wait=7.0,
        message="come back in a week",
    )
    classifier = SimpleNamespace(classify=lambda exception: info)
    config = settings()
    config.rate_limit.max_rate_limits_per_item = 2
    refused = Provider(script(KeyError(), KeyError()))
    result = await run(*items(refused), config=config, error_classifier=classifier)
    assert refused.instants == [0.0, 7.0]
    assert "the last time with come back in a week; raise" in str(result.results[0].error)


@pytest.mark.parametrize("flag", ["is_retryable", "is_rate_limit", "is_timeout"])
async def test_an_error_info_whose_flag_is_none_is_passed_over(flag: str) -> None:
    flags = {"is_retryable": True, "is_rate_limit": False, "is_timeout": False, flag: "no"}
    info = SimpleNamespace(**flags, error_category="odd")
    classifier = SimpleNamespace(classify=lambda exception: info)
    failing = Provider(script(KeyError()))
    assert errors(await run(*items(failing), error_classifier=classifier)) == ["KeyError: "]


@pytest.mark.parametrize(
    ("remark", "said"),
    [
        ("the day's quota is spent", "the last time with the day's quota is spent; raise"),
        (None, "the last time with Refused: slow down; raise"),
        (MagicMock(), "the last time with Refused: slow down; raise"),
    ],
)
async def test_an_item_that_gives_up_waiting_says_what_the_classifier_knows(
    remark: Any, said: str
) -> None:
    class Remarks(DefaultErrorClassifier):
        def classify(self, exception: Exception) -> ErrorInfo:
            return ErrorInfo(False, True, False, "rate_limit", 1.0, remark)

    config = settings()
    config.rate_limit.max_rate_limits_per_item = 2
    refused = Provider(script(Refused(), Refused()))
    result = await run(*items(refused), config=config, error_classifier=Remarks())
    assert said in str(result.results[0].error)


async def test_the_error_is_the_exceptions_own_text() -> None:
    class Pretty(DefaultErrorClassifier):
        def classify(self, exception: Exception) -> ErrorInfo:
            return ErrorInfo(False, False, False, "logic_error", message="pretty")

    failing = Provider(script(KeyError("row")))
    assert errors(await run(*items(failing), error_classifier=Pretty())) == ["KeyError: 'row'"]


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
