"""What a provider's errors mean, one provider each, imported when it is used."""

from typing import TYPE_CHECKING

from batch_llm.core.late import late_names

if TYPE_CHECKING:
    from batch_llm.classifiers.gemini import GeminiErrorClassifier
else:
    __getattr__, __dir__ = late_names(__name__, {"GeminiErrorClassifier": "gemini"})

__all__ = ["GeminiErrorClassifier"]
