"""The words and units that every other room uses."""

from batch_llm.core.config import ProcessorConfig, RateLimitConfig, RetryConfig
from batch_llm.core.protocols import AgentLike, ResultLike, UsageLike

__all__ = [
    "AgentLike",
    "ProcessorConfig",
    "RateLimitConfig",
    "ResultLike",
    "RetryConfig",
    "UsageLike",
]
