"""How a provider is spoken to. What belongs to one provider is imported when it is used."""

from typing import TYPE_CHECKING

from batch_llm.core.late import late_names
from batch_llm.llm_strategies.base import LLMCallStrategy

if TYPE_CHECKING:
    from batch_llm.llm_strategies._gemini_cache_info import CacheInfo, CachePrices
    from batch_llm.llm_strategies._gemini_client import gemini_client
    from batch_llm.llm_strategies._gemini_response import GeminiResponse
    from batch_llm.llm_strategies.gemini import GeminiStrategy
    from batch_llm.llm_strategies.gemini_cache import GeminiCachedStrategy
    from batch_llm.llm_strategies.once import PrepareOnceMixin, forget_prepared, prepare_once
    from batch_llm.llm_strategies.pydantic_ai import PydanticAIStrategy
    from batch_llm.llm_strategies.structured import (
        StructuredOutputError,
        TruncatedOutputError,
        parse_json,
    )
else:
    __getattr__, __dir__ = late_names(
        __name__,
        {
            "CacheInfo": "_gemini_cache_info",
            "CachePrices": "_gemini_cache_info",
            "GeminiCachedStrategy": "gemini_cache",
            "GeminiResponse": "_gemini_response",
            "GeminiStrategy": "gemini",
            "PrepareOnceMixin": "once",
            "PydanticAIStrategy": "pydantic_ai",
            "StructuredOutputError": "structured",
            "TruncatedOutputError": "structured",
            "forget_prepared": "once",
            "gemini_client": "_gemini_client",
            "parse_json": "structured",
            "prepare_once": "once",
        },
    )

__all__ = [
    "CacheInfo",
    "CachePrices",
    "GeminiCachedStrategy",
    "GeminiResponse",
    "GeminiStrategy",
    "LLMCallStrategy",
    "PrepareOnceMixin",
    "PydanticAIStrategy",
    "StructuredOutputError",
    "TruncatedOutputError",
    "forget_prepared",
    "gemini_client",
    "parse_json",
    "prepare_once",
]
