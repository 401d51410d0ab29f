"""The caller's own code around the calls, well-behaved or not."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from batch_llm.base import LLMWorkItem, ProgressCallbackFunc, WorkItemResult
from batch_llm.middleware.base import BaseMiddleware
from batch_llm.observers.base import BaseObserver
from batch_llm.observers.events import ProcessingEvent
from batch_llm.strategies.errors import DefaultErrorClassifier, ErrorClassifier, ErrorInfo
from batch_llm.strategies.rate_limit import FixedDelayStrategy, RateLimitStrategy
from batch_llm.testing.simulate.provider import sleep_through
from batch_llm.testing.simulate.scenario import Hooks, Manner

_SLOW_SECONDS = 0.5
_FOR_EVER_SECONDS = 1e6
_STUBBORN_SECONDS = 3.0


class _Caller:
    """Code of one manner, which shows in a share of its calls."""

    def __init__(self, manner: Manner, share: float, random: Random) -> None:
        self._manner = manner
        self._share = share
        self._random = random
        self.stubborn: set[asyncio.Task[Any]] = set()

    def misbehaves(self) -> bool:
        return self._manner != "good" and self._random.random() < self._share

    async def behave(self) -> None:
        if not self.misbehaves():
            return
        match self._manner:
            case "slow":
                await asyncio.sleep(_SLOW_SECONDS)
            case "raises":
                raise RuntimeError("a mistake in the caller's code")
            case "cancels":
                raise asyncio.CancelledError("raised by the caller's code")
            case "hangs":
                await asyncio.sleep(_FOR_EVER_SECONDS)
            case "stubborn":
                await self._ignore_cancellation()
            case _:
                pass

    async def _ignore_cancellation(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.stubborn.add(task)
        try:
            await asyncio.sleep(_FOR_EVER_SECONDS)
        except asyncio.CancelledError:
            await sleep_through(_STUBBORN_SECONDS)


class Collaborators:
    """What a processor is given beside its items.

    Args:
        hooks: Who is there, and how they behave.
        seed: The same gives the same.
    """

    def __init__(self, hooks: Hooks, seed: int) -> None:
        self._hooks = hooks
        self._seed = seed
        self._callers: list[_Caller] = []

    @property
    def stubborn(self) -> set[asyncio.Task[Any]]:
        """Tasks of code that ignores its cancellation."""
        return {task for caller in self._callers for task in caller.stubborn}

    def middlewares(self) -> list[BaseMiddleware[str, Any, int]]:
        """Middlewares, the first of which may skip items."""
        skipping = Random(f"skip {self._seed}")
        skips = [self._hooks.skipped, *[0.0] * len(self._hooks.middlewares)]
        return [
            _Middleware(self._caller(f"middleware {number}", manner), skips[number], skipping)
            for number, manner in enumerate(self._hooks.middlewares)
        ]

    def observers(self) -> list[BaseObserver]:
        """Observers that remember nothing."""
        manners = enumerate(self._hooks.observers)
        return [_Observer(self._caller(f"observer {number}", manner)) for number, manner in manners]

    def post_processor(self) -> Callable[[WorkItemResult[Any, Any]], Awaitable[None]]:
        """A post-processor; one that does nothing where there is to be none."""
        caller = self._caller("post-processor", self._hooks.post_processor or "good")

        async def post_process(result: WorkItemResult[Any, Any]) -> None:
            await caller.behave()

        return post_process

    def progress_callback(self) -> ProgressCallbackFunc | None:
        """A progress callback."""
        if self._hooks.progress_callback is None:
            return None
        caller = self._caller("progress", self._hooks.progress_callback)

        async def report(completed: int, total: int, item_id: str) -> None:
            await caller.behave()

        return report

    def rate_limit_strategy(self) -> RateLimitStrategy | None:
        """A rate-limit strategy."""
        manner = self._hooks.rate_limit_strategy
        return None if manner is None else _RateLimits(self._caller("rate limits", manner))

    def classifier(self) -> ErrorClassifier | None:
        """A classifier."""
        manner = self._hooks.classifier
        return None if manner is None else _Classifier(self._caller("classifier", manner))

    def _caller(self, name: str, manner: Manner) -> _Caller:
        caller = _Caller(manner, self._hooks.misbehaving, Random(f"{name} {self._seed}"))
        self._callers.append(caller)
        return caller


class _Middleware(BaseMiddleware[str, Any, int]):
    def __init__(self, caller: _Caller, skipped: float, random: Random) -> None:
        self._caller = caller
        self._skipped = skipped
        self._random = random

    async def before_process(
        self, work_item: LLMWorkItem[str, Any, int]
    ) -> LLMWorkItem[str, Any, int] | None:
        await self._caller.behave()
        return None if self._random.random() < self._skipped else work_item

    async def after_process(self, result: WorkItemResult[Any, int]) -> WorkItemResult[Any, int]:
        await self._caller.behave()
        return result

    async def on_error(self, work_item: LLMWorkItem[str, Any, int], exception: Exception) -> None:
        await self._caller.behave()


class _Observer(BaseObserver):
    def __init__(self, caller: _Caller) -> None:
        self._caller = caller

    async def on_event(self, event: ProcessingEvent, data: dict[str, Any]) -> None:
        await self._caller.behave()


class _RateLimits(FixedDelayStrategy):
    def __init__(self, caller: _Caller) -> None:
        super().__init__(cooldown=20.0, delay_between_requests=0.25)
        self._caller = caller

    async def on_rate_limit(self, worker_id: int, consecutive_limit_count: int) -> float:
        await self._caller.behave()
        return await super().on_rate_limit(worker_id, consecutive_limit_count)


class _Classifier(DefaultErrorClassifier):
    def __init__(self, caller: _Caller) -> None:
        self._caller = caller

    def classify(self, exception: Exception) -> ErrorInfo:
        if self._caller.misbehaves():
            raise RuntimeError("a mistake in the classifier")
        return super().classify(exception)
