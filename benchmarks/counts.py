"""What an item costs in things that can be counted: exact on the noisiest machine."""

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields
from types import FrameType
from typing import Any

Run = Callable[[], Awaitable[object]]
# Gets a number of items ready, uncounted, and gives what runs them.
Setup = Callable[[int], Awaitable[Run]]


@dataclass
class Counts:
    """Of one run, or per item.

    Attributes:
        tasks: Tasks made with ``loop.create_task``.
        timers: ``loop.call_at``, which ``call_later`` comes down to.
        futures: ``loop.create_future``; a task is not counted again.
        callbacks: ``loop.call_soon``: a task's first step and each of its wake-ups.
        python_calls: Python functions entered; a coroutine once more for each resumption.
        c_calls: Builtin functions and methods called from Python; making an instance of a
            builtin class is none.
    """

    tasks: float = 0
    timers: float = 0
    futures: float = 0
    callbacks: float = 0
    python_calls: float = 0
    c_calls: float = 0

    @property
    def calls(self) -> float:
        """Calls of either kind, those of the event loop and of the item's own call included."""
        return self.python_calls + self.c_calls


def per_item(setup: Setup, few: int = 2_000, many: int = 4_000) -> Counts:
    """The slope between two numbers of items, in which what a run costs once drops out."""
    less, more = _count(setup, few), _count(setup, many)
    return Counts(
        *[
            (getattr(more, field.name) - getattr(less, field.name)) / (many - few)
            for field in fields(Counts)
        ]
    )


def _count(setup: Setup, items: int) -> Counts:
    counts = Counts()
    counting_loop = _CountingLoop()
    with asyncio.Runner(loop_factory=lambda: counting_loop) as runner:
        run = runner.run(setup(items))
        counting_loop.counts = counts
        runner.run(_await(run))
    # On a loop that does not count: its own calls are those that every user pays.
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(_profile(runner.run(setup(items)), counts))
    return counts


async def _await(run: Run) -> None:
    await run()


async def _profile(run: Run, counts: Counts) -> None:
    def count(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            counts.python_calls += 1
        elif event == "c_call":
            counts.c_calls += 1

    # A collection calls finalizers of whatever it happens to find.
    gc.collect()
    gc.disable()
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        await run()
    finally:
        sys.setprofile(before)
        gc.enable()


class _CountingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.counts = Counts()
        super().__init__()

    def create_task(self, *args: Any, **kwargs: Any) -> asyncio.Task[Any]:
        self.counts.tasks += 1
        return super().create_task(*args, **kwargs)

    def call_at(self, *args: Any, **kwargs: Any) -> asyncio.TimerHandle:
        self.counts.timers += 1
        return super().call_at(*args, **kwargs)

    def create_future(self) -> asyncio.Future[Any]:
        self.counts.futures += 1
        return super().create_future()

    def call_soon(self, *args: Any, **kwargs: Any) -> asyncio.Handle:
        self.counts.callbacks += 1
        return super().call_soon(*args, **kwargs)
