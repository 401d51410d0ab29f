"""Run many LLM calls from a pipeline script: at the provider's limit, with nothing lost."""

import logging
from typing import TYPE_CHECKING

from batch_llm.base import (
    BatchProcessor,
    BatchResult,
    LLMWorkItem,
    PostProcessorFunc,
    ProcessingStats,
    ProgressCallbackFunc,
    QuotaStatistics,
    RetryState,
    TokenUsage,
    WorkItemResult,
)
from batch_llm.core import ProcessorConfig, RateLimitConfig, RetryConfig, TokenEstimator
from batch_llm.core.late import late_names
from batch_llm.llm_strategies import LLMCallStrategy
from batch_llm.middleware import BaseMiddleware, Middleware
from batch_llm.observers import (
    BaseObserver,
    MetricsObserver,
    ProcessingEvent,
    ProcessorObserver,
)
from batch_llm.parallel import ParallelBatchProcessor
from batch_llm.strategies import (
    BatchLLMError,
    CacheUnavailableError,
    DefaultErrorClassifier,
    EmptyResponseError,
    ErrorClassifier,
    ErrorInfo,
    ExponentialBackoffStrategy,
    FixedDelayStrategy,
    FrameworkTimeoutError,
    RateLimitExceededError,
    RateLimitStrategy,
    ResponseBlockedError,
    ResponseError,
    ResponseTruncatedError,
    StrategyContractError,
)

if TYPE_CHECKING:
    from batch_llm.classifiers import GeminiErrorClassifier
    from batch_llm.llm_strategies import (
        CacheInfo,
        CachePrices,
        GeminiCachedStrategy,
        GeminiResponse,
        GeminiStrategy,
        PrepareOnceMixin,
        PydanticAIStrategy,
        StructuredOutputError,
        TruncatedOutputError,
        forget_prepared,
        gemini_client,
        parse_json,
        prepare_once,
    )

    __version__: str
else:
    _find, __dir__ = late_names(
        __name__,
        {
            "CacheInfo": "llm_strategies",
            "CachePrices": "llm_strategies",
            "GeminiCachedStrategy": "llm_strategies",
            "GeminiErrorClassifier": "classifiers",
            "GeminiResponse": "llm_strategies",
            "GeminiStrategy": "llm_strategies",
            "PrepareOnceMixin": "llm_strategies",
            "PydanticAIStrategy": "llm_strategies",
            "StructuredOutputError": "llm_strategies",
            "TruncatedOutputError": "llm_strategies",
            "forget_prepared": "llm_strategies",
            "gemini_client": "llm_strategies",
            "parse_json": "llm_strategies",
            "prepare_once": "llm_strategies",
        },
    )

    def __getattr__(name: str) -> object:
        if name == "__version__":
            # Read when asked for: this import alone takes as long as a third of ours.
            from importlib.metadata import version  # noqa: PLC0415

            return version("batch-llm")
        return _find(name)


logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "BaseMiddleware",
    "BaseObserver",
    "BatchLLMError",
    "BatchProcessor",
    "BatchResult",
    "CacheInfo",
    "CachePrices",
    "CacheUnavailableError",
    "DefaultErrorClassifier",
    "EmptyResponseError",
    "ErrorClassifier",
    "ErrorInfo",
    "ExponentialBackoffStrategy",
    "FixedDelayStrategy",
    "FrameworkTimeoutError",
    "GeminiCachedStrategy",
    "GeminiErrorClassifier",
    "GeminiResponse",
    "GeminiStrategy",
    "LLMCallStrategy",
    "LLMWorkItem",
    "MetricsObserver",
    "Middleware",
    "ParallelBatchProcessor",
    "PostProcessorFunc",
    "PrepareOnceMixin",
    "ProcessingEvent",
    "ProcessingStats",
    "ProcessorConfig",
    "ProcessorObserver",
    "ProgressCallbackFunc",
    "PydanticAIStrategy",
    "QuotaStatistics",
    "RateLimitConfig",
    "RateLimitExceededError",
    "RateLimitStrategy",
    "ResponseBlockedError",
    "ResponseError",
    "ResponseTruncatedError",
    "RetryConfig",
    "RetryState",
    "StrategyContractError",
    "StructuredOutputError",
    "TokenEstimator",
    "TokenUsage",
    "TruncatedOutputError",
    "WorkItemResult",
    "__version__",
    "forget_prepared",
    "gemini_client",
    "parse_json",
    "prepare_once",
]
