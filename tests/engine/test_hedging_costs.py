"""What duplicates cost: tokens, places in line, what they teach; and when a call is late."""

import asyncio
import random
from typing import Any

import pytest

from batch_llm import (
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    RateLimitConfig,
    TokenUsage,
)
from batch_llm._engine.gate import Gate
from batch_llm._engine.hedge import Latencies
from tests.engine.support import settings
from tests.engine.test_hedging import (
    Hundred,
    Provider,
    Result,
    Scripted,
    Step,
    after,
    output_of,
    run,
)


def test_late_is_what_a_share_of_the_last_answers_did_not_exceed() -> None:
    latencies = Latencies()
    seconds = [float(number) for number in range(1, 20)]
    random.Random(3).shuffle(seconds)
    for each in seconds:
        latencies.add(each)
    assert latencies.quantile(0.9) is None
    latencies.add(20.0)
    assert latencies.quantile(0.9) == 18.0


def test_the_last_two_hundred_answers_count() -> None:
    latencies = Latencies()
    for seconds in [9.0] + [1.0] * 199:
        latencies.add(seconds)
    assert latencies.quantile(1.0) == 9.0
    latencies.add(1.0)
    assert latencies.quantile(1.0) == 1.0


async def test_what_became_slower_is_late_later() -> None:
    slower: dict[str, Any] = {str(number): [3.0] for number in range(20, 45)}
    provider = Provider(**slower, **{"45": [2.5]})
    await run(provider, items=46, workers=5, hedge_after=0.5)
    # Of the last item's 45 predecessors most took three seconds.
    assert len(provider.calls) == 46


class Expected(Hundred):
    def estimate(self, strategy: object, prompt: str) -> float:
        return 15.0


async def run_and_add(
    provider: Provider, name: str, at: float, *, config: ProcessorConfig, **options: Any
) -> Result:
    """Forty items, and another at that time; a first one of its own keeps the run going."""
    config.hedge_after, config.timeout_per_item = 0.9, 1000.0
    async with ParallelBatchProcessor[str, Any, Any](config=config, **options) as processor:
        await processor.add_work(LLMWorkItem("long", Provider(long=[500.0]), "long"))
        for n in range(40):
            await processor.add_work(LLMWorkItem(str(n), provider, str(n)))
        running = asyncio.create_task(processor.process_all())
        await asyncio.sleep(at)
        await processor.add_work(LLMWorkItem(name, provider, name))
        result = await running
        result.stats = await processor.get_stats()  # type: ignore[attr-defined]
    return result


@pytest.mark.parametrize(
    ("seconds", "at", "second"), [(1.5, 81.6, 82.0), (2.0, 82.1, 82.1)], ids=["before", "as"]
)
async def test_no_duplicate_goes_out_where_the_first_call_answers_before_its_turn(
    seconds: float, at: float, second: float
) -> None:
    provider = Provider(**{"39": [seconds]})
    config = settings(10, max_tokens_per_minute=450, token_estimator=Expected())
    # A call each two seconds: 39 goes out at 80 s, is late at 81 s, and its turn is at 82 s.
    result: Any = await run_and_add(provider, "new", at, config=config)
    assert provider.calls_of("39") == [pytest.approx(80.0)]
    assert result.stats["hedged_calls"] == 0
    # It does not wait for what the duplicate would have used.
    assert provider.calls_of("new") == [pytest.approx(second)]


@pytest.mark.parametrize(
    ("duplicate", "second"),
    [(0.1, 22.12), ((0.1, ValueError("no")), 23.0)],
    ids=["answered", "failed"],
)
async def test_a_duplicate_is_settled_where_its_usage_is_known(
    duplicate: Step, second: float
) -> None:
    provider = Provider(**{"39": [50.0, duplicate]})
    config = settings(10, max_tokens_per_minute=6000, token_estimator=Hundred())
    await run_and_add(provider, "new", 22.12, config=config)
    assert provider.calls_of("39") == [pytest.approx(21.0), pytest.approx(22.0)]
    # By then twelve have come in since the duplicate; both calls give back 85 where it answered.
    assert provider.calls_of("new") == [pytest.approx(second)]


class TooFew(Hundred):
    def estimate(self, strategy: object, prompt: str) -> float:
        return 5.0


class Silent(Provider):
    """Does not tell what a duplicate has used."""

    async def execute(self, prompt: str, attempt: int, timeout: float) -> tuple[Any, TokenUsage]:
        answer, usage = await super().execute(prompt, attempt, timeout)
        return answer, {} if answer == "39 2" else usage


@pytest.mark.parametrize(("kind", "second"), [(Provider, 82.333333), (Silent, 79.666667)])
async def test_what_a_duplicate_used_beyond_its_booking_is_owed(
    kind: type[Provider], second: float
) -> None:
    provider = kind(**{"39": [50.0, 0.1]})
    config = settings(10, max_tokens_per_minute=450, token_estimator=TooFew())
    await run_and_add(provider, "new", 79.2, config=config)
    assert provider.calls_of("39") == [pytest.approx(77.0), pytest.approx(79.0)]
    assert provider.calls_of("new") == [pytest.approx(second)]


async def test_a_duplicate_that_is_given_up_gives_back_nothing() -> None:
    provider = Provider(**{"39": [3.0, 50.0]})
    config = settings(10, max_tokens_per_minute=6000, token_estimator=Hundred())
    result = await run_and_add(provider, "new", 30.0, config=config)
    assert result.succeeded == 42
    assert provider.given_up == ["39 2"]


@pytest.mark.parametrize(
    ("calls", "answered"),
    [([50.0, 0.1], True), ([3.0, 50.0], False), ([50.0, (0.1, ValueError("no"))], False)],
    ids=["answered", "given up", "failed"],
)
async def test_the_gate_hears_whether_a_duplicate_was_answered(
    calls: list[Step], answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bool] = []
    ended = Gate.ended

    def listen(gate: Gate, admission: Any, *, answered: bool) -> None:
        heard.append(answered)
        ended(gate, admission, answered=answered)

    monkeypatch.setattr(Gate, "ended", listen)
    # Nobody is limited, so that the gate hears of no other call.
    await run(Provider(**{"39": calls}))
    assert heard == [answered]


async def test_the_bill_of_an_item_with_a_duplicate() -> None:
    plain: TokenUsage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
    result = await run(Scripted(after(50.0, None), after(1.0, ("answer", plain))))
    [entry] = [entry for entry in result.results if entry.item_id == "35"]
    assert entry.token_usage == {
        "input_tokens": 20,
        "output_tokens": 5,
        "total_tokens": 25,
        "cached_input_tokens": 0,
    }


async def test_what_a_failed_duplicate_was_billed_is_counted() -> None:
    error = ValueError("no")
    error.usage = {"input_tokens": 7, "output_tokens": 0, "total_tokens": 7}  # type: ignore[attr-defined]
    result = await run(Provider(**{"35": [5.0, (1.0, error)]}))
    assert result.succeeded == 40
    assert result.total_input_tokens == 40 * 10 + 7


async def test_without_limits_a_refused_duplicate_is_none() -> None:
    provider = Provider(**{"35": [9.0, (0.1, RuntimeError("429 Too Many Requests"))], "36": [9.0]})
    result: Any = await run(provider, rate_limit=RateLimitConfig())
    assert (result.succeeded, result.failed) == (40, 0)
    assert output_of(result, "35") == "35 1"
    assert output_of(result, "36") == "36 2"
    assert result.results[-1].attempts == 1
    assert result.quotas["default"].refused == 1


@pytest.mark.parametrize("refusals", [0, 1], ids=["failed", "refused"])
async def test_only_a_refused_duplicate_teaches_the_limit(refusals: int) -> None:
    error = RuntimeError("429 Too Many Requests") if refusals else ValueError("no")
    provider = Provider(**{"39": [20.0, (0.1, error)]})
    result: Any = await run_and_add(provider, "new", 10.0, config=ProcessorConfig(max_workers=10))
    quota = result.quotas["default"]
    assert quota.refused == result.stats["rate_limit_count"] == refusals
    assert (quota.learned_calls_per_second is not None) == bool(refusals)


async def test_a_duplicate_that_ended_is_in_flight_no_more() -> None:
    error = RuntimeError("429 Too Many Requests")
    provider = Provider(
        **{"0": [(0.1, error)], "39": [500.0, 200.0], "new": [100.0], "newer": [100.0]}
    )
    config = ProcessorConfig(max_workers=2, hedge_after=0.9, timeout_per_item=1000.0)
    async with ParallelBatchProcessor[str, Any, Any](config=config) as processor:
        for n in range(40):
            await processor.add_work(LLMWorkItem(str(n), provider, str(n)))
        running = asyncio.create_task(processor.process_all())
        await asyncio.sleep(100.0)
        for name in ("new", "newer"):
            await processor.add_work(LLMWorkItem(name, provider, name))
        await running
    [new], [newer, *_] = provider.calls_of("new"), provider.calls_of("newer")
    assert newer - new < 50.0


async def test_a_duplicate_that_fails_does_not_shorten_the_next_cooldown() -> None:
    refused = RuntimeError("429 Too Many Requests")
    other = Provider(other=[(0.5, refused), (2.0, refused)])
    provider = Provider(**{"39": [200.0, (1.0, ValueError("no"))]})
    config = settings(3, cooldown=10.0, hedge_after=0.9, timeout_per_item=1000.0)
    async with ParallelBatchProcessor[str, Any, Any](config=config) as processor:
        for n in range(39):
            await processor.add_work(LLMWorkItem(str(n), provider, str(n)))
        running = asyncio.create_task(processor.process_all())
        await asyncio.sleep(12.5)
        await processor.add_work(LLMWorkItem("39", provider, "39"))
        await processor.add_work(LLMWorkItem("other", other, "other"))
        await running
    assert other.calls_of("other") == pytest.approx([13.0, 23.5, 45.5])
