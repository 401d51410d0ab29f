"""A run of items with bad answers among items with good ones, and what must hold of it."""

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hypothesis import Phase, settings

from batch_llm import (
    BatchResult,
    LLMCallStrategy,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    RateLimitConfig,
    RetryConfig,
    WorkItemResult,
)
from batch_llm.testing.gemini import Fault, GeminiEmulator, RecordedRequest

# Each example is a run of its own: making one smaller takes longer than reading it. The
# same ones every time, since a suite is to say the same of the same code.
SETTINGS = settings(
    settings.get_profile("any_machine"),
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "20")),
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    database=None,
    phases=(Phase.explicit, Phase.generate),
)
MODEL = "gemini-2.5-flash"
BOOK = "It was the best of times, it was the worst of times. " * 100
GOOD = 3
DAY = 86_400.0
LONGEST_LOG_LINE = 10_000
ATTEMPTS, RATE_LIMITS = 2, 2
CONFIG = ProcessorConfig(
    max_workers=4,
    retry=RetryConfig(max_attempts=ATTEMPTS, jitter=False),
    rate_limit=RateLimitConfig(
        cooldown_seconds=1.0, slow_start_items=0, max_rate_limits_per_item=RATE_LIMITS
    ),
)


def client_of(server: GeminiEmulator) -> Any:
    """A client without certificates: to load them takes longer than the rest of a run."""
    unchecked = {"verify": False}
    return server.client(
        http_options={"client_args": unchecked, "async_client_args": dict(unchecked)}
    )


def answer_to(request: RecordedRequest) -> str:
    return f"the answer to {asked_of(request)}"


def asked_of(request: RecordedRequest) -> str:
    """The item's own prompt, which stands last."""
    return request.prompt.rpartition("\n")[2]


def text_of(response: Any) -> str:
    return str(response.text)


async def run_all(strategy: LLMCallStrategy[str], prompts: Iterable[str]) -> BatchResult[str, None]:
    """Run these prompts, and check what must hold of every run."""
    started = asyncio.get_running_loop().time()
    async with ParallelBatchProcessor[str, str, None](config=CONFIG) as processor:
        for prompt in prompts:
            await processor.add_work(LLMWorkItem(prompt, strategy, prompt))
        with quiet():
            batch = await processor.process_all()
        check(batch, await processor.get_stats())
    took = asyncio.get_running_loop().time() - started
    # Nobody waits longer than a month for each refusal, whatever the provider asks.
    assert took <= (batch.total_items + 1) * RATE_LIMITS * 31 * DAY
    return batch


async def run_among_good_ones(
    bad: Mapping[str, Fault],
    make_strategy: Callable[[GeminiEmulator], LLMCallStrategy[str]],
) -> BatchResult[str, None]:
    """Run the items of these prompts, which get these answers, and some that get good ones."""

    def fault_of(request: RecordedRequest) -> Fault | None:
        return bad.get(asked_of(request)) if request.operation == "generate" else None

    good = [f"good {number}" for number in range(GOOD)]
    async with GeminiEmulator(answer_to, faults=fault_of) as server:
        batch = await run_all(make_strategy(server), [*bad, *good])
    results = {result.item_id: result for result in batch.results}
    assert results.keys() == {*bad, *good}
    assert batch.total_items == len(results)
    for prompt in good:
        assert results[prompt].output == f"the answer to {prompt}", results[prompt].error
    return batch


def check(batch: BatchResult[str, None], stats: dict[str, Any]) -> None:
    """What holds of every run, whatever the provider sends."""
    for result in batch.results:
        assert result.success or is_readable(result.error), result.error
        assert all(type(tokens) is int and tokens >= 0 for tokens in result.token_usage.values())
    assert 0.0 <= batch.cache_hit_rate() <= 100.0
    assert batch.effective_input_tokens() >= 0
    assert stats["processed"] == stats["succeeded"] + stats["failed"] == batch.total_items
    assert stats["total_input_tokens"] == batch.total_input_tokens
    assert stats["total_output_tokens"] == batch.total_output_tokens


def is_readable(error: str | None) -> bool:
    """Whether an error is ``TypeName: text``."""
    name, _, text = (error or "").partition(": ")
    return name.isidentifier() and bool(text.strip())


def of(batch: BatchResult[str, None], item_id: str) -> WorkItemResult[str, None]:
    (result,) = (result for result in batch.results if result.item_id == item_id)
    return result


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing is logged as an error of ours, and no line quotes at length what came."""
    lines, loggers = _Lines(), [logging.getLogger(name) for name in ("batch_llm", "asyncio")]
    for logger in loggers:
        logger.addHandler(lines)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(lines)
    for record in lines.records:
        text = record.getMessage()
        assert record.levelno < logging.ERROR or "prepare failed for good" in text, text
        assert len(text) < LONGEST_LOG_LINE, text
