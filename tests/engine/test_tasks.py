"""Tasks that are bounded and buried."""

import asyncio

import pytest

from batch_llm import FrameworkTimeoutError
from batch_llm._engine.tasks import Settled, Tasks, settle
from tests.engine.support import now


async def answer() -> str:
    await asyncio.sleep(1.0)
    return "answer"


async def hang() -> None:
    await asyncio.sleep(1e6)


async def never_ends() -> None:
    for _ in range(3):
        try:
            await asyncio.sleep(100.0)
        except asyncio.CancelledError:
            continue


async def test_sync_and_async_code_settle_alike() -> None:
    assert await settle(lambda: "answer") == Settled("answer")
    assert await settle(answer) == Settled("answer")
    assert isinstance((await settle(lambda: 1 / 0)).error, ZeroDivisionError)


async def test_bounded_code_may_take_its_time() -> None:
    tasks = Tasks()
    assert await tasks.bounded(answer, seconds=2.0, what="it") == Settled("answer")
    assert await tasks.bounded(answer, seconds=None, what="it") == Settled("answer")
    assert now() == 2.0


async def test_an_answer_at_the_very_deadline() -> None:
    """Whether it counts is a matter of order; that it is one of the two is not."""
    settled = await Tasks().bounded(answer, seconds=1.0, what="it")
    assert settled.value == "answer" or isinstance(settled.error, FrameworkTimeoutError)
    assert now() == 1.0


async def test_code_that_takes_too_long() -> None:
    settled = await Tasks().bounded(hang, seconds=2.0, what="the hook")
    assert isinstance(settled.error, FrameworkTimeoutError)
    assert str(settled.error) == "timeout: the hook took longer than 2.0 s"
    assert now() == 2.0


async def test_code_that_does_not_end_is_left_behind_after_the_grace(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settled = await Tasks().bounded(never_ends, seconds=2.0, what="the hook")
    assert isinstance(settled.error, FrameworkTimeoutError)
    assert now() == 3.0
    assert "the hook ignores its cancellation and is left behind" in caplog.text
    await asyncio.sleep(1000.0)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_what_ends_the_program_is_raised(error: type[BaseException]) -> None:
    async def end() -> None:
        raise error

    with pytest.raises(error):
        await Tasks().bounded(end, seconds=1.0, what="it")


async def test_the_code_ends_with_its_caller() -> None:
    tasks = Tasks()
    ended: list[float] = []

    async def note() -> None:
        try:
            await hang()
        finally:
            ended.append(now())

    calling = asyncio.create_task(tasks.bounded(note, seconds=None, what="it"))
    await asyncio.sleep(1.0)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    await asyncio.sleep(0)
    assert ended == [1.0]


async def test_stopping_ends_all_but_the_current_task() -> None:
    tasks = Tasks()
    others = [tasks.spawn(hang(), name="other") for _ in range(3)]

    async def stop() -> str:
        await tasks.stop()
        return "still here"

    current = tasks.spawn(stop(), name="current")
    assert await current == "still here"
    assert all(task.cancelled() for task in others)
    assert current not in tasks
    await tasks.stop()
    assert now() == 0.0


async def test_stopping_waits_no_longer_than_the_grace(caplog: pytest.LogCaptureFixture) -> None:
    tasks = Tasks()
    stubborn = tasks.spawn(never_ends(), name="stubborn")
    await asyncio.sleep(0)
    await tasks.stop()
    assert now() == 1.0
    assert stubborn not in tasks
    assert "stubborn ignores its cancellation and is left behind" in caplog.text
    await stubborn
