"""Virtual time as a fixture, for synchronous pytest tests.

In ``conftest.py``::

    pytest_plugins = ["batch_llm.testing.pytest_plugin"]

and in a test::

    def test_an_hour(virtual_time):
        virtual_time.run(asyncio.sleep(3600))
        assert virtual_time.time() == 3600.0
"""

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest

from batch_llm.testing.loop import VirtualTimeLoop

T = TypeVar("T")


class VirtualTime:
    """Runs coroutines one after the other on one loop, whose time goes on between them."""

    def __init__(self, runner: asyncio.Runner, loop: VirtualTimeLoop) -> None:
        self._runner = runner
        self._loop = loop

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end and return its result; other tasks stay for the next run."""
        return self._runner.run(main)

    def time(self) -> float:
        """Virtual seconds since the test began."""
        return self._loop.time()

    def wall_time(self) -> float:
        """Virtual seconds since the epoch."""
        return self._loop.wall_time()


@pytest.fixture
def virtual_time() -> Iterator[VirtualTime]:
    """A loop in virtual time; what is left on it is cancelled after the test."""
    loop = VirtualTimeLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        yield VirtualTime(runner, loop)
