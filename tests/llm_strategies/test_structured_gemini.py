"""parse_json as the response_parser of GeminiStrategy: whole runs with the real SDK."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel, Field

from batch_llm import (
    BatchResult,
    GeminiStrategy,
    LLMCallStrategy,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    ResponseTruncatedError,
    RetryConfig,
    StructuredOutputError,
    TokenUsage,
    TruncatedOutputError,
    parse_json,
)
from batch_llm.testing.gemini import Fault, GeminiEmulator, RecordedRequest, Reply

pytestmark = pytest.mark.gemini

ANSWER = '{"title": "Emma", "pages": 474}'


class Book(BaseModel):
    title: str
    pages: int = Field(gt=0)


class Listening(GeminiStrategy[Book]):
    """Keeps what it is told of failures."""

    def __init__(self, client: Any) -> None:
        super().__init__("gemini-2.5-flash", client, parse_json(Book))
        self.errors: list[Exception] = []

    async def on_error(self, exception: Exception, attempt: int) -> None:
        self.errors.append(exception)


async def run(
    respond: Callable[[RecordedRequest], str | Reply], *faults: Fault | None, attempts: int = 3
) -> tuple[BatchResult[Book, None], list[Exception]]:
    """Ask once about one book."""
    config = ProcessorConfig(retry=RetryConfig(max_attempts=attempts))
    async with (
        GeminiEmulator(respond) as server,
        ParallelBatchProcessor[str, Book, None](config=config) as processor,
    ):
        server.script(*faults)
        strategy = Listening(server.client())
        await processor.add_work(LLMWorkItem("emma", strategy, "Emma"))
        return await processor.process_all(), strategy.errors


async def test_a_fenced_answer_is_an_output() -> None:
    batch, errors = await run(lambda request: f"Sure:\n```json\n{ANSWER}\n```\n")
    assert batch.results[0].output == Book(title="Emma", pages=474)
    assert errors == []


async def test_an_answer_that_does_not_fit_is_asked_for_again_and_billed() -> None:
    answers = ['{"title": "Emma", "pages": 0}', "Emma has 474 pages.", ANSWER]
    batch, errors = await run(lambda request: answers[request.index])
    result = batch.results[0]
    assert (result.success, result.attempts) == (True, 3)
    assert result.token_usage["output_tokens"] == sum(-(-len(answer) // 4) for answer in answers)
    misfit, prose = errors
    assert isinstance(misfit, StructuredOutputError)
    assert isinstance(prose, StructuredOutputError)
    assert (misfit.text, misfit.valid) == (answers[0], {"title": "Emma"})
    assert (prose.text, prose.valid) == (answers[1], {})


async def test_a_text_that_breaks_off_although_the_model_was_done_is_asked_for_again() -> None:
    batch, errors = await run(lambda request: ANSWER, Fault.malformed_json(in_text=True))
    assert (batch.results[0].success, batch.results[0].attempts) == (True, 2)
    error = errors[0]
    assert isinstance(error, StructuredOutputError)
    assert error.truncated
    assert "though the model was done" in str(error)


async def test_an_answer_that_ended_at_the_token_limit_never_reaches_the_parser() -> None:
    batch, errors = await run(lambda request: ANSWER, Fault.truncated())
    assert batch.results[0].attempts == 1
    assert [type(error) for error in errors] == [ResponseTruncatedError]


async def test_a_result_and_the_log_tell_the_reason_and_not_the_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    batch, _ = await run(lambda request: f'{{"title": "{"secret " * 2_000}"}}', attempts=2)
    result = batch.results[0]
    assert result.error == (
        "StructuredOutputError: the answer does not fit Book: pages: Field required; ask again, "
        "or for these fields alone"
    )
    assert isinstance(result.exception, StructuredOutputError)
    assert result.exception.text.count("secret") == 2_000
    assert "secret" not in caplog.text


async def test_a_text_of_an_own_provider_that_was_cut_off_is_not_asked_for_again() -> None:
    parse = parse_json(Book)

    class OwnProvider(LLMCallStrategy[Book]):
        async def execute(
            self, prompt: str, attempt: int, timeout: float
        ) -> tuple[Book, TokenUsage]:
            return parse(ANSWER[:-4]), {}

    async with ParallelBatchProcessor[str, Book, None]() as processor:
        await processor.add_work(LLMWorkItem("emma", OwnProvider(), "Emma"))
        result = (await processor.process_all()).results[0]
    assert result.attempts == 1
    assert isinstance(result.exception, TruncatedOutputError)
    assert result.exception.valid == {"title": "Emma"}
