"""Exactly one result for every item and stats that always agree, however wild the run is."""

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_llm import (
    BaseMiddleware,
    LLMWorkItem,
    ProcessingEvent,
    RetryConfig,
    RetryState,
    WorkItemResult,
)
from tests.engine.support import (
    Call,
    Item,
    Processor,
    Provider,
    Refused,
    items,
    run,
    run_with,
    script,
    start,
)
from tests.engine.support import settings as config_with
from tests.helpers import Recorder


class Wild(Provider):
    """Everything that a provider can do, drawn anew for each call."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self.dice = dice

    async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
        self.calls.append(Call(0.0, prompt, attempt, timeout))
        await asyncio.sleep(self.dice.choice([0, 0, 0.5, 1.0, 30.0]))
        match self.dice.randrange(12):
            case 0:
                raise Refused(self.dice.choice([None, 0, 1, 3]))
            case 1:
                raise ConnectionError
            case 2:
                raise asyncio.CancelledError
            case 3:
                raise ValueError("permanent")
            case 4:
                current = asyncio.current_task()
                assert current is not None
                current.cancel()
                await asyncio.sleep(self.dice.choice([0, 1.0]))
            case 5:
                try:
                    await asyncio.sleep(30.0)
                except asyncio.CancelledError:
                    await asyncio.sleep(self.dice.choice([0, 0.5, 3.0]))
        return prompt, {"input_tokens": 2, "output_tokens": 1}

    async def prepare(self) -> None:
        await super().prepare()
        if self.dice.random() < 0.3:
            raise self.dice.choice([ConnectionError(), Refused(1), asyncio.CancelledError()])

    async def on_error(self, exception: BaseException, attempt: int) -> None:
        await asyncio.sleep(self.dice.choice([0, 0, 0.5, 30.0]))


class WildMiddleware(BaseMiddleware[str, Any, Any]):
    def __init__(self, dice: random.Random, strategies: list[Wild]) -> None:
        self.dice = dice
        self.strategies = strategies

    async def before_process(self, work_item: Item) -> Item | None:
        await asyncio.sleep(self.dice.choice([0, 0, 0.5]))
        match self.dice.randrange(8):
            case 0:
                return None
            case 1:
                raise LookupError
            case 2:
                work_item.strategy = self.dice.choice(self.strategies)
            case 3:
                return LLMWorkItem(work_item.item_id, self.dice.choice(self.strategies))
        return work_item

    async def after_process(self, result: WorkItemResult[Any, Any]) -> Any:
        match self.dice.randrange(6):
            case 0:
                result.success, result.error = False, "Rejected: by middleware"
            case 1:
                return None
        return result

    async def on_error(self, work_item: Item, exception: BaseException) -> Any:
        if self.dice.random() < 0.2:
            return WorkItemResult(work_item.item_id, True, "recovered")
        return None


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    workers=st.integers(1, 8),
    count=st.integers(0, 40),
    rate=st.sampled_from([None, 30.0, 600.0]),
    queue=st.sampled_from([0, 1, 5]),
)
async def test_a_wild_run(
    seed: int, workers: int, count: int, rate: float | None, queue: int
) -> None:
    dice = random.Random(seed)
    strategies = [Wild(dice) for _ in range(3)]
    seen: list[WorkItemResult[Any, Any]] = []
    recorder = Recorder()

    async def post_process(result: WorkItemResult[Any, Any]) -> None:
        seen.append(result)
        stats = await processor.get_stats()
        assert stats["processed"] == stats["succeeded"] + stats["failed"] <= stats["total"]

    config = config_with(
        workers,
        cooldown=2.0,
        slow_start_items=dice.choice([0, 3]),
        max_requests_per_minute=rate,
        timeout_per_item=10.0,
        max_queue_size=queue,
        retry=RetryConfig(max_attempts=3),
    )
    processor = Processor(
        config=config,
        middlewares=[WildMiddleware(dice, strategies)],
        observers=[recorder],
        post_processor=post_process,
    )
    work: list[Item] = [
        LLMWorkItem(str(number), dice.choice([*strategies, Wild(dice)])) for number in range(count)
    ]
    async with processor:
        running = await start(processor, *work[: queue or count])
        results = []
        for item in work[queue or count :]:
            try:
                await processor.add_work(item)
            except RuntimeError:
                # The queue is full, and the run that would have emptied it is over.
                results += (await running).results
                running = await start(processor)
                await processor.add_work(item)
        results += (await running).results
        results += (await processor.process_all()).results
    await asyncio.sleep(1000.0)
    assert sorted(int(result.item_id) for result in results) == list(range(count))
    assert {id(result) for result in seen} <= {id(result) for result in results}
    assert all(result.success == (result.error is None) for result in results)
    ended = (ProcessingEvent.ITEM_COMPLETED, ProcessingEvent.ITEM_FAILED)
    assert sum(event in ended for event, _ in recorder.seen) == count
    assert len(recorder.of(ProcessingEvent.ITEM_STARTED)) == count


async def test_the_post_processor_gets_the_very_results_of_the_run() -> None:
    class Skipping(BaseMiddleware[str, Any, Any]):
        async def before_process(self, work_item: Item) -> Item | None:
            return None if work_item.item_id == "2" else work_item

    seen: list[Any] = []
    provider = Provider(script("ok", ValueError("permanent")))
    result = await run(*items(provider, 3), post_processor=seen.append, middlewares=[Skipping()])
    assert [entry.error for entry in seen] == [
        None,
        "ValueError: permanent",
        "Skipped by middleware",
    ]
    assert all(first is second for first, second in zip(seen, result.results, strict=True))


async def test_stats_follow_the_run() -> None:
    provider = Provider(script("ok", ValueError(), Refused(10)), seconds=1.0)
    async with Processor(config=config_with()) as processor:
        assert (await processor.get_stats())["start_time"] is None
        running = await start(processor, *items(provider, 4))
        counts = []
        for _ in range(4):
            await asyncio.sleep(1.5)
            stats = await processor.get_stats()
            counts.append((stats["processed"], stats["failed"], stats["rate_limit_count"]))
        await running
        stats = await processor.get_stats()
    assert counts == [(1, 0, 0), (2, 1, 0), (2, 1, 1), (2, 1, 1)]
    assert (stats["total"], stats["processed"], stats["succeeded"]) == (4, 4, 3)
    assert stats["start_time"] is not None


async def test_a_snapshot_is_a_copy() -> None:
    async with Processor(config=config_with()) as processor:
        before = await processor.get_stats()
        await run_with(processor, *items(Provider(script(ValueError()))))
        assert before["processed"] == 0
        assert before["error_counts"] == {}


@pytest.mark.parametrize("workers", [1, 7, 500])
async def test_any_number_of_workers_gives_every_result_once(workers: int) -> None:
    provider = Provider(seconds=1.0)
    result = await run(*items(provider, 300), config=config_with(workers))
    assert sorted(int(entry.item_id) for entry in result.results) == list(range(300))
    assert len(provider.calls) == 300


async def test_contexts_and_ids_come_back() -> None:
    context = object()
    item: Item = LLMWorkItem("  odd id\n", Provider(), "p", context)
    [entry] = (await run(item)).results
    assert entry.item_id == "  odd id\n"
    assert entry.context is context


async def test_only_attempts_that_began_are_counted() -> None:
    """The strategy's wrong answer to one item ends the other, which was to be retried."""

    class Broken(Provider):
        async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
            if prompt == "prompt 0":
                raise ConnectionError
            await asyncio.sleep(0.5)
            return "no tuple"

    result = await run(*items(Broken(), 2), config=config_with(2))
    assert [entry.error[:21] for entry in result.results] == ["StrategyContractError"] * 2
    assert [entry.attempts for entry in result.results] == [1, 1]


async def test_what_middleware_recovers_keeps_its_attempts_and_its_context() -> None:
    class Recovering(BaseMiddleware[str, Any, Any]):
        async def on_error(self, work_item: Item, exception: BaseException) -> Any:
            own = {"context": "mine", "attempts": 7} if work_item.item_id == "own" else {}
            return WorkItemResult(work_item.item_id, True, "recovered", **own)

    async def answer(call: Call) -> Any:
        raise ConnectionError

    provider = Provider(answer)
    work: list[Item] = [
        LLMWorkItem("plain", provider, context="row 1"),
        LLMWorkItem("own", provider, context="row 2"),
    ]
    plain, own = (await run(*work, middlewares=[Recovering()])).results
    assert (plain.context, plain.attempts, plain.exception) == ("row 1", 3, None)
    assert (own.context, own.attempts, own.exception) == ("mine", 7, None)


class Asking(Provider):
    """Asks for what its item remembers."""

    async def execute(
        self, prompt: str, attempt: int, timeout: float, state: RetryState | None = None
    ) -> Any:
        return await super().execute(prompt, attempt, timeout)


@pytest.mark.parametrize("strategy", [Provider(), Asking()], ids=["forgetful", "remembering"])
async def test_a_result_of_middleware_keeps_what_it_says_itself(strategy: Provider) -> None:
    own = RetryState("mine", None)

    class Replacing(BaseMiddleware[str, Any, Any]):
        async def after_process(self, result: WorkItemResult[Any, Any]) -> Any:
            replaced = WorkItemResult[Any, Any](
                result.item_id, True, token_usage={"input_tokens": 7}
            )
            replaced.retry_state = own
            return replaced

    [entry] = (await run(*items(strategy), middlewares=[Replacing()])).results
    assert entry.token_usage == {"input_tokens": 7}
    assert entry.retry_state is own
