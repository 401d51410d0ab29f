"""What a type checker must see in the public API: read by mypy and pyright, never run."""

from typing import Any, assert_type

from batch_llm import BaseMiddleware, MetricsObserver, ParallelBatchProcessor
from batch_llm.base import BatchResult, LLMWorkItem, TokenUsage, WorkItemResult
from batch_llm.core import ProcessorConfig, RateLimitConfig, RetryConfig
from batch_llm.llm_strategies import LLMCallStrategy, PydanticAIStrategy
from batch_llm.strategies import DefaultErrorClassifier, ErrorInfo, ExponentialBackoffStrategy
from batch_llm.testing import MockAgent, mock_strategy


class Answer:
    """An output type of the user's own."""


class Asking(LLMCallStrategy[Answer]):
    """A strategy of the user's own."""

    async def execute(self, prompt: str, attempt: int, timeout: float) -> tuple[Answer, TokenUsage]:
        """Answer."""
        return Answer(), {"input_tokens": 1}


def configuration() -> None:
    """Configuration is plain data."""
    config = ProcessorConfig(max_workers=3, retry=RetryConfig(max_attempts=2))
    assert_type(config.retry, RetryConfig)
    assert_type(config.rate_limit, RateLimitConfig)
    assert_type(config.timeout_per_item, float)
    assert_type(config.max_requests_per_minute, float | None)


def work_item() -> None:
    """An item takes its types from its strategy and its context."""
    item = LLMWorkItem[str, Answer, int]("id", Asking(), prompt="?", context=7)
    assert_type(item.context, int | None)
    assert_type(item.strategy, LLMCallStrategy[Answer])


def results(batch: BatchResult[Answer, int]) -> None:
    """Results carry the output and context types of the items."""
    assert_type(batch.results, list[WorkItemResult[Answer, int]])
    assert_type(batch.results[0].output, Answer | None)
    assert_type(batch.results[0].context, int | None)
    assert_type(batch.cache_hit_rate(), float)
    assert_type(batch.effective_input_tokens(), int)


async def policies() -> None:
    """Policies answer in plain values."""
    assert_type(DefaultErrorClassifier().classify(ValueError()), ErrorInfo)
    backoff = ExponentialBackoffStrategy()
    assert_type(await backoff.on_rate_limit(0, 1), float)
    assert_type(backoff.should_apply_slow_start(0), tuple[bool, float])


class Counting(BaseMiddleware[str, Answer, int]):
    """A middleware of the user's own."""

    async def before_process(
        self, work_item: LLMWorkItem[str, Answer, int]
    ) -> LLMWorkItem[str, Answer, int] | None:
        """Count."""
        assert_type(work_item.context, int | None)
        return work_item


async def keep(result: WorkItemResult[Answer, int]) -> None:
    """Take a result with its types."""
    assert_type(result.output, Answer | None)


def note(completed: int, total: int, item_id: str) -> None:
    """Take a report."""


async def processing() -> None:
    """The processor hands on the types that its items came with."""
    async with ParallelBatchProcessor[str, Answer, int](
        config=ProcessorConfig(),
        post_processor=keep,
        middlewares=[Counting()],
        observers=[MetricsObserver()],
        progress_callback=note,
    ) as processor:
        assert_type(processor, ParallelBatchProcessor[str, Answer, int])
        await processor.add_work(LLMWorkItem("id", Asking(), context=7))
        assert_type(await processor.process_all(), BatchResult[Answer, int])


def agents() -> None:
    """An agent's strategy has the output of the agent."""
    agent = MockAgent[str](response_factory=str.upper)
    assert_type(mock_strategy(agent), PydanticAIStrategy[str])


async def metrics() -> None:
    """Exports are plain texts and dicts."""
    observer = MetricsObserver()
    assert_type(await observer.export_json(), str)
    assert_type(await observer.get_metrics(), dict[str, Any])
    assert_type(await observer.export_prometheus(), str)
