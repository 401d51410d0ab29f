"""The processor: options in, engine wired, doors out."""

import asyncio
import contextlib
import dataclasses
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

from batch_llm._engine import doors, interrupts
from batch_llm._engine.attempt import Attempts
from batch_llm._engine.deadlines import Deadlines
from batch_llm._engine.events import OBSERVER_SECONDS, Events
from batch_llm._engine.gate import Gate
from batch_llm._engine.hooks import Hooks
from batch_llm._engine.item import ItemRunner
from batch_llm._engine.journal import Journal
from batch_llm._engine.lifecycle import Lifecycle
from batch_llm._engine.meters import RequestMeter
from batch_llm._engine.pool import Pool
from batch_llm._engine.progress import Progress
from batch_llm._engine.recovery import Recovery
from batch_llm._engine.tasks import FATAL, Tasks
from batch_llm.base import (
    BatchProcessor,
    BatchResult,
    LLMWorkItem,
    PostProcessorFunc,
    ProcessingStats,
    ProgressCallbackFunc,
    TContext,
    TInput,
    TOutput,
    WorkItemResult,
)
from batch_llm.core.clock import clock_of, wall_time
from batch_llm.core.config import ProcessorConfig
from batch_llm.llm_strategies.base import LLMCallStrategy
from batch_llm.middleware.base import Middleware
from batch_llm.observers.base import ProcessorObserver
from batch_llm.observers.events import ProcessingEvent
from batch_llm.strategies.adaptive import AdaptiveLimit
from batch_llm.strategies.errors import DefaultErrorClassifier, ErrorClassifier
from batch_llm.strategies.rate_limit import ExponentialBackoffStrategy, RateLimitStrategy
from batch_llm.strategies.retry import RetryPolicy

_LONGEST_COOLDOWN_SECONDS = 600.0


class ParallelBatchProcessor(BatchProcessor[TInput, TOutput, TContext]):
    """Runs many calls through a pool of async workers, with nothing lost.

    ::

        async with ParallelBatchProcessor(config=ProcessorConfig(max_workers=20)) as processor:
            for book in books:
                await processor.add_work(LLMWorkItem(book.id, strategy, prompt_for(book)))
            result = await processor.process_all()

    Args:
        max_workers: Calls in flight at once; overrides the config's.
        post_processor: Gets each result as soon as its item is finished, sync or async.
        timeout_per_item: Seconds of one attempt; overrides the config's.
        rate_limit_cooldown: Seconds of the first cooldown; overrides the config's.
        config: All settings. It is never changed; overrides go into a copy.
        error_classifier: Knows what the provider's errors mean; by default the one that the
            strategy brings, or a DefaultErrorClassifier.
        rate_limit_strategy: Decides about cooldowns; by default made from
            ``config.rate_limit``.
        middlewares: May change items and results.
        observers: Are told what happens.
        progress_callback: Told how far the run is, every ``config.progress_interval`` items.

    Raises:
        ValueError: A setting is out of range.
        TypeError: A collaborator lacks what will be called.
    """

    def __init__(  # noqa: PLR0913 - the contract's positional order
        self,
        max_workers: int | None = None,
        post_processor: PostProcessorFunc[TOutput, TContext] | None = None,
        timeout_per_item: float | None = None,
        rate_limit_cooldown: float | None = None,
        config: ProcessorConfig | None = None,
        error_classifier: ErrorClassifier | None = None,
        rate_limit_strategy: RateLimitStrategy | None = None,
        middlewares: list[Middleware[TInput, TOutput, TContext]] | None = None,
        observers: list[ProcessorObserver] | None = None,
        progress_callback: ProgressCallbackFunc | None = None,
    ) -> None:
        self.config: ProcessorConfig = _configured(
            config, max_workers, timeout_per_item, rate_limit_cooldown
        )
        super().__init__(
            self.config.max_workers,
            post_processor,
            self.config.max_queue_size,
            progress_callback,
            self.config.progress_callback_timeout,
        )
        self._default_classifier = DefaultErrorClassifier()
        self.error_classifier: ErrorClassifier = (
            self._default_classifier if error_classifier is None else error_classifier
        )
        self._default_rate_limit_strategy = _default_rate_limit_strategy(self.config)
        self.rate_limit_strategy: RateLimitStrategy = (
            self._default_rate_limit_strategy
            if rate_limit_strategy is None
            else rate_limit_strategy
        )
        self.middlewares: list[Middleware[TInput, TOutput, TContext]] = (
            [] if middlewares is None else middlewares
        )
        self.observers: list[ProcessorObserver] = [] if observers is None else observers
        self._check_collaborators()
        self._wire()

    def _check_collaborators(self) -> None:
        doors.check_callback("post_processor", self.post_processor)
        doors.check_callback("progress_callback", self.progress_callback)
        doors.check_collaborator("error_classifier", self.error_classifier, "classify")
        doors.check_collaborator(
            "rate_limit_strategy",
            self.rate_limit_strategy,
            "on_rate_limit",
        )
        doors.check_list(
            "middlewares", self.middlewares, "before_process", "after_process", "on_error"
        )
        doors.check_list("observers", self.observers, "on_event")

    def _wire(self) -> None:
        """Build what lives as long as the processor; ``_begin`` builds the rest for each run."""
        config = self.config
        seconds = config.timeout_per_item
        self._stats = ProcessingStats()
        self._pool: Pool | None = None
        self._latest: Pool | None = None
        self._has_warned = False
        self._tasks = Tasks()
        self._watchers = Tasks()
        self._events = Events(self.observers)
        rate = config.max_requests_per_minute
        self._gate = Gate(
            self.rate_limit_strategy,
            None if rate is None else RequestMeter(rate),
            events=self._events,
            tasks=self._tasks,
            hook_seconds=seconds,
        )
        self._recovery = Recovery(
            None,
            RetryPolicy(config.retry, config.rate_limit),
            gate=self._gate,
            events=self._events,
            stats=lambda: self._stats,
        )
        self._lifecycle = Lifecycle(self._gate, self._recovery, tasks=self._tasks, seconds=seconds)
        self._hooks = Hooks(
            self.middlewares, self.post_processor, tasks=self._tasks, seconds=seconds
        )
        self._progress = Progress(
            self.progress_callback,
            interval=config.progress_interval,
            seconds=config.progress_callback_timeout,
        )

    async def add_work(self, work_item: LLMWorkItem[TInput, TOutput, TContext]) -> None:
        """Queue an item, before or during a run; also from the run's own hooks.

        While a run consumes, a full queue is waited for; the run's own hooks never wait.

        Raises:
            TypeError: It is no LLMWorkItem, its prompt is no str or its strategy is none.
            RuntimeError: The queue is full and nothing consumes it.
        """
        doors.check_item(work_item)
        if not self._lifecycle.knows(work_item.strategy):
            doors.check_strategy(work_item.strategy)
            # Once: each item may bring a strategy of its own.
            self._has_warned = self._has_warned or doors.warn_of_few_connections(
                work_item.strategy, self.config.max_workers
            )
        if self._pool is not None:
            await self._pool.add(work_item, waits=not self._is_called_by_a_hook())
        else:
            await super().add_work(work_item)
        self._lifecycle.expect(work_item.strategy)
        self._stats.total += 1

    async def process_all(self) -> BatchResult[TOutput, TContext]:
        """Run everything queued, and what is added meanwhile.

        A cancelled call stops every worker and empties the queue; the processor can be
        used again, and ``results`` has what was finished.

        In a script, the first Ctrl-C begins no more calls and gives those in flight 30
        seconds to finish; the result then says that it was interrupted and what was not
        run. The second stops at once with KeyboardInterrupt.

        Returns:
            The results in the order in which the items finished.

        Raises:
            RuntimeError: A run is in progress.
            KeyboardInterrupt: User code raised it; likewise SystemExit.
        """
        pool = self._begin(self._queue, collecting=True)
        results = self._results = []
        async with contextlib.aclosing(self._run(pool)) as batches:
            async for batch in batches:
                results += batch
        return BatchResult(
            results,
            interrupted=not pool.complete,
            not_run=pool.not_run,
            stop_reason=pool.stop_reason,
        )

    @property
    def results(self) -> list[WorkItemResult[TOutput, TContext]]:
        """The results so far of the run in progress, or else of the last one.

        They are here too when ``process_all`` was cancelled or came out with an error. A
        new list each time; the next run starts an empty one.
        """
        return [*self._results, *(() if self._latest is None else self._latest.outbox)]

    async def _stream(self) -> AsyncGenerator[WorkItemResult[TOutput, TContext], None]:
        """The results of one run as they are made."""
        pool = self._begin(self._queue)
        self._results = []
        async with contextlib.aclosing(self._run(pool)) as batches:
            async for batch in batches:
                for result in batch:
                    yield result

    async def _run(
        self, pool: Pool
    ) -> AsyncGenerator[list[WorkItemResult[TOutput, TContext]], None]:
        """The one way out of the engine: the results of one run, some at a time."""
        interrupts.listen(pool)
        try:
            async for results in pool.results():
                yield results
        finally:
            interrupts.forget(pool)
            await self._end(pool)
        if rest := pool.rest():
            yield rest
        if pool.error is not None:
            raise pool.error

    def _begin(
        self,
        queue: deque[LLMWorkItem[TInput, TOutput, TContext]],
        *,
        collecting: bool = False,
    ) -> Pool:
        if self._pool is not None:
            raise RuntimeError(
                "process_all() is already running; await it first, or use another processor"
            )
        config = self.config
        self._take_over_attributes()
        self._stats = ProcessingStats(total=len(queue), start_time=wall_time())
        self._ending = asyncio.Lock()
        self._pool = self._latest = pool = Pool(
            queue,
            workers=config.max_workers,
            max_queue_size=config.max_queue_size,
            collecting=collecting,
            tasks=self._tasks,
            events=self._events,
        )
        self._deadlines = Deadlines(config.timeout_per_item, on_stuck=pool.replace)
        runner = ItemRunner(
            gate=self._gate,
            attempts=Attempts(
                self._gate,
                self._deadlines,
                self._recovery.classify,
                stats=self._stats,
                dry_run=config.dry_run,
                detailed=config.enable_detailed_logging,
            ),
            recovery=self._recovery,
            lifecycle=self._lifecycle,
            hooks=self._hooks,
            events=self._events,
            progress=None if self.progress_callback is None else self._progress,
            stats=self._stats,
            wind_down=pool.wind_down,
            now=clock_of(asyncio.get_running_loop()),
        )
        self._gate.start(self._adaptive_limit())
        self._events.start(self._watchers, pool.fail)
        self._progress.start(pool.fail)
        self._events.emit(ProcessingEvent.BATCH_STARTED, {"total": self._stats.total})
        pool.start(runner)
        return pool

    def _adaptive_limit(self) -> AdaptiveLimit | None:
        """What learns the provider's limit, unless the caller has said how to deal with it."""
        is_given = self.rate_limit_strategy is not self._default_rate_limit_strategy
        if is_given or self.config.rate_limit.is_given or self.config.dry_run:
            return None
        return AdaptiveLimit(self.config.max_workers, asyncio.get_running_loop().time())

    def _take_over_attributes(self) -> None:
        """Use the collaborators as they are now: each may have been assigned since the last run."""
        is_default = self.error_classifier is self._default_classifier
        self._recovery.classifier = None if is_default else self.error_classifier
        self._gate.strategy = self.rate_limit_strategy
        self._hooks.middlewares = tuple(self.middlewares)
        self._hooks.post_processor = self.post_processor
        self._events.observers = self.observers
        self._progress.callback = self.progress_callback

    async def _end(self, pool: Pool) -> None:
        """Stop what is left of the run; whoever comes second waits for the first."""
        async with self._ending:
            if self._pool is not pool:
                return
            try:
                pool.end()
                await self._tasks.stop()
                self._deadlines.stop()
                pool.close()
                try:
                    await self._lifecycle.close(self._queue)
                except FATAL as error:
                    pool.fail(error)
                await self._tell_end(pool)
                await self._progress.finish()
            finally:
                # Nothing is left of them, unless the end itself was cancelled.
                self._tasks.cancel()
                self._watchers.cancel()
                self._lifecycle.reset(self._queue)
                self._gate.reset()
                self._events.stop()
                self._deadlines.stop()
                pool.close()
                self._pool = None

    async def _tell_end(self, pool: Pool) -> None:
        stats = self._stats
        self._events.emit(
            ProcessingEvent.BATCH_COMPLETED,
            {"total": stats.total, "succeeded": stats.succeeded, "failed": stats.failed},
        )
        await self._events.settle(None if pool.complete else OBSERVER_SECONDS)
        await self._watchers.stop()

    async def cleanup(self) -> None:
        """Stop workers, empty the queue and end callbacks.

        Called during a run it ends the run, and ``process_all`` returns what there is.
        """
        if self._pool is not None:
            self._pool.stop_reason = self._pool.stop_reason or "cleanup()"
            self._pool.end()
        await super().cleanup()
        if self._pool is not None:
            if self._is_called_by_a_hook():
                # The run cannot wait for one of its own hooks; whoever consumes it cleans up.
                return
            await self._end(self._pool)
        if self._pool is None:
            await self._lifecycle.close(self._queue)
            await self._progress.stop()

    def _is_called_by_a_hook(self) -> bool:
        """Whether the caller is code that the run itself has called, and would wait for itself."""
        current = asyncio.current_task()
        return any(current in tasks for tasks in (self._tasks, self._watchers, self._progress))

    async def shutdown(self) -> None:
        """Stop everything, as ``cleanup`` does."""
        await self.cleanup()

    async def get_stats(self) -> dict[str, Any]:
        """A snapshot of the counters of the current run, or of the last one."""
        return self._stats.copy()

    async def _worker(self, worker_id: int) -> None:
        """Process queued items one by one, outside a run."""
        while self._queue:
            self._results.append(await self._process_item(self._queue.popleft()))

    async def _process_item(
        self, work_item: LLMWorkItem[TInput, TOutput, TContext]
    ) -> WorkItemResult[TOutput, TContext]:
        """Process one item as a run of its own."""
        self._lifecycle.expect(work_item.strategy)
        pool = self._begin(deque([work_item]))
        async with contextlib.aclosing(self._run(pool)) as batches:
            async for [result] in batches:
                return result
        raise KeyboardInterrupt

    async def _ensure_strategy_prepared(self, strategy: LLMCallStrategy[TOutput]) -> None:
        """Prepare a strategy now, once, unless it is prepared already."""
        entry = self._lifecycle.entry_of(strategy)
        if entry.prepared:
            return
        journal = Journal(0)
        journal.begin(LLMWorkItem("prepare", strategy), entry)
        failure = await self._lifecycle.prepare(entry, journal)
        if failure is not None:
            raise failure.error

    async def _handle_rate_limit(self, worker_id: int = 0) -> None:
        """Begin a cooldown, unless there is one, and wait for its end."""
        outside = self._pool is None and not self._events.watched
        if outside:
            self._take_over_attributes()
            self._gate.start()
            self._events.start(self._watchers, lambda _: None)
        await self._gate.cool_down(self._gate.epoch, worker_id=worker_id, hint_seconds=None)
        await self._gate.resumed.wait()
        if outside and self._pool is None:
            await self._events.settle()
            await self._watchers.stop()
            self._events.stop()

    @property
    def _rate_limit_event(self) -> asyncio.Event:
        return self._gate.resumed

    @property
    def _in_cooldown(self) -> bool:
        return not self._gate.resumed.is_set()

    @property
    def _proactive_rate_limiter(self) -> Gate | None:
        return None if self.config.max_requests_per_minute is None else self._gate


def _configured(
    config: ProcessorConfig | None,
    max_workers: int | None,
    timeout_per_item: float | None,
    rate_limit_cooldown: float | None,
) -> ProcessorConfig:
    """The config with the overrides in a copy, checked."""
    config = ProcessorConfig() if config is None else config
    doors.check_collaborator("config", config, "validate")
    changes: dict[str, Any] = {}
    if max_workers is not None:
        changes["max_workers"] = max_workers
    if timeout_per_item is not None:
        changes["timeout_per_item"] = timeout_per_item
    if rate_limit_cooldown is not None:
        changes["rate_limit"] = dataclasses.replace(
            config.rate_limit, cooldown_seconds=rate_limit_cooldown
        )
    config = dataclasses.replace(config, **changes) if changes else config
    config.validate()
    return config


def _default_rate_limit_strategy(config: ProcessorConfig) -> RateLimitStrategy:
    limit = config.rate_limit
    return ExponentialBackoffStrategy(
        initial_cooldown=limit.cooldown_seconds,
        max_cooldown=max(_LONGEST_COOLDOWN_SECONDS, limit.cooldown_seconds),
        backoff_multiplier=limit.backoff_multiplier,
        slow_start_items=limit.slow_start_items,
        slow_start_initial_delay=limit.slow_start_initial_delay,
        slow_start_final_delay=limit.slow_start_final_delay,
    )
