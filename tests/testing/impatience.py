"""What the tests of the virtual-time loop share."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from batch_llm.testing.loop import VirtualTimeLoop

HOUR = 3600.0


def now() -> float:
    return asyncio.get_running_loop().time()


def run_impatiently(main: Coroutine[Any, Any, Any], **grace: float) -> Any:
    """Run with as little patience in real time as the test asks for."""
    options = {"grace_seconds": 0.01, **grace}
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(**options)) as runner:
        return runner.run(main)
