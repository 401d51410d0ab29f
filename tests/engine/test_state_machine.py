"""The public calls in any order: nothing accepted is lost, done twice or left running."""

import asyncio
import signal
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from batch_llm import LLMCallStrategy, ProcessingEvent, TokenUsage
from batch_llm._engine.pool import WIND_DOWN_SECONDS
from batch_llm.testing.loop import VirtualTimeLoop
from tests.engine.ledger import Ledger, Result, Run, ids_of
from tests.engine.support import Item, Processor, Refused, settings
from tests.helpers import Recorder

# Longer than calls in flight may go on after Ctrl-C.
TIMEOUT_SECONDS = 50.0
SLOW_CLEANUP_SECONDS = 3.0
# A run that was told to end has only its strategies to clean up.
END_SECONDS = SLOW_CLEANUP_SECONDS + 0.5

FAILURES = ("ConnectionError", "ValueError", "FrameworkTimeoutError", "RateLimitExceededError")
Outcome = Literal["answers", "is down", "is bad", "is refused"]


@dataclass(frozen=True)
class Plan:
    """What becomes of an item: how each of its calls ends, and what its post-processor does."""

    calls: tuple[tuple[Outcome, float], ...] = (("answers", 1.0),)
    post_seconds: float = 0.0
    children: int = 0
    cleans_up: bool = False


@dataclass(frozen=True)
class Traits:
    """How long a strategy's own hooks take, and how often its prepare fails."""

    prepare_seconds: float = 0.0
    cleanup_seconds: float = 0.0
    bad_prepares: int = 0


class Scripted(LLMCallStrategy[str]):
    """Does what the plans say, and sees to it that it is prepared and cleaned up in turn."""

    def __init__(self, machine: "PublicCalls", traits: Traits) -> None:
        self.machine = machine
        self.traits = traits
        self.state = "idle"
        self.bad_prepares = traits.bad_prepares

    async def prepare(self) -> None:
        self._expect_to_be("idle", "broken", "cut short")
        self.state = "preparing"
        try:
            await asyncio.sleep(self.traits.prepare_seconds)
            if self.bad_prepares:
                self.bad_prepares -= 1
                raise ConnectionError("cannot be prepared")
            self.state = "ready"
        finally:
            self.state = "ready" if self.state == "ready" else "broken"

    async def execute(self, prompt: str, attempt: int, timeout: float) -> tuple[str, TokenUsage]:
        self._expect_to_be("ready", "cut short")
        outcome, seconds = self.machine.next_call(prompt)
        self.machine.in_flight += 1
        try:
            if seconds:
                await asyncio.sleep(seconds)
        finally:
            self.machine.in_flight -= 1
        if outcome == "is down":
            raise ConnectionError("down")
        if outcome == "is bad":
            raise ValueError("bad prompt")
        if outcome == "is refused":
            raise Refused(retry_after=5.0)
        self.machine.note_answer(prompt)
        return prompt, {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}

    async def cleanup(self) -> None:
        self._expect_to_be("ready", "broken", "cut short")
        self.state = "closing"
        try:
            await asyncio.sleep(self.traits.cleanup_seconds)
        finally:
            self.state = "idle"

    def _expect_to_be(self, *states: str) -> None:
        self.machine.expect(self.state in states, f"{self.state}, expected {' or '.join(states)}")


PLANS = (
    Plan(),
    *[Plan(calls=(("answers", 0.0),))] * 2,
    Plan(calls=(("answers", 5.0),)),
    Plan(calls=(("answers", 2 * TIMEOUT_SECONDS),)),
    Plan(calls=(("is down", 5.0), ("answers", 1.0))),
    Plan(calls=(("is down", 0.0),)),
    Plan(calls=(("is down", 0.0), ("answers", 2 * TIMEOUT_SECONDS))),
    Plan(calls=(("is bad", 2.0),)),
    Plan(calls=(("is refused", 1.0), ("answers", 0.0))),
    Plan(calls=(("is refused", 5.0), ("is down", 2.0), ("answers", 2.0))),
    Plan(post_seconds=5.0),
    Plan(post_seconds=2 * WIND_DOWN_SECONDS),
    Plan(post_seconds=1.0, children=1),
    Plan(calls=(("answers", 0.0),), children=2),
    Plan(children=1, cleans_up=True),
)
plans = st.sampled_from(PLANS)
traits = st.builds(
    Traits,
    prepare_seconds=st.sampled_from([0.0, 2.0]),
    cleanup_seconds=st.sampled_from([0.0, SLOW_CLEANUP_SECONDS]),
    bad_prepares=st.sampled_from([0, 0, 1, 3]),
)


class PublicCalls(RuleBasedStateMachine):
    """One processor, stepped in virtual time, so that runs are under way while others call."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.ledger = Ledger()
        self.plans: dict[str, Plan] = {}
        self.calls_made: dict[str, int] = {}
        self.answered: set[str] = set()
        self.post_processed: list[str] = []
        self.wrong: list[str] = []
        self.in_flight = 0
        self.was_cancelled = False
        self.seen: list[str] = []
        self.session: asyncio.Task[None] | None = None
        self.adding: list[asyncio.Task[None]] = []
        self.cleaning_up: dict[asyncio.Task[None], float] = {}
        self.usual_handler = signal.getsignal(signal.SIGINT)

    @initialize(
        workers=st.integers(1, 3),
        room=st.integers(0, 3),
        slow_start_items=st.sampled_from([0, 2]),
        pace=st.sampled_from([None, None, 30.0]),
        shared=st.tuples(traits, traits),
        has_post_processor=st.booleans(),
    )
    def build(self, workers: int, room: int, shared: Iterable[Traits], **options: Any) -> None:
        self.workers, self.room = workers, room
        self.recorder = Recorder()
        config = settings(
            workers,
            slow_start_items=options["slow_start_items"],
            max_queue_size=room,
            max_requests_per_minute=options["pace"],
            timeout_per_item=TIMEOUT_SECONDS,
        )
        self.processor = Processor(
            config=config,
            post_processor=self.post_process if options["has_post_processor"] else None,
            observers=[self.recorder],
        )
        self.strategies = [Scripted(self, each) for each in shared]

    def expect(self, holds: bool, text: str) -> None:
        """For code whose own errors the engine would take for a strategy's."""
        if not holds:
            self.wrong.append(text)

    def next_call(self, item_id: str) -> tuple[Outcome, float]:
        if (problem := self.ledger.call(item_id)) is not None:
            self.wrong.append(problem)
        self.expect(self.in_flight < self.workers, "more calls than workers")
        made = self.calls_made.get(item_id, 0)
        self.calls_made[item_id] = made + 1
        planned = self.plans[item_id].calls
        return planned[min(made, len(planned) - 1)]

    def note_answer(self, item_id: str) -> None:
        self.answered.add(item_id)
        if (run := self.ledger.run) is not None:
            run.answers += 1

    async def post_process(self, result: Result) -> None:
        plan = self.plans[result.item_id]
        self.post_processed.append(result.item_id)
        if plan.cleans_up:
            await self._clean_up(self.processor.cleanup())
        for _ in range(plan.children):
            await self._add(self._new_item(Plan(), self.strategies[0]), waits=False)
        await asyncio.sleep(plan.post_seconds)

    def _new_item(self, plan: Plan, strategy: Scripted) -> Item:
        item_id = f"item {len(self.plans)}"
        self.plans[item_id] = plan
        return Item(item_id, strategy, item_id)

    async def _add(self, item: Item, *, waits: bool = True) -> None:
        run, ledger = self.ledger.run, self.ledger
        fullest = len(ledger.waiting) + len(ledger.doubtful)
        was_over = run is not None and run.may_be_over(self._finished())
        try:
            await self.processor.add_work(item)
        except RuntimeError as error:
            self.expect(self.room > 0 and waits, f"refused: {error}")
            if run is None:
                self.expect(fullest >= self.room, f"refused with {fullest} waiting: {error}")
            else:
                self.expect(was_over or run.was_told_to_end, f"refused in mid-run: {error}")
        else:
            if run is None and self.room:
                self.expect(fullest - len(ledger.doubtful) < self.room, "accepted without room")
            ledger.accept(item.item_id, self._finished())

    async def _clean_up(self, cleanup: Coroutine[Any, Any, None]) -> None:
        self.ledger.clean_up(self.loop.time())
        await cleanup

    async def _run(self, runs: list[list[Plan]]) -> None:
        """Some runs, each with items of its own, without a turn of the loop between them."""
        for added in runs:
            for plan in added:
                await self._add(self._new_item(plan, self.strategies[0]))
            run = self.ledger.begin()
            self.was_cancelled = False
            self.seen = []
            self.recorder.seen.clear()
            self.post_processed.clear()
            try:
                batch = await self.processor.process_all()
            except asyncio.CancelledError:
                self.was_cancelled = True
                self._check_end(run)
                self.ledger.was_cancelled(run, ids_of(self.processor.results))
                raise
            assert batch.results == self.processor.results
            self._check_end(run)
            if self.processor.post_processor and not (run.cleaned_up or run.cancelled):
                assert sorted(self.post_processed) == sorted(ids_of(batch.results))
            self.ledger.returned(run, batch)

    @rule(
        plan=plans,
        times=st.integers(1, 5),
        strategy=st.sampled_from([0, 0, 1, None]),
        turn=st.booleans(),
    )
    def add(self, plan: Plan, times: int, strategy: int | None, turn: bool) -> None:
        for _ in range(times):
            if strategy is None:
                self.strategies.append(owner := Scripted(self, Traits()))
            else:
                owner = self.strategies[strategy]
            self.adding.append(self.loop.create_task(self._add(self._new_item(plan, owner))))
        if turn:
            self._turn()

    @precondition(lambda self: self._can_start)
    @rule(runs=st.lists(st.lists(plans, max_size=6), min_size=1, max_size=3))
    def start(self, runs: list[list[Plan]]) -> None:
        self.session = self.loop.create_task(self._run(runs))
        self._turn()

    @rule(
        how=st.sampled_from(["cancel", "cleanup", "shutdown"]),
        times=st.integers(1, 2),
        turn=st.booleans(),
    )
    def end(self, how: str, times: int, turn: bool) -> None:
        for _ in range(times):
            if how == "cancel":
                self._cancel()
            else:
                task = self.loop.create_task(self._clean_up(getattr(self.processor, how)()))
                self.cleaning_up[task] = self.loop.time()
        if turn:
            self._turn()

    def _cancel(self) -> None:
        run = self.ledger.run
        if run is None or self.session is None:
            return
        run.cut_short = run.cut_short or run.cancelled or run.may_be_over(self._finished())
        run.cancelled = True
        run.told_at = self.loop.time() if run.told_at is None else run.told_at
        self.session.cancel()
        self._turn()
        run.over = True

    @precondition(lambda self: self._can_press_ctrl_c)
    @rule()
    def press_ctrl_c(self) -> None:
        run = self._current_run
        run.pressed_at = self.loop.time()
        signal.raise_signal(signal.SIGINT)
        self._turn()
        run.no_more_calls = True

    @rule(count=st.integers(1, 5))
    def take_turns(self, count: int) -> None:
        for _ in range(count):
            self._turn()

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0, 3.0, 5.0, 20.0, 40.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.loop.call_later(seconds, self.loop.stop)
        self.loop.run_forever()

    @invariant()
    def nothing_went_wrong(self) -> None:
        assert not self.wrong, self.wrong
        for task in (self.session, *self.adding, *self.cleaning_up):
            if task is not None and task.done() and not task.cancelled():
                task.result()

    @invariant()
    def there_is_one_run_at_a_time(self) -> None:
        if self.ledger.run is not None and not self.ledger.run.over:
            with pytest.raises(RuntimeError, match="already running"):
                _at_once(self.processor.process_all())

    @invariant()
    def stats_add_up(self) -> None:
        stats = _at_once(self.processor.get_stats())
        assert stats["processed"] == stats["succeeded"] + stats["failed"] <= stats["total"]
        assert 0 <= stats["total"] - self.ledger.total <= self.ledger.unsure
        assert stats["processed"] >= len(self.processor.results)

    @invariant()
    def results_only_grow(self) -> None:
        results = ids_of(self.processor.results)
        assert results[: len(self.seen)] == self.seen
        self.seen = results

    @invariant()
    def ends_are_bounded(self) -> None:
        if self.ledger.run is not None:
            self._check_is_in_time(self.ledger.run)
        now = self.loop.time()
        for task, begun in self.cleaning_up.items():
            assert task.done() or now <= begun + END_SECONDS

    @invariant()
    def ctrl_c_is_the_runs_while_there_is_one(self) -> None:
        run, handler = self.ledger.run, signal.getsignal(signal.SIGINT)
        if run is None:
            assert handler == self.usual_handler
        elif not run.may_be_over(self._finished()):
            assert handler != self.usual_handler

    @precondition(lambda self: not (self._is_running or self._is_cleaning_up))
    @rule()
    def look_for_what_is_left(self) -> None:
        self._settle()
        left = asyncio.all_tasks(self.loop)
        assert not left, f"tasks still running: {left}"

    def _check_is_in_time(self, run: Run) -> None:
        now = self.loop.time()
        assert run.told_at is None or now <= run.told_at + END_SECONDS
        assert run.pressed_at is None or now <= run.pressed_at + WIND_DOWN_SECONDS + END_SECONDS

    def _check_end(self, run: Run) -> None:
        """What must hold at the moment in which a run is over."""
        self._check_is_in_time(run)
        results = self.processor.results
        stats = _at_once(self.processor.get_stats())
        assert stats["processed"] == len(results)
        assert stats["succeeded"] == sum(result.success for result in results)
        assert stats["total_input_tokens"] == run.answers
        for result in results:
            assert result.success == (result.item_id in self.answered), result
            assert result.success or str(result.error).startswith(FAILURES), result
        assert len(set(self.post_processed)) == len(self.post_processed)
        assert set(self.post_processed) <= set(ids_of(results))
        if run.cut_short:
            for strategy in self.strategies:
                strategy.state = "cut short" if strategy.state != "idle" else "idle"
        else:
            assert self.in_flight == 0
            assert {strategy.state for strategy in self.strategies} == {"idle"}
            assert sorted(self._told()) == sorted(ids_of(results))

    def _told(self) -> list[str]:
        events = (ProcessingEvent.ITEM_COMPLETED, ProcessingEvent.ITEM_FAILED)
        return [data["item_id"] for event in events for data in self.recorder.of(event)]

    def teardown(self) -> None:
        try:
            if not self.wrong:
                self._finish()
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.let_time_pass(END_SECONDS)
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    def _finish(self) -> None:
        """Let everything end by itself, and a last run bring what still waits."""
        deadline = self.loop.time() + 10_000.0
        while asyncio.all_tasks(self.loop) and self.loop.time() < deadline:
            self.let_time_pass(60.0)
        self._settle()
        assert not asyncio.all_tasks(self.loop)
        self.nothing_went_wrong()
        expected, doubtful = set(self.ledger.waiting), set(self.ledger.doubtful)
        self.plans = {item_id: Plan() for item_id in self.plans}
        self.loop.run_until_complete(self._run([[]]))
        self.nothing_went_wrong()
        assert expected <= set(ids_of(self.processor.results)) <= expected | doubtful
        self.loop.run_until_complete(self._clean_up(self.processor.cleanup()))
        assert asyncio.all_tasks(self.loop) == set()

    @property
    def _is_running(self) -> bool:
        return self.session is not None and not self.session.done()

    @property
    def _is_cleaning_up(self) -> bool:
        return not all(task.done() for task in self.cleaning_up)

    @property
    def _can_start(self) -> bool:
        """A run that was cancelled while cleanup() ended it is over only with that."""
        return not (self._is_running or (self.was_cancelled and self._is_cleaning_up))

    @property
    def _current_run(self) -> Run:
        assert self.ledger.run is not None
        return self.ledger.run

    @property
    def _can_press_ctrl_c(self) -> bool:
        run = self.ledger.run
        if run is None or run.pressed_at is not None:
            return False
        return signal.getsignal(signal.SIGINT) != self.usual_handler

    def _finished(self) -> set[str]:
        return set(ids_of(self.processor.results))

    def _turn(self) -> None:
        """Exactly one turn of the loop."""
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    def _settle(self) -> None:
        """Turns enough for whatever was cancelled to end."""
        for _ in range(10):
            self._turn()


def _at_once(call: Coroutine[Any, Any, Any]) -> Any:
    """The value of a coroutine that has nothing to wait for."""
    try:
        call.send(None)
    except StopIteration as returned:
        return returned.value
    raise AssertionError("it waits")


@pytest.mark.no_cover
def test_public_calls_in_any_order() -> None:
    run_state_machine_as_test(
        PublicCalls, settings=hypothesis_settings(max_examples=400, stateful_step_count=30)
    )
