"""Prepared once, cleaned up once, however many items and workers share a strategy."""

import asyncio
import gc
import logging
import weakref
from typing import Any

import pytest

from batch_llm import (
    BaseMiddleware,
    ErrorInfo,
    FrameworkTimeoutError,
    LLMWorkItem,
    ProcessingEvent,
    RetryConfig,
    WorkItemResult,
)
from tests.engine.support import (
    Item,
    Processor,
    Provider,
    Refused,
    errors,
    items,
    now,
    run,
    run_with,
    settings,
    start,
)
from tests.helpers import Recorder


class Preparing(Provider):
    """Its first prepares go as the steps say: an exception is raised, seconds are waited."""

    def __init__(self, *steps: BaseException | float, **options: Any) -> None:
        super().__init__(**options)
        self.steps = list(steps)
        self.tries: list[float] = []

    async def prepare(self) -> None:
        self.tries.append(now())
        step = self.steps.pop(0) if self.steps else 0.0
        if isinstance(step, BaseException):
            raise step
        await asyncio.sleep(step)
        await super().prepare()


class Closing(Provider):
    """Its cleanup does what it is told."""

    def __init__(self, failure: BaseException | None = None, seconds: float = 0.0) -> None:
        super().__init__()
        self.failure = failure
        self.closing_seconds = seconds

    async def cleanup(self) -> None:
        await super().cleanup()
        await asyncio.sleep(self.closing_seconds)
        if self.failure is not None:
            raise self.failure


class Renaming(BaseMiddleware[str, Any, Any]):
    """Gives every item another strategy, in a new item or in the same one."""

    def __init__(self, strategy: Any, *, in_place: bool) -> None:
        self.strategy = strategy
        self.in_place = in_place

    async def before_process(self, work_item: Item) -> Item:
        if self.in_place:
            work_item.strategy = self.strategy
            return work_item
        return LLMWorkItem(work_item.item_id, self.strategy, work_item.prompt)


async def test_a_thousand_items_and_fifty_workers_share_one_strategy() -> None:
    provider = Preparing(5.0, seconds=1.0)
    result = await run(*items(provider, 1000), config=settings(50))
    assert result.succeeded == 1000
    assert len(provider.tries) == len(provider.prepared) == len(provider.cleaned) == 1
    assert len(provider.calls) == 1000
    assert provider.instants[0] == 5.0
    assert provider.cleaned == [25.0]


async def test_a_strategy_of_its_own_is_cleaned_up_with_its_item() -> None:
    providers = [Provider(seconds=1.0) for _ in range(20)]
    await run(*[items(provider)[0] for provider in providers], config=settings(2))
    for number, provider in enumerate(providers):
        begun = float(number // 2)
        assert provider.prepared == provider.instants == [begun]
        assert provider.cleaned == [begun + 1.0]


async def test_strategies_prepare_side_by_side() -> None:
    providers = [Preparing(10.0) for _ in range(5)]
    await run(*[items(provider)[0] for provider in providers], config=settings(5))
    assert [provider.instants for provider in providers] == [[10.0]] * 5


async def test_one_that_prepares_holds_up_no_other() -> None:
    slow, quick = Preparing(10.0), Provider()
    await run(*items(slow), *items(quick, 5), config=settings(2))
    assert quick.instants == [0.0] * 5


async def test_equal_strategies_are_not_the_same() -> None:
    class Equal(Provider):
        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 1

    first, second = Equal(), Equal()
    await run(*items(first, 2), *items(second, 2), config=settings(4))
    for provider in (first, second):
        assert len(provider.prepared) == len(provider.cleaned) == 1
        assert len(provider.calls) == 2


async def test_a_strategy_need_not_be_hashable() -> None:
    class Unhashable(Provider):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            raise AssertionError("compared")

    provider = Unhashable()
    result = await run(*items(provider, 3), config=settings(3))
    assert result.succeeded == 3
    assert len(provider.prepared) == len(provider.cleaned) == 1


async def test_a_strategy_without_hooks_is_enough() -> None:
    class Bare:
        async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
            if attempt == 1:
                raise ConnectionError
            return prompt, {}

    work: Item = LLMWorkItem("1", Bare(), "hello")  # type: ignore[arg-type]
    result = await run(work)
    assert result.results[0].output == "hello"


async def test_plain_functions_will_do_as_hooks() -> None:
    class Plain(Provider):
        def prepare(self) -> None:  # type: ignore[override]
            self.prepared.append(now())

        def cleanup(self) -> None:  # type: ignore[override]
            self.cleaned.append(now())

    provider = Plain()
    await run(*items(provider, 2))
    assert provider.prepared == provider.cleaned == [0.0]


async def test_a_failed_prepare_is_repeated_like_an_attempt() -> None:
    provider = Preparing(ConnectionError(), ConnectionError())
    result = await run(*items(provider, 3), config=settings(3))
    assert result.succeeded == 3
    assert provider.tries == [0.0, 1.0, 3.0]
    assert provider.attempts == [1, 1, 1]
    assert provider.errors == []


async def test_a_prepare_that_fails_for_good_fails_every_item() -> None:
    recorder = Recorder()
    failures = [ConnectionError("first"), ConnectionError("second"), ConnectionError("last")]
    provider, other = Preparing(*failures), Provider()
    result = await run(
        *items(provider, 20), *items(other, 2), config=settings(4), observers=[recorder]
    )
    failed = [entry for entry in result.results if not entry.success]
    assert {entry.error for entry in failed} == {"ConnectionError: last"}
    assert all(entry.exception is failures[2] for entry in failed)
    assert [entry.attempts for entry in failed] == [0] * 20
    assert len(failed) == len(recorder.of(ProcessingEvent.ITEM_FAILED)) == 20
    assert result.succeeded == 2
    assert len(provider.tries) == 3
    assert provider.calls == provider.errors == []


async def test_a_permanent_failure_of_prepare_is_not_repeated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    provider = Preparing(ValueError("no such model"))
    result = await run(*items(provider, 5))
    assert errors(result) == ["ValueError: no such model"] * 5
    assert provider.tries == [0.0]
    assert "Preparing.prepare failed for good" in caplog.text


async def test_prepare_is_tried_again_in_the_next_run() -> None:
    provider = Preparing(ValueError("down"))
    async with Processor(config=settings()) as processor:
        assert (await run_with(processor, *items(provider, 2))).failed == 2
        assert (await run_with(processor, *items(provider, 2))).succeeded == 2
    assert len(provider.tries) == 2


async def test_prepare_is_bounded() -> None:
    provider = Preparing(1e6, 1e6, 1e6)
    config = settings(2, timeout_per_item=10.0)
    result = await run(*items(provider, 2), config=config)
    assert provider.tries == [0.0, 11.0, 23.0]
    assert all(isinstance(entry.exception, FrameworkTimeoutError) for entry in result.results)
    assert errors(result)[0] == (
        "FrameworkTimeoutError: timeout: Preparing.prepare took longer than 10.0 s"
    )


async def test_a_rate_limited_prepare_waits_and_uses_up_no_try() -> None:
    recorder = Recorder()
    provider, other = Preparing(*[Refused(10)] * 5), Provider()
    result = await run(
        *items(provider, 2),
        *items(other),
        config=settings(3, retry=RetryConfig(max_attempts=1)),
        observers=[recorder],
    )
    assert result.succeeded == 3
    assert provider.tries == [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]
    assert len(recorder.of(ProcessingEvent.RATE_LIMIT_HIT)) == 5


async def test_prepare_waits_for_a_cooldown() -> None:
    async def refuse_once(call: Any) -> str:
        if call.at == 0.0:
            raise Refused(60)
        return "ok"

    first, later = Provider(refuse_once), Provider()
    async with Processor(config=settings(2)) as processor:
        running = await start(processor, *items(first))
        await asyncio.sleep(1.0)
        await processor.add_work(*items(later))
        await running
    assert later.prepared == [60.0]


@pytest.mark.parametrize(
    "raised", [asyncio.CancelledError("mine"), GeneratorExit("mine")], ids=repr
)
async def test_a_prepare_that_raises_what_nobody_should(raised: BaseException) -> None:
    provider = Preparing(raised)
    result = await run(*items(provider, 3), config=settings(2))
    assert result.succeeded == 3
    assert len(provider.tries) == 2


async def test_a_dry_run_neither_prepares_nor_calls() -> None:
    provider = Provider()
    result = await run(*items(provider, 3), config=settings(2, dry_run=True))
    assert [entry.output for entry in result.results] == [
        f"[DRY-RUN] Mock output for prompt: prompt {number}..." for number in range(3)
    ]
    assert result.total_input_tokens == 300
    assert provider.prepared == provider.calls == provider.cleaned == []


async def test_a_dry_run_of_a_strategy_without_dry_run() -> None:
    class Bare:
        async def execute(self, prompt: str, attempt: int, timeout: float) -> Any: ...

    work: Item = LLMWorkItem("1", Bare(), "hello")  # type: ignore[arg-type]
    result = await run(work, config=settings(dry_run=True))
    assert result.results[0].output == "[DRY-RUN] Mock output for prompt: hello..."


async def test_ensuring_prepares_once_even_outside_a_run() -> None:
    provider = Preparing(5.0)
    async with Processor(config=settings(5)) as processor:
        await asyncio.gather(*[processor._ensure_strategy_prepared(provider) for _ in range(5)])
        await processor._ensure_strategy_prepared(provider)
        assert provider.tries == [0.0]
        await run_with(processor, *items(provider, 5))
        assert provider.tries == [0.0]
    assert provider.cleaned == [5.0]


async def test_what_was_prepared_and_never_used_is_cleaned_up() -> None:
    provider = Provider()
    async with Processor(config=settings()) as processor:
        await processor._ensure_strategy_prepared(provider)
        assert provider.cleaned == []
    assert len(provider.cleaned) == 1


async def test_ensuring_raises_what_prepare_raised() -> None:
    provider = Preparing(ValueError("no such model"))
    async with Processor(config=settings()) as processor:
        for _ in range(2):
            with pytest.raises(ValueError, match="no such model"):
                await processor._ensure_strategy_prepared(provider)
        result = await run_with(processor, *items(provider))
    assert errors(result) == ["ValueError: no such model"]
    assert len(provider.tries) == 1


async def test_ensuring_asks_the_given_classifier() -> None:
    class Final:
        def classify(self, exception: Exception) -> ErrorInfo:
            return ErrorInfo(False, False, False, "final")

    provider = Preparing(ConnectionError("gone"), 0.0)
    async with Processor(config=settings(), error_classifier=Final()) as processor:
        with pytest.raises(ConnectionError, match="gone"):
            await processor._ensure_strategy_prepared(provider)
    assert len(provider.tries) == 1


@pytest.mark.parametrize("in_place", [False, True], ids=["a new item", "the same item"])
async def test_middleware_may_change_the_strategy(in_place: bool) -> None:
    replaced, used = Provider(), Provider()
    middleware = Renaming(used, in_place=in_place)
    result = await run(*items(replaced, 3), *items(used), middlewares=[middleware])
    assert result.succeeded == 4
    assert replaced.prepared == replaced.calls == replaced.cleaned == []
    assert len(used.prepared) == len(used.cleaned) == 1
    assert len(used.calls) == 4


@pytest.mark.parametrize("in_place", [False, True], ids=["a new item", "the same item"])
async def test_a_strategy_is_cleaned_up_after_the_last_item_that_uses_it(in_place: bool) -> None:
    """One item was added with the strategy, the other was given it."""

    class Giving(Renaming):
        async def before_process(self, work_item: Item) -> Item:
            return (
                await super().before_process(work_item) if work_item.item_id == "0" else work_item
            )

    class Varying(Provider):
        async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
            assert not self.cleaned
            await asyncio.sleep(1.0 if prompt == "quick" else 9.0)
            return await super().execute(prompt, attempt, timeout)

    used = Varying()
    work: list[Item] = [
        LLMWorkItem("0", Provider(), "slow"),
        LLMWorkItem("1", used, "quick"),
    ]
    result = await run(*work, config=settings(2), middlewares=[Giving(used, in_place=in_place)])
    assert result.succeeded == 2
    assert len(used.prepared) == 1
    assert used.cleaned == [9.0]


async def test_a_strategy_that_middleware_made_for_one_item_is_cleaned_up_with_it() -> None:
    made: list[Provider] = []

    class Making(BaseMiddleware[str, Any, Any]):
        async def before_process(self, work_item: Item) -> Item:
            made.append(Provider(seconds=1.0))
            work_item.strategy = made[-1]
            return work_item

    await run(*items(Provider(), 3), middlewares=[Making()])
    assert [provider.cleaned for provider in made] == [[1.0], [2.0], [3.0]]


async def test_a_strategy_that_was_changed_after_its_item_was_added() -> None:
    added, used = Provider(), Provider()
    work = items(added, 2)
    async with Processor(config=settings(2)) as processor:
        for item in work:
            await processor.add_work(item)
        work[0].strategy = used
        work[1].strategy = used
        result = await processor.process_all()
    assert result.succeeded == 2
    assert added.calls == []
    assert len(used.prepared) == len(used.cleaned) == 1


@pytest.mark.parametrize(
    "provider",
    [
        Closing(ValueError("secret output")),
        Closing(asyncio.CancelledError()),
        Closing(GeneratorExit()),
        Closing(seconds=1e6),
    ],
    ids=["error", "cancelled", "exit", "hangs"],
)
@pytest.mark.parametrize("count", [1, 3], ids=["its own", "shared"])
async def test_a_failing_cleanup_is_logged_only(
    provider: Closing, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    provider.cleaned.clear()
    result = await run(*items(provider, count))
    assert result.succeeded == count
    assert len(provider.cleaned) == 1
    assert "Closing.cleanup failed with" in caplog.text
    assert "secret" not in "".join(
        record.getMessage() for record in caplog.records if record.levelno > logging.DEBUG
    )


async def test_cleanup_comes_after_failures_too() -> None:
    async def fail(call: Any) -> Any:
        raise ValueError

    single, shared, unprepared = Provider(fail), Provider(fail), Preparing(ValueError())
    await run(*items(single), *items(shared, 2), *items(unprepared))
    assert len(single.cleaned) == len(shared.cleaned) == len(unprepared.cleaned) == 1


async def test_cleanup_is_done_by_the_time_async_with_exits() -> None:
    provider = Closing(seconds=3.0)
    async with Processor(config=settings(2)) as processor:
        running = await start(processor, *items(provider, 5))
    assert provider.cleaned
    assert now() == 3.0
    await running


async def test_every_run_prepares_and_cleans_up_anew() -> None:
    provider = Provider(seconds=1.0)
    async with Processor(config=settings(5)) as processor:
        for _ in range(3):
            await run_with(processor, *items(provider, 5))
    assert provider.prepared == [0.0, 1.0, 2.0]
    assert provider.cleaned == [1.0, 2.0, 3.0]


async def test_items_that_are_added_later_share_what_is_prepared() -> None:
    provider = Provider(seconds=1.0)
    late = items(provider, 10)

    async def add_next(result: WorkItemResult[Any, Any]) -> None:
        if late:
            await processor.add_work(late.pop())

    processor = Processor(config=settings(3), post_processor=add_next)
    async with processor:
        result = await run_with(processor, *items(provider))
    assert result.succeeded == 11
    assert len(provider.prepared) == len(provider.cleaned) == 1


async def test_a_strategy_that_was_idle_for_a_while_is_still_prepared() -> None:
    shared, busy = Provider(), Provider(seconds=10.0)
    async with Processor(config=settings(2)) as processor:
        running = await start(processor, *items(busy), *items(shared, 2))
        await asyncio.sleep(5.0)
        await processor.add_work(*items(shared))
        await running
    assert len(shared.prepared) == len(shared.cleaned) == 1
    assert shared.cleaned == [10.0]


async def test_a_hundred_idle_strategies_are_kept_at_most() -> None:
    providers = [Provider(seconds=1.0) for _ in range(103)]
    work = [item for provider in providers for item in items(provider, 2)]
    await run(*work, config=settings(2))
    assert [provider.cleaned for provider in providers[:3]] == [[101.0], [102.0], [103.0]]
    assert all(provider.cleaned == [103.0] for provider in providers[3:])
    assert all(len(provider.prepared) == 1 for provider in providers)


async def test_nothing_is_kept_of_a_finished_strategy() -> None:
    async with Processor(config=settings()) as processor:
        provider = Provider()
        gone = weakref.ref(provider)
        await run_with(processor, *items(provider, 3))
        del provider
        gc.collect()
        assert gone() is None


async def test_what_waits_for_the_next_run_is_not_cleaned_up() -> None:
    """An item that comes while a run is ending stays for the next."""
    first = Closing(seconds=5.0)
    second, third = Provider(), Provider(seconds=10.0)
    async with Processor(config=settings()) as processor:
        running = await start(processor, *items(first, 2))
        await asyncio.sleep(1.0)
        assert not running.done()
        await processor.add_work(*items(second))
        await processor.add_work(*items(third))
        assert (await running).total_items == 2
        assert (await processor.process_all()).total_items == 2
    assert second.prepared == second.cleaned == [5.0]
    assert third.cleaned == [15.0]
