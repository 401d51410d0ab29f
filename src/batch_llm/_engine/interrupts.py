"""Ctrl-C: the first winds the runs down, the second stops them at once."""

import asyncio
import functools
import signal
import threading
from types import FrameType
from typing import Any, Protocol


class Interruptible(Protocol):
    """A run, as far as Ctrl-C is concerned."""

    def wind_down(self, reason: str) -> None:
        """Take nothing new and end soon."""
        ...

    def fail(self, error: BaseException) -> None:
        """End now, with the error."""
        ...


class _Listener:
    """The process's handler of SIGINT while there are runs in its main thread.

    A handler that the program has set itself is left alone.
    """

    def __init__(self) -> None:
        self._runs: dict[Interruptible, asyncio.AbstractEventLoop] = {}
        self._previous: Any = None
        self._pressed = self._noticed = 0

    def listen(self, run: Interruptible) -> None:
        """Tell the run of Ctrl-C from now on, where it is in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        current = signal.getsignal(signal.SIGINT)
        if current != self._handle:
            if not _is_pythons_own(current):
                return
            self._runs.clear()
            self._previous, self._pressed, self._noticed = current, 0, 0
            signal.signal(signal.SIGINT, self._handle)
        self._runs[run] = asyncio.get_running_loop()

    def forget(self, run: Interruptible) -> None:
        """Tell the run of nothing more."""
        if self._runs.pop(run, None) is not None and not self._runs:
            self._give_back()

    def _give_back(self) -> None:
        if signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, signal_number: int, frame: FrameType | None) -> None:
        self._pressed += 1
        if self._pressed > 1 and not self._noticed:
            # Whatever keeps the loop from noticing is what is to be stopped.
            self._give_back()
            raise KeyboardInterrupt
        for run, loop in self._runs.items():
            loop.call_soon_threadsafe(self._notice, run, self._pressed)
        if self._pressed > 1:
            self._give_back()

    def _notice(self, run: Interruptible, pressed: int) -> None:
        self._noticed = pressed
        if run not in self._runs:
            return
        if pressed > 1:
            run.fail(KeyboardInterrupt())
        else:
            run.wind_down("Ctrl-C")


def _is_pythons_own(handler: object) -> bool:
    """Whether the handler is the interpreter's, or the one of ``asyncio.run``."""
    if isinstance(handler, functools.partial):
        return isinstance(getattr(handler.func, "__self__", None), asyncio.Runner)
    return handler is signal.default_int_handler


_LISTENER = _Listener()
listen, forget = _LISTENER.listen, _LISTENER.forget
