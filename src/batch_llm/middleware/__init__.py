"""Who may change an item or a result."""

from batch_llm.middleware.base import BaseMiddleware, Middleware

__all__ = ["BaseMiddleware", "Middleware"]
