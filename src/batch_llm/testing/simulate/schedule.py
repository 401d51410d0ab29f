"""An event loop on which any task may be late."""

import asyncio
from collections import deque
from itertools import islice
from random import Random

from batch_llm.strategies.errors import BatchLLMError
from batch_llm.testing.loop import VirtualTimeLoop

_WINDOW = 8
_MOST_STEPS_AT_ONE_INSTANT = 1_000_000


class EndlessRunError(BatchLLMError, RuntimeError):
    """A simulation came to no end: its tasks kept each other busy, or time ran on and on."""


class ShuffledLoop(VirtualTimeLoop):
    """A virtual-time loop that varies, by a seed, which ready task goes on first.

    asyncio promises the order of callbacks, and keeps it here. Of tasks it promises nothing:
    one that is ready may see others, and callbacks, go before it, as if what it waited for
    had taken a moment longer. No callback is ever overtaken. Some seeds leave asyncio's own
    order, some disturb it now and then, some always.

    Args:
        seed: The same gives the same order.
        longest_seconds: Virtual time after which the run is taken to be endless.
    """

    # Of asyncio's own, the same from 3.11 to 3.14: what is to be run next.
    _ready: deque[asyncio.Handle]

    def __init__(self, seed: int, *, longest_seconds: float = 365 * 86_400.0) -> None:
        super().__init__()
        self._ready = _Ready(self, Random(f"order {seed}"), longest_seconds)

    def pending_timers(self) -> list[str]:
        """The timers that are set, one text for each."""
        return [str(timer) for timer in self._scheduled if not timer.cancelled()]


class _Ready(deque[asyncio.Handle]):
    """The loop's queue, which gives away one of the first that may come next."""

    def __init__(self, loop: VirtualTimeLoop, random: Random, longest_seconds: float) -> None:
        super().__init__()
        self._loop = loop
        self._random = random.random
        self._disorder = random.choice((0.0, 0.2, 1.0, 1.0))
        self._longest_seconds = longest_seconds
        self._instant = 0.0
        self._steps = 0

    def popleft(self) -> asyncio.Handle:
        self._count_step()
        if len(self) < 2 or self._random() >= self._disorder:
            return super().popleft()
        chosen = int(self._random() * self._candidates())
        self.rotate(-chosen)
        handle = super().popleft()
        self.rotate(chosen)
        return handle

    def _candidates(self) -> int:
        """How many of the first may come next: steps of tasks, and what comes after those."""
        count = 0
        for handle in islice(self, _WINDOW):
            count += 1
            if not _is_step_of_a_task(handle):
                break
        return count

    def _count_step(self) -> None:
        now = self._loop.time()
        if now != self._instant:
            self._instant, self._steps = now, 0
            if now > self._longest_seconds:
                raise EndlessRunError(f"the run still goes on at {now} s of virtual time")
        self._steps += 1
        if self._steps > _MOST_STEPS_AT_ONE_INSTANT:
            # Once more as many to clean up in.
            self._steps = 0
            raise EndlessRunError(
                f"more than {_MOST_STEPS_AT_ONE_INSTANT} steps were made at {now} s of virtual "
                "time, and time does not go on: tasks keep each other busy"
            )


def _is_step_of_a_task(handle: asyncio.Handle) -> bool:
    callback: object = getattr(handle, "_callback", None)
    return isinstance(getattr(callback, "__self__", None), asyncio.Task)
