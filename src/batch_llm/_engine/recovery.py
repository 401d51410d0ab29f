"""What happens between a failed attempt and the next."""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

from batch_llm._engine.cooldown import is_duration
from batch_llm._engine.events import Events
from batch_llm._engine.journal import Failure, Journal, describe
from batch_llm._engine.tasks import FATAL
from batch_llm.base import LLMWorkItem, ProcessingStats
from batch_llm.observers.events import ProcessingEvent
from batch_llm.strategies.adaptive import refusal_wait_seconds
from batch_llm.strategies.errors import (
    DefaultErrorClassifier,
    ErrorClassifier,
    ErrorInfo,
    RateLimitExceededError,
)
from batch_llm.strategies.retry import RetryPolicy, Verdict

_log = logging.getLogger(__name__)

_DEFAULT = DefaultErrorClassifier()
_UNKNOWN = ErrorInfo(True, False, False, "unknown")


class Recovery:
    """Classifies failures and carries out what the policies decide.

    Attributes:
        classifier: Knows what an error means; None leaves it to the strategy's own, and
            where it has none, to the default.

    Args:
        policy: Decides about retries.
        events: Told of rate limits.
        stats: The counters of the current run.
    """

    def __init__(
        self,
        classifier: ErrorClassifier | None,
        policy: RetryPolicy,
        *,
        events: Events,
        stats: Callable[[], ProcessingStats],
    ) -> None:
        self.classifier = classifier
        self._policy = policy
        self._events = events
        self._stats = stats

    def classify(self, error: BaseException, item: LLMWorkItem[Any, Any, Any]) -> ErrorInfo:
        """What kind of failure it is; a classifier that fails itself is passed over."""
        if not isinstance(error, Exception):
            return _UNKNOWN
        given = self.classifier
        classifier = _own_classifier(item.strategy) if given is None else given
        try:
            return _error_info_of(classifier.classify(error))
        except FATAL:
            raise
        except BaseException as broken:
            kind = type(broken).__name__
            _log.error("item %s: the classifier failed with %s", item.item_id, kind)
            _log.debug("item %s: the classifier failed", item.item_id, exc_info=broken)
        return _DEFAULT.classify(error)

    async def again(self, journal: Journal, failure: Failure) -> bool:
        """Decide whether a failed attempt is followed by another, and wait for it.

        Args:
            journal: The item's record.
            failure: How the attempt ended; one rate limit too many becomes its error.

        Returns:
            Whether to go on.

        Raises:
            asyncio.CancelledError: To go on, but the gate is closed.
        """
        gate = journal.entry.gate
        _log.debug(
            "item %s: attempt %s: %s: %r",
            journal.item.item_id,
            journal.attempt,
            failure.info.error_category,
            failure.error,
        )
        decision = self._policy.decide(
            failure.info,
            failure.error,
            attempt=journal.attempt,
            rate_limits=journal.rate_limits,
            random=random.random(),
        )
        goes_on = decision.verdict in (Verdict.RETRY, Verdict.REPEAT)
        if goes_on and gate.closed:
            raise asyncio.CancelledError
        journal.repeats = decision.verdict is Verdict.REPEAT
        delay = decision.delay_seconds
        if journal.repeats and gate.adapts:
            hint = failure.info.suggested_wait
            delay = refusal_wait_seconds(
                hint if is_duration(hint) else None,
                refusals=journal.rate_limits,
                random=random.random(),
            )
        if delay > 0:
            await asyncio.sleep(delay)
        if decision.verdict is Verdict.GIVE_UP_WAITING:
            failure.error = _too_many_rate_limits(journal, failure)
        return goes_on

    async def pause_if_rate_limited(self, journal: Journal, info: ErrorInfo) -> None:
        """Count a refusal; learn from it, or let everybody cool down, once for all of one time."""
        if not info.is_rate_limit:
            return
        gate = journal.entry.gate
        gate.refusals += 1
        journal.rate_limits += 1
        self._stats().rate_limit_count += 1
        if self._events.watched:
            self._events.emit(
                ProcessingEvent.RATE_LIMIT_HIT,
                {"item_id": journal.item.item_id, "worker_id": journal.worker_id},
            )
        if gate.adapts:
            gate.refused(journal.admission, hint_seconds=info.suggested_wait)
            return
        await gate.cool_down(
            journal.epoch, worker_id=journal.worker_id, hint_seconds=info.suggested_wait
        )


def _own_classifier(strategy: object) -> ErrorClassifier:
    try:
        own = getattr(strategy, "error_classifier", None)
    except Exception as broken:
        _log.error("error_classifier of the strategy failed with %s", type(broken).__name__)
        own = None
    return own if isinstance(own, ErrorClassifier) else _DEFAULT


def _too_many_rate_limits(journal: Journal, failure: Failure) -> RateLimitExceededError:
    error, remark = failure.error, failure.info.message
    known = remark if isinstance(remark, str) else describe(error)
    exceeded = RateLimitExceededError(
        f"rate limited {journal.rate_limits} times, the last time with {known[:300]}; "
        "raise RateLimitConfig.max_rate_limits_per_item, lower max_workers or "
        "max_requests_per_minute, or ask the provider for more quota"
    )
    exceeded.__cause__ = error
    return exceeded


def _error_info_of(info: Any) -> ErrorInfo:
    """What a classifier returned, which need not be an ErrorInfo as long as it looks like one."""
    flags = (info.is_retryable, info.is_rate_limit, info.is_timeout)
    if not all(isinstance(flag, bool) for flag in flags):
        raise TypeError(f"classify must return an ErrorInfo (got a {type(info).__name__})")
    if isinstance(info, ErrorInfo):
        return info
    wait, message = getattr(info, "suggested_wait", None), getattr(info, "message", None)
    ends_run = getattr(info, "ends_run", False) is True
    return ErrorInfo(*flags, str(info.error_category), wait, message, ends_run)
