"""Who may watch."""

from batch_llm.observers.base import BaseObserver, ProcessorObserver
from batch_llm.observers.events import ProcessingEvent
from batch_llm.observers.metrics import MetricsObserver

__all__ = ["BaseObserver", "MetricsObserver", "ProcessingEvent", "ProcessorObserver"]
