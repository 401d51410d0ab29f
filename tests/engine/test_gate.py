"""What a gate counts and asks, from run to run and from loop to loop."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from batch_llm import (
    LLMCallStrategy,
    ProcessorConfig,
    QuotaStatistics,
    RateLimitStrategy,
)
from batch_llm._engine.journal import Journal
from batch_llm.strategies.adaptive import FIRST_WAVE, AdaptiveLimit
from batch_llm.strategies.tokens import LearnedTokenEstimator
from batch_llm.testing import MockUsage
from tests.engine.support import (
    Call,
    Processor,
    Provider,
    Refused,
    items,
    now,
    run,
    run_with,
    script,
    settings,
)

USAGE = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}


class Billing(LLMCallStrategy[Any]):
    """Ten tokens a call."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.instants: list[float] = []

    async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
        self.instants.append(now())
        await asyncio.sleep(self.seconds)
        return prompt, USAGE


class Expecting:
    """Expects so many tokens of each call, and counts what it is asked and told."""

    def __init__(self, tokens: float) -> None:
        self.tokens = tokens
        self.asked = self.told = 0

    def estimate(self, strategy: object, prompt: str) -> float:
        self.asked += 1
        return self.tokens

    def learn(self, strategy: object, prompt: str, usage: Mapping[str, int]) -> None:
        self.told += 1


def learning(max_workers: int = 1, **fields: Any) -> ProcessorConfig:
    return ProcessorConfig(max_workers=max_workers, **fields)


@pytest.mark.parametrize("config", [settings, learning], ids=["cooldowns", "learned limits"])
async def test_each_run_has_statistics_of_its_own(config: Callable[..., ProcessorConfig]) -> None:
    async with Processor(config=config(1)) as processor:
        first = await run_with(processor, *items(Billing(seconds=2.0), 3))
        await asyncio.sleep(100.0)
        second = await run_with(processor, *items(Billing(seconds=1.0), 2))
    assert first.quotas == {"default": QuotaStatistics(seconds=6.0, answered=3, tokens=30)}
    assert second.quotas == {"default": QuotaStatistics(seconds=2.0, answered=2, tokens=20)}


@pytest.mark.parametrize("config", [settings, learning], ids=["cooldowns", "learned limits"])
@pytest.mark.parametrize("limits", [{}, {"max_requests_per_minute": 60}])
async def test_an_estimator_is_asked_only_where_tokens_count(
    config: Callable[..., ProcessorConfig], limits: dict[str, Any]
) -> None:
    estimator = Expecting(10)
    await run(*items(Billing(), 3), config=config(token_estimator=estimator, **limits))
    assert (estimator.asked, estimator.told) == (0, 0)


async def test_who_asks_for_no_tokens_takes_none() -> None:
    gate = Processor(config=settings(max_tokens_per_minute=60))._gate
    for _ in range(3):
        await gate.acquire()
    await gate.acquire(1)
    assert now() == 0.0
    await gate.acquire(1)
    assert now() == pytest.approx(1.0)


async def test_calls_of_which_nothing_is_expected_count_for_nothing_in_line_too() -> None:
    provider = Billing()
    config = settings(
        max_requests_per_minute=60, max_tokens_per_minute=60, token_estimator=Expecting(0)
    )
    await run(*items(provider, 4), config=config)
    assert provider.instants == pytest.approx([0.0, 1.0, 2.0, 3.0])


async def test_who_gives_up_an_ask_for_nothing_gives_nothing_back() -> None:
    gate = Processor(config=settings(max_tokens_per_minute=60))._gate
    await gate.acquire(11)
    waiting = asyncio.create_task(gate.acquire(0))
    await asyncio.sleep(0)
    # In the very turn in which it is let out, before it can know.
    asyncio.get_running_loop().call_at(10.0, waiting.cancel)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert now() == 10.0


@pytest.mark.parametrize(
    ("begins", "instants", "quota_seconds"),
    [
        pytest.param(0.75, [0.0, 1.25, 2.25], 0.75, id="who waits for tokens"),
        # When the call has been given its turn and has not yet woken up.
        pytest.param(1.0, [0.0, 1.5, 2.5], 1.0, id="who has its turn"),
    ],
)
async def test_a_cooldown_overtakes_whoever_is_in_line(
    begins: float, instants: list[float], quota_seconds: float
) -> None:
    async def begin() -> None:
        await asyncio.sleep(begins)
        await processor._handle_rate_limit()

    provider = Billing()
    config = settings(cooldown=0.5, max_tokens_per_minute=600, token_estimator=Expecting(10))
    processor = Processor(config=config)
    beginning = asyncio.create_task(begin())
    await asyncio.sleep(0)
    async with processor:
        await run_with(processor, *items(provider, 2))
        quota = processor.quotas["default"]
        await run_with(processor, *items(provider))
    await beginning
    assert provider.instants == pytest.approx(instants)
    assert quota.waited_for_cooldown_seconds == pytest.approx(0.5)
    assert quota.waited_for_quota_seconds == pytest.approx(quota_seconds)


async def test_a_cooldown_that_fails_ends_the_slow_start_of_the_last() -> None:
    class Once(RateLimitStrategy):
        async def on_rate_limit(self, worker_id: int, consecutive_limit_count: int) -> float:
            if consecutive_limit_count > 1:
                raise LookupError("no idea")
            return 1.0

        def should_apply_slow_start(self, items_since_resume: int) -> tuple[bool, float]:
            return True, 5.0

    provider = Provider(script(Refused(), Refused()))
    await run(*items(provider, 2), config=settings(), rate_limit_strategy=Once())
    assert provider.instants == [0.0, 6.0, 6.0, 6.0]


@pytest.mark.parametrize("refusals", [1, 2])
async def test_the_first_refusal_is_told_where_limits_are_learned(
    refusals: int, caplog: pytest.LogCaptureFixture
) -> None:
    provider = Provider(script(*[Refused(1.0)] * refusals))
    await run(*items(provider), config=learning())
    assert caplog.text.count("rate limited: from now on calls go out as") == 1


async def test_waiting_while_nothing_is_let_in_is_a_cooldown() -> None:
    async def answer(call: Call) -> str:
        if call.at < 10.0:
            raise Refused(10.0)
        return call.prompt

    provider = Provider(answer)
    result = await run(*items(provider, 3), config=learning(2))
    quota = result.quotas["default"]
    assert result.succeeded == 3
    assert quota.waited_for_cooldown_seconds > quota.waited_for_quota_seconds


async def test_waiting_for_another_call_to_end_is_told_from_waiting_for_the_pace() -> None:
    in_flight = 0

    async def answer(call: Call) -> str:
        nonlocal in_flight
        await asyncio.sleep(0.02)
        if in_flight == 8:
            raise Refused(1.0)
        in_flight += 1
        await asyncio.sleep(0.4)
        in_flight -= 1
        return call.prompt

    quota = (await run(*items(Provider(answer), 500), config=learning(20))).quotas["default"]
    assert quota.learned_in_flight is not None
    assert quota.waited_for_slots_seconds > 0.0


async def test_a_run_tells_the_limits_that_it_held_to() -> None:
    config = settings(max_requests_per_minute=600, max_tokens_per_minute=1_200)
    quota = (await run(*items(Billing()), config=config)).quotas["default"]
    assert (quota.requests_per_minute, quota.tokens_per_minute) == (600, 1_200)


async def test_a_learned_estimator_is_told_of_each_sixteenth_call_in_the_end() -> None:
    class Counting(LearnedTokenEstimator):
        told = 0

        def learn(self, strategy: object, prompt: str, usage: Mapping[str, int]) -> None:
            self.told += 1
            super().learn(strategy, prompt, usage)

    estimator = Counting()
    config = settings(max_tokens_per_minute=1e9, token_estimator=estimator)
    await run(*items(Billing(), 100 + 16 * 5), config=config)
    assert estimator.told == 100 + 5


async def test_what_is_left_of_a_block_is_not_for_later() -> None:
    provider = Provider()
    config = settings(1_500, max_requests_per_minute=60 * 1_024)
    async with Processor(config=config) as processor:
        await run_with(processor, *items(provider))
        await asyncio.sleep(100.0)
        await run_with(processor, *items(provider, 1_100))
    assert sum(at == 100.0 for at in provider.instants) == 1_023


async def test_during_slow_start_a_call_may_wait_for_its_quota_all_the_same() -> None:
    class Gentle(RateLimitStrategy):
        async def on_rate_limit(self, worker_id: int, consecutive_limit_count: int) -> float:
            return 0.5

        def should_apply_slow_start(self, items_since_resume: int) -> tuple[bool, float]:
            return True, 0.1

    async def begin() -> None:
        await asyncio.sleep(0.25)
        await processor._handle_rate_limit()

    provider = Billing()
    config = settings(max_tokens_per_minute=600, token_estimator=Expecting(10))
    processor = Processor(config=config, rate_limit_strategy=Gentle())
    beginning = asyncio.create_task(begin())
    async with processor:
        quota = (await run_with(processor, *items(provider, 2))).quotas["default"]
    await beginning
    assert provider.instants == pytest.approx([0.0, 1.0])
    assert quota.waited_for_cooldown_seconds == pytest.approx(0.5)
    assert quota.waited_for_quota_seconds == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("told", "learned"),
    [
        (MockUsage(), [{"input_tokens": 100, "output_tokens": 50, "total_tokens": 150}]),
        ({"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}, []),
    ],
    ids=["an object", "nothing used"],
)
async def test_an_estimator_learns_from_counts_in_whatever_shape_they_came(
    told: Any, learned: list[dict[str, int]]
) -> None:
    class Reporting(LLMCallStrategy[str]):
        async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
            return prompt, told

    class Learning(Expecting):
        def learn(self, strategy: object, prompt: str, usage: Mapping[str, int]) -> None:
            seen.append(dict(usage))

    seen: list[dict[str, int]] = []
    config = ProcessorConfig(max_tokens_per_minute=6_000, token_estimator=Learning(10))
    assert (await run(*items(Reporting()), config=config)).succeeded == 1
    assert seen == learned


@pytest.mark.parametrize("fails", [False, True])
async def test_an_estimator_is_told_of_no_call_that_went_out_without_a_limit(fails: bool) -> None:
    class Lifting(Billing):
        async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
            answer = await super().execute(prompt, attempt, timeout)
            if len(self.instants) == 2:
                processor.set_limits(tokens_per_minute=None)
                if fails:
                    raise ConnectionError
            if len(self.instants) == 3 and fails:
                error = ConnectionError()
                vars(error)["usage"] = USAGE
                raise error
            return answer

    estimator = Expecting(10)
    config = ProcessorConfig(max_workers=1, max_tokens_per_minute=60_000, token_estimator=estimator)
    processor = Processor(config=config)
    async with processor:
        assert (await run_with(processor, *items(Lifting(1.0), 3))).succeeded == 3
    # The second had gone out by then; what it used when it failed is not known.
    assert (estimator.asked, estimator.told) == (2, 1 if fails else 2)


@pytest.mark.parametrize("awake", [False, True])
async def test_a_call_that_has_not_heard_yet_that_it_may_go_is_in_flight(awake: bool) -> None:
    """One is answered and one refused in the same turn, in which the others wake up."""
    gate = Processor(config=learning(30))._gate
    gate.start(AdaptiveLimit(30, now()), calls_in_flight=lambda _: 28 if awake else 18)
    out = [await gate.acquire() for _ in range(FIRST_WAVE)]
    waiting = [asyncio.create_task(gate.acquire()) for _ in range(10)]
    await asyncio.sleep(0)
    gate.ended(out.pop(), answered=True)
    if awake:
        await asyncio.wait(waiting)
    gate.refused(out.pop(), hint_seconds=None)
    for admission in [*out, *await asyncio.gather(*waiting)]:
        gate.ended(admission, answered=True)
    admission = await gate.acquire()
    assert admission is not None
    assert admission.others == 0


@pytest.mark.parametrize("was_let_out", [False, True])
async def test_who_gives_up_is_not_in_flight(was_let_out: bool) -> None:
    gate = Processor(config=learning(30))._gate
    gate.start(AdaptiveLimit(30, now()), calls_in_flight=lambda _: 18)
    out = [await gate.acquire() for _ in range(FIRST_WAVE)]
    waiting = asyncio.create_task(gate.acquire())
    await asyncio.sleep(0)
    if was_let_out:
        gate.ended(out[-1], answered=True)
    waiting.cancel()
    await asyncio.wait([waiting])
    if not was_let_out:
        gate.ended(out[-1], answered=True)
    gate.refused(out[-2], hint_seconds=None)
    for admission in out[:-2]:
        gate.ended(admission, answered=True)
    admission = await gate.acquire()
    assert admission is not None
    assert admission.others == 0


async def test_what_a_call_was_given_in_line_is_not_the_next_items() -> None:
    processor = Processor(config=learning(30))
    journal, gate = Journal(0), processor._gate
    gate.start(AdaptiveLimit(30, now()))
    first, second = items(Billing(), 2)
    entry = processor._engine.lifecycle.entry_of(first.strategy)
    journal.begin(first, entry)
    await gate.line_up(journal)
    assert journal.admission is not None
    journal.begin(second, entry)
    assert journal.admission is None
