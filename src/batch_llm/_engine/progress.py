"""Telling the caller how far the run is, without waiting for the caller."""

import asyncio
import contextvars
import inspect
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from batch_llm._engine.tasks import FATAL, GRACE_SECONDS, Tasks
from batch_llm.base import ProcessingStats, ProgressCallbackFunc

_log = logging.getLogger(__name__)

# So that a progress bar drawn by a thread is complete before the caller prints the results.
_QUICK_SECONDS = 0.01


class Progress:
    """Starts the progress callback every so many items, each call in a task of its own.

    Args:
        callback: Gets (processed, total, item_id); a sync one runs in a thread of its own,
            one call after the other.
        interval: Finished items between two calls.
        seconds: Deadline of a call, None for none.
    """

    def __init__(
        self, callback: ProgressCallbackFunc | None, *, interval: int, seconds: float | None
    ) -> None:
        self.callback = callback
        self._interval = interval
        self._seconds = seconds
        self._tasks = Tasks()
        self._thread: ThreadPoolExecutor | None = None
        self._fail: Callable[[BaseException], None]
        self._completed = 0
        self._unreported: tuple[int, int, str] | None = None
        self._beginning: set[asyncio.Future[None]] = set()

    def start(self, fail: Callable[[BaseException], None]) -> None:
        """Begin a run.

        Args:
            fail: Told of a KeyboardInterrupt or SystemExit.
        """
        self._fail = fail
        self._completed = 0
        self._unreported = None
        if self.callback is not None and not _is_async(self.callback):
            self._end_thread()
            # Not the loop's own threads: a callback that hangs must not take them from others.
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch_llm progress")

    def report(self, stats: ProcessingStats, item_id: str) -> None:
        """An item is finished."""
        # Not stats.processed: items that end together are counted before the first is reported.
        self._completed += 1
        self._unreported = (self._completed, stats.total, item_id)
        if self._completed % self._interval == 0:
            self._call()

    async def finish(self) -> None:
        """The run is over: report its end, and let every call begin."""
        self._call()
        if self._beginning:
            # A thread that does not begin has to wait for earlier callbacks: its own loss.
            await asyncio.wait(self._beginning, timeout=GRACE_SECONDS)
        self._end_thread()

    def __contains__(self, task: object) -> bool:
        return task in self._tasks

    async def stop(self) -> None:
        """End the calls that are still running."""
        self._end_thread()
        await self._tasks.stop()

    def _end_thread(self) -> None:
        """Let the thread end once it has made the calls that it was given."""
        if self._thread is not None:
            self._thread.shutdown(wait=False)
            self._thread = None

    def _call(self) -> None:
        if self._unreported is None:
            return
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._beginning.add(begun)
        begun.add_done_callback(self._beginning.discard)
        self._tasks.spawn(self._run(begun, *self._unreported), name="progress_callback")
        self._unreported = None

    async def _run(self, begun: asyncio.Future[None], *report: Any) -> None:
        item_id = report[-1]
        try:
            settled = await self._tasks.bounded(
                lambda: _call_in_its_place(self.callback, report, begun, self._thread),
                seconds=self._seconds,
                what="progress_callback",
            )
        except FATAL as error:
            _log.error("progress_callback raised %s", type(error).__name__)
            self._fail(error)
            return
        finally:
            _mark(begun)
        if settled.error is not None:
            # Its text may quote an output, so it is for DEBUG only.
            kind = type(settled.error).__name__
            _log.error("item %s: progress_callback failed with %s", item_id, kind)
            _log.debug("item %s: progress_callback failed", item_id, exc_info=settled.error)


async def _call_in_its_place(
    callback: Any,
    report: tuple[Any, ...],
    begun: asyncio.Future[None],
    thread: ThreadPoolExecutor | None,
) -> None:
    """Call an async callback here and a sync one in a thread."""
    loop = asyncio.get_running_loop()

    def in_thread() -> Any:
        loop.call_soon_threadsafe(loop.call_later, _QUICK_SECONDS, _mark, begun)
        return callback(*report)

    returned: Any
    if thread is None:
        _mark(begun)
        returned = callback(*report)
    else:
        context = contextvars.copy_context()
        returned = await loop.run_in_executor(thread, context.run, in_thread)
        _mark(begun)
    if inspect.isawaitable(returned):
        await returned


def _mark(begun: asyncio.Future[None]) -> None:
    if not begun.done():
        begun.set_result(None)


def _is_async(callback: Any) -> bool:
    return inspect.iscoroutinefunction(callback) or inspect.iscoroutinefunction(
        type(callback).__call__
    )
