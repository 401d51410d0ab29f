"""Duplicates of stragglers: who gets one, which answer counts, and what it costs."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from batch_llm import (
    BatchResult,
    LLMCallStrategy,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessingEvent,
    ProcessorConfig,
    RateLimitConfig,
    RetryConfig,
    StrategyContractError,
    TokenUsage,
    WorkItemResult,
)
from batch_llm.llm_strategies._usage import ReportedUsage
from tests.helpers import Recorder

Result = BatchResult[Any, Any]
Step = float | tuple[float, BaseException]

USAGE: TokenUsage = {
    "input_tokens": 10,
    "output_tokens": 5,
    "total_tokens": 15,
    "cached_input_tokens": 4,
}


def now() -> float:
    return asyncio.get_running_loop().time()


class Provider(LLMCallStrategy[Any]):
    """Answers after a second, but for the named items: their calls play one step each."""

    def __init__(self, **steps: list[Step]) -> None:
        self.steps = {name: deque(played) for name, played in steps.items()}
        self.calls: list[tuple[str, float, int]] = []
        self.given_up: list[str] = []
        self.in_flight = self.peak = 0

    async def execute(self, prompt: str, attempt: int, timeout: float) -> tuple[Any, TokenUsage]:
        self.calls.append((prompt, now(), attempt))
        number = len([call for call in self.calls if call[0] == prompt])
        steps = self.steps.get(prompt)
        step = steps.popleft() if steps else 1.0
        seconds, error = step if isinstance(step, tuple) else (step, None)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.given_up.append(f"{prompt} {number}")
            raise
        finally:
            self.in_flight -= 1
        if error is not None:
            raise error
        return f"{prompt} {number}", USAGE

    def calls_of(self, prompt: str) -> list[float]:
        return [at for name, at, _ in self.calls if name == prompt]


async def run(provider: Provider, *, items: int = 40, workers: int = 10, **options: Any) -> Result:
    settings: dict[str, Any] = {"hedge_after": 0.9, "timeout_per_item": 100.0} | options
    config = ProcessorConfig(
        max_workers=workers, retry=RetryConfig(max_attempts=2, jitter=False), **settings
    )
    async with ParallelBatchProcessor[str, Any, Any](config=config) as processor:
        for n in range(items):
            await processor.add_work(LLMWorkItem(str(n), provider, str(n)))
        result = await processor.process_all()
        result.stats = await processor.get_stats()  # type: ignore[attr-defined]
    return result


def output_of(result: Result, item_id: str) -> Any:
    [found] = [entry for entry in result.results if entry.item_id == item_id]
    return found.output


async def test_a_straggler_gets_one_duplicate_and_the_first_answer_counts() -> None:
    provider = Provider(**{"35": [50.0]})
    result = await run(provider)
    assert result.succeeded == 40
    # It began at 3 s, is late after the second that all others took, and then takes as long.
    assert provider.calls_of("35") == [3.0, 4.0]
    assert now() == 5.0
    assert output_of(result, "35") == "35 2"
    assert provider.given_up == ["35 1"]
    assert [attempt for name, _, attempt in provider.calls if name == "35"] == [1, 1]
    assert result.results[-1].attempts == 1


async def test_the_first_call_counts_where_it_answers_first() -> None:
    provider = Provider(**{"35": [1.5, 50.0]})
    result = await run(provider)
    assert provider.calls_of("35") == [3.0, 4.0]
    assert output_of(result, "35") == "35 1"
    assert now() == 4.5
    assert provider.given_up == ["35 2"]


async def test_it_is_off_by_default() -> None:
    provider = Provider(**{"35": [50.0]})
    await run(provider, hedge_after=None)
    assert len(provider.calls) == 40
    assert now() == 53.0


async def test_what_is_given_up_costs_its_prompt() -> None:
    result = await run(Provider(**{"35": [50.0]}))
    assert result.total_input_tokens == 41 * 10
    assert result.total_output_tokens == 40 * 5
    assert result.total_cached_tokens == 41 * 4


async def test_both_costs_are_counted_where_both_answer() -> None:
    class Stubborn(Provider):
        async def execute(
            self, prompt: str, attempt: int, timeout: float
        ) -> tuple[Any, TokenUsage]:
            try:
                return await super().execute(prompt, attempt, timeout)
            except asyncio.CancelledError:
                return "late", USAGE

    result = await run(Stubborn(**{"35": [50.0]}))
    assert output_of(result, "35") == "35 2"
    assert result.total_output_tokens == 41 * 5


class Scripted(Provider):
    """Item 35's calls are what the test says, one after the other."""

    def __init__(self, *calls: Callable[[], Awaitable[Any]]) -> None:
        super().__init__()
        self.scripted = deque(calls)

    async def execute(self, prompt: str, attempt: int, timeout: float) -> tuple[Any, TokenUsage]:
        if prompt == "35" and self.scripted:
            return await self.scripted.popleft()()  # type: ignore[no-any-return]
        return await super().execute(prompt, attempt, timeout)


def after(seconds: float, outcome: object, *, when_given_up: object = None) -> Any:
    async def call() -> object:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            if when_given_up is None:
                raise
            return when_given_up
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return call


async def test_the_answer_counts_though_the_other_call_will_not_end() -> None:
    async def stuck() -> Any:
        for _ in range(30):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1)

    result = await run(Scripted(stuck, after(1.0, ("answer", USAGE))))
    assert output_of(result, "35") == "answer"
    assert result.results[-1].attempts == 1
    assert result.total_input_tokens == 41 * 10
    await asyncio.sleep(30)


@pytest.mark.parametrize("returned", [(), ("text",), "text"])
async def test_what_the_other_call_returns_harms_no_answer(returned: Any) -> None:
    late = after(50.0, None, when_given_up=returned)
    result = await run(Scripted(late, after(1.0, ("answer", USAGE))))
    assert output_of(result, "35") == "answer"


async def test_a_wrong_answer_is_named_though_the_other_call_is_given_up() -> None:
    result = await run(Scripted(after(50.0, None), after(1.0, ("text",))))
    [failed] = [entry for entry in result.results if not entry.success]
    assert isinstance(failed.exception, StrategyContractError)


async def test_metadata_is_that_of_the_answer() -> None:
    first, second = (ReportedUsage(USAGE, {"call": n}) for n in (1, 2))
    late = after(50.0, None, when_given_up=("late", first))
    result = await run(Scripted(late, after(1.0, ("answer", second))))
    [entry] = [entry for entry in result.results if entry.item_id == "35"]
    assert (entry.output, entry.metadata) == ("answer", {"call": 2})


@pytest.mark.parametrize(
    "calls",
    [
        (after(50.0, ("text", {})), after(1.0, KeyboardInterrupt())),
        (after(1.5, KeyboardInterrupt()), after(50.0, ("text", {}))),
    ],
    ids=["duplicate", "first"],
)
async def test_who_ends_the_program_is_obeyed(calls: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        await run(Scripted(*calls))
    assert now() <= 6.0


async def test_nothing_is_late_before_there_are_answers_to_compare() -> None:
    provider = Provider(**{"12": [50.0]})
    await run(provider, items=15, workers=5)
    assert len(provider.calls) == 15


async def test_a_duplicate_waits_for_a_worker_without_work() -> None:
    provider = Provider(**{"35": [50.0]})
    await run(provider, items=70)
    # The nine others begin the last of 30 items at 7 s, when six of them are free.
    assert provider.calls_of("35") == [3.0, 7.0]
    assert provider.peak == 10


async def test_a_lent_worker_takes_no_item_until_the_duplicate_is_done() -> None:
    provider = Provider(**{"35": [50.0, 10.0]})
    config = ProcessorConfig(max_workers=2, hedge_after=0.9, timeout_per_item=100.0)
    async with ParallelBatchProcessor[str, Any, Any](config=config) as processor:
        for n in range(36):
            await processor.add_work(LLMWorkItem(str(n), provider, str(n)))
        running = asyncio.create_task(processor.process_all())
        await asyncio.sleep(20)
        assert provider.calls_of("35") == [17.0, 18.0]
        for name in ("new", "newer"):
            await processor.add_work(LLMWorkItem(name, provider, name))
        result = await running
    assert result.succeeded == 38
    assert provider.calls_of("new") == provider.calls_of("newer") == [28.0]
    assert provider.peak == 2


async def test_one_worker_alone_never_duplicates() -> None:
    provider = Provider(**{"35": [50.0]})
    await run(provider, workers=1)
    assert len(provider.calls) == 40


async def test_a_duplicate_that_fails_leaves_it_to_the_first() -> None:
    provider = Provider(**{"35": [50.0, (1.0, ValueError("no"))]})
    result = await run(provider)
    assert output_of(result, "35") == "35 1"
    assert now() == 53.0
    assert len(provider.calls_of("35")) == 2


async def test_a_first_call_that_fails_leaves_it_to_the_duplicate() -> None:
    provider = Provider(**{"35": [(1.5, ValueError("no")), 5.0]})
    result = await run(provider)
    assert output_of(result, "35") == "35 2"
    assert now() == 9.0


async def test_where_both_fail_it_is_one_failed_attempt() -> None:
    errors: list[Step] = [(3.0, ConnectionError("first")), (1.0, ConnectionError("second"))]
    provider = Provider(**{"35": [*errors, *errors]})
    result = await run(provider)
    [failed] = [entry for entry in result.results if not entry.success]
    assert failed.error == "ConnectionError: first"
    assert failed.attempts == 2
    assert len(provider.calls_of("35")) == 4


async def test_a_timeout_ends_both() -> None:
    provider = Provider(**{"35": [50.0, 50.0]})
    result = await run(provider, timeout_per_item=5.0)
    assert provider.given_up == ["35 1", "35 2"]
    assert provider.calls_of("35")[2:] == [9.0]
    assert result.succeeded == 40
    assert provider.in_flight == 0


async def test_duplicates_pass_the_gate() -> None:
    provider = Provider(**{"35": [50.0]})
    await run(provider, max_requests_per_minute=30, rate_limit=RateLimitConfig())
    first, second = provider.calls_of("35")
    later = [at for _, at, _ in provider.calls if first < at < second]
    assert second - max(later, default=first) == pytest.approx(2.0)


async def test_a_first_call_that_answers_in_time_spares_the_duplicate_in_line() -> None:
    provider = Provider(**{"35": [1.5]})
    result: Any = await run(provider, items=39, max_requests_per_minute=30)
    assert result.stats["hedged_calls"] == 0
    starts = [at for _, at, _ in provider.calls]
    assert starts == pytest.approx([2.0 * n for n in range(39)])


async def test_a_call_that_is_quicker_than_usual_has_no_duplicate() -> None:
    provider = Provider(**{str(n): [0.5] for n in range(30, 40)})
    result: Any = await run(provider)
    assert result.stats["hedged_calls"] == 0
    assert now() == 3.5


async def test_a_worker_whose_place_is_lent_when_the_run_ends_stops_too() -> None:
    provider, recorder = Provider(**{"35": [50.0, 50.0]}), Recorder()
    config = ProcessorConfig(max_workers=5, hedge_after=0.9, timeout_per_item=100.0)
    async with ParallelBatchProcessor[str, Any, Any](
        config=config, observers=[recorder]
    ) as processor:
        for n in range(36):
            await processor.add_work(LLMWorkItem(str(n), provider, str(n)))
        running = asyncio.create_task(processor.process_all())
        await asyncio.sleep(20.0)
        assert provider.in_flight == 2
        await processor.cleanup()
        await running
    stopped = [data["worker_id"] for data in recorder.of(ProcessingEvent.WORKER_STOPPED)]
    assert sorted(stopped) == [0, 1, 2, 3, 4]


async def test_a_duplicate_that_is_refused_teaches_the_limit_and_costs_no_attempt() -> None:
    provider = Provider(**{"39": [9.0, (0.1, RuntimeError("429 Too Many Requests"))]})
    result: Any = await run(provider)
    assert result.succeeded == 40
    assert output_of(result, "39") == "39 1"
    assert result.results[-1].attempts == 1
    assert result.stats["rate_limit_count"] == 1


async def test_no_duplicate_goes_out_once_the_run_is_wound_down() -> None:
    provider = Provider(**{"35": [50.0]})
    config = ProcessorConfig(
        max_workers=10, hedge_after=0.9, timeout_per_item=100.0, max_requests_per_minute=30
    )
    async with ParallelBatchProcessor[str, Any, Any](config=config) as processor:
        for n in range(37):
            await processor.add_work(LLMWorkItem(str(n), provider, str(n)))
        running = asyncio.create_task(processor.process_all())
        # The duplicate of the call that went out at 70 s stands in line.
        await asyncio.sleep(73.5)
        assert processor._engine.pool is not None
        processor._engine.pool.wind_down("enough")
        result = await running
    assert len(provider.calls_of("35")) == 1
    assert result.interrupted


class Hundred:
    """Thinks that each call uses a hundred tokens."""

    def estimate(self, strategy: object, prompt: str) -> float:
        return 100.0

    def learn(self, strategy: object, prompt: str, usage: object) -> None: ...


async def test_what_a_refused_duplicate_did_not_use_is_given_back() -> None:
    provider = Provider(**{"39": [50.0, (0.1, RuntimeError("429 Too Many Requests"))]})
    config = ProcessorConfig(
        max_workers=10,
        hedge_after=0.9,
        timeout_per_item=100.0,
        max_tokens_per_minute=6000,
        token_estimator=Hundred(),
        rate_limit=RateLimitConfig(),
    )
    async with ParallelBatchProcessor[str, Any, Any](config=config) as processor:
        for n in range(40):
            await processor.add_work(LLMWorkItem(str(n), provider, str(n)))
        running = asyncio.create_task(processor.process_all())
        await asyncio.sleep(21.35)
        assert provider.calls_of("39")[1:] == [pytest.approx(21.0)]
        # A hundred tokens a second: without them the next call would go out at 22 s.
        await processor.add_work(LLMWorkItem("new", provider, "new"))
        await running
    assert provider.calls_of("new") == [pytest.approx(21.35)]


async def test_the_stats_count_duplicates() -> None:
    result: Any = await run(Provider(**{"35": [50.0], "36": [50.0]}))
    assert result.stats["hedged_calls"] == 2


async def test_a_run_that_is_cancelled_leaves_no_call() -> None:
    provider = Provider(**{"35": [50.0, 50.0]})
    running = asyncio.create_task(run(provider))
    await asyncio.sleep(6)
    assert provider.in_flight == 2
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert provider.in_flight == 0


@pytest.mark.parametrize("share", [0, 1, -0.5, 95, float("nan"), True, "0.9"])
def test_the_share_is_between_0_and_1(share: Any) -> None:
    with pytest.raises(ValueError, match=r"hedge_after must be between 0 and 1 \(got"):
        ProcessorConfig(hedge_after=share).validate()


async def test_a_place_that_is_given_back_goes_to_the_next_straggler_at_once() -> None:
    """Though the worker whose call had it is still busy with the answer."""

    async def post_process(result: WorkItemResult[Any, Any]) -> None:
        await asyncio.sleep(30.0 if result.item_id == "28" else 0.0)

    provider = Provider(**{"28": [50.0, 5.0], "29": [60.0, 5.0]})
    config = ProcessorConfig(max_workers=3, hedge_after=0.9, timeout_per_item=100.0)
    async with ParallelBatchProcessor[str, Any, Any](
        config=config, post_processor=post_process
    ) as processor:
        for n in range(30):
            await processor.add_work(LLMWorkItem(str(n), provider, str(n)))
        await processor.process_all()
    assert provider.calls_of("28") == [9.0, 10.0]
    assert provider.calls_of("29") == [9.0, 15.0]
