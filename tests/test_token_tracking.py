"""Every attempt counts, whatever shape its usage has and wherever a failure left it."""

import asyncio
import functools
import logging
import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm import (
    BatchResult,
    LLMWorkItem,
    ParallelBatchProcessor,
    PydanticAIStrategy,
    TokenUsage,
    WorkItemResult,
)
from batch_llm.llm_strategies._usage import ReportedUsage, count, read_usage
from batch_llm.strategies import ResponseError
from batch_llm.testing import MockResult, MockUsage
from tests.helpers import Recorder, Script, run_batch

USAGE = TokenUsage(input_tokens=100, output_tokens=20, total_tokens=120, cached_input_tokens=60)
HALF = TokenUsage(input_tokens=100, output_tokens=20)
FULL = TokenUsage(**HALF, total_tokens=120)
TWICE = TokenUsage(input_tokens=200, output_tokens=40, total_tokens=240, cached_input_tokens=120)


async def run_one(*steps: Any) -> tuple[WorkItemResult[Any, Any], BatchResult[Any, Any], Any]:
    """The result of one item, the batch and the stats."""
    async with ParallelBatchProcessor[str, Any, Any]() as processor:
        await processor.add_work(LLMWorkItem("id", Script(*steps)))
        batch = await processor.process_all()
        return batch.results[0], batch, await processor.get_stats()


class BilledError(Exception):
    """A failed call with its usage somewhere."""


def with_cause(usage: Any) -> Exception:
    error = BilledError()
    error.__cause__ = BilledError()
    error.__cause__.result = SimpleNamespace(usage=usage)
    return error


def with_usage(usage: Any) -> Exception:
    error = BilledError()
    error.usage = usage
    return error


def with_private(usage: Any) -> Exception:
    error = BilledError()
    vars(error)["_failed_token_usage"] = usage
    return error


PLACES = pytest.mark.parametrize("place", [with_cause, with_usage, with_private])
OLD_NAMES = SimpleNamespace(request_tokens=100, response_tokens=20, cache_read_tokens=60)
NEW_NAMES = SimpleNamespace(input_tokens=100, output_tokens=20, cache_read_tokens=60)


@PLACES
@pytest.mark.parametrize(
    "usage",
    [
        dict(USAGE),
        SimpleNamespace(**USAGE),
        OLD_NAMES,
        NEW_NAMES,
        vars(OLD_NAMES),
        lambda: USAGE,
        lambda: OLD_NAMES,
        MagicMock(return_value=NEW_NAMES),
    ],
    ids=["dict", "object", "old", "new", "old-dict", "callable", "old-callable", "mock-callable"],
)
async def test_a_failed_attempt_leaves_its_usage_in_three_places(place: Any, usage: Any) -> None:
    result, batch, stats = await run_one(place(usage), ("answer", USAGE))
    assert result.success
    assert result.token_usage == TWICE
    assert (batch.total_input_tokens, batch.total_output_tokens) == (200, 40)
    assert stats["total_tokens"] == 240


@PLACES
@pytest.mark.parametrize(
    "usage",
    [None, {}, (), "many", MagicMock(), {"input_tokens": None}, {"input_tokens": "7"}, object()],
    ids=["None", "empty", "tuple", "text", "mock", "none-count", "text-count", "object"],
)
async def test_a_usage_that_cannot_be_read_counts_as_nothing(place: Any, usage: Any) -> None:
    result, batch, _ = await run_one(place(usage), ("answer", USAGE))
    assert result.output == "answer"
    assert batch.total_input_tokens == 100


async def test_a_usage_that_raises_counts_as_nothing() -> None:
    error = with_usage(MagicMock(side_effect=RuntimeError("no usage")))
    result, _, _ = await run_one(error, ("answer", USAGE))
    assert result.token_usage == USAGE


async def test_counts_of_the_strategys_own_survive_a_retry() -> None:
    usage = {"input_tokens": 1, "thinking": 5, "images": 2}
    failed = with_private({"input_tokens": 9, "output_tokens": 1})
    result, _, _ = await run_one(failed, ("answer", {**usage, "model": "x", "paid": True}))
    totals = {"input_tokens": 10, "output_tokens": 1, "total_tokens": 11}
    assert result.token_usage == {**totals, "thinking": 5, "images": 2}


async def test_an_error_whose_usage_cannot_even_be_looked_at(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class ShyError(Exception):
        """An error as HTTP clients have them: an attribute that raises something else."""

        @property
        def usage(self) -> Any:
            raise RuntimeError("no usage was sent")

    caplog.set_level(logging.DEBUG, "batch_llm._engine.journal")
    result, _, _ = await run_one(ShyError(), ("answer", USAGE))
    assert result.token_usage == USAGE
    [told] = caplog.records
    assert "no usage was sent" in told.getMessage()


async def test_the_first_place_that_tells_something_is_read_alone() -> None:
    error = with_usage({"input_tokens": 5})
    vars(error)["_failed_token_usage"] = {"input_tokens": 7}
    result, _, _ = await run_one(error, ("answer", {}))
    assert result.token_usage["input_tokens"] == 5
    empty = with_usage({})
    vars(empty)["_failed_token_usage"] = {"input_tokens": 7}
    result, _, _ = await run_one(empty, ("answer", {}))
    assert result.token_usage["input_tokens"] == 7


async def test_every_attempt_of_a_failed_item_counts() -> None:
    result, batch, stats = await run_one(*[with_usage(USAGE)] * 3)
    assert not result.success
    assert result.token_usage["total_tokens"] == stats["total_tokens"] == 360
    assert batch.total_cached_tokens == stats["cached_input_tokens"] == 180


@pytest.mark.parametrize("usages", [(USAGE, HALF), (HALF, USAGE), (HALF, HALF)])
async def test_attempts_with_and_without_a_total_add_up(usages: tuple[Any, Any]) -> None:
    failed, answered = usages
    error = with_usage(None)
    vars(error)["_failed_token_usage"] = failed
    result, _, stats = await run_one(error, ("answer", answered))
    assert stats["total_tokens"] == result.token_usage["total_tokens"] == 240


async def test_an_attempt_that_was_rate_limited_counts() -> None:
    limited = with_usage(USAGE)
    limited.code = 429
    result, _, _ = await run_one(limited, ("answer", USAGE))
    assert result.token_usage == TWICE


async def test_an_answer_that_was_billed_but_refused_counts() -> None:
    error = ResponseError("blocked", reason="SAFETY", usage=USAGE)
    result, _, _ = await run_one(error)
    assert not result.success
    assert result.token_usage == USAGE


async def test_a_timeout_has_no_usage_and_costs_none_of_the_others() -> None:
    late = functools.partial(asyncio.sleep, 999)
    result, _, _ = await run_one(late, with_usage(USAGE), ("answer", USAGE))
    assert result.token_usage == TWICE


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (USAGE, USAGE),
        ({}, {}),
        (None, {}),
        ({"input_tokens": 7}, {"input_tokens": 7}),
        ({"output_tokens": 7, "cached_input_tokens": 3}, None),
        ({"input_tokens": None, "output_tokens": 5}, {"input_tokens": 0, "output_tokens": 5}),
        ({"input_tokens": MagicMock()}, {"input_tokens": 0}),
        ({"input_tokens": -5}, {"input_tokens": 0}),
        ({**USAGE, "output_tokens": -5}, {**USAGE, "output_tokens": 0}),
        ({**HALF, "total_tokens": -5}, {**HALF, "total_tokens": 0}),
        ({"input_tokens": True}, {"input_tokens": 0}),
        (dict.fromkeys(HALF, True) | {"total_tokens": True}, dict.fromkeys(FULL, 0)),
        ({"input_tokens": 7.0}, {"input_tokens": 7}),
        ({**USAGE, "cached_input_tokens": 60.0}, USAGE),
        ({"input_tokens": float("nan")}, {"input_tokens": 0}),
        (MagicMock(), {}),
        ("usage", {}),
        (
            MockUsage(7, 3),
            {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10},
        ),
    ],
    ids=[
        "full",
        "empty",
        "None",
        "partial",
        "partial2",
        "None-count",
        "mock-count",
        "negative",
        "one-of-four-negative",
        "one-of-three-negative",
        "bool",
        "three-bools",
        "float",
        "cached-float",
        "nan",
        "mock",
        "text",
        "object",
    ],
)
async def test_no_usage_of_a_success_costs_its_output(usage: Any, expected: Any) -> None:
    result, batch, stats = await run_one(("answer", usage))
    assert (result.success, result.output) == (True, "answer")
    assert result.token_usage == (usage if expected is None else expected)
    assert stats["total_input_tokens"] == batch.total_input_tokens
    assert stats["total_output_tokens"] == batch.total_output_tokens


@pytest.mark.parametrize("usage", [FULL, USAGE], ids=["three", "four"])
async def test_kept_counts_share_their_table_of_keys(usage: Any) -> None:
    """Which is a third less for each result of a long run; of CPython alone."""
    result, _, _ = await run_one(("answer", usage))
    assert result.token_usage == usage
    assert sys.getsizeof(result.token_usage) < sys.getsizeof({**usage})


async def test_what_a_strategy_of_ours_reports_comes_with_the_answer() -> None:
    usage = ReportedUsage(USAGE, {"finish_reason": "STOP"})
    usage["thinking"] = 5
    result, _, _ = await run_one(("answer", usage))
    assert result.token_usage == {**USAGE, "thinking": 5}
    assert result.metadata == {"finish_reason": "STOP"}


async def test_metadata_of_the_answer_itself_come_first() -> None:
    usage = ReportedUsage(USAGE, {"finish_reason": "STOP"})
    result, _, _ = await run_one(("answer", usage, {"request": 7}))
    assert result.metadata == {"request": 7}


async def test_the_usage_of_a_strategy_is_not_changed() -> None:
    usage = dict(USAGE)
    result, _, _ = await run_one(BilledError(), ("answer", usage))
    result.token_usage["input_tokens"] = 0
    assert usage == USAGE


async def test_tokens_are_in_the_stats_as_soon_as_they_are_billed() -> None:
    strategy = Script(with_usage(USAGE), ("answer", USAGE))
    async with ParallelBatchProcessor[str, Any, Any]() as processor:
        await processor.add_work(LLMWorkItem("id", strategy))
        running = asyncio.create_task(processor.process_all())
        await asyncio.sleep(0.5)
        stats = await processor.get_stats()
        assert (stats["processed"], stats["total_tokens"]) == (0, 120)
        assert (stats["total_cached_tokens"], stats["total_output_tokens"]) == (60, 20)
        assert (await running).results[0].token_usage == TWICE
        assert (await processor.get_stats())["total_tokens"] == 240


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [(USAGE, 120), ({"input_tokens": 3, "output_tokens": 4}, 7), ({}, 0), ({"total_tokens": 9}, 9)],
    ids=["full", "no total", "empty", "total only"],
)
async def test_an_item_without_a_total_has_the_sum_of_the_two(usage: Any, tokens: int) -> None:
    recorder = Recorder()
    async with ParallelBatchProcessor[str, Any, Any](observers=[recorder]) as processor:
        await processor.add_work(LLMWorkItem("id", Script(("answer", usage))))
        await processor.process_all()
        stats = await processor.get_stats()
    [completed] = [data for data in (entry[1] for entry in recorder.seen) if "tokens" in data]
    assert completed["tokens"] == stats["total_tokens"] == tokens


COUNTS = st.dictionaries(
    st.sampled_from(["input_tokens", "output_tokens", "total_tokens", "cached_input_tokens"]),
    st.none() | st.integers(-5, 10**6) | st.floats() | st.booleans() | st.text(max_size=3),
)


@given(attempts=st.lists(st.tuples(st.booleans(), COUNTS), min_size=1, max_size=12))
async def test_stats_and_batch_always_agree(attempts: list[tuple[bool, Any]]) -> None:
    recorder = Recorder()
    async with ParallelBatchProcessor[str, Any, Any](observers=[recorder]) as processor:
        for number, (succeeds, usage) in enumerate(attempts):
            step = ("answer", usage) if succeeds else with_usage(usage)
            await processor.add_work(LLMWorkItem(str(number), Script(step)))
        batch = await processor.process_all()
        stats = await processor.get_stats()
    assert stats["total_input_tokens"] == batch.total_input_tokens >= 0
    assert stats["total_output_tokens"] == batch.total_output_tokens >= 0
    assert stats["cached_input_tokens"] == batch.total_cached_tokens
    assert stats["total_cached_tokens"] == batch.total_cached_tokens
    assert batch.succeeded == stats["succeeded"] == sum(succeeds for succeeds, _ in attempts)


class Agent:
    """An agent whose result has the usage of the test."""

    def __init__(self, usage: Any) -> None:
        self.usage = usage

    async def run(self, prompt: str) -> Any:
        return SimpleNamespace(output=prompt.upper(), usage=self.usage)


SEVEN_THREE = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (MockUsage(7, 3), SEVEN_THREE),
        (lambda: MockUsage(7, 3), SEVEN_THREE),
        (SimpleNamespace(input_tokens=7, output_tokens=3), SEVEN_THREE),
        (lambda: SimpleNamespace(input_tokens=7, output_tokens=3, total_tokens=11), None),
        (SimpleNamespace(request_tokens=None, response_tokens=3), None),
        (None, {}),
        (MagicMock(), {}),
        (MagicMock(side_effect=ValueError), {}),
    ],
    ids=["property", "method", "new-names", "own-total", "none-count", "None", "mock", "raising"],
)
async def test_agents_tell_their_usage_as_a_method_or_a_property(usage: Any, expected: Any) -> None:
    batch = await run_batch(PydanticAIStrategy(Agent(usage)))
    [result] = batch.results
    assert result.output == "PROMPT 0"
    if expected is None:
        assert result.token_usage["total_tokens"] == read_usage(usage)["total_tokens"] > 0
    else:
        assert result.token_usage == expected


async def test_an_agent_without_usage_keeps_its_answer() -> None:
    agent = MagicMock()
    agent.run.side_effect = lambda prompt: asyncio.sleep(0, SimpleNamespace(output=prompt))
    batch = await run_batch(PydanticAIStrategy(agent))
    assert batch.results[0].output == "prompt 0"
    agent.run.assert_called_once_with("prompt 0")


async def test_a_mocked_agent_will_do() -> None:
    agent = MagicMock()
    agent.run.side_effect = lambda prompt: asyncio.sleep(0, MockResult(prompt))
    output, usage = await PydanticAIStrategy(agent).execute("prompt", 1, 5.0)
    assert output == "prompt"
    assert usage == {"input_tokens": 100, "output_tokens": 50, "total_tokens": 150}


@given(st.none() | st.booleans() | st.text() | st.integers() | st.floats())
def test_a_count_is_never_negative_and_never_fails(value: Any) -> None:
    counted = count(value)
    assert type(counted) is int
    assert counted >= 0
    if type(value) is int and value >= 0:
        assert counted == value
