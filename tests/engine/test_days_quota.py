"""A quota of the day, and whatever else a classifier says of a refusal."""

import asyncio
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from batch_llm import (
    BaseMiddleware,
    DefaultErrorClassifier,
    ErrorInfo,
    ProcessorConfig,
    RateLimitConfig,
    WorkItemResult,
)
from tests.engine.support import Call, Provider, Refused, items, now, run, script


class DaysQuota(DefaultErrorClassifier):
    def classify(self, exception: Exception) -> ErrorInfo:
        if isinstance(exception, Refused):
            return ErrorInfo(False, True, False, "rate_limit", 1.0, "no more today", ends_run=True)
        return super().classify(exception)


def spent_after(answers: int) -> Provider:
    given = 0

    async def execute(call: Call) -> Any:
        nonlocal given
        given += 1
        if given > answers:
            raise Refused
        await asyncio.sleep(5.0)

    return Provider(execute)


async def test_a_days_quota_that_is_spent_ends_the_run(caplog: pytest.LogCaptureFixture) -> None:
    provider = spent_after(7)
    result = await run(
        *items(provider, 20),
        config=ProcessorConfig(max_workers=5),
        error_classifier=DaysQuota(),
        observers=[],
    )
    # Those in flight at the first refusal are finished; nobody waits for the rest.
    assert (result.succeeded, result.failed) == (7, 0)
    assert (result.interrupted, result.stop_reason) == (True, "no more today")
    assert sorted(result.not_run, key=int) == [str(number) for number in range(7, 20)]
    assert now() == 10.0
    assert len(provider.calls) == 8
    assert "the run ends: no more today; 2 items in flight may finish within 30 s" in caplog.text
    timers = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    assert [timer for timer in timers if not timer.cancelled()] == []


async def test_whoever_asks_for_cooldowns_waits_for_the_next_day() -> None:
    provider = spent_after(0)
    config = ProcessorConfig(
        max_workers=1, rate_limit=RateLimitConfig(max_rate_limits_per_item=3, slow_start_items=0)
    )
    result = await run(*items(provider), config=config, error_classifier=DaysQuota())
    assert (result.failed, result.interrupted, len(provider.calls)) == (1, False, 3)


class Lookalikes(DefaultErrorClassifier):
    """Gives what looks like an ErrorInfo."""

    def __init__(self, **more: Any) -> None:
        self.more = more

    def classify(self, exception: Exception) -> Any:
        known = {"is_retryable": False, "is_rate_limit": True, "is_timeout": False}
        return SimpleNamespace(**known, error_category="rate_limit", **self.more)


@pytest.mark.parametrize(
    ("more", "ends"), [({"ends_run": True}, True), ({"ends_run": "yes"}, False), ({}, False)]
)
async def test_what_looks_like_an_error_info_may_end_the_run_too(
    more: dict[str, Any], ends: bool
) -> None:
    result = await run(
        *items(Provider(script(Refused())), 3),
        config=ProcessorConfig(max_workers=1),
        error_classifier=Lookalikes(**more),
    )
    assert result.interrupted is ends
    assert result.stop_reason == ("Refused: slow down" if ends else None)
    assert result.succeeded == (0 if ends else 3)


async def test_a_hint_that_is_no_number_is_none() -> None:
    provider = Provider(script(Refused()))
    classifier = Lookalikes(suggested_wait="soon")
    result = await run(
        *items(provider), config=ProcessorConfig(max_workers=1), error_classifier=classifier
    )
    assert result.succeeded == 1
    assert 0.5 <= now() <= 2.0


async def test_the_first_refusal_is_why_the_run_ends() -> None:
    class Counting(DaysQuota):
        async def execute(self, call: Call) -> Any:
            await asyncio.sleep(call.at + 1.0 + int(call.prompt.removeprefix("prompt ")))
            raise Refused(float(now()))

        def classify(self, exception: Exception) -> ErrorInfo:
            return ErrorInfo(False, True, False, "rate_limit", 1.0, f"at {now()}", ends_run=True)

    days = Counting()
    result = await run(
        *items(Provider(days.execute), 2),
        config=ProcessorConfig(max_workers=2),
        error_classifier=days,
    )
    assert result.stop_reason == "at 1.0"
    # The second call was in flight, and nothing waits for its grace once it has ended.
    assert now() == 2.0


async def test_a_call_that_was_left_behind_brings_no_result_of_another() -> None:
    """It ends while its item, in other hands, is the last of a run that ends."""

    async def answer(call: Call) -> Any:
        while call.prompt == "prompt 0" and now() < 20.0:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(20.0 - now())
        await asyncio.sleep(10.0)
        raise Refused

    async def post_process(result: WorkItemResult[Any, Any]) -> None:
        await asyncio.sleep(20.0)

    result = await run(
        *items(Provider(answer), 2),
        config=ProcessorConfig(max_workers=2, timeout_per_item=15.0),
        error_classifier=DaysQuota(),
        post_processor=post_process,
    )
    assert result.stop_reason == "no more today"
    assert [entry.item_id for entry in result.results] == ["0"]


async def refused_second(call: Call) -> Any:
    await asyncio.sleep(1.0 + int(call.prompt.removeprefix("prompt ")))
    if call.prompt == "prompt 1":
        raise Refused


async def test_workers_without_an_item_do_not_hold_up_a_run_that_winds_down() -> None:
    result = await run(
        *items(Provider(refused_second), 3),
        config=ProcessorConfig(max_workers=6),
        error_classifier=DaysQuota(),
    )
    assert (result.succeeded, result.not_run) == (2, ["1"])
    assert now() == 3.0


async def test_an_answer_that_middleware_looks_at_is_finished_though_the_run_winds_down() -> None:
    class Looking(BaseMiddleware[Any, Any, Any]):
        async def after_process(self, result: Any) -> Any:
            await asyncio.sleep(5.0)
            return result

    result = await run(
        *items(Provider(refused_second), 2),
        config=ProcessorConfig(max_workers=2),
        error_classifier=DaysQuota(),
        middlewares=[Looking()],
    )
    assert (result.succeeded, result.not_run) == (1, ["1"])
