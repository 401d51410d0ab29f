"""Tokens per minute: asked for before a call, settled after it, to the exact instant."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from batch_llm import LLMCallStrategy, ProcessorConfig, TokenUsage
from tests.engine.support import Processor, Refused, items, now, run, settings, start

Step = int | Exception | None


def usage(tokens: int) -> TokenUsage:
    return {"input_tokens": tokens, "output_tokens": 0, "total_tokens": tokens}


class Billing(LLMCallStrategy[str]):
    """Bills each call for so many tokens, or fails it; None tells nothing."""

    def __init__(self, *steps: Step, seconds: float = 0.0) -> None:
        self.steps = list(steps)
        self.seconds = seconds
        self.instants: list[float] = []
        self.prompts: list[str] = []

    async def execute(self, prompt: str, attempt: int, timeout: float) -> tuple[str, TokenUsage]:
        self.instants.append(now())
        self.prompts.append(prompt)
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        await asyncio.sleep(self.seconds)
        if isinstance(step, Exception):
            raise step
        return "", usage(step) if step is not None else {}


class Expecting:
    """Expects of each call what is said of its prompt."""

    def __init__(self, expected: Callable[[str], Any]) -> None:
        self.expected = expected
        self.learned: list[tuple[str, dict[str, int]]] = []

    def estimate(self, strategy: object, prompt: str) -> float:
        value: float = self.expected(prompt)
        return value

    def learn(self, strategy: object, prompt: str, usage: Mapping[str, int]) -> None:
        self.learned.append((prompt, dict(usage)))


def of_calls(tokens: float) -> Expecting:
    return Expecting(lambda prompt: tokens)


def learning(max_workers: int, **fields: Any) -> ProcessorConfig:
    return ProcessorConfig(max_workers=max_workers, **fields)


@pytest.mark.parametrize("config", [settings, learning], ids=["cooldowns", "learned limits"])
async def test_calls_are_spaced_by_their_tokens(config: Callable[..., ProcessorConfig]) -> None:
    strategy = Billing(50)
    await run(
        *items(strategy, 6),
        config=config(10, max_tokens_per_minute=6_000, token_estimator=of_calls(50)),
    )
    # 100 a second, and the first second's worth at once.
    assert strategy.instants == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.5, 2.0])


async def test_too_much_comes_back_with_the_answer() -> None:
    strategy = Billing(20, seconds=0.5)
    config = settings(10, max_tokens_per_minute=6_000, token_estimator=of_calls(100))
    await run(*items(strategy, 4), config=config)
    assert strategy.instants == pytest.approx([0.0, 0.5, 1.0, 1.5])


async def test_too_little_is_a_debt() -> None:
    strategy = Billing(300, seconds=0.5)
    config = settings(1, max_tokens_per_minute=6_000, token_estimator=of_calls(10))
    await run(*items(strategy, 3), config=config)
    # At 0.5 s, 10 have come back and 290 are owed: 2.9 s. An ask of 10 may go 0.9 s before that.
    assert strategy.instants == pytest.approx([0.0, 2.5, 5.5])


async def test_an_answer_that_tells_nothing_counts_as_expected() -> None:
    strategy = Billing(None)
    config = settings(1, max_tokens_per_minute=6_000, token_estimator=of_calls(100))
    await run(*items(strategy, 3), config=config)
    assert strategy.instants == pytest.approx([0.0, 1.0, 2.0])


async def test_an_ask_larger_than_the_burst_goes_alone_and_in_its_turn() -> None:
    sizes = {"prompt 0": 50, "prompt 1": 250, "prompt 2": 50, "prompt 3": 50}
    strategy = Billing(None)
    config = settings(4, max_tokens_per_minute=6_000, token_estimator=Expecting(sizes.__getitem__))
    await run(*items(strategy, 4), config=config)
    assert strategy.prompts == list(sizes)
    assert strategy.instants == pytest.approx([0.0, 0.5, 2.5, 3.0])


async def test_requests_and_tokens_are_granted_together() -> None:
    sizes = {"prompt 0": 10, "prompt 1": 10, "prompt 2": 300, "prompt 3": 10}
    strategy = Billing(None)
    config = settings(
        4,
        max_requests_per_minute=60,
        max_tokens_per_minute=6_000,
        token_estimator=Expecting(sizes.__getitem__),
    )
    await run(*items(strategy, 4), config=config)
    assert strategy.instants == pytest.approx([0.0, 1.0, 2.0, 4.1])


@pytest.mark.parametrize(
    ("config", "second"), [(settings(1, cooldown=0.25), 0.25), (learning(1), 1.0)]
)
async def test_a_refused_call_used_nothing(config: ProcessorConfig, second: float) -> None:
    config.max_tokens_per_minute, config.token_estimator = 600, of_calls(30)
    strategy = Billing(Refused(0.25), 30)
    await run(*items(strategy), config=config)
    assert strategy.instants == pytest.approx([0.0, second])


async def test_a_refused_call_whose_usage_cannot_be_read_used_nothing() -> None:
    class ShyError(Refused):
        @property
        def usage(self) -> Any:
            raise RuntimeError("no usage was sent")

    strategy = Billing(ShyError(0.25), 30)
    config = settings(1, cooldown=0.25, max_tokens_per_minute=600, token_estimator=of_calls(30))
    result = await run(*items(strategy), config=config)
    assert result.succeeded == 1
    assert strategy.instants == pytest.approx([0.0, 0.25])


class BilledError(ValueError):
    def __init__(self, tokens: int | None) -> None:
        super().__init__("no use")
        self.usage = usage(tokens) if tokens is not None else {}


@pytest.mark.parametrize(("billed", "second"), [(10, 1.0), (50, 5.0), (None, 3.0)])
async def test_a_failed_call_is_settled_where_its_usage_is_known(
    billed: int | None, second: float
) -> None:
    strategy = Billing(BilledError(billed), 30)
    config = settings(1, max_tokens_per_minute=600, token_estimator=of_calls(30))
    result = await run(*items(strategy, 2), config=config)
    assert result.failed == 1
    assert strategy.instants == pytest.approx([0.0, second])


async def test_the_estimator_is_told_of_each_calls_usage() -> None:
    estimator = of_calls(1)
    strategy = Billing(7, BilledError(5), BilledError(None), None, 9)
    config = settings(1, max_tokens_per_minute=1e6, token_estimator=estimator)
    await run(*items(strategy, 5), config=config)
    assert estimator.learned == [
        ("prompt 0", dict(usage(7))),
        ("prompt 1", dict(usage(5))),
        ("prompt 4", dict(usage(9))),
    ]


async def test_lengths_are_learned_from_the_run_itself() -> None:
    strategy = Billing(1_000, seconds=1.0)
    config = settings(1, max_tokens_per_minute=60_000)
    await run(*items(strategy, 20), config=config)
    # The first was thought to use 2 + 338 tokens, so it owes 660; then nothing waits any more.
    assert strategy.instants == pytest.approx([0.0, *(number + 0.66 for number in range(1, 20))])


@pytest.mark.parametrize("used", [10**9, None])
async def test_no_call_counts_for_more_than_a_minute(used: int | None) -> None:
    strategy = Billing(used)
    config = settings(1, max_tokens_per_minute=60, token_estimator=of_calls(1e12))
    await run(*items(strategy, 3), config=config)
    assert strategy.instants == pytest.approx([0.0, 60.0, 120.0])


@pytest.mark.parametrize("answer", [float("nan"), float("inf"), -1, "many", None, 1 / 3])
async def test_an_estimator_that_fails_costs_only_its_estimates(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = Billing(50)
    config = settings(5, max_tokens_per_minute=6_000, token_estimator=of_calls(answer))
    with caplog.at_level(logging.ERROR):
        result = await run(*items(strategy, 20), config=config)
    assert result.succeeded == 20
    complaints = [record for record in caplog.records if "token_estimator" in record.getMessage()]
    assert len(complaints) == (answer != 1 / 3)


async def test_an_estimator_that_cannot_learn_still_tells() -> None:
    class Stubborn(Expecting):
        def learn(self, strategy: object, prompt: str, usage: Mapping[str, int]) -> None:
            raise RuntimeError("no more")

    strategy = Billing(100)
    estimator = Stubborn(lambda prompt: 100)
    config = settings(1, max_tokens_per_minute=6_000, token_estimator=estimator)
    await run(*items(strategy, 3), config=config)
    assert strategy.instants == pytest.approx([0.0, 1.0, 2.0])


async def test_an_estimator_can_end_the_program() -> None:
    def interrupt(prompt: str) -> float:
        raise KeyboardInterrupt

    class Leaving(Expecting):
        def learn(self, strategy: object, prompt: str, usage: Any) -> None:
            raise KeyboardInterrupt

    for estimator in (Expecting(interrupt), Leaving(lambda prompt: 1)):
        config = settings(1, max_tokens_per_minute=6_000, token_estimator=estimator)
        with pytest.raises(KeyboardInterrupt):
            await run(*items(Billing(1)), config=config)


async def test_a_call_that_is_let_out_and_never_made_gives_its_tokens_back() -> None:
    config = settings(1, max_tokens_per_minute=600, token_estimator=of_calls(1))
    gate = Processor(config=config)._gate
    await gate.acquire(10)
    second = asyncio.create_task(gate.acquire(10))
    third = asyncio.create_task(gate.acquire(10))
    await asyncio.sleep(0)
    # In the very turn in which it is let out, before it can know.
    asyncio.get_running_loop().call_at(1.0, second.cancel)
    await third
    assert second.cancelled()
    assert now() == pytest.approx(1.0)


async def test_the_limits_hold_from_one_run_to_the_next() -> None:
    strategy = Billing(100)
    config = settings(1, max_tokens_per_minute=6_000, token_estimator=of_calls(100))
    async with Processor(config=config) as processor:
        for _ in range(3):
            running = await start(processor, *items(strategy))
            await running
    assert strategy.instants == pytest.approx([0.0, 1.0, 2.0])


async def test_a_call_may_be_expected_to_cost_nothing(caplog: pytest.LogCaptureFixture) -> None:
    strategy = Billing(None)
    config = settings(5, max_tokens_per_minute=60, token_estimator=of_calls(0))
    await run(*items(strategy, 5), config=config)
    assert strategy.instants == [0.0] * 5
    assert not caplog.records


class Broken(Expecting):
    """Fails at whatever it is asked, or to learn only."""

    def __init__(self, error: BaseException, *, at_once: bool) -> None:
        super().__init__(self._estimate)
        self.error = error
        self.at_once = at_once

    def _estimate(self, prompt: str) -> float:
        if self.at_once:
            raise self.error
        return 1.0

    def learn(self, strategy: object, prompt: str, usage: Mapping[str, int]) -> None:
        raise self.error


@pytest.mark.parametrize(("at_once", "method"), [(True, "estimate"), (False, "learn")])
async def test_what_failed_of_an_estimator_is_told_once(
    at_once: bool, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = Billing(50)
    estimator = Broken(RuntimeError("no more"), at_once=at_once)
    config = settings(1, max_tokens_per_minute=6_000, token_estimator=estimator)
    with caplog.at_level(logging.DEBUG, logger="batch_llm"):
        await run(*items(strategy, 3), config=config)
    failed = [record for record in caplog.records if "token_estimator" in record.getMessage()]
    assert [record.getMessage() for record in failed if record.levelno == logging.ERROR] == [
        f"token_estimator.{method} failed with RuntimeError"
    ]
    details = [record for record in failed if record.levelno == logging.DEBUG]
    assert len(details) == 3
    assert all(record.exc_info for record in details)


async def test_calls_count_for_nothing_where_the_estimator_fails() -> None:
    strategy = Billing(None)
    estimator = Broken(RuntimeError("no more"), at_once=True)
    config = settings(1, max_tokens_per_minute=60, token_estimator=estimator)
    await run(*items(strategy, 5), config=config)
    assert strategy.instants == [0.0] * 5
