"""Where tasks are born, bounded and buried."""

import asyncio
import inspect
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Any

from batch_llm.strategies.errors import FrameworkTimeoutError

_log = logging.getLogger(__name__)

GRACE_SECONDS = 1.0
"""How long cancelled code may take to end before it is left behind."""

FATAL = (KeyboardInterrupt, SystemExit)
"""What user code raises to end the program: it stops the run and comes out of it."""


@dataclass(slots=True)
class Settled:
    """How a call ended: with a value, or with an error."""

    value: Any = None
    error: BaseException | None = None


async def settle(call: Callable[[], Any]) -> Settled:
    """Call user code, sync or async, and catch whatever comes out of it."""
    try:
        value = call()
        if inspect.isawaitable(value):
            value = await value
    except BaseException as error:
        return Settled(error=error)
    return Settled(value)


def hook(owner: object, name: str, *args: object, **more: object) -> Callable[[], Any]:
    """A call of a method that need not be there, looked up only when it is made."""

    def call() -> Any:
        method = getattr(owner, name, None)
        return None if method is None else method(*args, **more)

    return call


_Ended = Callable[[asyncio.Task[Any]], None]


class Tasks:
    """The tasks of one run; none of them outlives ``stop`` unless it ignores cancellation."""

    def __init__(self) -> None:
        # In the order of their start, so that a run ends the same way each time.
        self._alive: dict[asyncio.Task[Any], _Ended | None] = {}

    def spawn(
        self,
        work: Coroutine[Any, Any, Any],
        *,
        name: str,
        ended: _Ended | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[Any]:
        """Start a task.

        Args:
            work: What it does.
            name: What it is called in logs.
            ended: Told of its end, unless the task is left behind.
            context: What its context variables are set to; those of the caller by default.
        """
        # Not by the loop's task factory: an eager one would begin before the task is known here.
        task = asyncio.Task(work, loop=asyncio.get_running_loop(), name=name, context=context)
        self._alive[task] = ended
        task.add_done_callback(self._forget)
        return task

    def __contains__(self, task: object) -> bool:
        return task in self._alive

    async def bounded(
        self, call: Callable[[], Any], *, seconds: float | None, what: str
    ) -> Settled:
        """Run user code in a task of its own, so that nothing it does holds up the caller.

        Args:
            call: Gives a value or an awaitable.
            seconds: Deadline; None for none.
            what: Names the code in errors and logs.

        Returns:
            Its value, its error, or a FrameworkTimeoutError.

        Raises:
            KeyboardInterrupt: The code raised it.
            SystemExit: The code raised it.
        """
        [settled] = await self.bounded_all([(what, call)], seconds=seconds)
        if isinstance(settled.error, FATAL):
            raise settled.error
        return settled

    async def bounded_all(
        self, calls: Sequence[tuple[str, Callable[[], Any]]], *, seconds: float | None
    ) -> list[Settled]:
        """Run several at once, each named, all within the one deadline."""
        tasks = [self.spawn(settle(call), name=what) for what, call in calls]
        if not tasks:
            return []
        try:
            _, late = await asyncio.wait(tasks, timeout=seconds)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            raise
        if late:
            await self.end([task for task in tasks if task in late])
        return [_too_late(task, seconds) if task in late else task.result() for task in tasks]

    def cancel(self) -> None:
        """Cancel every task but the current one."""
        for task in self._others():
            task.cancel()

    async def stop(self) -> None:
        """Cancel every task and wait until it has ended, at most for the grace."""
        ending = self._others()
        if running := [task for task in ending if not task.done()]:
            await self.end(running)
        elif ending:
            # Somebody is still to be told of their end.
            await asyncio.sleep(0)

    async def end(self, tasks: Sequence[asyncio.Task[Any]]) -> None:
        """Cancel tasks, and wait for them for the grace; what then still runs is left behind."""
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        _, stuck = await asyncio.wait(tasks, timeout=GRACE_SECONDS)
        for task in stuck:
            self._alive.pop(task, None)
            _log.error("%s ignores its cancellation and is left behind", task.get_name())

    def _forget(self, task: asyncio.Task[Any]) -> None:
        if ended := self._alive.pop(task, None):
            ended(task)

    def _others(self) -> list[asyncio.Task[Any]]:
        current = asyncio.current_task()
        return [task for task in self._alive if task is not current]


def _too_late(task: asyncio.Task[Any], seconds: float | None) -> Settled:
    return Settled(
        error=FrameworkTimeoutError(f"timeout: {task.get_name()} took longer than {seconds} s")
    )
