"""How the suite runs: async tests in virtual time, the network left alone, nothing left behind."""

import asyncio
import functools
import gc
import inspect
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from batch_llm.testing.loop import run as run_in_virtual_time

LIVE = Path(__file__).parent / "live"
OPEN_FILES = Path("/proc/self/fd")

# A busy machine is no reason to fail: hypothesis watches the clock unless it is told not to.
settings.register_profile(
    "any_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any_machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Only a person with a key of their own talks to a real provider."""
    for item in items:
        if LIVE in item.path.parents:
            item.add_marker("real_time")
            if "GEMINI_API_KEY" not in os.environ:
                item.add_marker(pytest.mark.skip(reason="needs GEMINI_API_KEY"))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine function, plain or under hypothesis' @given, on the loop it asks for."""
    real_time = pyfuncitem.get_closest_marker("real_time")
    run = asyncio.run if real_time else run_in_virtual_time
    given = getattr(pyfuncitem.obj, "hypothesis", None)
    if given and inspect.iscoroutinefunction(given.inner_test):
        given.inner_test = _synchronous(given.inner_test, run)
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    _synchronous(pyfuncitem.obj, run)(**arguments)
    return True


def _synchronous(
    test: Callable[..., Coroutine[Any, Any, None]], run: Callable[[Coroutine[Any, Any, None]], None]
) -> Callable[..., None]:
    async def check(*args: Any, **kwargs: Any) -> None:
        await test(*args, **kwargs)
        # A loop that closes cancels what still runs, so this has to be asked before.
        tasks = [task for task in asyncio.all_tasks() if not _may_remain(task)]
        assert not tasks, f"tasks still running: {tasks}"

    @functools.wraps(test)
    def call(*args: Any, **kwargs: Any) -> None:
        run(check(*args, **kwargs))

    return call


def _may_remain(task: asyncio.Task[Any]) -> bool:
    """The test itself; and google-genai's finalizers close in tasks what is closed already."""
    coroutine = task.get_coro()
    # What closes an async generator is awaited without being a coroutine.
    name = getattr(coroutine, "__qualname__", "")
    return task is asyncio.current_task() or name.endswith("Client.aclose")


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    threads, files = set(threading.enumerate()), _open_files()
    yield
    for thread in set(threading.enumerate()) - threads:
        thread.join(timeout=1)
        assert not thread.is_alive(), f"thread still running: {thread}"
    if _open_files() - files:
        gc.collect()  # says itself, by a ResourceWarning, what it had to close
    left = _open_files() - files
    assert not left, f"files or sockets still open: {left}"


def _open_files() -> set[tuple[str, str]]:
    """Descriptor and target of each open file; none where the system does not tell."""
    if not OPEN_FILES.is_dir():
        return set()
    opened = set()
    for name in os.listdir(OPEN_FILES):  # noqa: PTH208 (one call, so that it sees only its own descriptor)
        try:
            opened.add((name, str((OPEN_FILES / name).readlink())))
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
    return opened
