"""Who may watch a run."""

from abc import ABC, abstractmethod
from typing import Any

from batch_llm.observers.events import ProcessingEvent


class ProcessorObserver(ABC):
    """Is told what happens, in order, and cannot hurt the run.

    Each call has 5 seconds; an exception or a timeout is logged and passed over. An
    observer that times out several times in a row is left out for the rest of the run.
    """

    @abstractmethod
    async def on_event(self, event: ProcessingEvent, data: dict[str, Any]) -> None:
        """Called for every event.

        Args:
            event: What happened.
            data: The keys that ``ProcessingEvent`` lists; the observer's own copy.
        """


class BaseObserver(ProcessorObserver):
    """An observer that ignores everything: override ``on_event``."""

    async def on_event(self, event: ProcessingEvent, data: dict[str, Any]) -> None:
        """Ignore the event."""
