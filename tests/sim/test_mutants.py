"""Each invariant catches an engine that was broken on purpose to break it."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Literal

import pytest

from batch_llm import (
    ParallelBatchProcessor,
    ProcessingEvent,
    ProcessorConfig,
    RateLimitConfig,
    RetryConfig,
)
from batch_llm._engine import item
from batch_llm._engine.attempt import Attempts
from batch_llm._engine.deadlines import Deadlines
from batch_llm._engine.engine import Engine
from batch_llm._engine.events import Events
from batch_llm._engine.gate import Gate
from batch_llm._engine.item import ItemRunner
from batch_llm._engine.journal import Journal
from batch_llm._engine.lifecycle import Lifecycle
from batch_llm._engine.meters import Meter
from batch_llm._engine.pool import Pool
from batch_llm._engine.recovery import Recovery
from batch_llm.testing.simulate import (
    INVARIANTS,
    Faults,
    Hooks,
    InvariantError,
    Latency,
    Quota,
    Scenario,
    Service,
    check,
    schedule,
    simulate,
)

PLAIN = Scenario(items=12)
LIMITED = Scenario(
    items=30,
    config=ProcessorConfig(rate_limit=RateLimitConfig(slow_start_items=3)),
    service=Service(quota=Quota(requests_per_minute=20)),
)
MANY_STRATEGIES = Scenario(
    items=20,
    strategies=None,
    config=ProcessorConfig(rate_limit=RateLimitConfig()),
    service=Service(latency=Latency(spread=0.8), faults=Faults(rate_limit=0.3)),
)
PACED = Scenario(items=20, config=ProcessorConfig(max_requests_per_minute=120))
METERED = Scenario(items=60, config=ProcessorConfig(max_workers=1, max_tokens_per_minute=600))
FAULTY = Scenario(
    items=30,
    config=ProcessorConfig(retry=RetryConfig(max_attempts=2)),
    service=Service(faults=Faults(malformed=0.4, connection=0.1, client=0.1)),
    hooks=Hooks(post_processor="good"),
)
STREAMED = Scenario(
    items=150,
    service=Service(latency=Latency(median_seconds=0.1)),
    streaming=True,
    consumer_seconds=1.0,
)

TEST_IS_OVER = threading.Event()

Broken = pytest.MonkeyPatch
Mutant = Callable[[Broken], None]
MUTANTS: list[tuple[str, Scenario, Mutant]] = []


def mutant(invariant: str, scenario: Scenario) -> Callable[[Mutant], Mutant]:
    def enter(breaks: Mutant) -> Mutant:
        MUTANTS.append((invariant, scenario, breaks))
        return breaks

    return enter


@mutant("ends", LIMITED)
def a_cooldown_never_ends(broken: Broken) -> None:
    broken.setattr(Gate, "_resume", lambda *_: None)


@mutant("ends", LIMITED)
def a_waiter_spins(broken: Broken) -> None:
    async def spin(self: Gate, tokens: float) -> None:
        await asyncio.sleep(0)
        await spin(self, tokens)

    broken.setattr(Gate, "acquire", spin)
    broken.setattr(schedule, "_MOST_STEPS_AT_ONE_INSTANT", 10_000)


@mutant("ends", PLAIN)
def a_lock_is_not_given_back(broken: Broken) -> None:
    end, lock = Engine._end, asyncio.Lock()

    async def keep(self: Any, pool: Any) -> None:
        await end(self, pool)
        await lock.acquire()

    broken.setattr(Engine, "_end", keep)


def change_results(broken: Broken, change: Callable[[list[Any]], object]) -> None:
    process_all = ParallelBatchProcessor.process_all

    async def changed(self: Any) -> Any:
        batch = await process_all(self)
        if len(batch.results) > 1:
            change(batch.results)
        return batch

    broken.setattr(ParallelBatchProcessor, "process_all", changed)


@mutant("results", PLAIN)
def a_result_comes_twice(broken: Broken) -> None:
    change_results(broken, lambda results: results.append(results[5]))


@mutant("results", PLAIN)
def a_result_is_lost(broken: Broken) -> None:
    change_results(broken, lambda results: results.pop())


@mutant("results", PLAIN)
def an_id_is_changed(broken: Broken) -> None:
    change_results(broken, lambda results: setattr(results[3], "item_id", "another"))


@mutant("results", PLAIN)
def an_answer_goes_to_another_item(broken: Broken) -> None:
    change_results(broken, lambda results: setattr(results[3], "output", results[4].output))


@mutant("results", FAULTY)
def failures_say_nothing(broken: Broken) -> None:
    def silence(results: list[Any]) -> None:
        for result in results:
            result.error = None

    change_results(broken, silence)


@mutant("results", PLAIN)
def contexts_are_mixed_up(broken: Broken) -> None:
    def mix(results: list[Any]) -> None:
        results[0].context, results[1].context = results[1].context, results[0].context

    change_results(broken, mix)


@mutant("results", FAULTY)
def a_post_processor_gets_only_answers(broken: Broken) -> None:
    finished = item.Hooks.finished

    async def answers_only(self: Any, result: Any) -> None:
        if result.success:
            await finished(self, result)

    broken.setattr(item.Hooks, "finished", answers_only)


@mutant("lifecycle", PLAIN)
def each_item_prepares_anew(broken: Broken) -> None:
    prepare = Lifecycle.prepare

    async def anew(self: Any, entry: Any, journal: Any) -> Any:
        entry.preparing = None
        return await prepare(self, entry, journal)

    broken.setattr(Lifecycle, "prepare", anew)


@mutant("lifecycle", PLAIN)
def prepare_is_left_out(broken: Broken) -> None:
    async def leave_out(self: Any, entry: Any, journal: Any) -> None:
        entry.prepared = entry.used = True

    broken.setattr(Lifecycle, "prepare", leave_out)


@mutant("lifecycle", PLAIN)
def a_strategy_is_cleaned_up_too_early(broken: Broken) -> None:
    prepare = Lifecycle.prepare

    async def and_clean_up(self: Any, entry: Any, journal: Any) -> Any:
        failure = await prepare(self, entry, journal)
        if entry.used:
            await self._clean_up(entry)
        entry.prepared = True
        return failure

    broken.setattr(Lifecycle, "prepare", and_clean_up)


@mutant("lifecycle", PLAIN)
def nothing_is_cleaned_up(broken: Broken) -> None:
    async def forget(self: Any, *entries: Any) -> None:
        self.entries.clear()

    broken.setattr(Lifecycle, "_clean_up", forget)


@mutant("attempts", LIMITED)
def a_rate_limit_uses_up_an_attempt(broken: Broken) -> None:
    again = Recovery.again

    async def count(self: Any, journal: Any, failure: Any) -> bool:
        goes_on = await again(self, journal, failure)
        journal.repeats = False
        return goes_on

    broken.setattr(Recovery, "again", count)


@mutant("attempts", FAULTY)
def every_attempt_is_the_first(broken: Broken) -> None:
    call = Attempts.call

    def first(self: Any, journal: Any, worker: Any) -> Any:
        journal.attempt = 0
        return call(self, journal, worker)

    broken.setattr(Attempts, "call", first)


@mutant("cooldown", MANY_STRATEGIES)
def strategies_are_prepared_in_a_cooldown(broken: Broken) -> None:
    class PassedBy(asyncio.Event):
        async def wait(self) -> Literal[True]:
            return True

    start = Gate.start

    def begin(self: Gate, *args: Any, **more: Any) -> None:
        start(self, *args, **more)
        self.resumed = PassedBy()
        self.resumed.set()

    broken.setattr(Gate, "start", begin)


@mutant("attempts", PLAIN)
def a_result_tells_other_attempts(broken: Broken) -> None:
    change_results(broken, lambda results: setattr(results[3], "attempts", 2))


@mutant("cooldown", LIMITED)
def the_gate_stands_open(broken: Broken) -> None:
    async def pass_by(self: Gate, tokens: float) -> None:
        return None

    broken.setattr(Gate, "acquire", pass_by)


@mutant("pace", PACED)
def requests_are_not_counted(broken: Broken) -> None:
    broken.setattr(Meter, "take", lambda *_: None)


@mutant("pace", PACED)
def the_burst_is_too_large(broken: Broken) -> None:
    reset = Meter.reset

    def patient(self: Meter) -> None:
        reset(self)
        self._burst += 1

    broken.setattr(Meter, "reset", patient)


@mutant("token pace", METERED)
def tokens_are_not_counted(broken: Broken) -> None:
    broken.setattr(Meter, "take", lambda *_: None)


@mutant("token pace", METERED)
def what_a_call_used_makes_no_difference(broken: Broken) -> None:
    broken.setattr(Gate, "tokens_of", lambda *_: 1.0)
    broken.setattr(Gate, "settle", lambda *_: None)


@mutant("in flight", PLAIN)
def one_worker_too_many(broken: Broken) -> None:
    start = Pool.start

    def more(self: Pool, runner: Any) -> None:
        self._workers += 1
        start(self, runner)

    broken.setattr(Pool, "start", more)


@mutant("tokens", FAULTY)
def failed_attempts_are_free(broken: Broken) -> None:
    broken.setattr(Journal, "bill_failure", lambda *_: None)


def change_events(broken: Broken, change: Callable[..., list[tuple[Any, Any]]]) -> None:
    emit = Events.emit

    def changed(self: Events, event: ProcessingEvent, data: dict[str, Any]) -> None:
        for told in change(event, data):
            emit(self, *told)

    broken.setattr(Events, "emit", changed)


def hush(broken: Broken, quiet: ProcessingEvent) -> None:
    change_events(broken, lambda event, data: [] if event is quiet else [(event, data)])


@mutant("events", PLAIN)
def the_batch_begins_quietly(broken: Broken) -> None:
    hush(broken, ProcessingEvent.BATCH_STARTED)


@mutant("events", PLAIN)
def workers_stop_quietly(broken: Broken) -> None:
    hush(broken, ProcessingEvent.WORKER_STOPPED)


@mutant("events", LIMITED)
def refusals_are_kept_quiet(broken: Broken) -> None:
    hush(broken, ProcessingEvent.RATE_LIMIT_HIT)


@mutant("events", LIMITED)
def cooldowns_end_quietly(broken: Broken) -> None:
    hush(broken, ProcessingEvent.COOLDOWN_ENDED)


@mutant("events", FAULTY)
def failures_are_kept_quiet(broken: Broken) -> None:
    hush(broken, ProcessingEvent.ITEM_FAILED)


@mutant("events", PLAIN)
def the_batch_is_completed_too_early(broken: Broken) -> None:
    end = (ProcessingEvent.BATCH_COMPLETED, {"total": 12, "succeeded": 12, "failed": 0})

    def early(event: ProcessingEvent, data: Any) -> list[tuple[Any, Any]]:
        if event is ProcessingEvent.BATCH_STARTED:
            return [(event, data), end]
        return [] if event is end[0] else [(event, data)]

    change_events(broken, early)


@mutant("events", FAULTY)
def the_batch_miscounts(broken: Broken) -> None:
    def miscount(event: ProcessingEvent, data: Any) -> list[tuple[Any, Any]]:
        if event is ProcessingEvent.BATCH_COMPLETED:
            data["failed"] += 1
        return [(event, data)]

    change_events(broken, miscount)


@mutant("stats", FAULTY)
def failures_are_not_counted(broken: Broken) -> None:
    broken.setattr(ItemRunner, "_take_down_failure", lambda *_: None)


@mutant("stats", PLAIN)
def a_count_falls(broken: Broken) -> None:
    take_down = ItemRunner._take_down

    def forget(self: Any, journal: Any, result: Any) -> None:
        take_down(self, journal, result)
        if result.context == 5:
            self.stats.processed, self.stats.succeeded = 1, 1

    broken.setattr(ItemRunner, "_take_down", forget)


@mutant("stats", PLAIN)
def an_item_is_not_counted(broken: Broken) -> None:
    take_down = ItemRunner._take_down

    def overlook(self: Any, journal: Any, result: Any) -> None:
        take_down(self, journal, result)
        if self.stats.processed == 12:
            self.stats.processed = self.stats.succeeded = 11

    broken.setattr(ItemRunner, "_take_down", overlook)


@mutant("leftovers", PLAIN)
def a_timer_is_left(broken: Broken) -> None:
    broken.setattr(Deadlines, "stop", lambda *_: None)


@mutant("leftovers", PLAIN)
def a_task_is_left(broken: Broken) -> None:
    end = Pool.end

    def leave(self: Pool) -> None:
        end(self)
        self.left = asyncio.get_running_loop().create_task(asyncio.sleep(1e6))  # type: ignore[attr-defined]

    broken.setattr(Pool, "end", leave)


@mutant("leftovers", PLAIN)
def a_thread_is_left(broken: Broken) -> None:
    end = Pool.end
    TEST_IS_OVER.clear()

    def leave(self: Pool) -> None:
        end(self)
        threading.Thread(target=TEST_IS_OVER.wait).start()

    broken.setattr(Pool, "end", leave)


@mutant("memory", STREAMED)
def results_pile_up(broken: Broken) -> None:
    async def go_on(self: Pool) -> None:
        await asyncio.sleep(0)

    broken.setattr(Pool, "_pause", go_on)


@pytest.mark.parametrize(
    ("invariant", "scenario", "breaks"), MUTANTS, ids=[entry[2].__name__ for entry in MUTANTS]
)
def test_a_broken_engine_is_caught(
    monkeypatch: Broken, invariant: str, scenario: Scenario, breaks: Mutant
) -> None:
    check(simulate(scenario, seed=1))
    breaks(monkeypatch)
    broken = simulate(scenario, seed=1)
    TEST_IS_OVER.set()
    with pytest.raises(InvariantError) as caught:
        check(broken)
    assert invariant in caught.value.broken, str(caught.value)


def test_every_invariant_has_its_mutant() -> None:
    assert {invariant for invariant, _, _ in MUTANTS} == set(INVARIANTS)
