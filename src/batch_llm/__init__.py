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
    TokenUsage,
    WorkItemResult,
)
from batch_llm.core import ProcessorConfig, RateLimitConfig, RetryConfig
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
        GeminiCachedStrategy,
        GeminiStrategy,
        PydanticAIStrategy,
        gemini_client,
    )

    __version__: str
else:
    _find, __dir__ = late_names(
        __name__,
        {
            "GeminiCachedStrategy": "llm_strategies",
            "GeminiErrorClassifier": "classifiers",
            "GeminiStrategy": "llm_strategies",
            "PydanticAIStrategy": "llm_strategies",
            "gemini_client": "llm_strategies",
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
    "GeminiStrategy",
    "LLMCallStrategy",
    "LLMWorkItem",
    "MetricsObserver",
    "Middleware",
    "ParallelBatchProcessor",
    "PostProcessorFunc",
    "ProcessingEvent",
    "ProcessingStats",
    "ProcessorConfig",
    "ProcessorObserver",
    "ProgressCallbackFunc",
    "PydanticAIStrategy",
    "RateLimitConfig",
    "RateLimitExceededError",
    "RateLimitStrategy",
    "ResponseBlockedError",
    "ResponseError",
    "ResponseTruncatedError",
    "RetryConfig",
    "StrategyContractError",
    "TokenUsage",
    "WorkItemResult",
    "__version__",
    "gemini_client",
]
