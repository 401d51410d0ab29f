"""Plays a scenario: a real processor, a simulated provider, virtual time."""

import asyncio
import contextlib
import random
import threading
from collections.abc import AsyncIterator, Generator
from types import TracebackType
from typing import Any

from batch_llm.base import LLMWorkItem, WorkItemResult
from batch_llm.observers.base import BaseObserver
from batch_llm.observers.events import ProcessingEvent
from batch_llm.parallel import ParallelBatchProcessor
from batch_llm.testing.loop import DeadlockError
from batch_llm.testing.simulate.collaborators import Collaborators
from batch_llm.testing.simulate.generate import generate
from batch_llm.testing.simulate.provider import SimulatedProvider
from batch_llm.testing.simulate.records import Clock, Event, Run, Simulation, Snapshot
from batch_llm.testing.simulate.scenario import Interruption, Latency, Scenario, Service
from batch_llm.testing.simulate.schedule import EndlessRunError, ShuffledLoop
from batch_llm.testing.simulate.source import Source

_Processor = ParallelBatchProcessor[str, Any, int]

_LAST_SECONDS = 1_000.0


def simulate(scenario: Scenario | None = None, seed: int = 0) -> Simulation:
    """Play a scenario with a real ParallelBatchProcessor in virtual time.

    The same scenario and seed give the same simulation in any process, under the same Python.
    Whatever goes wrong in the processor is in the simulation; :func:`check` says what it is.

    Args:
        scenario: What is played; None for the one that :func:`generate` makes of the seed.
        seed: Decides what becomes of each call, and which task goes on first.

    Returns:
        What happened.

    Raises:
        RuntimeError: An event loop is running in this thread.
        ValueError: A setting of the scenario's config is out of range.
    """
    if _inside_a_loop():
        raise RuntimeError("simulate() was called inside a running event loop; call it outside")
    played = generate(seed) if scenario is None else scenario
    played.config.validate()
    play = _Play(played, seed)
    threads, failure = set(threading.enumerate()), None
    with _seeded(seed), _loop(seed, play.left) as loop:
        try:
            loop.run_until_complete(play.main())
        except (DeadlockError, EndlessRunError) as error:
            failure = f"{type(error).__name__}: {error}"
        except Exception as error:
            failure = f"{type(error).__name__} came out of the processor: {error}"
    play.left += [str(thread) for thread in threading.enumerate() if thread not in threads]
    return play.simulation(is_generated=scenario is None, failure=failure)


def _inside_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@contextlib.contextmanager
def _seeded(seed: int) -> Generator[None]:
    """Seed what the processor's jitter is drawn from, and put it back afterwards."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


@contextlib.contextmanager
def _loop(seed: int, complaints: list[str]) -> Generator[ShuffledLoop]:
    """A loop that is closed afterwards, also with the tasks of a broken processor on it."""
    loop = ShuffledLoop(seed)
    loop.set_exception_handler(lambda _, context: complaints.append(str(context["message"])))
    try:
        yield loop
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        for last in (asyncio.sleep(_LAST_SECONDS), loop.shutdown_asyncgens()):
            with contextlib.suppress(DeadlockError, EndlessRunError):
                loop.run_until_complete(last)
        loop.close()


class _Play:
    """One simulation under way."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self._scenario = scenario
        self._seed = seed
        self._provider = SimulatedProvider(scenario.service, seed=seed)
        self._collaborators = Collaborators(scenario.hooks, seed)
        self._post_process = self._collaborators.post_processor()
        self._recorder = _Recorder(self._provider.clock)
        self._source: Source
        self._runs: list[Run] = []
        self._post_processed: list[WorkItemResult[Any, Any]] = []
        self.left: list[str] = []

    def simulation(self, *, is_generated: bool, failure: str | None) -> Simulation:
        """What has happened so far."""
        return Simulation(
            scenario=self._scenario,
            seed=self._seed,
            is_generated=is_generated,
            calls=tuple(self._provider.calls),
            upkeep=tuple(self._provider.upkeep),
            accepted=tuple(self._source.accepted),
            events=tuple(self._recorder.events),
            snapshots=tuple(self._recorder.snapshots),
            runs=tuple(self._runs),
            most_waiting=self._recorder.most_waiting,
            left=tuple(self.left),
            failure=failure,
        )

    async def main(self) -> None:
        """Everything, from the first item to the last thing that is left."""
        scenario, given = self._scenario, self._collaborators
        processor = _Processor(
            config=scenario.config,
            post_processor=self._take if _needs_post_processor(scenario) else None,
            error_classifier=given.classifier(),
            rate_limit_strategy=given.rate_limit_strategy(),
            middlewares=list(given.middlewares()),
            observers=[self._recorder, *given.observers()],
            progress_callback=given.progress_callback(),
        )
        self._source = Source(scenario, self._provider, processor)
        async with processor:
            self._recorder.processor = processor
            self._provider.watch = self._recorder.take_snapshot
            while not self._is_over():
                await self._run(processor)
            self._recorder.processor = self._provider.watch = None
            await self._prove_reusable(processor)
        await self._find_leftovers()

    def _is_over(self) -> bool:
        """Whether no other run is needed, for items that came too late for the last."""
        if not self._runs:
            return False
        is_done = self._source.is_exhausted and not self._waiting()
        # Every run but the first has items from the start; without results it has lost them.
        is_stuck = len(self._runs) > 1 and not self._runs[-1].results
        return is_done or is_stuck or self._runs[-1].interrupted

    def _waiting(self) -> int:
        return len(self._source.accepted) - sum(len(run.results) for run in self._runs)

    async def _run(self, processor: _Processor) -> None:
        await self._source.queue(self._waiting(), is_first=not self._runs)
        self._post_processed = []
        results: list[WorkItemResult[Any, Any]] = []
        started = self._provider.clock.moment()
        interrupter = _Interrupter(self._scenario.interruption, processor, self._provider)
        async with self._source.feeding(), interrupter:
            async for result in self._results(processor):
                results.append(result)  # noqa: PERF401 - an interruption keeps what came
        run = Run(
            started,
            self._provider.clock.moment(),
            tuple(results),
            tuple(self._post_processed),
            await processor.get_stats(),
            interrupter.came,
        )
        self._runs.append(run)

    async def _results(self, processor: _Processor) -> AsyncIterator[WorkItemResult[Any, Any]]:
        if not self._scenario.streaming:
            for result in (await processor.process_all()).results:
                yield result
            return
        self._recorder.consumed = 0
        stream = processor._stream()  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        async with contextlib.aclosing(stream):
            async for result in stream:
                self._recorder.consumed += 1
                yield result
                await asyncio.sleep(self._scenario.consumer_seconds)

    async def _take(self, result: WorkItemResult[Any, Any]) -> None:
        """The post-processor."""
        if self._recorder.processor is not None:
            self._post_processed.append(result)
            await self._source.add_extra()
        await self._post_process(result)

    async def _prove_reusable(self, processor: _Processor) -> None:
        """A lock or a worker that is not given back shows in a run of one more item."""
        if self._runs[-1].interrupted:
            # Items that came while the run was being ended wait for another.
            await processor.cleanup()
        at_once = Service(latency=Latency(median_seconds=0.0))
        strategy = SimulatedProvider(at_once).strategy()
        await processor.add_work(LLMWorkItem("once more", strategy))
        got = [result.item_id for result in (await processor.process_all()).results]
        if got != ["once more"]:
            self.left.append(f"a processor that cannot run again: one more item gave {got}")

    async def _find_leftovers(self) -> None:
        stubborn = self._provider.stubborn | self._collaborators.stubborn
        tasks = asyncio.all_tasks() - stubborn - {_current_task()}
        self.left += sorted(f"task {task.get_name()}" for task in tasks)
        if stubborn:
            await asyncio.wait(stubborn, timeout=_LAST_SECONDS)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ShuffledLoop)
        self.left += loop.pending_timers()


def _needs_post_processor(scenario: Scenario) -> bool:
    return scenario.hooks.post_processor is not None or scenario.added_items > 0


def _current_task() -> "asyncio.Task[Any]":
    task = asyncio.current_task()
    assert task is not None
    return task


class _Interrupter:
    """Ends a run before its time, and keeps what then comes out of it.

    Attributes:
        came: Whether it ended the run.
    """

    def __init__(
        self, how: Interruption | None, processor: _Processor, provider: SimulatedProvider
    ) -> None:
        self._how = how
        self._processor = processor
        self._provider = provider
        self._timer: asyncio.TimerHandle | None = None
        self._cleaning: asyncio.Task[None] | None = None
        self.came = False

    async def __aenter__(self) -> None:
        if self._how is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._how.at_seconds, self._interrupt, _current_task())

    def _interrupt(self, run: "asyncio.Task[Any]") -> None:
        assert self._how is not None
        if self._how.kind == "keyboard":
            self._provider.interrupts = True
            return
        self.came = True
        if self._how.kind == "cancel":
            run.cancel()
        else:
            self._cleaning = asyncio.create_task(self._processor.cleanup())

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if self._timer is not None:
            self._timer.cancel()
        self._provider.interrupts = False
        task = _current_task()
        while task.cancelling():
            task.uncancel()
        if self._cleaning is not None:
            await self._cleaning
        self.came |= isinstance(error, KeyboardInterrupt)
        return self.came and isinstance(error, asyncio.CancelledError | KeyboardInterrupt)


class _Recorder(BaseObserver):
    """Remembers every event, and the counters at each.

    Attributes:
        processor: Whose counters; None while nothing is to be remembered.
        consumed: Results that a streaming consumer has taken.
        most_waiting: Largest number of results that waited for it.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.processor: _Processor | None = None
        self.consumed: int | None = None
        self.most_waiting = 0
        self.events: list[Event] = []
        self.snapshots: list[Snapshot] = []

    async def on_event(self, event: ProcessingEvent, data: dict[str, Any]) -> None:
        if self.processor is not None:
            self.events.append(Event(self._clock.moment(), event, data))
            await self.take_snapshot()

    async def take_snapshot(self) -> None:
        if self.processor is None:
            return
        stats = await self.processor.get_stats()
        snapshot = Snapshot(
            self._clock.moment(),
            stats["total"],
            stats["processed"],
            stats["succeeded"],
            stats["failed"],
            sum(stats["error_counts"].values()),
            stats["rate_limit_count"],
            stats["total_tokens"],
        )
        self.snapshots.append(snapshot)
        if self.consumed is not None:
            self.most_waiting = max(self.most_waiting, snapshot.processed - self.consumed)
