"""Ctrl-C: what is in flight may finish, nothing new begins, and nothing finished is lost."""

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from batch_llm import BaseMiddleware, WorkItemResult
from batch_llm._engine import interrupts
from batch_llm.testing.loop import VirtualTimeLoop
from batch_llm.testing.loop import run as virtual_run
from tests.engine.moments import other_tasks
from tests.engine.support import (
    Call,
    Item,
    Processor,
    Provider,
    Refused,
    items,
    now,
    run_with,
    settings,
    start,
)


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def ids(results: list[WorkItemResult[Any, Any]]) -> list[str]:
    return [result.item_id for result in results]


async def interrupted_after(seconds: float, processor: Processor, *work: Item) -> Any:
    running = await start(processor, *work)
    await asyncio.sleep(seconds)
    press_ctrl_c()
    return await running


async def test_the_first_lets_the_calls_in_flight_finish_and_begins_no_more() -> None:
    provider = Provider(seconds=10.0)
    async with Processor(config=settings(2)) as processor:
        result = await interrupted_after(13.0, processor, *items(provider, 6))
        assert now() == 20.0
        assert (ids(result.results), result.succeeded) == (["0", "1", "2", "3"], 4)
        assert (result.interrupted, result.not_run) == (True, ["4", "5"])
        assert provider.instants == [0.0, 0.0, 10.0, 10.0]
        assert ids(processor.results) == ids(result.results)
        assert len(provider.cleaned) == 1
        assert other_tasks() == set()
        again = await run_with(processor, *items(Provider(), 2))
        assert (again.succeeded, again.interrupted, again.not_run) == (2, False, [])


async def test_calls_that_do_not_finish_within_the_grace_are_ended() -> None:
    provider = Provider(seconds=100.0)
    async with Processor(config=settings(2)) as processor:
        result = await interrupted_after(1.0, processor, *items(provider, 3))
        assert now() == 31.0
        assert (result.total_items, result.interrupted) == (0, True)
        assert result.not_run == ["0", "1", "2"]


def test_the_second_stops_at_once_and_keeps_what_was_finished() -> None:
    seen: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for seconds in (13.0, 14.0):
            loop.call_later(seconds, press_ctrl_c)
        async with Processor(config=settings(2)) as processor:
            try:
                await run_with(processor, *items(Provider(seconds=10.0), 6))
            finally:
                seen.extend([now(), ids(processor.results), other_tasks()])

    with pytest.raises(KeyboardInterrupt):
        virtual_run(main())
    assert seen == [14.0, ["0", "1"], set()]


def test_a_second_one_stops_what_keeps_the_loop_from_noticing_the_first() -> None:
    async def block(call: Call) -> Any:
        press_ctrl_c()
        press_ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        virtual_run(run_with(Processor(config=settings()), *items(Provider(block))))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_off_the_main_thread_there_is_no_ctrl_c() -> None:
    async def main() -> Any:
        before = signal.getsignal(signal.SIGINT)
        async with Processor(config=settings()) as processor:
            running = await start(processor, *items(Provider()))
            assert signal.getsignal(signal.SIGINT) == before
            return await running

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(virtual_run, main()).result().succeeded == 1


def test_an_item_on_its_own_is_interrupted_like_a_program() -> None:
    async def main() -> Any:
        loop = asyncio.get_running_loop()
        loop.call_later(5.0, press_ctrl_c)
        async with Processor(config=settings()) as processor:
            [item] = items(Provider(seconds=100.0))
            return await processor._process_item(item)

    with pytest.raises(KeyboardInterrupt):
        virtual_run(main())


def waits_to_retry(call: Call) -> Any:
    raise ConnectionError


def is_refused(call: Call) -> Any:
    raise Refused(retry_after=300.0)


@pytest.mark.parametrize("answer", [waits_to_retry, is_refused])
async def test_nobody_waits_for_an_item_that_only_waits(answer: Any) -> None:
    async def execute(call: Call) -> Any:
        return answer(call)

    provider = Provider(execute)
    async with Processor(config=settings(2)) as processor:
        result = await interrupted_after(0.5, processor, *items(provider, 4))
        assert now() == 0.5
        assert (result.total_items, result.not_run) == (0, ["0", "1", "2", "3"])


async def test_a_call_that_fails_while_the_run_winds_down_is_not_repeated() -> None:
    async def fail(call: Call) -> Any:
        raise ConnectionError

    provider = Provider(fail, seconds=10.0)
    async with Processor(config=settings()) as processor:
        result = await interrupted_after(5.0, processor, *items(provider))
        assert (now(), len(provider.calls), result.not_run) == (10.0, 1, ["0"])


async def test_a_call_that_fails_for_good_while_the_run_winds_down_has_its_result() -> None:
    async def fail(call: Call) -> Any:
        raise ValueError("bad prompt")

    async with Processor(config=settings()) as processor:
        result = await interrupted_after(5.0, processor, *items(Provider(fail, seconds=10.0)))
        assert [each.error for each in result.results] == ["ValueError: bad prompt"]
        assert (result.interrupted, result.not_run) == (True, [])


async def test_an_answer_that_is_paid_for_still_goes_through_the_hooks() -> None:
    class Slow(BaseMiddleware[str, Any, Any]):
        async def after_process(self, result: Any) -> Any:
            await asyncio.sleep(10.0)
            return result

    finished: list[str] = []

    async def post_process(result: Any) -> None:
        await asyncio.sleep(10.0)
        finished.append(result.item_id)

    processor = Processor(config=settings(), middlewares=[Slow()], post_processor=post_process)
    async with processor:
        result = await interrupted_after(5.0, processor, *items(Provider(), 2))
        assert (now(), ids(result.results), finished) == (20.0, ["0"], ["0"])
        assert result.not_run == ["1"]


async def test_an_item_whose_turn_has_not_come_is_given_back() -> None:
    class Slow(BaseMiddleware[str, Any, Any]):
        async def before_process(self, item: Any) -> Any:
            await asyncio.sleep(10.0)
            return item

    provider = Provider()
    async with Processor(config=settings(), middlewares=[Slow()]) as processor:
        result = await interrupted_after(5.0, processor, *items(provider))
        assert (now(), result.not_run, provider.calls) == (5.0, ["0"], [])


async def test_whoever_adds_to_a_full_queue_learns_that_the_run_has_ended() -> None:
    async with Processor(config=settings(max_queue_size=1)) as processor:
        provider = Provider(seconds=10.0)
        running = await start(processor, *items(provider))
        [_, waiting, too_many] = items(provider, 3)
        await processor.add_work(waiting)
        adding = asyncio.create_task(processor.add_work(too_many))
        await asyncio.sleep(5.0)
        press_ctrl_c()
        with pytest.raises(RuntimeError, match="the run ended while item '2' waited for room"):
            await adding
        assert (await running).not_run == ["1"]


async def test_two_runs_are_wound_down_together() -> None:
    async with Processor(config=settings()) as one, Processor(config=settings()) as other:
        runs = [await start(each, *items(Provider(seconds=10.0), 3)) for each in (one, other)]
        await asyncio.sleep(15.0)
        press_ctrl_c()
        assert [(await each).not_run for each in runs] == [["2"], ["2"]]
        assert now() == 20.0


async def test_the_programs_own_handler_is_left_alone() -> None:
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        async with Processor(config=settings()) as processor:
            result = await interrupted_after(5.0, processor, *items(Provider(seconds=10.0), 2))
        assert (result.succeeded, result.interrupted, pressed) == (2, False, [signal.SIGINT])
    finally:
        signal.signal(signal.SIGINT, before)


async def test_after_a_run_ctrl_c_is_what_it_was() -> None:
    before = signal.getsignal(signal.SIGINT)
    async with Processor(config=settings()) as processor:
        running = await start(processor, *items(Provider(seconds=10.0)))
        assert signal.getsignal(signal.SIGINT) != before
        await running
        assert signal.getsignal(signal.SIGINT) == before


async def test_cleanup_says_what_it_left() -> None:
    processor = Processor(config=settings(2))
    running = await start(processor, *items(Provider(seconds=10.0), 5))
    await asyncio.sleep(15.0)
    await processor.cleanup()
    result = await running
    assert (ids(result.results), result.interrupted) == (["0", "1"], True)
    assert result.not_run == ["2", "3", "4"]


async def test_a_cancelled_run_leaves_its_results_with_the_processor() -> None:
    async with Processor(config=settings(2)) as processor:
        running = await start(processor, *items(Provider(seconds=10.0), 5))
        await asyncio.sleep(15.0)
        assert ids(processor.results) == ["0", "1"]
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert ids(processor.results) == ["0", "1"]
        await run_with(processor, *items(Provider()))
        assert ids(processor.results) == ["0"]


def test_the_second_ends_what_keeps_the_loop_from_noticing_and_gives_ctrl_c_back() -> None:
    after: list[Any] = []

    async def block(call: Call) -> Any:
        press_ctrl_c()
        after.append("the first")
        try:
            press_ctrl_c()
        except KeyboardInterrupt:
            after.append(signal.getsignal(signal.SIGINT))
            raise
        after.append("the second")

    async def main() -> None:
        after.append(signal.getsignal(signal.SIGINT))
        await run_with(Processor(config=settings()), *items(Provider(block)))

    with pytest.raises(KeyboardInterrupt):
        virtual_run(main())
    before, *rest = after
    assert rest == ["the first", before]


def test_where_the_first_was_noticed_the_second_comes_out_of_the_run_itself() -> None:
    came_out: list[type[BaseException]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for seconds in (1.0, 2.0):
            loop.call_later(seconds, press_ctrl_c)
        try:
            await run_with(Processor(config=settings()), *items(Provider(seconds=10.0)))
        except BaseException as error:
            came_out.append(type(error))
            raise

    with pytest.raises(KeyboardInterrupt):
        virtual_run(main())
    assert came_out == [KeyboardInterrupt]


def test_the_second_gives_ctrl_c_back_at_once_for_a_loop_that_is_kept_from_ending() -> None:
    handlers: list[Any] = []

    async def block(call: Call) -> Any:
        await asyncio.sleep(10.0)
        press_ctrl_c()
        handlers.append(signal.getsignal(signal.SIGINT))

    async def main() -> None:
        handlers.append(signal.getsignal(signal.SIGINT))
        asyncio.get_running_loop().call_later(1.0, press_ctrl_c)
        await run_with(Processor(config=settings()), *items(Provider(block)))

    with pytest.raises(KeyboardInterrupt):
        virtual_run(main())
    before, after = handlers
    assert after == before


async def test_a_handler_that_the_program_sets_during_a_run_stays() -> None:
    def own(signal_number: int, frame: object) -> None:
        raise AssertionError

    before = signal.getsignal(signal.SIGINT)
    try:
        async with Processor(config=settings()) as processor:
            running = await start(processor, *items(Provider(seconds=10.0)))
            signal.signal(signal.SIGINT, own)
            await running
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


class Told:
    """A run that only notes what Ctrl-C tells it."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.errors: list[BaseException] = []

    def wind_down(self, reason: str) -> None:
        self.reasons.append(reason)

    def fail(self, error: BaseException) -> None:
        self.errors.append(error)


def test_a_run_that_its_loop_left_behind_is_in_nobodys_way() -> None:
    async def leave_behind() -> None:
        interrupts.listen(Told())

    async def press() -> list[str]:
        told = Told()
        interrupts.listen(told)
        try:
            press_ctrl_c()
            await asyncio.sleep(1.0)
            return told.reasons
        finally:
            interrupts.forget(told)

    before = signal.getsignal(signal.SIGINT)
    try:
        virtual_run(leave_behind())
        signal.signal(signal.SIGINT, before)
        assert virtual_run(press()) == ["Ctrl-C"]
        assert signal.getsignal(signal.SIGINT) == before
    finally:
        signal.signal(signal.SIGINT, before)


async def test_a_run_that_ends_leaves_ctrl_c_to_the_other() -> None:
    async with Processor(config=settings()) as short, Processor(config=settings()) as long:
        running = await start(long, *items(Provider(seconds=10.0), 3))
        assert (await run_with(short, *items(Provider(seconds=1.0)))).succeeded == 1
        await asyncio.sleep(4.0)
        press_ctrl_c()
        assert (await running).not_run == ["1", "2"]


async def test_a_run_that_ended_meanwhile_is_told_nothing() -> None:
    told = Told()
    interrupts.listen(told)
    press_ctrl_c()
    interrupts.forget(told)
    await asyncio.sleep(1.0)
    assert told.reasons == []


async def test_after_a_run_that_was_wound_down_the_next_repeats_what_fails() -> None:
    fails_once = iter([ConnectionError()])

    async def answer(call: Call) -> Any:
        for error in fails_once:
            raise error

    async with Processor(config=settings()) as processor:
        await interrupted_after(5.0, processor, *items(Provider(seconds=10.0), 2))
        assert (await run_with(processor, *items(Provider(answer)))).succeeded == 1


def test_on_a_loop_that_the_program_runs_by_itself_there_is_ctrl_c_too() -> None:
    async def main() -> Any:
        async with Processor(config=settings()) as processor:
            return await interrupted_after(5.0, processor, *items(Provider(seconds=10.0), 2))

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    loop = VirtualTimeLoop()
    try:
        assert loop.run_until_complete(main()).not_run == ["1"]
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        signal.signal(signal.SIGINT, before)


async def test_a_worker_without_an_item_is_not_waited_for() -> None:
    await interrupted_after(1.0, Processor(config=settings(2)), *items(Provider(seconds=10.0)))
    assert now() == 10.0
