"""Collaborators as pipelines have them: partial, replaced between runs, used outside a run."""

import asyncio
import threading
from typing import Any

import pytest

from batch_llm import (
    BaseMiddleware,
    BaseObserver,
    DefaultErrorClassifier,
    ErrorInfo,
    FixedDelayStrategy,
    LLMWorkItem,
    ProcessingEvent,
    RateLimitStrategy,
    StrategyContractError,
    WorkItemResult,
)
from tests.engine.moments import other_tasks
from tests.engine.support import (
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
)
from tests.helpers import Recorder


class OnlyBefore:
    async def before_process(self, item: LLMWorkItem[str, Any, Any]) -> Any:
        item.prompt += " please"
        return item


class OnlyAfter:
    async def after_process(self, result: WorkItemResult[Any, Any]) -> Any:
        result.output += "!"
        return result


class OnlyOnError:
    async def on_error(self, item: LLMWorkItem[str, Any, Any], error: BaseException) -> Any:
        return WorkItemResult(item.item_id, True, "recovered")


async def test_a_middleware_need_not_have_every_hook() -> None:
    provider = Provider(script("ok", ValueError()))
    result = await run(*items(provider, 2), middlewares=[OnlyBefore(), OnlyAfter(), OnlyOnError()])
    assert outputs(result) == ["ok!", "recovered"]
    assert [call.prompt for call in provider.calls] == ["prompt 0 please", "prompt 1 please"]


async def test_a_rate_limit_strategy_need_not_know_slow_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Pause:
        async def on_rate_limit(self, worker_id: int, consecutive: int) -> float:
            return 7.0

    provider = Provider(script(Refused()))
    await run(*items(provider, 2), rate_limit_strategy=Pause())
    assert provider.instants == [0.0, 7.0, 7.0]
    assert caplog.messages == ["rate limited: all workers pause for 7 s"]


async def test_what_is_assigned_between_runs_is_used_in_the_next() -> None:
    class Permanent(DefaultErrorClassifier):
        def classify(self, exception: Exception) -> ErrorInfo:
            return ErrorInfo(False, isinstance(exception, Refused), False, "permanent")

    seen: list[Any] = []
    recorder = Recorder()
    async with Processor(config=settings()) as processor:
        await run_with(processor, *items(Provider()))
        processor.error_classifier = Permanent()
        processor.rate_limit_strategy = FixedDelayStrategy(3.0, 0.0)
        processor.middlewares = [OnlyAfter()]  # type: ignore[list-item]
        processor.observers = [recorder]
        processor.post_processor = seen.append
        processor.progress_callback = lambda *report: seen.append(report)
        provider = Provider(script(Refused(), ConnectionError("once"), "ok"))
        result = await run_with(processor, *items(provider, 2))
    assert provider.instants == [0.0, 3.0, 3.0]
    assert [entry.error or entry.output for entry in result.results] == [
        "ConnectionError: once",
        "ok!",
    ]
    assert seen == [*result.results, (2, 2, "1")]
    assert len(recorder.of(ProcessingEvent.BATCH_COMPLETED)) == 1


class Failing(RateLimitStrategy):
    async def on_rate_limit(self, worker_id: int, consecutive_limit_count: int) -> float:
        raise LookupError("no idea")

    def should_apply_slow_start(self, items_since_resume: int) -> tuple[bool, float]:
        return False, 0.0


@pytest.mark.parametrize(
    ("strategy", "ended", "at"),
    [
        (Failing(), {"duration": 0.0, "error": "LookupError: no idea"}, 0.0),
        (FixedDelayStrategy(5.0), {"duration": 5.0}, 5.0),
    ],
)
async def test_observers_are_told_of_a_cooldown_outside_a_run(
    strategy: RateLimitStrategy, ended: dict[str, Any], at: float
) -> None:
    recorder = Recorder()
    processor = Processor(rate_limit_strategy=strategy, observers=[recorder, BaseObserver()])
    await processor._handle_rate_limit(worker_id=3)
    assert now() == at
    assert [event for event, _ in recorder.seen] == [
        ProcessingEvent.COOLDOWN_STARTED,
        ProcessingEvent.COOLDOWN_ENDED,
    ]
    assert recorder.of(ProcessingEvent.COOLDOWN_ENDED) == [ended]
    assert (await run_with(processor, *items(Provider()))).succeeded == 1


async def test_a_run_that_begins_in_a_cooldown_outside_one_is_told_to_its_end() -> None:
    recorder = Recorder()
    processor = Processor(rate_limit_strategy=FixedDelayStrategy(5.0), observers=[recorder])
    handling = asyncio.create_task(processor._handle_rate_limit())
    await asyncio.sleep(1.0)
    assert (await run_with(processor, *items(Provider(seconds=10.0), 2))).succeeded == 2
    await handling
    assert recorder.seen[-1][0] is ProcessingEvent.BATCH_COMPLETED
    assert len(recorder.of(ProcessingEvent.ITEM_COMPLETED)) == 2


async def test_a_strategy_that_has_answered_pays_for_a_wrong_shape_with_that_item_only() -> None:
    class Forgetful(Provider):
        async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
            answer = await super().execute(prompt, attempt, timeout)
            return None if prompt == "prompt 2" else answer

    provider = Forgetful()
    result = await run(*items(provider, 5))
    assert [entry.success for entry in result.results] == [True, True, False, True, True]
    assert isinstance(result.results[2].exception, StrategyContractError)
    assert len(provider.calls) == 5


async def test_a_dry_run_may_be_a_plain_function() -> None:
    class Dry(Provider):
        def dry_run(self, prompt: str) -> Any:  # type: ignore[override]
            return f"dry {prompt}", {}

    result = await run(*items(Dry()), config=settings(dry_run=True))
    assert outputs(result) == ["dry prompt 0"]
    assert errors(result) == [None]


async def test_a_middleware_of_the_base_class_still_has_every_hook() -> None:
    result = await run(*items(Provider(), 2), middlewares=[BaseMiddleware[str, Any, Any]()])
    assert result.succeeded == 2


class Noticing:
    """An async progress callback that is an object, and sees the threads there are."""

    def __init__(self) -> None:
        self.threads = set[threading.Thread]()

    async def __call__(self, completed: int, total: int, current_item: str) -> None:
        self.threads.update(threading.enumerate())


@pytest.mark.parametrize("is_object", [True, False])
async def test_an_async_progress_callback_takes_no_thread(is_object: bool) -> None:
    before, noticing = set(threading.enumerate()), Noticing()
    callback = noticing if is_object else noticing.__call__
    await run(*items(Provider(), 3), progress_callback=callback)
    assert noticing.threads == before


async def test_a_plain_progress_callback_that_works_is_no_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[int] = []

    def notice(completed: int, total: int, current_item: str) -> None:
        seen.append(completed)

    async with Processor(config=settings(), progress_callback=notice) as processor:
        await run_with(processor, *items(Provider(), 3))
        if running := other_tasks():
            await asyncio.wait(running)
    assert seen == [3]
    assert caplog.messages == []


async def test_a_progress_callback_may_end_the_run() -> None:
    ends: list[float] = []

    async def end(completed: int, total: int, current_item: str) -> None:
        await processor.cleanup()
        ends.append(now())

    config = settings(progress_interval=1)
    async with Processor(config=config, progress_callback=end) as processor:
        result = await run_with(processor, *items(Provider(seconds=10.0), 5))
        assert (result.total_items, result.not_run) == (1, ["1", "2", "3", "4"])
        assert ends[0] == now() == 10.0
