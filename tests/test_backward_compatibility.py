"""Pipelines written for 0.1 run unchanged: names, argument orders, attributes, inner methods."""

import asyncio
import dataclasses
import importlib
import importlib.metadata
import inspect
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest

import batch_llm
from batch_llm import (
    BaseMiddleware,
    DefaultErrorClassifier,
    ErrorInfo,
    ExponentialBackoffStrategy,
    FixedDelayStrategy,
    LLMWorkItem,
    MetricsObserver,
    ParallelBatchProcessor,
    ProcessorConfig,
    RateLimitConfig,
    RetryConfig,
    TokenUsage,
)
from batch_llm.core.clock import loop_time
from batch_llm.testing import MockAgent, mock_strategy
from tests.helpers import ANSWER, Script

Processor = ParallelBatchProcessor[str, Any, Any]

TOP = """
    BatchProcessor BatchResult LLMWorkItem PostProcessorFunc ProcessingStats ProgressCallbackFunc
    TokenUsage WorkItemResult ProcessorConfig RateLimitConfig RetryConfig GeminiCachedStrategy
    GeminiStrategy LLMCallStrategy PydanticAIStrategy ErrorClassifier ErrorInfo
    DefaultErrorClassifier FrameworkTimeoutError RateLimitStrategy ExponentialBackoffStrategy
    FixedDelayStrategy Middleware BaseMiddleware ProcessorObserver BaseObserver MetricsObserver
    ProcessingEvent GeminiErrorClassifier ParallelBatchProcessor BatchLLMError
"""
PATHS = {
    "base": "TInput TOutput TContext TokenUsage LLMWorkItem WorkItemResult BatchResult "
    "PostProcessorFunc ProgressCallbackFunc ProcessingStats BatchProcessor",
    "parallel": "ParallelBatchProcessor",
    "llm_strategies": "LLMCallStrategy GeminiStrategy GeminiCachedStrategy PydanticAIStrategy",
    "core": "ProcessorConfig RateLimitConfig RetryConfig AgentLike ResultLike UsageLike",
    "core.config": "ProcessorConfig RateLimitConfig RetryConfig",
    "core.protocols": "AgentLike ResultLike UsageLike",
    "strategies": "ErrorClassifier ErrorInfo DefaultErrorClassifier FrameworkTimeoutError "
    "RateLimitStrategy ExponentialBackoffStrategy FixedDelayStrategy",
    "strategies.errors": "BatchLLMError ErrorClassifier ErrorInfo DefaultErrorClassifier "
    "FrameworkTimeoutError",
    "strategies.rate_limit": "RateLimitStrategy ExponentialBackoffStrategy FixedDelayStrategy",
    "classifiers": "GeminiErrorClassifier",
    "classifiers.gemini": "GeminiErrorClassifier",
    "middleware": "Middleware BaseMiddleware",
    "observers": "ProcessorObserver BaseObserver ProcessingEvent MetricsObserver",
    "testing": "MockAgent MockResult MockStrategy mock_strategy",
    "testing.mocks": "MockAgent MockResult MockUsage",
}


@pytest.mark.parametrize("name", TOP.split())
def test_names_at_the_top(name: str) -> None:
    assert name in batch_llm.__all__
    assert getattr(batch_llm, name) is not None


def test_everything_at_the_top_exists_and_is_listed_once() -> None:
    assert all(hasattr(batch_llm, name) for name in batch_llm.__all__)
    assert len(batch_llm.__all__) == len(set(batch_llm.__all__))


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module in PATHS for name in PATHS[module].split()]
)
def test_import_paths(module: str, name: str) -> None:
    found = getattr(importlib.import_module(f"batch_llm.{module}"), name)
    assert found is getattr(batch_llm, name, found)


def test_one_version() -> None:
    assert batch_llm.__version__ == importlib.metadata.version("batch-llm") == "0.2.0"


def test_the_arguments_and_their_order() -> None:
    signature = inspect.signature(ParallelBatchProcessor)
    assert list(signature.parameters) == [
        "max_workers",
        "post_processor",
        "timeout_per_item",
        "rate_limit_cooldown",
        "config",
        "error_classifier",
        "rate_limit_strategy",
        "middlewares",
        "observers",
        "progress_callback",
    ]
    assert {parameter.default for parameter in signature.parameters.values()} == {None}


def test_attributes_by_default() -> None:
    processor = Processor()
    assert processor.config == ProcessorConfig()
    assert type(processor.error_classifier) is DefaultErrorClassifier
    assert processor.middlewares == []
    assert processor.observers == []
    assert (processor.max_workers, processor.max_queue_size) == (5, 0)
    assert (processor.post_processor, processor.progress_callback) == (None, None)
    assert processor.progress_callback_timeout == 5.0


def test_collaborators_become_attributes() -> None:
    given = {
        "error_classifier": DefaultErrorClassifier(),
        "rate_limit_strategy": FixedDelayStrategy(),
        "middlewares": [BaseMiddleware()],
        "observers": [MetricsObserver()],
        "post_processor": MagicMock(),
        "progress_callback": MagicMock(),
    }
    processor = Processor(**given)
    assert all(getattr(processor, name) is value for name, value in given.items())


def test_the_default_rate_limit_strategy_comes_from_the_config() -> None:
    limits = RateLimitConfig(700.0, 7, 3.0, 0.5, 1.25)
    strategy = Processor(config=ProcessorConfig(rate_limit=limits)).rate_limit_strategy
    assert type(strategy) is ExponentialBackoffStrategy
    assert vars(strategy) == {
        "initial_cooldown": 700.0,
        "max_cooldown": 700.0,
        "backoff_multiplier": 1.25,
        "slow_start_items": 7,
        "slow_start_initial_delay": 3.0,
        "slow_start_final_delay": 0.5,
    }
    assert vars(Processor().rate_limit_strategy)["max_cooldown"] == 600.0


def test_a_config_is_built_from_the_legacy_arguments() -> None:
    config = Processor(2, None, 30.0, 60.0).config
    expected = ProcessorConfig(2, 30.0, rate_limit=RateLimitConfig(cooldown_seconds=60.0))
    assert config == expected


def test_legacy_arguments_override_a_config_on_a_copy() -> None:
    config = ProcessorConfig(max_workers=9, max_queue_size=3, retry=RetryConfig(max_attempts=7))
    before = dataclasses.replace(config, rate_limit=dataclasses.replace(config.rate_limit))
    made = Processor(2, None, 30.0, 60.0, config).config
    assert config == before
    assert made == ProcessorConfig(
        2,
        30.0,
        RetryConfig(max_attempts=7),
        RateLimitConfig(cooldown_seconds=60.0),
        max_queue_size=3,
    )


def test_a_config_without_overrides_is_taken_as_it_is() -> None:
    config = ProcessorConfig(max_workers=9)
    assert Processor(config=config).config == config == ProcessorConfig(max_workers=9)


def test_an_override_may_mend_an_invalid_config() -> None:
    assert Processor(3, config=ProcessorConfig(max_workers=0)).config.max_workers == 3


@pytest.mark.parametrize("config", [None, ProcessorConfig()], ids=["alone", "with config"])
@pytest.mark.parametrize(
    ("argument", "rule"), [("max_workers", "max_workers"), ("timeout_per_item", "timeout_per_item")]
)
def test_an_explicit_zero_is_an_error_and_no_default(
    argument: str, rule: str, config: ProcessorConfig | None
) -> None:
    with pytest.raises(ValueError, match=rf"^{rule} must be .* \(got 0\)"):
        Processor(**{argument: 0}, config=config)


@pytest.mark.parametrize("config", [None, ProcessorConfig()], ids=["alone", "with config"])
async def test_a_cooldown_of_zero_means_none(config: ProcessorConfig | None) -> None:
    strategy = Script(RuntimeError("429"), ANSWER)
    async with Processor(rate_limit_cooldown=0, config=config) as processor:
        assert processor.config.rate_limit.cooldown_seconds == 0
        await processor.add_work(LLMWorkItem("id", strategy))
        batch = await processor.process_all()
    assert batch.succeeded == 1
    assert loop_time() <= 2.0  # the slow start's first delay alone


async def test_a_pipeline_of_0_1() -> None:
    seen: list[str] = []
    agent = MockAgent(response_factory=lambda prompt: {"title": prompt}, latency=0.01)
    processor = ParallelBatchProcessor[str, dict[str, str], None](
        max_workers=3,
        post_processor=lambda result: seen.append(result.item_id),
        timeout_per_item=10.0,
        rate_limit_cooldown=5.0,
    )
    for number in range(7):
        await processor.add_work(
            LLMWorkItem(item_id=f"book_{number}", strategy=mock_strategy(agent), prompt="p")
        )
    result = await processor.process_all()
    await processor.cleanup()
    assert (result.total_items, result.succeeded, result.failed) == (7, 7, 0)
    assert (result.total_input_tokens, result.total_output_tokens) == (700, 350)
    assert sorted(seen) == [f"book_{number}" for number in range(7)]
    assert {entry.output["title"] for entry in result.results} == {"p"}


class OwnClassifier:
    """Any object with classify."""

    def classify(self, exception: Exception) -> ErrorInfo:
        return ErrorInfo(False, "limit" in str(exception), False, "own")


async def test_collaborators_are_called_positionally() -> None:
    calls: list[tuple[Any, ...]] = []

    def noting(name: str, returned: Any = None) -> AsyncMock:
        def note(*args: Any) -> Any:
            calls.append((name, *args))
            return returned[0] if isinstance(returned, list) else returned

        return AsyncMock(side_effect=note)

    strategy = MagicMock()
    error = RuntimeError("limit")
    strategy.execute = AsyncMock(side_effect=[error, ("output", {}), KeyError("bad")])
    strategy.prepare, strategy.cleanup = noting("prepare"), noting("cleanup")
    strategy.on_error = noting("strategy.on_error")
    middleware = MagicMock(on_error=noting("middleware.on_error"))
    limits = MagicMock(on_rate_limit=noting("on_rate_limit", 1.0))
    limits.should_apply_slow_start = MagicMock(return_value=(False, 0.0))
    item = LLMWorkItem[str, Any, Any]("id", strategy, "prompt")
    async with Processor(
        error_classifier=OwnClassifier(), rate_limit_strategy=limits, middlewares=[middleware]
    ) as processor:
        for _ in range(2):
            await processor.add_work(item)
            await processor.process_all()
    assert [call.args for call in strategy.execute.await_args_list] == [("prompt", 1, 120.0)] * 3
    assert calls[:3] == [
        ("prepare",),
        ("on_rate_limit", 0, 1),
        ("strategy.on_error", error, 1),
    ] or calls[:3] == [
        ("prepare",),
        ("strategy.on_error", error, 1),
        ("on_rate_limit", 0, 1),
    ]
    assert [call[0] for call in calls[3:]] == [
        "cleanup",
        "prepare",
        "strategy.on_error",
        "middleware.on_error",
        "cleanup",
    ]
    assert calls[6][1] is item
    limits.should_apply_slow_start.assert_called_once_with(0)


async def test_a_dry_run_pretends() -> None:
    strategy = Script()
    async with Processor(config=ProcessorConfig(dry_run=True)) as processor:
        await processor.add_work(LLMWorkItem("id", strategy, "x" * 60))
        batch = await processor.process_all()
    [result] = batch.results
    assert result.output == "[DRY-RUN] Mock output for prompt: " + "x" * 50 + "..."
    assert result.token_usage == TokenUsage(input_tokens=100, output_tokens=50, total_tokens=150)
    assert strategy.calls == []


async def test_a_strategy_can_be_prepared_from_outside() -> None:
    strategy = Script()
    strategy.prepare = AsyncMock()
    async with Processor() as processor:
        await asyncio.gather(*[processor._ensure_strategy_prepared(strategy) for _ in range(5)])
        await processor._ensure_strategy_prepared(strategy)
        strategy.prepare.assert_awaited_once_with()
        await processor.add_work(LLMWorkItem("id", strategy))
        await processor.process_all()
    strategy.prepare.assert_awaited_once_with()


async def test_a_prepare_from_outside_fails_with_its_own_error() -> None:
    strategy = Script()
    strategy.prepare = AsyncMock(side_effect=PermissionError("no key"))
    async with Processor() as processor:
        for _ in range(2):
            with pytest.raises(PermissionError, match="no key"):
                await processor._ensure_strategy_prepared(strategy)
    assert strategy.prepare.await_count == 3


async def test_the_rate_limit_can_be_handled_from_outside() -> None:
    async with Processor(rate_limit_cooldown=30.0) as processor:
        assert processor._rate_limit_event.is_set()
        assert processor._in_cooldown is False
        handling = asyncio.create_task(processor._handle_rate_limit(3))
        await asyncio.sleep(1)
        assert not processor._rate_limit_event.is_set()
        assert processor._in_cooldown is True
        await handling
        assert loop_time() == 30
        assert processor._rate_limit_event.is_set()
        assert processor._in_cooldown is False


async def test_a_failing_rate_limit_strategy_is_called_once_and_pauses_nobody() -> None:
    limits = MagicMock(on_rate_limit=AsyncMock(side_effect=ValueError))
    async with Processor(rate_limit_strategy=limits) as processor:
        await processor._handle_rate_limit()
        limits.on_rate_limit.assert_awaited_once_with(0, 1)
        assert processor._rate_limit_event.is_set()
    assert loop_time() == 0


async def test_the_proactive_limiter_is_there_only_with_a_rate() -> None:
    assert Processor()._proactive_rate_limiter is None
    async with Processor(config=ProcessorConfig(max_requests_per_minute=60)) as processor:
        limiter = processor._proactive_rate_limiter
        assert limiter is not None
        for _ in range(3):
            await limiter.acquire()
    assert loop_time() == pytest.approx(2.0)


async def test_shutdown_ends_a_processor() -> None:
    processor = Processor()
    await processor.add_work(LLMWorkItem("id", Script()))
    await processor.shutdown()
    assert (await processor.process_all()).total_items == 0
