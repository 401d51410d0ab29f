"""What a run logs: nothing of prompts and outputs above DEBUG, nothing per item at INFO."""

import ast
import asyncio
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest

import batch_llm
from batch_llm import (
    BaseMiddleware,
    ErrorInfo,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    RateLimitConfig,
    RetryConfig,
    WorkItemResult,
)
from tests.helpers import Script, run_batch

SECRET = "the secret of the prompt"
CONFIG = ProcessorConfig(
    timeout_per_item=5,
    retry=RetryConfig(max_attempts=2),
    rate_limit=RateLimitConfig(max_rate_limits_per_item=2),
)


class QuotingError(Exception):
    """An error whose text and whose cause quote an output."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(f"cannot parse {SECRET}")
        vars(self).update(attributes)
        self.__cause__ = ValueError(SECRET)


def quoting(*_: Any, **__: Any) -> Any:
    raise QuotingError


class Quoting(Script):
    """Quotes in every hook."""

    prepare = cleanup = on_error = AsyncMock(side_effect=QuotingError)


class Unprepared(Script):
    """Quotes in the hooks around its calls."""

    on_error = cleanup = AsyncMock(side_effect=QuotingError)


class Broken(BaseMiddleware[str, Any, Any]):
    """Quotes wherever it is asked."""

    before_process = after_process = on_error = AsyncMock(side_effect=QuotingError)


class Wrong(BaseMiddleware[str, Any, Any]):
    """Returns what it must not."""

    before_process = after_process = on_error = AsyncMock(return_value=SECRET)


class Unsure:
    """A classifier that quotes."""

    classify = staticmethod(quoting)


class Hinting:
    """A classifier that has a remark."""

    def classify(self, exception: Exception) -> ErrorInfo:
        return ErrorInfo(True, False, False, "any", message=str(exception))


def told_above_debug(caplog: pytest.LogCaptureFixture) -> str:
    """Everything above DEBUG as a handler would write it, tracebacks included."""
    formatter = logging.Formatter("%(levelname)s %(name)s %(message)s")
    return "\n".join(
        formatter.format(record) for record in caplog.records if record.levelno > logging.DEBUG
    )


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        (Script((SECRET, {})), {}),
        (Script(QuotingError()), {}),
        (Script(QuotingError(code=429)), {}),
        (Script(QuotingError(code=400)), {}),
        (Script(lambda: asyncio.sleep(99)), {}),
        (Script(SECRET), {}),
        (Script((SECRET, SECRET)), {}),
        (Quoting(), {}),
        (Unprepared(QuotingError()), {}),
        (Script((SECRET, {})), {"middlewares": [Broken(), Wrong()]}),
        (Script(QuotingError()), {"middlewares": [Broken(), Wrong()]}),
        (Script((SECRET, {})), {"post_processor": quoting}),
        (Script((SECRET, {})), {"progress_callback": quoting}),
        (Script((SECRET, {})), {"progress_callback": AsyncMock(side_effect=QuotingError)}),
        (Script((SECRET, {})), {"observers": [AsyncMock(**{"on_event.side_effect": quoting})]}),
        (Script(QuotingError()), {"error_classifier": Unsure()}),
        (Script(QuotingError()), {"error_classifier": Hinting()}),
        (
            Script(QuotingError(code=429)),
            {"rate_limit_strategy": AsyncMock(**{"on_rate_limit.side_effect": quoting})},
        ),
    ],
    ids=[
        *("success", "error", "rate limit", "permanent", "timeout", "wrong shape", "wrong usage"),
        *("prepare", "hooks", "middleware", "middleware on_error", "post-processor"),
        *("progress in a thread", "progress", "observer", "classifier", "remark"),
        "rate-limit strategy",
    ],
)
async def test_no_prompt_or_output_above_debug(
    strategy: Script, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    item = LLMWorkItem[str, Any, Any]("row-7", strategy, SECRET, context=SECRET)
    async with ParallelBatchProcessor[str, Any, Any](config=CONFIG, **options) as processor:
        await processor.add_work(item)
        batch = await processor.process_all()
        await asyncio.sleep(1)
    assert SECRET not in told_above_debug(caplog)
    assert batch.total_items == 1


async def test_a_breakdown_is_told_without_the_text(caplog: pytest.LogCaptureFixture) -> None:
    class Unreadable(WorkItemResult[Any, Any]):
        def __getattribute__(self, name: str) -> Any:
            return quoting(self) if name == "success" else super().__getattribute__(name)

    async def garble(result: WorkItemResult[Any, Any]) -> WorkItemResult[Any, Any]:
        return Unreadable(result.item_id, True)

    class Garbling(BaseMiddleware[str, Any, Any]):
        after_process = staticmethod(garble)  # type: ignore[assignment]

    caplog.set_level(logging.DEBUG)
    with pytest.raises(QuotingError):
        await run_batch(Script(), middlewares=[Garbling()], config=ProcessorConfig(max_workers=1))
    assert told_above_debug(caplog) == (
        "CRITICAL batch_llm._engine.pool worker 0 broke down with QuotingError"
    )
    assert SECRET in caplog.text


async def test_debug_tells_why_an_attempt_failed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="batch_llm")
    await run_batch(Script(QuotingError()), config=CONFIG)
    assert f"item 0: attempt 2: unknown: QuotingError('cannot parse {SECRET}')" in caplog.text


async def test_a_good_run_logs_nothing_however_many_items(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await run_batch(Script(), count=100)
    assert caplog.records == []


@pytest.mark.parametrize("count", [1, 100])
async def test_failing_items_have_no_line_each(
    count: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    batch = await run_batch(Script(ValueError("bad")), count=count)
    assert batch.failed == count
    assert caplog.records == []


async def test_what_the_callers_code_did_wrong_names_the_item(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(result: WorkItemResult[Any, Any]) -> None:
        raise LookupError

    await run_batch(Script(), post_processor=fail, middlewares=[Broken()])
    assert caplog.records
    assert all("item 0: " in record.getMessage() for record in caplog.records)


def test_every_module_that_logs_has_its_own_logger() -> None:
    package = Path(batch_llm.__file__).parent
    # The command attaches its display to the logger of the whole package.
    for path in set(package.rglob("*.py")) - set(package.glob("cli/*")):
        loggers = [
            ast.unparse(node)
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("getLogger")
        ]
        assert loggers in ([], ["logging.getLogger(__name__)"]), path


def test_the_root_logger_of_the_package_has_a_null_handler_and_nothing_else() -> None:
    code = (
        "import logging, batch_llm; logger = logging.getLogger('batch_llm');"
        "print([type(handler).__name__ for handler in logger.handlers], logger.level);"
        "logger.warning('not to be seen')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("['NullHandler'] 0", "")
