"""The processor: options in, engine wired, doors out."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any

from batch_llm._engine import doors, interrupts
from batch_llm._engine.attempt import Attempts
from batch_llm._engine.deadlines import Deadlines
from batch_llm._engine.events import OBSERVER_SECONDS, Events
from batch_llm._engine.gate import Gate
from batch_llm._engine.gates import Gates, NewLimit
from batch_llm._engine.hedge import Hedges
from batch_llm._engine.hooks import Hooks
from batch_llm._engine.item import ItemRunner
from batch_llm._engine.journal import Journal
from batch_llm._engine.lifecycle import Lifecycle
from batch_llm._engine.options import configured, default_rate_limit_strategy
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
    QuotaStatistics,
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
from batch_llm.strategies.errors import DefaultErrorClassifier, ErrorClassifier
from batch_llm.strategies.rate_limit import RateLimitStrategy
from batch_llm.strategies.retry import RetryPolicy


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
        self.config: ProcessorConfig = configured(
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
        self._default_rate_limit_strategy = default_rate_limit_strategy(self.config)
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
        self._gates = Gates(
            self.rate_limit_strategy,
            requests_per_minute=config.max_requests_per_minute,
            tokens_per_minute=config.max_tokens_per_minute,
            events=self._events,
            tasks=self._tasks,
            hook_seconds=seconds,
        )
        self._recovery = Recovery(
            None,
            RetryPolicy(config.retry, config.rate_limit),
            events=self._events,
            stats=lambda: self._stats,
        )
        self._lifecycle = Lifecycle(self._gates, self._recovery, tasks=self._tasks, seconds=seconds)
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
            TypeError: It is no LLMWorkItem, its prompt is no str, its strategy is none, or a
                name that no strategy is registered by.
            RuntimeError: The queue is full and nothing consumes it.
        """
        doors.check_item(work_item)
        work_item = self._lifecycle.resolve(work_item)
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

    async def register_strategy(self, name: str, strategy: LLMCallStrategy[TOutput]) -> None:
        """Let items name a strategy: ``LLMWorkItem(..., strategy="enrichment")``.

        Like any other it is prepared when its first item comes, and once for all of them.

        Raises:
            ValueError: The name is no str, blank, or another strategy's.
            TypeError: It is no strategy.
        """
        doors.check_name(name)
        doors.check_strategy(strategy)
        self._lifecycle.register(name, strategy)

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
            quotas=self.quotas,
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
        attempts = Attempts(
            self._deadlines,
            self._recovery.classify,
            stats=self._stats,
            hedges=self._hedges(pool),
            dry_run=config.dry_run,
            detailed=config.enable_detailed_logging,
        )
        runner = ItemRunner(
            gates=self._gates,
            attempts=attempts,
            recovery=self._recovery,
            lifecycle=self._lifecycle,
            hooks=self._hooks,
            events=self._events,
            progress=None if self.progress_callback is None else self._progress,
            stats=self._stats,
            wind_down=pool.wind_down,
            now=clock_of(asyncio.get_running_loop()),
        )
        self._start_gates(attempts.calls_in_flight)
        self._events.start(self._watchers, pool.fail)
        self._progress.start(pool.fail)
        self._events.emit(ProcessingEvent.BATCH_STARTED, {"total": self._stats.total})
        pool.start(runner)
        return pool

    def _hedges(self, pool: Pool) -> Hedges | None:
        share = self.config.hedge_after
        if share is None:
            return None
        classify = self._recovery.classify
        return Hedges(share, tasks=self._tasks, places=pool, classify=classify, stats=self._stats)

    def _start_gates(self, calls_in_flight: Callable[[Gate], int]) -> None:
        """Learn the providers' limits, unless the caller has said how to deal with them."""
        config = self.config
        is_given = self.rate_limit_strategy is not self._default_rate_limit_strategy
        learns = not (is_given or config.rate_limit.is_given or config.dry_run)
        self._gates.start(
            self.rate_limit_strategy,
            config.token_estimator,
            max_workers=config.max_workers if learns else None,
            calls_in_flight=calls_in_flight,
        )
        self._lifecycle.start()

    def _take_over_attributes(self) -> None:
        """Use the collaborators as they are now: each may have been assigned since the last run."""
        is_default = self.error_classifier is self._default_classifier
        self._recovery.classifier = None if is_default else self.error_classifier
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
                self._gates.reset()
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

    def set_limits(
        self,
        *,
        requests_per_minute: NewLimit = ...,
        tokens_per_minute: NewLimit = ...,
        quota: str | None = None,
    ) -> None:
        """Change limits at once, also during a run; who waits is looked at again.

        What was used so far stays counted. It holds for the runs to come too.

        Args:
            requests_per_minute: As ``ProcessorConfig.max_requests_per_minute``; None for no
                limit. What is not passed stays as it is.
            tokens_per_minute: Likewise, as ``ProcessorConfig.max_tokens_per_minute``.
            quota: The one whose limits these are (``LLMCallStrategy.quota``); None for all.

        Raises:
            ValueError: A limit is not above 0, or no number.
        """
        self._gates.set_limits(requests_per_minute, tokens_per_minute, quota)

    @property
    def quotas(self) -> dict[str, QuotaStatistics]:
        """``BatchResult.quotas`` of the run so far, or else of the last one."""
        return self._gates.statistics()

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
        if (failure := await self._lifecycle.prepare(entry, journal)) is not None:
            raise failure.error

    async def _handle_rate_limit(self, worker_id: int = 0) -> None:
        """Begin a cooldown, unless there is one, and wait for its end."""
        outside = self._pool is None and not self._events.watched
        if outside:
            self._take_over_attributes()
            for gate in self._gates.all:
                gate.start()
            self._events.start(self._watchers, lambda _: None)
        for gate in self._gates.all:
            await gate.cool_down(gate.epoch, worker_id=worker_id, hint_seconds=None)
        for gate in self._gates.all:
            await gate.resumed.wait()
        if outside and self._pool is None:
            await self._events.settle()
            await self._watchers.stop()
            self._events.stop()

    @property
    def _gate(self) -> Gate:
        return self._gates.main

    @property
    def _rate_limit_event(self) -> asyncio.Event:
        return self._gate.resumed

    @property
    def _in_cooldown(self) -> bool:
        return not self._gate.resumed.is_set()

    @property
    def _proactive_rate_limiter(self) -> Gate | None:
        return None if self.config.max_requests_per_minute is None else self._gate
