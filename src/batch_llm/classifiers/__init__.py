"""What a provider's errors mean, one provider each."""

from batch_llm.classifiers.gemini import GeminiErrorClassifier

__all__ = ["GeminiErrorClassifier"]
