"""Preparing exactly once, whoever asks and however many at a time."""

import asyncio
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, TypeVar, cast

_Prepare = TypeVar("_Prepare", bound=Callable[[Any], Awaitable[None]])


class _Once:
    """Whether something was done, and who does it now; for any number of loops and threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_done = False
        # Not a future of one loop: others may wait for it in a loop of their own.
        self._running: Future[bool] | None = None

    def __reduce__(self) -> tuple[type["_Once"], tuple[()]]:
        """A deep copy begins anew."""
        return _Once, ()

    async def run(self, work: Callable[[], Awaitable[object]]) -> None:
        mine = Future[bool]()
        # So that a waiter that is cancelled does not cancel it for the others.
        mine.set_running_or_notify_cancel()
        while (running := self._claim(mine)) is not mine:
            if running is None or await asyncio.wrap_future(running):
                return
        try:
            await work()
        except BaseException as error:
            self._end(mine, is_done=False)
            if isinstance(error, Exception):
                mine.set_exception(error)
            else:
                # It was only given up, so one of those who wait takes over.
                mine.set_result(False)
            raise
        self._end(mine, is_done=True)
        mine.set_result(True)

    def _claim(self, mine: "Future[bool]") -> "Future[bool] | None":
        """What is to be waited for: one's own future if nobody works yet, None if it is done."""
        with self._lock:
            if self._is_done:
                return None
            self._running = self._running or mine
            return self._running

    def _end(self, mine: "Future[bool]", *, is_done: bool) -> None:
        with self._lock:
            if self._running is mine:
                self._is_done, self._running = is_done, None

    def forget(self) -> None:
        with self._lock:
            self._is_done, self._running = False, None


def prepare_once(prepare: _Prepare) -> _Prepare:
    """Let a strategy's ``prepare`` do its work once per instance, however often it is called.

    Calls that come while it works wait for it, on other event loops too, and share its
    failure. A failure is not remembered: the next call tries again. `forget_prepared` makes
    the next call work again after a success; a ``cleanup`` that undoes ``prepare`` calls it.

    Args:
        prepare: An async method without arguments.

    Raises:
        TypeError: What is decorated is not an async method.
    """
    if not inspect.iscoroutinefunction(prepare):
        raise TypeError(
            f"prepare_once decorates an async method (got {prepare!r}); "
            "write 'async def prepare(self)' below it"
        )
    # An override may call what it overrides, which has a note of its own.
    key = f"_once_{prepare.__module__}.{prepare.__qualname__}"

    @functools.wraps(prepare)
    async def prepare_if_needed(self: Any) -> None:
        await _once_of(self, key).run(lambda: prepare(self))

    return cast("_Prepare", prepare_if_needed)


def forget_prepared(strategy: object) -> None:
    """Let the next call of a `prepare_once` method of this instance do its work again."""
    for state in list(vars(strategy).values()):
        if isinstance(state, _Once):
            state.forget()


def _once_of(owner: object, key: str) -> _Once:
    try:
        # One step, which no other thread can come between.
        once: _Once = vars(owner).setdefault(key, _Once())
    except TypeError:
        raise TypeError(
            f"{type(owner).__name__} has __slots__, and prepare_once keeps its note in the "
            "instance's __dict__; leave __slots__ out"
        ) from None
    return once


class PrepareOnceMixin:
    """A strategy whose ``prepare`` does the work of ``_prepare_once`` exactly once.

    For strategies that are used outside a processor too, by several callers at a time: put
    it before ``LLMCallStrategy`` among the base classes, and override ``_prepare_once``.
    After ``cleanup`` it is prepared anew; a ``cleanup`` of your own calls ``super()``'s.
    """

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Refuse an order of base classes in which nothing would be prepared."""
        super().__init_subclass__(**arguments)
        owner = next(base for base in cls.__mro__ if "prepare" in vars(base))
        if not issubclass(owner, PrepareOnceMixin):
            raise TypeError(
                f"{cls.__name__}.prepare is {owner.__name__}'s, which never calls _prepare_once; "
                f"put PrepareOnceMixin before {owner.__name__} among the base classes"
            )

    @prepare_once
    async def prepare(self) -> None:
        """Have the work done: by this call, an earlier one, or one that is under way."""
        await self._prepare_once()

    async def _prepare_once(self) -> None:
        """Get ready: override this."""

    async def cleanup(self) -> None:
        """Let the next ``prepare`` work again."""
        parent = getattr(super(), "cleanup", None)
        try:
            if parent is not None:
                await parent()
        finally:
            forget_prepared(self)
