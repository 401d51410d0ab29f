"""How a provider is spoken to."""

from batch_llm.llm_strategies.base import LLMCallStrategy
from batch_llm.llm_strategies.gemini import GeminiStrategy
from batch_llm.llm_strategies.gemini_cache import GeminiCachedStrategy
from batch_llm.llm_strategies.pydantic_ai import PydanticAIStrategy

__all__ = [
    "GeminiCachedStrategy",
    "GeminiStrategy",
    "LLMCallStrategy",
    "PydanticAIStrategy",
]
