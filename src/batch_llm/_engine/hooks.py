"""The caller's code around an item: middleware, on_error, post-processor."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

from batch_llm._engine.journal import Journal
from batch_llm._engine.state import takes_state
from batch_llm._engine.tasks import Settled, Tasks, hook
from batch_llm.base import LLMWorkItem, PostProcessorFunc, RetryState, WorkItemResult
from batch_llm.middleware.base import Middleware

_log = logging.getLogger(__name__)

POST_PROCESSOR_SECONDS = 90.0

Item = LLMWorkItem[Any, Any, Any]
Result = WorkItemResult[Any, Any]


class Hooks:
    """Calls the caller's code; what goes wrong in it is logged and costs only its own effect.

    Args:
        middlewares: Called in order on the way in, in reverse on the way out.
        post_processor: Gets each finished result.
        tasks: Runs the code.
        seconds: Deadline of each call but the post-processor's.
    """

    def __init__(
        self,
        middlewares: Sequence[Middleware[Any, Any, Any]],
        post_processor: PostProcessorFunc[Any, Any] | None,
        *,
        tasks: Tasks,
        seconds: float,
    ) -> None:
        self.middlewares = middlewares
        self.post_processor = post_processor
        self._tasks = tasks
        self._seconds = seconds

    @property
    def follow(self) -> bool:
        """Whether anybody wants to know of an item's end."""
        return bool(self.middlewares) or self.post_processor is not None

    async def before(self, item: Item) -> Item | None:
        """The item as the middlewares leave it, None when one skips it."""
        for middleware in self._with("before_process"):
            call = hook(middleware, "before_process", item)
            settled = await self._call(middleware, "before_process", call, item_id=item.item_id)
            if settled.error is not None:
                continue
            if settled.value is None:
                return None
            if isinstance(settled.value, LLMWorkItem):
                item = cast("Item", settled.value)
            else:
                self._wrong(middleware, "before_process", settled.value, item.item_id)
        return item

    async def after(self, result: Result) -> Result:
        """A success as the middlewares leave it."""
        for middleware in reversed(self._with("after_process")):
            call = hook(middleware, "after_process", result)
            settled = await self._call(middleware, "after_process", call, item_id=result.item_id)
            if settled.error is not None:
                continue
            if isinstance(settled.value, WorkItemResult):
                result = cast("Result", settled.value)
            else:
                self._wrong(middleware, "after_process", settled.value, result.item_id)
        return result

    async def recover(self, journal: Journal, error: BaseException) -> Result | None:
        """What the first middleware that has an answer makes of a failure."""
        item = journal.item
        for middleware in self._with("on_error"):
            call = hook(middleware, "on_error", item, error, **_state_for(middleware, journal))
            settled = await self._call(middleware, "on_error", call, item_id=item.item_id)
            recovered: object = settled.value
            if isinstance(recovered, WorkItemResult):
                return cast("Result", recovered)
            if recovered is not None:
                self._wrong(middleware, "on_error", recovered, item.item_id)
        return None

    async def on_error(self, journal: Journal, error: BaseException) -> None:
        """Tell the strategy why an attempt failed."""
        item = journal.item
        what = f"{type(item.strategy).__name__}.on_error"
        state = _state_for(item.strategy, journal)
        call = hook(item.strategy, "on_error", error, journal.attempt, **state)
        settled = await self._tasks.bounded(call, seconds=self._seconds, what=what)
        _log_failure(what, item.item_id, settled)

    async def finished(self, result: Result) -> None:
        """Hand a result to the post-processor."""
        post_processor = self.post_processor
        assert post_processor is not None
        settled = await self._tasks.bounded(
            lambda: post_processor(result), seconds=POST_PROCESSOR_SECONDS, what="post_processor"
        )
        _log_failure("post_processor", result.item_id, settled)

    def _with(self, method: str) -> list[Middleware[Any, Any, Any]]:
        """The middlewares that have a hook; a duck-typed one need not have all."""
        return [entry for entry in self.middlewares if getattr(entry, method, None) is not None]

    async def _call(
        self,
        middleware: Middleware[Any, Any, Any],
        method: str,
        call: Callable[[], Any],
        *,
        item_id: str,
    ) -> Settled:
        what = f"{type(middleware).__name__}.{method}"
        settled = await self._tasks.bounded(call, seconds=self._seconds, what=what)
        _log_failure(what, item_id, settled)
        return settled

    def _wrong(
        self, middleware: Middleware[Any, Any, Any], method: str, got: object, item_id: str
    ) -> None:
        _log.error(
            "item %s: %s.%s returned a %s, which is passed over",
            item_id,
            type(middleware).__name__,
            method,
            type(got).__name__,
        )


def _state_for(owner: object, journal: Journal) -> dict[str, RetryState]:
    """What an ``on_error`` gets that asks for the item's state."""
    return {"state": journal.shared_state()} if takes_state(owner, "on_error") else {}


def _log_failure(what: str, item_id: str, settled: Settled) -> None:
    if settled.error is None:
        return
    # The error's text may quote a prompt or an output, so it is for DEBUG only.
    _log.error("item %s: %s failed with %s", item_id, what, type(settled.error).__name__)
    _log.debug("item %s: %s failed", item_id, what, exc_info=settled.error)
