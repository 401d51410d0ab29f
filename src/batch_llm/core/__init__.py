"""The words and units that every other room uses."""

from batch_llm.core.config import ProcessorConfig, RateLimitConfig, RetryConfig
from batch_llm.core.protocols import AgentLike, ResultLike, TokenEstimator, UsageLike

__all__ = [
    "AgentLike",
    "ProcessorConfig",
    "RateLimitConfig",
    "ResultLike",
    "RetryConfig",
    "TokenEstimator",
    "UsageLike",
]
