"""The processor: options in, doors out."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

from batch_llm._engine import doors
from batch_llm._engine.engine import Engine, Setup
from batch_llm._engine.gate import Gate
from batch_llm._engine.gates import NewLimit
from batch_llm._engine.journal import Journal
from batch_llm._engine.options import configured, default_rate_limit_strategy
from batch_llm.base import (
    BatchProcessor,
    BatchResult,
    LLMWorkItem,
    PostProcessorFunc,
    ProgressCallbackFunc,
    QuotaStatistics,
    TContext,
    TInput,
    TOutput,
    WorkItemResult,
)
from batch_llm.core.config import ProcessorConfig
from batch_llm.llm_strategies.base import LLMCallStrategy
from batch_llm.middleware.base import Middleware
from batch_llm.observers.base import ProcessorObserver
from batch_llm.strategies.errors import DefaultErrorClassifier, ErrorClassifier
from batch_llm.strategies.rate_limit import RateLimitStrategy


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
        self._has_warned = False
        self._engine = Engine(self._setup(), self._queue)

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

    def _setup(self) -> Setup:
        """The collaborators as they are now: each may have been assigned since the last run."""
        config = self.config
        is_default = self.error_classifier is self._default_classifier
        has_own_cooldowns = self.rate_limit_strategy is not self._default_rate_limit_strategy
        return Setup(
            config=config,
            error_classifier=None if is_default else self.error_classifier,
            rate_limit_strategy=self.rate_limit_strategy,
            # Unless the caller has said how to deal with them.
            learns=not (has_own_cooldowns or config.rate_limit.is_given or config.dry_run),
            middlewares=self.middlewares,
            observers=self.observers,
            post_processor=self.post_processor,
            progress_callback=self.progress_callback,
        )

    async def add_work(self, work_item: LLMWorkItem[TInput, TOutput, TContext]) -> None:
        """Queue an item, before or during a run; also from the run's own hooks.

        While a run consumes, a full queue is waited for; the run's own hooks never wait.

        Raises:
            TypeError: It is no LLMWorkItem, its prompt is no str, its strategy is none, or a
                name that no strategy is registered by.
            RuntimeError: The queue is full and nothing consumes it.
        """
        if type(work_item) is not LLMWorkItem or not work_item.prompt:
            doors.check_item(work_item)
        engine = self._engine
        lifecycle = engine.lifecycle
        if id(work_item.strategy) not in lifecycle.entries:
            work_item = lifecycle.resolve(work_item)
            self._check_strategy(work_item.strategy)
        if engine.pool is not None:
            await engine.pool.add(work_item, waits=not engine.is_called_by_a_hook())
        else:
            if self.max_queue_size:
                self._check_room()
            self._queue.append(work_item)
        lifecycle.expect(work_item.strategy)
        engine.stats.total += 1

    def _check_strategy(self, strategy: LLMCallStrategy[TOutput]) -> None:
        if self._engine.lifecycle.knows(strategy):
            return
        doors.check_strategy(strategy)
        # Once: each item may bring a strategy of its own.
        self._has_warned = self._has_warned or doors.warn_of_few_connections(
            strategy, self.config.max_workers
        )

    async def register_strategy(self, name: str, strategy: LLMCallStrategy[TOutput]) -> None:
        """Let items name a strategy: ``LLMWorkItem(..., strategy="enrichment")``.

        Like any other it is prepared when its first item comes, and once for all of them.

        Raises:
            ValueError: The name is no str, blank, or another strategy's.
            TypeError: It is no strategy.
        """
        doors.check_name(name)
        doors.check_strategy(strategy)
        self._engine.lifecycle.register(name, strategy)

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
        pool = self._engine.begin(self._setup(), self._queue, collecting=True)
        results = self._results = []
        async with contextlib.aclosing(self._engine.results(pool)) as batches:
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
        latest = self._engine.latest
        return [*self._results, *(() if latest is None else latest.outbox)]

    async def _stream(self) -> AsyncGenerator[WorkItemResult[TOutput, TContext], None]:
        """The results of one run as they are made."""
        pool = self._engine.begin(self._setup(), self._queue, collecting=False)
        self._results = []
        async with contextlib.aclosing(self._engine.results(pool)) as batches:
            async for batch in batches:
                for result in batch:
                    yield result

    async def cleanup(self) -> None:
        """Stop workers, empty the queue and end callbacks.

        Called during a run it ends the run, and ``process_all`` returns what there is.
        """
        pool = self._engine.pool
        if pool is not None:
            pool.stop_reason = pool.stop_reason or "cleanup()"
            pool.end()
        await super().cleanup()
        await self._engine.close()

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
        self._engine.gates.set_limits(requests_per_minute, tokens_per_minute, quota)

    @property
    def quotas(self) -> dict[str, QuotaStatistics]:
        """``BatchResult.quotas`` of the run so far, or else of the last one."""
        return self._engine.gates.statistics()

    async def get_stats(self) -> dict[str, Any]:
        """A snapshot of the counters of the current run, or of the last one."""
        return self._engine.stats.copy()

    async def _worker(self, worker_id: int) -> None:
        """Process queued items one by one, outside a run."""
        while self._queue:
            self._results.append(await self._process_item(self._queue.popleft()))

    async def _process_item(
        self, work_item: LLMWorkItem[TInput, TOutput, TContext]
    ) -> WorkItemResult[TOutput, TContext]:
        """Process one item as a run of its own."""
        self._engine.lifecycle.expect(work_item.strategy)
        pool = self._engine.begin(self._setup(), deque([work_item]), collecting=False)
        async with contextlib.aclosing(self._engine.results(pool)) as batches:
            async for [result] in batches:
                return result
        raise KeyboardInterrupt

    async def _ensure_strategy_prepared(self, strategy: LLMCallStrategy[TOutput]) -> None:
        """Prepare a strategy now, once, unless it is prepared already."""
        lifecycle = self._engine.lifecycle
        entry = lifecycle.entry_of(strategy)
        if entry.prepared:
            return
        journal = Journal(0)
        journal.begin(LLMWorkItem("prepare", strategy), entry)
        if (failure := await lifecycle.prepare(entry, journal)) is not None:
            raise failure.error

    async def _handle_rate_limit(self, worker_id: int = 0) -> None:
        """Begin a cooldown, unless there is one, and wait for its end."""
        await self._engine.cool_down(self._setup(), worker_id=worker_id)

    @property
    def _gate(self) -> Gate:
        return self._engine.gates.main

    @property
    def _rate_limit_event(self) -> asyncio.Event:
        return self._gate.resumed

    @property
    def _in_cooldown(self) -> bool:
        return not self._gate.resumed.is_set()

    @property
    def _proactive_rate_limiter(self) -> Gate | None:
        return None if self.config.max_requests_per_minute is None else self._gate
