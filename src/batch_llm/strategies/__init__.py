"""What should be decided: kinds of errors, retries, pauses."""

from batch_llm.strategies.errors import (
    BatchLLMError,
    CacheUnavailableError,
    DefaultErrorClassifier,
    EmptyResponseError,
    ErrorClassifier,
    ErrorInfo,
    FrameworkTimeoutError,
    RateLimitExceededError,
    ResponseBlockedError,
    ResponseError,
    ResponseTruncatedError,
    StrategyContractError,
)
from batch_llm.strategies.rate_limit import (
    ExponentialBackoffStrategy,
    FixedDelayStrategy,
    RateLimitStrategy,
)

__all__ = [
    "BatchLLMError",
    "CacheUnavailableError",
    "DefaultErrorClassifier",
    "EmptyResponseError",
    "ErrorClassifier",
    "ErrorInfo",
    "ExponentialBackoffStrategy",
    "FixedDelayStrategy",
    "FrameworkTimeoutError",
    "RateLimitExceededError",
    "RateLimitStrategy",
    "ResponseBlockedError",
    "ResponseError",
    "ResponseTruncatedError",
    "StrategyContractError",
]
