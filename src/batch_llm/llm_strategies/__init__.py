"""How a provider is spoken to. What belongs to one provider is imported when it is used."""

from typing import TYPE_CHECKING

from batch_llm.core.late import late_names
from batch_llm.llm_strategies.base import LLMCallStrategy

if TYPE_CHECKING:
    from batch_llm.llm_strategies._gemini_client import gemini_client
    from batch_llm.llm_strategies.gemini import GeminiStrategy
    from batch_llm.llm_strategies.gemini_cache import GeminiCachedStrategy
    from batch_llm.llm_strategies.pydantic_ai import PydanticAIStrategy
else:
    __getattr__, __dir__ = late_names(
        __name__,
        {
            "GeminiCachedStrategy": "gemini_cache",
            "GeminiStrategy": "gemini",
            "PydanticAIStrategy": "pydantic_ai",
            "gemini_client": "_gemini_client",
        },
    )

__all__ = [
    "GeminiCachedStrategy",
    "GeminiStrategy",
    "LLMCallStrategy",
    "PydanticAIStrategy",
    "gemini_client",
]
