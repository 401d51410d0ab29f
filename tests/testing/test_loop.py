"""Virtual time: exact instants, whole runs, and deadlocks that are told."""

import asyncio
import contextvars
import math
import pickle
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from batch_llm.core import clock
from batch_llm.strategies.errors import BatchLLMError
from batch_llm.testing.loop import WALL_TIME_START, DeadlockError, run
from tests.testing.impatience import HOUR, now, run_impatiently

if TYPE_CHECKING:
    from batch_llm.testing.pytest_plugin import VirtualTime

pytest_plugins = ["batch_llm.testing.pytest_plugin"]


def test_a_sleep_ends_at_exactly_its_instant() -> None:
    async def main() -> None:
        assert now() == 0.0
        expected = 0.0
        for delay in (0.1, 0.2, 0.7, 1 / 3, HOUR, 1e-9, 24 * HOUR * 7, 0.1):
            expected += delay
            await asyncio.sleep(delay)
            assert now() == expected

    run(main())


@pytest.mark.parametrize("start", [0.0, 5.0, 1e9, 1e15])
def test_neighbouring_instants_stay_apart_at_any_height(start: float) -> None:
    async def main() -> list[float]:
        seen: list[float] = []
        loop = asyncio.get_running_loop()
        first = start + 1
        for when in (math.nextafter(first, math.inf), first):
            loop.call_at(when, lambda: seen.append(now()))
        await asyncio.sleep(2)
        return seen

    assert run(main(), start=start) == [start + 1, math.nextafter(start + 1, math.inf)]


def test_timers_of_one_instant_fire_in_the_order_they_were_set() -> None:
    async def main() -> list[int]:
        fired: list[int] = []
        loop = asyncio.get_running_loop()
        timers = [loop.call_at(7.0, fired.append, number) for number in range(100)]
        for timer in timers[::3]:
            timer.cancel()
        await asyncio.sleep(7)
        return fired

    assert run(main()) == [number for number in range(100) if number % 3]


def test_a_timer_in_the_past_fires_now() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        fired = loop.create_future()
        timer = loop.call_at(2.0, fired.set_result, None)
        await fired
        assert timer.when() == 2.0
        return now()

    assert run(main(), start=10.0) == 10.0


def test_a_timer_runs_in_the_context_it_was_given() -> None:
    async def main() -> str:
        word: contextvars.ContextVar[str] = contextvars.ContextVar("word")
        context = contextvars.copy_context()
        context.run(word.set, "given")
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(
            1, lambda: answer.set_result(word.get("lost")), context=context
        )
        return await answer

    assert run(main()) == "given"


def test_what_is_ready_runs_before_time_moves() -> None:
    async def main() -> float:
        async with asyncio.timeout(1e-6):
            for _ in range(1_000):
                await asyncio.sleep(0)
        return now()

    assert run(main()) == 0.0


def test_nested_timeouts_and_gathers_end_at_their_own_instants() -> None:
    async def impatient(seconds: float) -> float:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(asyncio.sleep(HOUR), asyncio.sleep(2 * HOUR))
        return now()

    async def main() -> tuple[list[float], float]:
        ends = await asyncio.gather(*(impatient(seconds) for seconds in (30, 10, 20)))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(impatient(40), timeout=15)
        return ends, now()

    assert run(main()) == ([30.0, 10.0, 20.0], 45.0)


@pytest.mark.no_cover
def test_a_hundred_thousand_timers() -> None:
    async def main() -> int:
        fired: list[float] = []
        loop = asyncio.get_running_loop()
        for number in range(100_000):
            when = float(number * 37 % 1_000)
            loop.call_at(when, lambda when=when: fired.append(now() - when))
        await asyncio.sleep(1_000)
        assert set(fired) == {0.0}
        return len(fired)

    assert run(main()) == 100_000


def test_wall_time_moves_together_with_loop_time() -> None:
    async def main() -> tuple[float, float]:
        before = clock.wall_time()
        await asyncio.sleep(HOUR)
        return before, clock.wall_time()

    assert run(main()) == (WALL_TIME_START, WALL_TIME_START + HOUR)
    assert run(main(), start=77.0, wall_start=1000.0) == (1000.0, 1000.0 + HOUR)


def test_run_returns_and_raises_what_main_does() -> None:
    async def good() -> str:
        return "done"

    async def bad() -> None:
        await asyncio.sleep(1)
        raise LookupError("from main")

    assert run(good()) == "done"
    with pytest.raises(LookupError, match="from main"):
        run(bad())


def test_run_cleans_up_what_is_left() -> None:
    log: list[str] = []

    async def left_over() -> None:
        try:
            await asyncio.sleep(HOUR)
        finally:
            await asyncio.sleep(1)
            log.append(f"task cleaned up at {now()}")

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(1)
            log.append("generator closed")

    generator = numbers()

    async def main() -> None:
        task = asyncio.create_task(left_over())
        task.add_done_callback(lambda task: log.append(f"cancelled: {task.cancelled()}"))
        assert await anext(generator) == 1

    run(main())
    assert log == ["task cleaned up at 1.0", "cancelled: True", "generator closed"]


def test_cancelling_takes_effect_at_once() -> None:
    async def main() -> float:
        task = asyncio.create_task(asyncio.sleep(HOUR))
        await asyncio.sleep(5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return now()

    assert run(main()) == 5.0


def test_an_interrupt_stops_the_run_and_cleans_up() -> None:
    cleaned: list[float] = []

    async def main() -> None:
        asyncio.get_running_loop().call_later(3, signal.raise_signal, signal.SIGINT)
        try:
            await asyncio.sleep(HOUR)
        finally:
            cleaned.append(now())

    with pytest.raises(KeyboardInterrupt):
        run(main())
    assert cleaned == [3.0]


def test_an_interrupt_raised_by_a_task_comes_out() -> None:
    async def main() -> None:
        await asyncio.sleep(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(main())


def test_debug_mode_is_passed_on(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> bool:
        await asyncio.sleep(HOUR)
        return asyncio.get_running_loop().get_debug()

    assert run(main(), debug=True) is True
    assert run(main(), debug=False) is False
    assert "took" not in caplog.text


def test_run_inside_a_running_loop_is_refused() -> None:
    async def inner() -> None: ...

    async def main() -> None:
        with pytest.raises(RuntimeError, match="running event loop"):
            run(inner())

    run(main())


def test_the_fixture_keeps_one_clock_for_all_runs_of_a_test(virtual_time: "VirtualTime") -> None:
    assert virtual_time.run(asyncio.sleep(HOUR, "slept")) == "slept"
    virtual_time.run(asyncio.sleep(1))
    assert virtual_time.time() == HOUR + 1
    assert virtual_time.wall_time() == WALL_TIME_START + HOUR + 1


def test_the_fixture_starts_anew_for_each_test(virtual_time: "VirtualTime") -> None:
    assert virtual_time.time() == 0.0


def test_anyio_runs_its_tests_on_the_loop(pytester: pytest.Pytester) -> None:
    pytest.importorskip("anyio", reason="comes with google-genai")
    pytester.makepyfile("""
        import anyio
        import pytest

        from batch_llm.testing.loop import VirtualTimeLoop

        @pytest.fixture
        def anyio_backend():
            return "asyncio", {"loop_factory": VirtualTimeLoop}

        @pytest.mark.anyio
        async def test_an_hour():
            with anyio.move_on_after(3600):
                await anyio.sleep_forever()
            assert anyio.current_time() == 3600.0
    """)
    pytester.runpytest_inprocess().assert_outcomes(passed=1)


async def forgotten(wake_up: asyncio.Event) -> None:
    await wake_up.wait()


def test_a_deadlock_says_which_task_waits_where() -> None:
    async def main() -> None:
        never = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(forgotten(never), name=f"sleeper-{number}")
            group.create_task(asyncio.Queue[int]().get(), name="reader")

    with pytest.raises(DeadlockError) as caught:
        run(main())
    text = str(caught.value)
    line = forgotten.__code__.co_firstlineno + 1
    assert f'File "{__file__}", line {line}, in forgotten' in text
    assert "in Event.wait" in text
    assert "in Queue.get" in text
    assert "in TaskGroup.__aexit__" in text
    assert "sleeper-0, sleeper-1, sleeper-2 and 2 more:" in text
    assert "reader:" in text


def test_a_deadlock_is_one_of_our_errors_and_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(DeadlockError("stuck")))
    assert isinstance(error, BatchLLMError)
    assert isinstance(error, RuntimeError)
    assert str(error) == "stuck"


def test_tasks_of_a_deadlock_are_cleaned_up() -> None:
    cleaned: list[str] = []

    async def main() -> None:
        try:
            await forgotten(asyncio.Event())
        finally:
            await asyncio.sleep(1)
            cleaned.append("main")

    with pytest.raises(DeadlockError):
        run_impatiently(main())
    assert cleaned == ["main"]


def test_a_deadlock_inside_a_generator_is_located() -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1
        await forgotten(asyncio.Event())

    async def main() -> None:
        async for number in numbers():
            assert number == 1

    with pytest.raises(DeadlockError, match=r"in .*main\n.*in .*numbers\n.*in forgotten\n"):
        run_impatiently(main())


def test_an_endless_sleep_is_no_timer() -> None:
    async def main() -> None:
        await asyncio.sleep(HOUR)
        await asyncio.sleep(math.inf)

    with pytest.raises(DeadlockError, match=r"at 3600\.0 s"):
        run_impatiently(main())
