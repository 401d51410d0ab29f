"""What an item may cost, counted rather than timed: the same on every machine."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from batch_llm import BaseObserver, LLMWorkItem, ParallelBatchProcessor, TokenUsage
from benchmarks.counts import Counts, Run, per_item
from benchmarks.rig import Echo, queued, work_items

WORKERS = 100


def breaches(counts: Counts) -> list[str]:
    """The gates that counts per item do not pass."""
    gates = {"tasks": 0, "timers": 0, "futures": 0, "callbacks": 1.1, "calls": 60}
    return [gate for gate, most in gates.items() if getattr(counts, gate) > most]


def test_a_successful_item_passes_the_gates() -> None:
    async def setup(items: int) -> Run:
        return await queued(work_items(items), WORKERS)

    counts = per_item(setup)
    assert not breaches(counts), counts


def test_the_number_of_workers_makes_no_difference() -> None:
    async def setup(items: int) -> Run:
        return await queued(work_items(items), workers=1)

    counts = per_item(setup)
    # A turn of the loop serves a single item here, and all of its calls are that item's.
    assert {*breaches(counts)} <= {"calls"}, counts


def test_a_strategy_without_hooks_of_its_own_gives_the_loop_nothing_to_do() -> None:
    async def setup(items: int) -> Run:
        return await queued(
            [LLMWorkItem(f"item {number}", Echo()) for number in range(items)], WORKERS
        )

    counts = per_item(setup)
    assert counts.callbacks <= 1.1, counts


def test_an_item_that_is_added_makes_nothing_for_the_loop_to_do() -> None:
    async def setup(items: int) -> Run:
        async def add() -> None:
            for item in work_items(items):
                await processor.add_work(item)

        processor = ParallelBatchProcessor[str, str, None]()
        return add

    counts = per_item(setup)
    assert (counts.tasks, counts.timers, counts.futures, counts.callbacks) == (0, 0, 0, 0), counts


def test_an_observer_costs_no_task_and_no_timer_per_item() -> None:
    async def setup(items: int) -> Run:
        return await queued(work_items(items), WORKERS, [BaseObserver()])

    counts = per_item(setup)
    # It sleeps between the bursts of events that a turn of the loop brings: once a turn, not
    # once an item.
    assert {*breaches(counts)} <= {"futures", "calls"}, counts
    assert counts.futures <= 2 / WORKERS, counts


class _Wasteful(Echo):
    def __init__(self, waste: Callable[[], Awaitable[object]]) -> None:
        super().__init__()
        self.waste = waste

    async def execute(self, prompt: str, attempt: int, timeout: float) -> tuple[str, TokenUsage]:
        await self.waste()
        return await super().execute(prompt, attempt, timeout)


async def a_task() -> None:
    await asyncio.create_task(asyncio.sleep(0))


async def a_timer() -> None:
    asyncio.get_running_loop().call_later(60, int).cancel()


async def a_future() -> None:
    asyncio.get_running_loop().create_future().cancel()


async def a_callback() -> None:
    await asyncio.sleep(0)


async def python_calls() -> None:
    for _ in range(61):
        _nothing()


async def c_calls() -> None:
    for _ in range(61):
        len(())


def _nothing() -> None:
    pass


@pytest.mark.parametrize(
    ("waste", "gate"),
    [
        (a_task, "tasks"),
        (a_timer, "timers"),
        (a_future, "futures"),
        (a_callback, "callbacks"),
        (python_calls, "calls"),
        (c_calls, "calls"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_waste_per_item_does_not_pass(waste: Callable[[], Awaitable[object]], gate: str) -> None:
    async def setup(items: int) -> Run:
        strategy = _Wasteful(waste)
        return await queued(
            [LLMWorkItem(f"item {number}", strategy) for number in range(items)], WORKERS
        )

    assert gate in breaches(per_item(setup, few=200, many=400))
