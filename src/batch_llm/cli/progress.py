"""How far is the run?"""

import logging
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, TextIO

from batch_llm.core.clock import loop_time
from batch_llm.observers import BaseObserver, ProcessingEvent

_BAR_WIDTH = 20
_SECONDS_BETWEEN_REDRAWS = 0.1
_SECONDS_BETWEEN_LINES = 1.0
_ALWAYS_SHOWN = (ProcessingEvent.COOLDOWN_STARTED, ProcessingEvent.COOLDOWN_ENDED)
_ERASE_LINE = "\r\x1b[K"


def duration(seconds: float, *, decimals: int = 1) -> str:
    """Seconds as a person says them: 8.1 s, 2 min 31 s, 1 h 5 min."""
    if seconds < 60:
        return f"{seconds:.{decimals}f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


class ProgressLine(BaseObserver):
    """A line that is rewritten on a terminal, and a new one at each tenth of the way elsewhere.

    The last line always tells the final state.

    Args:
        stream: Where it goes, such as ``sys.stderr``.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rewrites = stream.isatty()
        self._total = self._done = self._failed = self._rate_limits = 0
        self._pause_seconds: float | None = None
        self._started = self._shown_at = 0.0
        self._shown_tenth = 0

    async def on_event(self, event: ProcessingEvent, data: dict[str, Any]) -> None:
        """Count, and show it when it is time."""
        match event:
            case ProcessingEvent.BATCH_STARTED:
                self._total = data["total"]
                self._started = self._shown_at = loop_time()
            case ProcessingEvent.ITEM_COMPLETED:
                self._done += 1
            case ProcessingEvent.ITEM_FAILED:
                self._done += 1
                self._failed += 1
            case ProcessingEvent.RATE_LIMIT_HIT:
                self._rate_limits += 1
            case ProcessingEvent.COOLDOWN_STARTED:
                self._pause_seconds = data["duration"]
            case ProcessingEvent.COOLDOWN_ENDED:
                self._pause_seconds = None
            case ProcessingEvent.BATCH_COMPLETED:
                self._show(last=True)
                return
            case _:
                return
        if self._is_due(event):
            self._show()

    @contextmanager
    def with_warnings(self) -> Generator[None, None, None]:
        """Show the library's warnings above the line meanwhile."""
        logger, handler = logging.getLogger("batch_llm"), _Warnings(self)
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)

    def warn(self, text: str) -> None:
        """Show a text above the line."""
        if self._rewrites:
            self._stream.write(_ERASE_LINE)
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def _is_due(self, event: ProcessingEvent) -> bool:
        if self._done == self._total:
            return False
        seconds = loop_time() - self._shown_at
        if self._rewrites:
            return event in _ALWAYS_SHOWN or seconds >= _SECONDS_BETWEEN_REDRAWS
        is_worth_a_line = self._tenth() > self._shown_tenth or self._pauses_long()
        return is_worth_a_line and seconds >= _SECONDS_BETWEEN_LINES

    def _pauses_long(self) -> bool:
        return self._pause_seconds is not None and self._pause_seconds >= _SECONDS_BETWEEN_LINES

    def _tenth(self) -> int:
        return 10 * self._done // self._total

    def _show(self, *, last: bool = False) -> None:
        self._shown_at, self._shown_tenth = loop_time(), self._tenth()
        text = self._text()
        if self._rewrites:
            columns = shutil.get_terminal_size().columns
            self._stream.write(_ERASE_LINE + text[: columns - 1] + ("\n" if last else ""))
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()

    def _text(self) -> str:
        done, total = self._done, self._total
        seconds = loop_time() - self._started
        filled = _BAR_WIDTH * done // total
        bar = "#" * filled + "-" * (_BAR_WIDTH - filled)
        parts = [f"[{bar}] {100 * done // total:3d} %", f"{done:,} of {total:,}"]
        if done and seconds:
            parts.append(f"{done / seconds:.1f}/s")
        if 0 < done < total and self._pause_seconds is None:
            left = seconds / done * (total - done)
            parts.append(f"{duration(left, decimals=0)} left")
        if self._failed:
            parts.append(f"{self._failed:,} failed")
        if self._rate_limits:
            parts.append(f"429s: {self._rate_limits:,}")
        if self._pause_seconds is not None:
            parts.append(f"pausing {duration(self._pause_seconds)}")
        return "  ".join(parts)


class _Warnings(logging.Handler):
    """Hands the library's warnings to the progress line."""

    def __init__(self, line: ProgressLine) -> None:
        super().__init__(logging.WARNING)
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        # Cooldowns are in the line itself.
        if record.name != "batch_llm._engine.gate":
            self._line.warn(f"{record.levelname.lower()}: {record.getMessage()}")
