"""What calls are expected to cost, by an estimator that may be the user's."""

import logging
import math
from collections.abc import Mapping
from typing import Any, Protocol

from batch_llm._engine.tasks import FATAL
from batch_llm.core.protocols import TokenEstimator

_log = logging.getLogger(__name__)


class Estimator(TokenEstimator, Protocol):
    """What a gate asks.

    Attributes:
        to_skip: How many answers it need not be told of before the next.
        is_asked_each_time: Whether it wants to know of each call; if not, calls of one moment
            may pass for equal.
    """

    to_skip: int
    is_asked_each_time: bool


class Guarded:
    """An estimator of the user's, which may fail without harm: its calls then count for nothing."""

    def __init__(self, estimator: TokenEstimator) -> None:
        self._estimator = estimator
        self._has_failed = False
        self.to_skip = 0
        self.is_asked_each_time = True

    def estimate(self, strategy: Any, prompt: str) -> float:
        """What a call is expected to cost."""
        try:
            tokens: Any = self._estimator.estimate(strategy, prompt)
            if not (0 <= tokens < math.inf):
                raise ValueError(f"estimate returned {tokens!r}; it must return tokens >= 0")
            return float(tokens)
        except FATAL:
            raise
        except BaseException as error:
            self._fail("estimate", error)
            return 0.0

    def learn(self, strategy: Any, prompt: str, usage: Mapping[str, int]) -> None:
        """Tell the estimator what a call has cost."""
        try:
            self._estimator.learn(strategy, prompt, usage)
        except FATAL:
            raise
        except BaseException as error:
            self._fail("learn", error)

    def _fail(self, method: str, error: BaseException) -> None:
        if not self._has_failed:
            self._has_failed = True
            _log.error("token_estimator.%s failed with %s", method, type(error).__name__)
        _log.debug("token_estimator.%s failed", method, exc_info=error)
