"""Counts, times and their exports."""

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm import (
    LLMWorkItem,
    MetricsObserver,
    ParallelBatchProcessor,
    ProcessingEvent,
    ProcessorConfig,
    RateLimitConfig,
)
from tests.helpers import ANSWER, Script, run_batch

Event = ProcessingEvent
ZEROS = {
    "items_processed": 0,
    "items_succeeded": 0,
    "items_failed": 0,
    "rate_limits_hit": 0,
    "total_cooldown_time": 0.0,
    "processing_times": [],
    "error_counts": {},
}
COMPLETED = (Event.ITEM_COMPLETED, {"item_id": "a", "duration": 2.0, "tokens": 15})
FAILED = (Event.ITEM_FAILED, {"item_id": "b", "error_type": "ValueError"})
LIMITED = (Event.RATE_LIMIT_HIT, {"item_id": "a", "worker_id": 0})
COOLED = (Event.COOLDOWN_ENDED, {"duration": 300.0})


async def told(*events: tuple[ProcessingEvent, dict[str, Any]]) -> MetricsObserver:
    metrics = MetricsObserver()
    for event, data in events:
        await metrics.on_event(event, data)
    return metrics


async def test_a_new_observer_has_all_zeros() -> None:
    metrics = MetricsObserver()
    assert metrics.metrics == ZEROS
    assert await metrics.get_metrics() == ZEROS | {"avg_processing_time": 0.0, "success_rate": 0.0}
    assert type(await metrics.get_metrics()) is dict


async def test_it_counts_what_it_is_told() -> None:
    other = (Event.ITEM_COMPLETED, {"item_id": "c", "duration": 4.0, "tokens": 1})
    metrics = await told(COMPLETED, FAILED, FAILED, other, LIMITED, COOLED, COOLED)
    expected: dict[str, Any] = {
        "items_processed": 4,
        "items_succeeded": 2,
        "items_failed": 2,
        "rate_limits_hit": 1,
        "total_cooldown_time": 600.0,
        "processing_times": [2.0, 4.0],
        "error_counts": {"ValueError": 2},
    }
    assert metrics.metrics == expected
    expected |= {"avg_processing_time": 3.0, "success_rate": 0.5}
    assert await metrics.get_metrics() == metrics.export_dict() == expected


@pytest.mark.parametrize("event", Event, ids=lambda event: event.value)
async def test_data_without_keys_does_no_harm(event: ProcessingEvent) -> None:
    metrics = (await told((event, {}))).metrics
    assert metrics["processing_times"] == []
    assert metrics["error_counts"] == ({"unknown": 1} if event is Event.ITEM_FAILED else {})


async def test_the_metrics_of_a_run() -> None:
    metrics = MetricsObserver()
    limited = RuntimeError("429 RESOURCE_EXHAUSTED")
    await run_batch(
        Script(limited, ANSWER),
        Script(ValueError("bad")),
        count=2,
        observers=[metrics],
        config=ProcessorConfig(rate_limit=RateLimitConfig()),
    )
    counted = await metrics.get_metrics()
    assert counted["items_processed"] == 4
    assert counted["success_rate"] == 0.5
    assert counted["rate_limits_hit"] == 1
    assert counted["total_cooldown_time"] == 300.0
    assert counted["error_counts"] == {"ValueError": 2}
    assert len(counted["processing_times"]) == 2
    assert counted["avg_processing_time"] == sum(counted["processing_times"]) / 2


async def test_one_observer_counts_on_over_runs() -> None:
    metrics = MetricsObserver()
    async with ParallelBatchProcessor[str, Any, Any](observers=[metrics]) as processor:
        for expected in (1, 2):
            await processor.add_work(LLMWorkItem("id", Script()))
            await processor.process_all()
            assert metrics.metrics["items_processed"] == expected


async def test_what_is_given_out_is_a_copy() -> None:
    metrics = await told(COMPLETED, FAILED)
    for given_out in (await metrics.get_metrics(), metrics.export_dict()):
        given_out["processing_times"].append(9.0)
        given_out["error_counts"]["KeyError"] = 1
        given_out["items_processed"] = 0
    assert metrics.metrics["processing_times"] == [2.0]
    assert metrics.metrics["error_counts"] == {"ValueError": 1}
    assert metrics.metrics["items_processed"] == 2


async def test_reset_starts_from_zero_awaited_or_not() -> None:
    metrics = await told(COMPLETED)
    before = metrics.metrics
    metrics.reset()
    assert metrics.metrics == ZEROS
    assert before["items_processed"] == 1
    await metrics.on_event(*COMPLETED)
    assert await metrics.reset() == ZEROS
    assert metrics.metrics == ZEROS


async def test_json_has_the_number_of_times_instead_of_the_times() -> None:
    exported = json.loads(await (await told(COMPLETED, FAILED)).export_json())
    assert exported == {
        "items_processed": 2,
        "items_succeeded": 1,
        "items_failed": 1,
        "rate_limits_hit": 0,
        "total_cooldown_time": 0.0,
        "error_counts": {"ValueError": 1},
        "avg_processing_time": 2.0,
        "success_rate": 0.5,
        "processing_times_count": 1,
    }


async def test_exports_may_be_awaited_or_not() -> None:
    metrics = await told(COMPLETED)
    assert await metrics.export_dict() == metrics.export_dict()
    assert await metrics.export_prometheus() == metrics.export_prometheus()
    assert isinstance(metrics.export_dict(), dict)
    assert isinstance(metrics.export_prometheus(), str)


async def test_the_prometheus_text() -> None:
    metrics = await told(COMPLETED, FAILED, LIMITED, COOLED)
    text = metrics.export_prometheus()
    kinds = {
        "items_processed": ("counter", 2),
        "items_succeeded": ("counter", 1),
        "items_failed": ("counter", 1),
        "rate_limits_hit": ("counter", 1),
        "avg_processing_time": ("gauge", 2.0),
        "success_rate": ("gauge", 0.5),
        "total_cooldown_time": ("gauge", 300.0),
    }
    for name, (kind, value) in kinds.items():
        assert f"# TYPE batch_llm_{name} {kind}\nbatch_llm_{name} {value}\n" in text
        assert f"# HELP batch_llm_{name} " in text
    assert "# TYPE batch_llm_errors_total counter\n" in text
    assert 'batch_llm_errors_total{error_type="ValueError"} 1\n' in text


# The text format of Prometheus, version 0.0.4.
LINE = re.compile(
    r"# HELP [a-z_]+ [^\n]+"
    r"|# TYPE [a-z_]+ (counter|gauge)"
    r'|(?P<name>[a-z_]+)(\{error_type="(?P<label>([^"\\\n]|\\[\\"n])*)"\})? (?P<value>[-+.e0-9]+)'
)


def unescaped(label: str) -> str:
    return re.sub(r"\\(.)", lambda found: {"n": "\n"}.get(found[1], found[1]), label)


@given(
    kinds=st.lists(st.text() | st.sampled_from(['"', "\\", "\n", "\\n", '\\"', "a b"])),
    durations=st.lists(st.floats(0, 1e300)),
)
async def test_the_prometheus_text_is_valid_whatever_happened(
    kinds: list[str], durations: list[float]
) -> None:
    metrics = await told(
        *[(Event.ITEM_FAILED, {"error_type": kind}) for kind in kinds],
        *[(Event.ITEM_COMPLETED, {"duration": duration}) for duration in durations],
    )
    text = metrics.export_prometheus()
    assert text.endswith("\n")
    lines = [LINE.fullmatch(line) for line in text[:-1].split("\n")]
    assert None not in lines
    samples = [line for line in lines if line and line["name"]]
    assert all(math.isfinite(float(sample["value"])) for sample in samples)
    labels = [unescaped(line["label"]) for line in samples if line["label"] is not None]
    assert labels == sorted(set(kinds))
