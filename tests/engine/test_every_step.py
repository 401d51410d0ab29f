"""A small run with all its parts, cancelled or interrupted after each step of its loop."""

import asyncio
import signal
from collections.abc import Callable
from contextvars import Context
from typing import Any

import pytest

from batch_llm import BaseMiddleware, WorkItemResult
from batch_llm.testing.loop import VirtualTimeLoop
from tests.engine.moments import other_tasks
from tests.engine.support import Call, Processor, Provider, Refused, items, now, settings
from tests.helpers import Recorder

ITEMS = 4


class SteppingLoop(VirtualTimeLoop):
    """Acts once, right after the given number of callbacks was scheduled.

    Whatever goes on after an await is scheduled, so this is after each await of every task.
    """

    steps = 0
    act_at = -1
    act: Callable[[], object]

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = super().call_soon(callback, *args, context=context)
        self.steps += 1
        if self.steps == self.act_at:
            super().call_soon(self.act)
        return handle


class Hooked(BaseMiddleware[str, Any, Any]):
    async def before_process(self, item: Any) -> Any:
        await asyncio.sleep(0)
        return item

    async def after_process(self, result: Any) -> Any:
        await asyncio.sleep(0)
        return result


class Night:
    """One run: a prepare, a failure, a rate limit, hooks, and what was seen of it."""

    def __init__(self) -> None:
        self.provider = Provider(self._answer, seconds=1.0)
        self.finished: list[str] = []
        self.recorder = Recorder()
        self.processor = Processor(
            config=settings(2, cooldown=5.0),
            middlewares=[Hooked()],
            observers=[self.recorder],
            post_processor=self._post_process,
        )

    async def _answer(self, call: Call) -> Any:
        if call.prompt == "prompt 1" and call.attempt == 1:
            raise ConnectionError
        if call.prompt == "prompt 2" and self.provider.instants[-1] < 5.0:
            raise Refused
        return call.prompt

    async def _post_process(self, result: WorkItemResult[Any, Any]) -> None:
        await asyncio.sleep(0)
        self.finished.append(result.item_id)

    async def run(self) -> Any:
        for item in items(self.provider, ITEMS):
            await self.processor.add_work(item)
        return await self.processor.process_all()

    def check_after(self) -> None:
        """What must hold of a run that was ended, whenever that was."""
        self.calls = len(self.provider.calls)
        assert other_tasks() == set()
        assert len(self.provider.cleaned) <= len(self.provider.prepared) <= 1
        results = self.processor.results
        ids = [result.item_id for result in results]
        assert len(set(ids)) == len(ids)
        assert set(self.finished) <= set(ids)
        assert all(result.success for result in results)

    async def check_next(self) -> None:
        """No call goes out any more, and the next run is like any other."""
        await asyncio.sleep(1_000.0)
        assert len(self.provider.calls) == self.calls
        started = now()
        other = Provider(seconds=1.0)
        for item in items(other, ITEMS):
            await self.processor.add_work(item)
        result = await self.processor.process_all()
        assert (result.succeeded, result.total_items, result.interrupted) == (ITEMS, ITEMS, False)
        assert now() - started == 2.0
        await self.processor.cleanup()


def play(main: Callable[[SteppingLoop], Any]) -> SteppingLoop:
    """Run on a loop of its own, with the handler of Ctrl-C that every program starts with."""
    with asyncio.Runner(loop_factory=SteppingLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, SteppingLoop)
        runner.run(main(loop))
    return loop


def steps_of_a_whole_run() -> int:
    counted = 0

    async def main(loop: SteppingLoop) -> None:
        nonlocal counted
        night = Night()
        before = loop.steps
        assert (await night.run()).succeeded == ITEMS
        counted = loop.steps - before

    play(main)
    return counted


STEPS = steps_of_a_whole_run()


@pytest.mark.parametrize("step", range(1, STEPS))
def test_a_run_may_be_cancelled_at_any_step(step: int) -> None:
    async def main(loop: SteppingLoop) -> None:
        night = Night()
        running = asyncio.create_task(night.run())
        loop.act, loop.act_at = running.cancel, loop.steps + step
        await asyncio.wait((running,))
        assert running.cancelled() or running.result().succeeded == ITEMS
        night.check_after()
        await night.check_next()

    play(main)


@pytest.mark.parametrize("step", range(1, STEPS))
def test_a_run_may_be_interrupted_at_any_step(step: int) -> None:
    async def main(loop: SteppingLoop) -> None:
        night = Night()
        running = asyncio.create_task(night.run())

        def press_ctrl_c() -> None:
            if signal.getsignal(signal.SIGINT) is not before:
                signal.raise_signal(signal.SIGINT)

        before = signal.getsignal(signal.SIGINT)
        loop.act, loop.act_at = press_ctrl_c, loop.steps + step
        result = await running
        night.check_after()
        ids = [entry.item_id for entry in result.results]
        assert sorted(ids + result.not_run) == [str(number) for number in range(ITEMS)]
        assert result.interrupted or not result.not_run
        assert set(night.finished) == set(ids)
        await night.check_next()

    play(main)
