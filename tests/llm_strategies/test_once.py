"""Preparing exactly once: many callers, failures, cancellations, several loops."""

import asyncio
import copy
import pickle
import threading
from typing import Any

import pytest

from batch_llm import (
    LLMCallStrategy,
    LLMWorkItem,
    ParallelBatchProcessor,
    PrepareOnceMixin,
    ProcessorConfig,
    TokenUsage,
    forget_prepared,
    prepare_once,
)


class Decorated(LLMCallStrategy[str]):
    """Counts what it does; ``steps`` are raised one after the other."""

    def __init__(self, *steps: BaseException) -> None:
        self.steps = list(steps)
        self.begun = 0
        self.prepared = 0
        self.cleaned = 0

    @prepare_once
    async def prepare(self) -> None:
        await self.work()

    async def work(self) -> None:
        self.begun += 1
        await asyncio.sleep(1)
        if self.steps:
            raise self.steps.pop(0)
        self.prepared += 1

    async def execute(self, prompt: str, attempt: int, timeout: float) -> tuple[str, TokenUsage]:
        assert self.prepared
        return prompt, {}

    async def cleanup(self) -> None:
        self.cleaned += 1


class Mixed(PrepareOnceMixin, Decorated):
    """The same by the mixin."""

    async def _prepare_once(self) -> None:
        await self.work()


BOTH = pytest.mark.parametrize("kind", [Decorated, Mixed])


@BOTH
async def test_many_callers_have_it_done_once(kind: type[Decorated]) -> None:
    strategy = kind()
    await asyncio.gather(*[strategy.prepare() for _ in range(50)])
    await strategy.prepare()
    assert strategy.begun == strategy.prepared == 1
    assert asyncio.get_running_loop().time() == 1


@BOTH
async def test_two_instances_are_two(kind: type[Decorated]) -> None:
    one, other = kind(), kind()
    await asyncio.gather(one.prepare(), other.prepare())
    assert one.prepared == other.prepared == 1


@BOTH
async def test_who_waits_shares_a_failure_and_the_next_call_tries_again(
    kind: type[Decorated],
) -> None:
    strategy = kind(ConnectionError("no"))
    outcomes = await asyncio.gather(*[strategy.prepare() for _ in range(5)], return_exceptions=True)
    assert [repr(outcome) for outcome in outcomes] == ["ConnectionError('no')"] * 5
    assert (strategy.begun, strategy.prepared) == (1, 0)
    await strategy.prepare()
    assert (strategy.begun, strategy.prepared) == (2, 1)


@BOTH
async def test_when_the_one_who_works_is_cancelled_a_waiter_takes_over(
    kind: type[Decorated],
) -> None:
    strategy = kind()
    first, *others = [asyncio.create_task(strategy.prepare()) for _ in range(4)]
    await asyncio.sleep(0.5)
    first.cancel()
    await asyncio.gather(*others)
    assert first.cancelled()
    assert (strategy.begun, strategy.prepared) == (2, 1)


@BOTH
async def test_a_waiter_that_is_cancelled_disturbs_nobody(kind: type[Decorated]) -> None:
    strategy = kind()
    first, second, third = [asyncio.create_task(strategy.prepare()) for _ in range(3)]
    await asyncio.sleep(0.5)
    second.cancel()
    await asyncio.gather(first, third)
    assert second.cancelled()
    assert (strategy.begun, strategy.prepared) == (1, 1)


@pytest.mark.real_time
@BOTH
def test_loops_in_other_threads_wait_for_it(kind: type[Decorated]) -> None:
    strategy: Any = kind()
    ready = threading.Barrier(5)
    seen: list[int] = []

    async def work() -> None:
        strategy.begun += 1
        await asyncio.to_thread(ready.wait)
        await asyncio.sleep(0.01)
        strategy.prepared += 1

    async def prepare() -> None:
        preparing = asyncio.create_task(strategy.prepare())
        await asyncio.sleep(0)
        await asyncio.to_thread(ready.wait)
        await preparing
        seen.append(strategy.prepared)

    strategy.work = work

    def use() -> None:
        asyncio.run(prepare())

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1, 1, 1, 1]
    assert strategy.begun == 1


@pytest.mark.real_time
@BOTH
def test_what_one_loop_prepared_holds_for_the_next(kind: type[Decorated]) -> None:
    strategy: Any = kind()

    async def work() -> None:
        strategy.prepared += 1

    strategy.work = work
    for _ in range(2):
        asyncio.run(strategy.prepare())
    assert strategy.prepared == 1


async def test_the_mixin_prepares_anew_after_cleanup() -> None:
    strategy = Mixed()
    for run in (1, 2):
        await strategy.prepare()
        assert strategy.prepared == run
        await strategy.cleanup()
        assert strategy.cleaned == run


async def test_what_is_decorated_is_prepared_anew_when_it_is_forgotten() -> None:
    strategy = Decorated()
    await strategy.prepare()
    forget_prepared(strategy)
    await strategy.prepare()
    assert strategy.prepared == 2


@BOTH
async def test_a_processor_and_the_caller_share_one(kind: type[Decorated]) -> None:
    strategy = kind()
    async with ParallelBatchProcessor[str, str, None](
        config=ProcessorConfig(max_workers=5)
    ) as processor:
        for n in range(10):
            await processor.add_work(LLMWorkItem(str(n), strategy, "prompt"))
        _, result = await asyncio.gather(strategy.prepare(), processor.process_all())
    assert result.succeeded == 10
    assert strategy.prepared == 1


@BOTH
async def test_a_copy_begins_anew(kind: type[Decorated]) -> None:
    strategy = kind()
    await strategy.prepare()
    for twin in (copy.deepcopy(strategy), pickle.loads(pickle.dumps(strategy))):
        await twin.prepare()
        assert twin.prepared == 2


@BOTH
async def test_an_override_may_call_what_it_overrides(kind: type[Decorated]) -> None:
    class More(kind):  # type: ignore[misc,valid-type]
        @prepare_once
        async def prepare(self) -> None:
            await super().prepare()

    strategy = More()
    async with asyncio.timeout(10):
        await asyncio.gather(strategy.prepare(), strategy.prepare())
    assert strategy.prepared == 1


async def test_what_is_forgotten_while_it_is_prepared_is_prepared_again() -> None:
    strategy = Decorated()
    preparing = asyncio.create_task(strategy.prepare())
    await asyncio.sleep(0.5)
    forget_prepared(strategy)
    await strategy.prepare()
    await preparing
    assert strategy.begun == strategy.prepared == 2


def test_the_mixin_stands_before_the_strategy() -> None:
    with pytest.raises(TypeError, match="put PrepareOnceMixin before LLMCallStrategy"):

        class Late(LLMCallStrategy[str], PrepareOnceMixin):
            async def execute(
                self, prompt: str, attempt: int, timeout: float
            ) -> tuple[str, TokenUsage]:
                return prompt, {}


async def test_a_cleanup_that_fails_still_lets_the_next_one_prepare() -> None:
    class Failing(Decorated):
        async def cleanup(self) -> None:
            raise ConnectionError

    class Strategy(PrepareOnceMixin, Failing):
        async def _prepare_once(self) -> None:
            await self.work()

    strategy = Strategy()
    await strategy.prepare()
    with pytest.raises(ConnectionError):
        await strategy.cleanup()
    await strategy.prepare()
    assert strategy.prepared == 2


async def test_the_mixin_needs_no_parent() -> None:
    class Alone(PrepareOnceMixin):
        prepared = 0

        async def _prepare_once(self) -> None:
            self.prepared += 1

    alone = Alone()
    for _ in range(2):
        await alone.prepare()
        await alone.cleanup()
    assert alone.prepared == 2


async def test_only_async_methods_can_be_decorated() -> None:
    def prepare(self: object) -> None: ...

    wrong: Any = prepare
    with pytest.raises(TypeError, match="async def prepare"):
        prepare_once(wrong)


async def test_slots_are_refused_with_the_reason() -> None:
    class Slotted:
        __slots__ = ()

        @prepare_once
        async def prepare(self) -> None: ...

    with pytest.raises(TypeError, match="Slotted has __slots__"):
        await Slotted().prepare()
