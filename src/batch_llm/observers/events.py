"""What an observer can be told."""

from enum import Enum


class ProcessingEvent(Enum):
    """The events of a run; beside each, the keys of its data. Durations are seconds."""

    BATCH_STARTED = "batch_started"
    """total"""
    BATCH_COMPLETED = "batch_completed"
    """total, succeeded, failed"""
    WORKER_STARTED = "worker_started"
    """worker_id"""
    WORKER_STOPPED = "worker_stopped"
    """worker_id"""
    ITEM_STARTED = "item_started"
    """item_id, worker_id"""
    ITEM_COMPLETED = "item_completed"
    """item_id, duration, tokens (all tokens of the item's attempts), and state if it has one"""
    ITEM_FAILED = "item_failed"
    """item_id, error_type (the exception's type name, ``Skipped`` for a skipped item), and
    state if it has one"""
    RATE_LIMIT_HIT = "rate_limit_hit"
    """item_id, worker_id"""
    COOLDOWN_STARTED = "cooldown_started"
    """worker_id, duration, consecutive"""
    COOLDOWN_ENDED = "cooldown_ended"
    """duration, and error if the rate-limit strategy failed"""
