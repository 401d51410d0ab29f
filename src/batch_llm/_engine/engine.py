"""How a run is wired together, begun and ended."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from batch_llm._engine import interrupts
from batch_llm._engine.attempt import Attempts
from batch_llm._engine.deadlines import Deadlines
from batch_llm._engine.events import OBSERVER_SECONDS, Events
from batch_llm._engine.gates import Gates
from batch_llm._engine.hedge import Hedges
from batch_llm._engine.hooks import Hooks
from batch_llm._engine.item import ItemRunner
from batch_llm._engine.lifecycle import Lifecycle
from batch_llm._engine.pool import Item, Pool, Result
from batch_llm._engine.progress import Progress
from batch_llm._engine.recovery import Recovery
from batch_llm._engine.tasks import FATAL, Tasks
from batch_llm.base import PostProcessorFunc, ProcessingStats, ProgressCallbackFunc
from batch_llm.core.clock import wall_time
from batch_llm.core.config import ProcessorConfig
from batch_llm.middleware.base import Middleware
from batch_llm.observers.base import ProcessorObserver
from batch_llm.observers.events import ProcessingEvent
from batch_llm.strategies.errors import ErrorClassifier
from batch_llm.strategies.rate_limit import RateLimitStrategy
from batch_llm.strategies.retry import RetryPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a run is made with.

    Attributes:
        config: All settings.
        error_classifier: Knows what an error means; None leaves it to the strategy's own.
        rate_limit_strategy: Decides about cooldowns.
        learns: Whether the providers' limits are learned instead.
        middlewares: May change items and results.
        observers: Are told what happens.
        post_processor: Gets each finished result.
        progress_callback: Told how far the run is.
    """

    config: ProcessorConfig
    error_classifier: ErrorClassifier | None
    rate_limit_strategy: RateLimitStrategy
    learns: bool
    middlewares: Sequence[Middleware[Any, Any, Any]]
    observers: Sequence[ProcessorObserver]
    post_processor: PostProcessorFunc[Any, Any] | None
    progress_callback: ProgressCallbackFunc | None


class Engine:
    """What lives as long as its processor, and one run at a time.

    Args:
        setup: What the processor is made with. The limits, retries and deadlines of hooks in its
            config hold for every run.
        queue: The processor's, where items wait for the next run too.

    Attributes:
        pool: The workers of the run in progress; None while there is none.
        latest: Those of the run in progress, or else of the last one.
        stats: The counters of the same run.
        gates: The line before each quota.
        lifecycle: Knows the strategies.
    """

    def __init__(self, setup: Setup, queue: deque[Item]) -> None:
        config = setup.config
        seconds = config.timeout_per_item
        self._queue = queue
        self.pool: Pool | None = None
        self.latest: Pool | None = None
        self.stats = ProcessingStats()
        self._tasks = Tasks()
        self._watchers = Tasks()
        self._events = Events(setup.observers)
        self.gates = Gates(
            setup.rate_limit_strategy,
            requests_per_minute=config.max_requests_per_minute,
            tokens_per_minute=config.max_tokens_per_minute,
            events=self._events,
            tasks=self._tasks,
            hook_seconds=seconds,
        )
        self._recovery = Recovery(
            setup.error_classifier,
            RetryPolicy(config.retry, config.rate_limit),
            events=self._events,
            stats=lambda: self.stats,
        )
        self.lifecycle = Lifecycle(self.gates, self._recovery, tasks=self._tasks, seconds=seconds)
        self._hooks = Hooks(
            setup.middlewares, setup.post_processor, tasks=self._tasks, seconds=seconds
        )
        self._progress = Progress(
            setup.progress_callback,
            interval=config.progress_interval,
            seconds=config.progress_callback_timeout,
        )

    def begin(self, setup: Setup, queue: deque[Item], *, collecting: bool) -> Pool:
        """Begin a run; ``results`` is where it comes out.

        Args:
            setup: What it is made with.
            queue: What is to be done.
            collecting: Whether the results are wanted all together at the end.

        Raises:
            RuntimeError: A run is in progress.
        """
        if self.pool is not None:
            raise RuntimeError(
                "process_all() is already running; await it first, or use another processor"
            )
        config = setup.config
        self._take_over(setup)
        self.stats = ProcessingStats(total=len(queue), start_time=wall_time())
        self._ending = asyncio.Lock()
        self.pool = self.latest = pool = Pool(
            queue,
            workers=config.max_workers,
            max_queue_size=config.max_queue_size,
            collecting=collecting,
            tasks=self._tasks,
            events=self._events,
        )
        self._deadlines = Deadlines(
            config.timeout_per_item, holders=pool.crew, on_stuck=pool.replace
        )
        attempts = Attempts(
            self._deadlines,
            self._recovery.classify,
            stats=self.stats,
            hedges=self._hedges(config.hedge_after, pool),
            dry_run=config.dry_run,
            detailed=config.enable_detailed_logging,
        )
        self.gates.start(
            setup.rate_limit_strategy,
            config.token_estimator,
            max_workers=config.max_workers if setup.learns else None,
            calls_in_flight=attempts.calls_in_flight,
        )
        self.lifecycle.start()
        self._events.start(self._watchers, pool.fail)
        self._progress.start(pool.fail)
        self._events.emit(ProcessingEvent.BATCH_STARTED, {"total": self.stats.total})
        pool.start(self._runner(attempts, pool))
        return pool

    def _take_over(self, setup: Setup) -> None:
        self._recovery.classifier = setup.error_classifier
        self._hooks.middlewares = tuple(setup.middlewares)
        self._hooks.post_processor = setup.post_processor
        self._events.observers = setup.observers
        self._progress.callback = setup.progress_callback

    def _hedges(self, share: float | None, pool: Pool) -> Hedges | None:
        if share is None:
            return None
        classify = self._recovery.classify
        return Hedges(share, tasks=self._tasks, places=pool, classify=classify, stats=self.stats)

    def _runner(self, attempts: Attempts, pool: Pool) -> ItemRunner:
        return ItemRunner(
            gates=self.gates,
            attempts=attempts,
            recovery=self._recovery,
            lifecycle=self.lifecycle,
            hooks=self._hooks,
            events=self._events,
            progress=None if self._progress.callback is None else self._progress,
            stats=self.stats,
            wind_down=pool.wind_down,
        )

    async def results(self, pool: Pool) -> AsyncGenerator[list[Result], None]:
        """The one way out: the results of a run, some at a time; closed early, it ends the run.

        Raises:
            KeyboardInterrupt: User code raised it; likewise SystemExit.
        """
        interrupts.listen(pool)
        try:
            async with contextlib.aclosing(pool.results()) as batches:
                async for results in batches:
                    yield results
        finally:
            interrupts.forget(pool)
            await self._end(pool)
        if rest := pool.rest():
            yield rest
        if pool.error is not None:
            raise pool.error

    async def _end(self, pool: Pool) -> None:
        """Stop what is left of the run; whoever comes second waits for the first."""
        async with self._ending:
            if self.pool is not pool:
                return
            try:
                pool.end()
                await self._tasks.stop()
                self._deadlines.stop()
                pool.close()
                try:
                    await self.lifecycle.close(self._queue)
                except FATAL as error:
                    pool.fail(error)
                await self._tell_end(pool)
                await self._progress.finish()
            finally:
                # Nothing is left of them, unless the end itself was cancelled.
                self._tasks.cancel()
                self._watchers.cancel()
                self.lifecycle.reset(self._queue)
                self.gates.reset()
                self._events.stop()
                self._deadlines.stop()
                pool.close()
                self.pool = None

    async def _tell_end(self, pool: Pool) -> None:
        stats = self.stats
        self._events.emit(
            ProcessingEvent.BATCH_COMPLETED,
            {"total": stats.total, "succeeded": stats.succeeded, "failed": stats.failed},
        )
        await self._events.settle(None if pool.complete else OBSERVER_SECONDS)
        await self._watchers.stop()

    async def close(self) -> None:
        """Stop everything, also what has outlived its run."""
        if self.pool is not None:
            if self.is_called_by_a_hook():
                # The run cannot wait for one of its own hooks; whoever consumes it cleans up.
                return
            await self._end(self.pool)
        if self.pool is None:
            await self.lifecycle.close(self._queue)
            await self._progress.stop()

    def is_called_by_a_hook(self) -> bool:
        """Whether the caller is code that the run itself has called, and would wait for itself."""
        current = asyncio.current_task()
        return any(current in tasks for tasks in (self._tasks, self._watchers, self._progress))

    async def cool_down(self, setup: Setup, *, worker_id: int) -> None:
        """Begin a cooldown of every gate, unless there is one, and wait for its end.

        Args:
            setup: Whom to tell and ask, where no run has said so.
            worker_id: Who is said to have been refused.
        """
        if self.pool is None and not self._events.watched:
            self._take_over(setup)
            for gate in self.gates.all:
                gate.start()
            self._events.start(self._watchers, lambda _: None)
        for gate in self.gates.all:
            await gate.cool_down(gate.epoch, worker_id=worker_id, hint_seconds=None)
        for gate in self.gates.all:
            await gate.resumed.wait()
        if self.pool is None:
            await self._events.settle()
            await self._watchers.stop()
            self._events.stop()
