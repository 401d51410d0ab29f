"""The only two clocks of the library.

Whatever waits, waits on the event loop's monotonic time. Wall-clock time is read
for stamps and for the expiry times that a provider sends, nowhere else.
"""

import asyncio
import time
from collections.abc import Callable


def loop_time() -> float:
    """Monotonic seconds on the running event loop's own clock."""
    return asyncio.get_running_loop().time()


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """What ``loop.time`` comes down to, without the call in between where that is known."""
    is_plain = getattr(type(loop), "time", None) is asyncio.BaseEventLoop.time
    return time.monotonic if is_plain else loop.time


def wall_time() -> float:
    """Seconds since the epoch.

    A loop that simulates time brings a ``wall_time()`` of its own, so that expiry
    times move together with its timers.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return time.time()
    simulated = getattr(loop, "wall_time", None)
    return simulated() if simulated is not None else time.time()
