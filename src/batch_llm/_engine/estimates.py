"""What calls are expected to cost, by an estimator that may be the user's."""

import logging
import math
from collections.abc import Mapping
from typing import Any

from batch_llm._engine.tasks import FATAL
from batch_llm.base import LLMWorkItem
from batch_llm.core.protocols import TokenEstimator

_log = logging.getLogger(__name__)

Item = LLMWorkItem[Any, Any, Any]


class Estimates:
    """Asks an estimator, which may fail without harm: its calls then count for nothing."""

    def __init__(self, estimator: TokenEstimator) -> None:
        self._estimator = estimator
        self._has_failed = False

    def tokens_of(self, item: Item) -> float:
        """What a call for the item is expected to cost."""
        try:
            tokens: Any = self._estimator.estimate(item.strategy, item.prompt)
            if not (0 <= tokens < math.inf):
                raise ValueError(f"estimate returned {tokens!r}; it must return tokens >= 0")
            return float(tokens)
        except FATAL:
            raise
        except BaseException as error:
            self._fail("estimate", error)
            return 0.0

    def learn(self, item: Item, usage: Mapping[str, int]) -> None:
        """Tell the estimator what a call has cost."""
        try:
            self._estimator.learn(item.strategy, item.prompt, usage)
        except FATAL:
            raise
        except BaseException as error:
            self._fail("learn", error)

    def _fail(self, method: str, error: BaseException) -> None:
        if not self._has_failed:
            self._has_failed = True
            _log.error("token_estimator.%s failed with %s", method, type(error).__name__)
        _log.debug("token_estimator.%s failed", method, exc_info=error)
