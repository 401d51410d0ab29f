"""Prepare and cleanup where they meet each other, the queue, or a strategy that is odd."""

import asyncio
import gc
import logging
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from batch_llm import BaseMiddleware, LLMCallStrategy
from tests.engine.support import (
    Call,
    Item,
    Processor,
    Provider,
    Refused,
    errors,
    items,
    now,
    outputs,
    run,
    run_with,
    script,
    settings,
    start,
)


class Session(Provider):
    """Is open from prepare to cleanup, and takes its time to close."""

    def __init__(self, closing_seconds: float, **options: Any) -> None:
        super().__init__(**options)
        self.closing_seconds = closing_seconds
        self.open = False

    async def prepare(self) -> None:
        assert not self.open, "opened twice"
        await super().prepare()
        self.open = True

    async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
        answer = await super().execute(prompt, attempt, timeout)
        assert self.open, "used after it was closed"
        return answer

    async def cleanup(self) -> None:
        await super().cleanup()
        await asyncio.sleep(self.closing_seconds)
        self.open = False


@pytest.mark.parametrize("late", [1, 3])
async def test_an_item_that_comes_during_the_cleanup_is_prepared_after_it(late: int) -> None:
    session, busy = Session(5.0, seconds=2.0), Provider(seconds=100.0)
    async with Processor(config=settings(4)) as processor:
        running = await start(processor, *items(busy), *items(session))
        await asyncio.sleep(4.0)
        assert session.cleaned == [2.0]
        for item in items(session, late):
            await processor.add_work(item)
        result = await running
    assert result.succeeded == 2 + late
    assert session.prepared == [0.0, 7.0]
    assert session.instants == [0.0] + [7.0] * late
    assert len(session.cleaned) == 2
    assert not session.open


async def test_a_strategy_that_comes_back_to_a_worker_that_paused_is_new_to_it() -> None:
    providers = [Provider() for _ in range(40)]
    async with Processor(config=settings()) as processor:
        for provider in providers:
            await processor.add_work(*items(provider))
        stream = processor._stream()
        await anext(stream)
        await asyncio.sleep(1.0)
        # The worker waits for the consumer, and will look at this item next.
        last = [provider for provider in providers if provider.calls][-1]
        await processor.add_work(*items(last))
        pool = processor._engine.pool
        assert pool is not None
        pool.queue.rotate(1)
        assert len([result async for result in stream]) == 40
    assert last.instants == last.prepared == last.cleaned == [0.0, 1.0]


async def test_a_strategy_that_is_at_work_again_is_not_closed_among_the_idle() -> None:
    session, busy = Session(0.0, seconds=10.0), Provider(seconds=100.0)
    async with Processor(config=settings(4)) as processor:
        running = await start(processor, *items(busy), *items(session, 2))
        await asyncio.sleep(15.0)
        others = [item for _ in range(101) for item in items(Provider(), 2)]
        for item in [*items(session), *others]:
            await processor.add_work(item)
        result = await running
    assert result.failed == 0
    assert (session.prepared, session.cleaned) == ([0.0], [100.0])


async def test_a_strategy_whose_other_item_goes_on_is_not_closed_among_the_idle() -> None:
    async def answer(call: Call) -> str:
        await asyncio.sleep(50.0 * int(call.prompt[-1]))
        return "ok"

    session = Session(0.0, answer=answer)
    async with Processor(config=settings(4)) as processor:
        running = await start(processor, *items(session, 2))
        await asyncio.sleep(15.0)
        for _ in range(101):
            for item in items(Provider(), 2):
                await processor.add_work(item)
        result = await running
    assert result.failed == 0
    assert (session.prepared, session.cleaned) == ([0.0], [50.0])


async def test_rate_limits_use_up_none_of_the_attempts_to_prepare() -> None:
    steps = deque([Refused(60.0), Refused(60.0), ConnectionError(), ConnectionError()])

    class Waking(Provider):
        async def prepare(self) -> None:
            await super().prepare()
            if steps:
                raise steps.popleft()

    waking = Waking()
    result = await run(*items(waking, 2))
    assert outputs(result) == ["ok", "ok"]
    assert waking.prepared == [0.0, 60.0, 120.0, 121.0, 123.0]


class Shy(Provider):
    """Hooks that are looked up in vain, or raise as they are."""

    def __init__(self, *shy: str, **options: Any) -> None:
        super().__init__(**options)
        self.shy = shy

    def __getattribute__(self, name: str) -> Any:
        if name != "shy" and name in object.__getattribute__(self, "__dict__").get("shy", ()):
            raise RuntimeError(f"no {name} today")
        return super().__getattribute__(name)


async def test_a_prepare_that_cannot_be_looked_up_fails_its_items() -> None:
    result = await run(*items(Shy("prepare"), 2), *items(Provider()), config=settings(3))
    assert sorted(map(str, errors(result))) == ["None"] + ["RuntimeError: no prepare today"] * 2


@pytest.mark.parametrize("hook", ["on_error", "cleanup"])
@pytest.mark.parametrize("count", [1, 2])
async def test_a_hook_that_cannot_be_looked_up_costs_only_itself(
    hook: str, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    shy = Shy(hook, answer=script(ConnectionError()))
    result = await run(*items(shy, count))
    assert outputs(result) == ["ok"] * count
    [told] = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert told.endswith(f"Shy.{hook} failed with RuntimeError")


async def test_what_was_shy_may_be_had_in_the_next_run() -> None:
    shy = Shy("prepare", "cleanup")
    async with Processor(config=settings()) as processor:
        assert (await run_with(processor, *items(shy, 2))).failed == 2
        shy.shy = ()
        assert (await run_with(processor, *items(shy, 2))).succeeded == 2
    assert shy.prepared == [1.0 + 2.0]
    assert now() == 3.0


async def end_late(call: Call) -> None:
    try:
        await asyncio.sleep(100.0)
    except asyncio.CancelledError:
        await asyncio.sleep(0.8)


async def cancel_the_end_too(running: asyncio.Task[Any]) -> None:
    for _ in range(2):
        running.cancel()
        await asyncio.sleep(0.4)
    assert running.cancelled()
    await asyncio.sleep(10.0)


@pytest.mark.parametrize("middlewares", [[], [BaseMiddleware()]], ids=["bare", "middleware"])
async def test_what_an_end_that_was_cancelled_did_not_close_stays_open_for_the_next_run(
    middlewares: Any,
) -> None:
    session = Session(0.0, answer=end_late)
    async with Processor(config=settings(), middlewares=middlewares) as processor:
        await cancel_the_end_too(await start(processor, *items(session)))
        assert session.cleaned == []
        session.answer = script()
        assert (await run_with(processor, *items(session, 2))).succeeded == 2
        assert (session.prepared, session.cleaned) == ([0.0], [now()])


async def test_what_an_end_that_was_cancelled_left_idle_is_no_longer_among_the_idle() -> None:
    session = Session(0.0)
    async with Processor(config=settings(2)) as processor:
        running = await start(processor, *items(session, 2), *items(Provider(end_late)))
        await cancel_the_end_too(running)
        assert session.cleaned == []
        others = [item for _ in range(101) for item in items(Provider(), 2)]
        await run_with(processor, *items(Provider(seconds=100.0)), *others)
        assert session.cleaned == [now()]


async def test_behind_hooks_too_a_strategy_whose_other_item_goes_on_is_not_closed() -> None:
    async def answer(call: Call) -> str:
        await asyncio.sleep(50.0 * int(call.prompt[-1]))
        return "ok"

    session = Session(0.0, answer=answer)
    async with Processor(config=settings(4), middlewares=[BaseMiddleware()]) as processor:
        running = await start(processor, *items(session, 2))
        await asyncio.sleep(15.0)
        for _ in range(101):
            for item in items(Provider(), 2):
                await processor.add_work(item)
        result = await running
    assert result.failed == 0
    assert (session.prepared, session.cleaned) == ([0.0], [50.0])


async def test_an_item_that_cleanup_dropped_is_not_waited_for() -> None:
    session, busy = Session(0.0, seconds=1.0), Provider(seconds=100.0)
    async with Processor(config=settings(2)) as processor:
        for item in items(session):
            await processor.add_work(item)
        await processor.cleanup()
        await run_with(processor, *items(session), *items(busy))
    assert session.cleaned == [1.0]


class Plain(LLMCallStrategy[Any]):
    """Has no hooks of its own."""

    async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
        return prompt, {}


@pytest.mark.parametrize("kind", [Provider, Plain])
async def test_a_strategy_of_one_item_is_let_go_of_with_it(
    kind: type[LLMCallStrategy[Any]],
) -> None:
    alive: weakref.WeakSet[LLMCallStrategy[Any]] = weakref.WeakSet()
    async with Processor(config=settings(2)) as processor:
        running = await start(processor, *items(Provider(seconds=100.0)))
        for _ in range(10):
            provider = kind()
            alive.add(provider)
            await processor.add_work(*items(provider))
        del provider
        await asyncio.sleep(5.0)
        gc.collect()
        # A worker still has its last item.
        assert len(alive) <= 1
        assert (await running).succeeded == 11


async def test_a_cleanup_that_the_end_of_the_run_overtook_is_made_up_for() -> None:
    async def cancel_the_run(call: Call) -> None:
        running.cancel()

    session = Session(0.0, answer=cancel_the_run, seconds=1.0)
    async with Processor(config=settings()) as processor:
        running = await start(processor, *items(session))
        with pytest.raises(asyncio.CancelledError):
            await running
        assert session.cleaned == [1.0]


async def test_the_whole_error_of_a_cleanup_is_there_for_who_debugs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "batch_llm")
    await run(*items(Shy("cleanup")))
    [told] = [record for record in caplog.records if record.getMessage() == "Shy.cleanup failed"]
    assert told.levelno == logging.DEBUG
    assert told.exc_info is not None
    assert str(told.exc_info[1]) == "no cleanup today"


async def test_an_item_may_be_given_another_strategy_while_it_waits() -> None:
    first, second = Provider(), Provider(script("another"))
    [item] = items(first)
    async with Processor(config=settings()) as processor:
        await processor.add_work(item)
        item.strategy = second
        result = await processor.process_all()
    assert outputs(result) == ["another"]
    assert (first.calls, second.prepared, second.cleaned) == ([], [0.0], [0.0])


class Moving(BaseMiddleware[str, Any, Any]):
    """Has some items done by another strategy than the one that they came with."""

    def __init__(self, moves: Callable[[Item], bool], target: Provider) -> None:
        self.moves = moves
        self.target = target

    async def before_process(self, work_item: Item) -> Item:
        if self.moves(work_item):
            work_item.strategy = self.target
        return work_item


@pytest.mark.parametrize("moves", [False, True])
async def test_behind_middleware_too_a_strategy_of_one_item_is_let_go_of_with_it(
    moves: bool,
) -> None:
    busy, alive = Provider(seconds=100.0), weakref.WeakSet[Provider]()
    moving = Moving(lambda item: moves and item.strategy is not busy, Provider())
    async with Processor(config=settings(2), middlewares=[moving]) as processor:
        running = await start(processor, *items(busy))
        for _ in range(10):
            provider = Provider()
            alive.add(provider)
            await processor.add_work(*items(provider))
        del provider
        await asyncio.sleep(5.0)
        gc.collect()
        # A worker still has its last item.
        assert len(alive) <= 1
        assert (await running).succeeded == 11


async def test_a_strategy_that_lost_an_item_to_another_is_not_closed_among_the_idle() -> None:
    session = Session(0.0, seconds=50.0)
    moving = Moving(lambda item: item.strategy is session and item.item_id == "1", Provider())
    async with Processor(config=settings(4), middlewares=[moving]) as processor:
        running = await start(processor, *items(session, 2))
        for _ in range(101):
            for item in items(Provider(), 2):
                await processor.add_work(item)
        result = await running
    assert result.failed == 0
    assert (session.prepared, session.cleaned) == ([0.0], [50.0])


class Preparing(Provider):
    cleanup = LLMCallStrategy.cleanup


class Cleaning(Provider):
    prepare = LLMCallStrategy.prepare


async def test_a_strategy_may_have_one_hook_without_the_other() -> None:
    preparing, cleaning = Preparing(), Cleaning()
    await run(*items(preparing), *items(cleaning))
    assert (len(preparing.prepared), len(cleaning.cleaned)) == (1, 1)


async def test_hooks_that_only_an_instance_has_are_called() -> None:
    calls: list[str] = []
    strategy: Any = Plain()
    strategy.prepare = lambda: calls.append("prepare")
    strategy.cleanup = lambda: calls.append("cleanup")
    await run(*items(strategy, 3))
    assert calls == ["prepare", "cleanup"]


async def test_without_a_prepare_too_an_item_waits_for_the_cleanup_before_it() -> None:
    class Closing(Provider):
        prepare = LLMCallStrategy.prepare

        async def cleanup(self) -> None:
            await asyncio.sleep(5.0)
            self.cleaned.append(now())

    closing, busy = Closing(seconds=2.0), Provider(seconds=100.0)
    async with Processor(config=settings(4)) as processor:
        running = await start(processor, *items(busy), *items(closing))
        await asyncio.sleep(4.0)
        for item in items(closing, 2):
            await processor.add_work(item)
        await running
    assert closing.instants == [0.0, 7.0, 7.0]
    assert closing.cleaned == [7.0, 105.0]


async def test_a_strategy_whose_one_item_is_done_is_prepared_anew_for_the_next() -> None:
    provider, busy = Provider(), Provider(seconds=100.0)
    async with Processor(config=settings(2)) as processor:
        running = await start(processor, *items(busy), *items(provider))
        for _ in range(2):
            await asyncio.sleep(5.0)
            await processor.add_work(*items(provider))
        await running
    assert provider.prepared == provider.cleaned == [0.0, 5.0, 10.0]


async def test_strategies_that_have_done_all_their_items_are_closed_when_many_more_are() -> None:
    providers = [Provider() for _ in range(102)]
    work = [item for provider in providers for item in items(provider, 2)]
    await run(*work, *items(Provider(seconds=10.0)), config=settings(1))
    assert [provider.cleaned for provider in providers[:2]] == [[0.0], [0.0]]
    assert providers[-1].cleaned == [10.0]
