"""The nouns: what they accept, and how they count."""

import copy
import dataclasses
import json
import pickle
import threading
from typing import Any
from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm import (
    BatchProcessor,
    BatchResult,
    LLMWorkItem,
    ProcessingStats,
    TokenUsage,
    WorkItemResult,
)
from tests.helpers import Script


class Shouting(BatchProcessor[str, str, int]):
    """A processor as pipelines write their own."""

    async def _worker(self, worker_id: int) -> None:
        while self._queue:
            self._results.append(await self._process_item(self._queue.popleft()))

    async def _process_item(
        self, work_item: LLMWorkItem[str, str, int]
    ) -> WorkItemResult[str, int]:
        return WorkItemResult(work_item.item_id, True, work_item.prompt.upper())


def result(success: bool = True, **usage: Any) -> WorkItemResult[str, None]:
    return WorkItemResult("id", success, token_usage=TokenUsage(**usage))


@pytest.mark.parametrize("item_id", ["", None, 7, b"id", ["id"]], ids=repr)
def test_an_id_that_is_no_text_is_refused(item_id: Any) -> None:
    with pytest.raises(ValueError, match=r"^item_id must be a non-empty string \(got .*\); pass"):
        LLMWorkItem(item_id, Script())


@pytest.mark.parametrize("item_id", [" ", "\t\n", "\u3000"], ids=repr)
def test_a_blank_id_is_refused(item_id: str) -> None:
    with pytest.raises(ValueError, match=r"^item_id cannot be whitespace only \(got .*\); pass"):
        LLMWorkItem(item_id, Script())


@given(st.text(min_size=1).filter(str.strip))
def test_every_other_id_is_kept_as_it_is(item_id: str) -> None:
    assert LLMWorkItem(item_id, Script()).item_id == item_id


def test_an_item_has_defaults_and_an_order_and_can_be_changed() -> None:
    strategy = Script()
    item = LLMWorkItem[str, str, str]("id", strategy)
    assert (item.item_id, item.strategy, item.prompt, item.context) == ("id", strategy, "", None)
    item.prompt = "changed"
    assert item == LLMWorkItem("id", strategy, "changed", None)


def test_a_result_has_defaults_and_an_order_and_can_be_changed() -> None:
    made = WorkItemResult[str, str]("id", True)
    assert made == WorkItemResult("id", True, None, None, None, {}, None)
    made.success = False
    assert made.success is False
    assert made.token_usage is not WorkItemResult("id", True).token_usage
    first_seven = [field.name for field in dataclasses.fields(WorkItemResult)][:7]
    assert first_seven == [
        "item_id",
        "success",
        "output",
        "error",
        "context",
        "token_usage",
        "gemini_safety_ratings",
    ]


def test_the_exception_of_a_result_is_neither_shown_nor_compared() -> None:
    failed: Any = WorkItemResult("id", False, error="E: e", attempts=3)
    failed.exception = ValueError("e")
    assert failed == WorkItemResult("id", False, error="E: e")
    assert "exception" not in repr(failed)


class UnpicklableError(Exception):
    """As SDKs have them: it takes two arguments and passes one on, and holds a lock."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code} {message}")
        self.lock = threading.Lock()


def test_a_failed_result_can_be_copied_pickled_and_dumped_whatever_it_failed_with() -> None:
    failed: Any = WorkItemResult("id", False, error="E: e", context={"row": 1})
    failed.exception = UnpicklableError(403, "no")
    failed.note = "the caller's own"
    copies = [copy.deepcopy(failed), pickle.loads(pickle.dumps(failed))]
    assert copies == [failed, failed]
    assert [(each.exception, each.note) for each in copies] == [(None, failed.note)] * 2
    assert json.loads(json.dumps(dataclasses.asdict(failed)))["error"] == "E: e"
    assert BatchResult([failed]) == copy.deepcopy(BatchResult([failed]))


def test_every_summary_field_is_computed_from_the_results() -> None:
    results = [
        result(input_tokens=100, output_tokens=10, total_tokens=110, cached_input_tokens=80),
        result(False, input_tokens=50),
        result(output_tokens=5, total_tokens=5),
        result(),
    ]
    batch = BatchResult(results, 99, 99, 99, 99, 99, 99)
    assert batch == BatchResult(results, 4, 3, 1, 150, 15, 80)
    assert dataclasses.astuple(batch)[1:7] == (4, 3, 1, 150, 15, 80)


def test_a_batch_of_nothing_is_all_zeros() -> None:
    empty = BatchResult[str, None]([])
    assert dataclasses.astuple(empty) == ([], 0, 0, 0, 0, 0, 0, False, [], None, {})
    assert (empty.cache_hit_rate(), empty.effective_input_tokens()) == (0.0, 0)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {"input_tokens": None, "output_tokens": None, "cached_input_tokens": None},
        {"input_tokens": MagicMock(), "output_tokens": "7", "cached_input_tokens": float("nan")},
        MagicMock(),
        7,
    ],
    ids=["None", "None counts", "no counts", "mock", "number"],
)
def test_a_result_with_unreadable_usage_never_costs_the_batch(usage: Any) -> None:
    broken = WorkItemResult("id", True, "output", token_usage=usage)
    batch = BatchResult([broken, result(input_tokens=3)])
    assert (batch.total_input_tokens, batch.total_output_tokens) == (3, 0)
    assert batch.total_cached_tokens == 0


@pytest.mark.parametrize(
    ("input_tokens", "cached", "rate", "effective"),
    [
        (5000, 4500, 90.0, 950),
        (1000, 0, 0.0, 1000),
        (1000, 1000, 100.0, 100),
        (0, 0, 0.0, 0),
        (101, 55, pytest.approx(54.4554, abs=1e-4), 52),
        # Reported without the cached part: 500 new tokens beside 4500 cached ones.
        (500, 4500, 90.0, 950),
        (0, 4500, 0.0, 450),
    ],
)
def test_cached_input_counts_a_tenth(
    input_tokens: int, cached: int, rate: float, effective: int
) -> None:
    batch = BatchResult([result(input_tokens=input_tokens, cached_input_tokens=cached)])
    assert batch.cache_hit_rate() == rate
    assert batch.effective_input_tokens() == effective
    assert type(batch.cache_hit_rate()) is float
    assert type(batch.effective_input_tokens()) is int


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9))))
def test_no_usage_makes_a_rate_above_100_or_a_negative_cost(counts: list[tuple[int, int]]) -> None:
    batch = BatchResult([result(input_tokens=new, cached_input_tokens=old) for new, old in counts])
    assert 0.0 <= batch.cache_hit_rate() <= 100.0
    assert batch.effective_input_tokens() >= 0


def test_a_snapshot_of_the_stats_is_a_plain_dict_of_its_own() -> None:
    stats = ProcessingStats(total=3, processed=2, succeeded=1, failed=1, cached_input_tokens=40)
    stats.error_counts["ValueError"] = 1
    snapshot = stats.copy()
    stats.error_counts["ValueError"] = 2
    stats.total = 9
    assert type(snapshot) is dict
    assert snapshot == {
        "total": 3,
        "processed": 2,
        "succeeded": 1,
        "failed": 1,
        "start_time": None,
        "error_counts": {"ValueError": 1},
        "rate_limit_count": 0,
        "total_input_tokens": 0,
        "total_output_tokens": 0,
        "total_tokens": 0,
        "cached_input_tokens": 40,
        "total_cached_tokens": 40,
        "hedged_calls": 0,
    }


def test_the_two_names_of_the_cached_count_are_always_equal() -> None:
    stats = ProcessingStats()
    stats.cached_input_tokens = 7
    assert stats.total_cached_tokens == 7
    stats.total_cached_tokens = 9
    assert stats.cached_input_tokens == stats.copy()["total_cached_tokens"] == 9
    assert ProcessingStats().error_counts is not ProcessingStats().error_counts


def test_the_processor_takes_its_arguments_in_order_and_keeps_them() -> None:
    names = "max_workers post_processor max_queue_size progress_callback progress_callback_timeout"
    default, given_all = Shouting(), Shouting(2, print, 7, print, 1.5)
    assert [getattr(default, name) for name in names.split()] == [5, None, 0, None, None]
    assert [getattr(given_all, name) for name in names.split()] == [2, print, 7, print, 1.5]


@pytest.mark.parametrize("missing", ["_worker", "_process_item"])
def test_a_processor_has_to_say_how_it_works(missing: str) -> None:
    methods = {name: vars(Shouting)[name] for name in {"_worker", "_process_item"} - {missing}}
    incomplete: Any = type("Incomplete", (BatchProcessor,), methods)
    with pytest.raises(TypeError, match=missing):
        incomplete()


async def test_a_processor_of_ones_own_runs_its_workers() -> None:
    processor = Shouting(max_workers=3)
    for prompt in ("a", "b"):
        await processor.add_work(LLMWorkItem(prompt, Script(), prompt))
    first = await processor.process_all()
    assert [result.output for result in first.results] == ["A", "B"]
    assert (await processor.process_all()).results == []
    assert first.total_items == 2


async def test_a_full_queue_is_a_clear_error() -> None:
    processor = Shouting(max_queue_size=1)
    item = LLMWorkItem[str, str, int]("id", Script())
    await processor.add_work(item)
    with pytest.raises(RuntimeError, match=r"queue is full \(1 items, max_queue_size=1\); run"):
        await processor.add_work(item)
    await processor.process_all()
    await processor.add_work(item)


async def test_leaving_the_processor_empties_its_queue_and_suppresses_nothing() -> None:
    processor = Shouting()

    async def leave() -> None:
        async with processor as entered:
            await entered.add_work(LLMWorkItem("id", Script()))
            raise KeyError

    with pytest.raises(KeyError):
        await leave()
    assert (await processor.process_all()).total_items == 0
