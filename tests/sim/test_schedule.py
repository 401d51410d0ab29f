"""The shuffling loop: any task may be late, no callback ever is."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from batch_llm.testing.simulate import EndlessRunError, ShuffledLoop, schedule


@contextmanager
def loop_of(seed: int, **options: Any) -> Iterator[ShuffledLoop]:
    loop = ShuffledLoop(seed, **options)
    try:
        yield loop
    finally:
        loop.close()


def play(main: Callable[[], Coroutine[Any, Any, list[str]]], seed: int) -> list[str]:
    with loop_of(seed) as loop:
        return loop.run_until_complete(main())


async def three_tasks() -> list[str]:
    seen: list[str] = []

    async def steps(name: str) -> None:
        for step in range(3):
            seen.append(f"{name}{step}")
            await asyncio.sleep(0)

    await asyncio.gather(*(steps(name) for name in "abc"))
    return seen


async def callbacks_and_a_task() -> list[str]:
    loop = asyncio.get_running_loop()
    seen: list[str] = []

    async def task() -> None:
        seen.append("task")

    loop.call_soon(seen.append, "1")
    late = asyncio.create_task(task())
    loop.call_soon(seen.append, "2")
    after = asyncio.create_task(asyncio.sleep(0))
    loop.call_soon(seen.append, "3")
    await asyncio.wait((late, after))
    return seen


def test_tasks_go_on_in_many_orders() -> None:
    orders = [play(three_tasks, seed) for seed in range(200)]
    assert len({tuple(order) for order in orders}) > 50
    for order in orders:
        for name in "abc":
            assert [step for step in order if step[0] == name] == [f"{name}{i}" for i in range(3)]


def test_some_seeds_leave_asyncios_own_order() -> None:
    own = asyncio.run(three_tasks())
    assert sum(play(three_tasks, seed) == own for seed in range(40)) in range(5, 35)


def test_a_seed_always_gives_the_same_order() -> None:
    for seed in range(20):
        assert play(three_tasks, seed) == play(three_tasks, seed)


def test_a_task_may_be_late_but_no_callback_is() -> None:
    orders = [play(callbacks_and_a_task, seed) for seed in range(100)]
    assert all([name for name in order if name != "task"] == ["1", "2", "3"] for order in orders)
    # The first callback was there before the task, so it is never after it.
    assert {order.index("task") for order in orders} == {1, 2, 3}


def test_tasks_that_keep_each_other_busy_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_MOST_STEPS_AT_ONE_INSTANT", 1_000)

    async def steps() -> None:
        for _ in range(1_500):
            await asyncio.sleep(0)

    with loop_of(1) as loop:
        task = loop.create_task(steps())
        with pytest.raises(EndlessRunError, match="more than 1000 steps"):
            loop.run_until_complete(task)
        # What is left has time to end.
        loop.run_until_complete(task)


def test_time_that_runs_on_and_on_is_found() -> None:
    async def wait() -> None:
        await asyncio.sleep(101)

    with loop_of(1, longest_seconds=100) as loop:
        with pytest.raises(EndlessRunError, match="still goes on at 101"):
            loop.run_until_complete(wait())
        for task in asyncio.all_tasks(loop):
            task.cancel()
