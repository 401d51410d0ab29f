"""Counts, times and their exports."""

import json
from collections.abc import Generator
from typing import Any

from batch_llm.observers.base import BaseObserver
from batch_llm.observers.events import ProcessingEvent


class _AwaitableDict(dict[str, Any]):
    """A dict that pipelines may also await, as they do the other exports."""

    def __await__(self) -> Generator[None, None, dict[str, Any]]:
        yield from ()
        return self


class _AwaitableText(str):
    """A text that pipelines may also await, as they do the other exports."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, str]:
        yield from ()
        return self


def _zeros() -> dict[str, Any]:
    return {
        "items_processed": 0,
        "items_succeeded": 0,
        "items_failed": 0,
        "rate_limits_hit": 0,
        "total_cooldown_time": 0.0,
        "processing_times": [],
        "error_counts": {},
    }


_PROMETHEUS = (
    ("items_processed", "counter", "Items finished."),
    ("items_succeeded", "counter", "Items that ended with an answer."),
    ("items_failed", "counter", "Items that ended without an answer."),
    ("rate_limits_hit", "counter", "Calls refused for the rate limit."),
    ("avg_processing_time", "gauge", "Mean seconds from an item's start to its answer."),
    ("success_rate", "gauge", "Share of finished items with an answer, 0 to 1."),
    ("total_cooldown_time", "gauge", "Seconds spent in cooldowns."),
)


class MetricsObserver(BaseObserver):
    """Collects what a dashboard wants to know.

    Attributes:
        metrics: items_processed, items_succeeded, items_failed, rate_limits_hit,
            total_cooldown_time (seconds), processing_times (seconds of each success),
            error_counts (by type name).
    """

    def __init__(self) -> None:
        self.metrics: dict[str, Any] = _zeros()

    async def on_event(self, event: ProcessingEvent, data: dict[str, Any]) -> None:
        """Count the event."""
        metrics = self.metrics
        match event:
            case ProcessingEvent.ITEM_COMPLETED:
                metrics["items_processed"] += 1
                metrics["items_succeeded"] += 1
                if "duration" in data:
                    metrics["processing_times"].append(data["duration"])
            case ProcessingEvent.ITEM_FAILED:
                metrics["items_processed"] += 1
                metrics["items_failed"] += 1
                kind = data.get("error_type", "unknown")
                metrics["error_counts"][kind] = metrics["error_counts"].get(kind, 0) + 1
            case ProcessingEvent.RATE_LIMIT_HIT:
                metrics["rate_limits_hit"] += 1
            case ProcessingEvent.COOLDOWN_ENDED:
                metrics["total_cooldown_time"] += data.get("duration", 0.0)
            case _:
                pass

    async def get_metrics(self) -> dict[str, Any]:
        """A copy of the metrics.

        With avg_processing_time in seconds and success_rate from 0.0 to 1.0 added.
        """
        return dict(self.export_dict())

    def export_dict(self) -> _AwaitableDict:
        """What ``get_metrics`` gives."""
        metrics = self.metrics
        times: list[float] = metrics["processing_times"]
        processed: int = metrics["items_processed"]
        return _AwaitableDict(
            metrics,
            processing_times=list(times),
            error_counts=dict(metrics["error_counts"]),
            avg_processing_time=sum(times) / len(times) if times else 0.0,
            success_rate=metrics["items_succeeded"] / processed if processed else 0.0,
        )

    def reset(self) -> _AwaitableDict:
        """Start from zero, at once; gives the fresh metrics."""
        self.metrics = _zeros()
        return _AwaitableDict(self.metrics)

    async def export_json(self) -> str:
        """The metrics as JSON, with processing_times_count instead of the list."""
        exported = dict(self.export_dict())
        exported["processing_times_count"] = len(exported.pop("processing_times"))
        return json.dumps(exported, indent=2)

    def export_prometheus(self) -> _AwaitableText:
        """The metrics in the Prometheus text format, every name starting with ``batch_llm_``."""
        exported = self.export_dict()
        lines: list[str] = []
        for name, kind, help_text in _PROMETHEUS:
            lines += [
                f"# HELP batch_llm_{name} {help_text}",
                f"# TYPE batch_llm_{name} {kind}",
                f"batch_llm_{name} {exported[name]}",
            ]
        lines += [
            "# HELP batch_llm_errors_total Failed items by the type of their error.",
            "# TYPE batch_llm_errors_total counter",
        ]
        for error_type, number in sorted(exported["error_counts"].items()):
            escaped = error_type.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
            lines.append(f'batch_llm_errors_total{{error_type="{escaped}"}} {number}')
        return _AwaitableText("\n".join(lines) + "\n")
