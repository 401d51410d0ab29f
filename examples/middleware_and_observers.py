"""Middleware changes items and results; observers and a progress callback only watch.

Run it: python examples/middleware_and_observers.py
It needs no key: a mock strategy answers.
"""

import asyncio
from dataclasses import replace
from typing import Any

from batch_llm import (
    BaseMiddleware,
    BaseObserver,
    LLMWorkItem,
    MetricsObserver,
    ParallelBatchProcessor,
    ProcessingEvent,
    ProcessorConfig,
    RateLimitConfig,
    WorkItemResult,
)
from batch_llm.testing import MockStrategy

NOTES = {
    f"note-{number:02}": "" if number in (5, 9) else f"Meeting {number} went well."
    for number in range(1, 13)
}

Item = LLMWorkItem[str, str, str]
Result = WorkItemResult[str, str]


class SkipEmpty(BaseMiddleware[str, str, str]):
    """Spends nothing on rows without text."""

    async def before_process(self, work_item: Item) -> Item | None:
        return work_item if work_item.prompt.strip() else None


class HouseStyle(BaseMiddleware[str, str, str]):
    """Tells the model how we write, and tidies up what it wrote."""

    async def before_process(self, work_item: Item) -> Item:
        return replace(work_item, prompt=f"Summarize briefly, in English:\n{work_item.prompt}")

    async def after_process(self, result: Result) -> Result:
        return replace(result, output=(result.output or "").strip())


class Alarm(BaseObserver):
    """Says what somebody on duty may want to hear at once."""

    async def on_event(self, event: ProcessingEvent, data: dict[str, Any]) -> None:
        if event is ProcessingEvent.COOLDOWN_STARTED:
            print(f"  ! rate limited: pausing for {data['duration']:.1f} s")
        elif event is ProcessingEvent.ITEM_FAILED:
            print(f"  ! {data['item_id']}: {data['error_type']}")


def show_progress(finished: int, total: int, item_id: str) -> None:
    print(f"{finished:3} of {total}, last {item_id}")


async def main() -> None:
    metrics = MetricsObserver()
    strategy = MockStrategy(
        lambda prompt: f"  In short: {prompt.splitlines()[-1]}  ",
        latency=0.05,
        rate_limit_on_call=4,
    )
    async with ParallelBatchProcessor[str, str, str](
        config=ProcessorConfig(
            max_workers=2,
            progress_interval=4,
            rate_limit=RateLimitConfig(cooldown_seconds=0.5, slow_start_items=0),
        ),
        middlewares=[
            SkipEmpty(),
            HouseStyle(),
        ],  # in this order on the way in, reversed on the way out
        observers=[metrics, Alarm()],
        progress_callback=show_progress,
    ) as processor:
        for item_id, text in NOTES.items():
            await processor.add_work(LLMWorkItem(item_id, strategy, text))
        batch = await processor.process_all()

    print(f"\n{batch.results[0].item_id}: {batch.results[0].output!r}")
    seen = await metrics.get_metrics()
    print(
        f"{seen['items_succeeded']} summaries at {seen['avg_processing_time']:.2f} s each, "
        f"{seen['rate_limits_hit']} rate limit, failures: {seen['error_counts']}"
    )


if __name__ == "__main__":
    asyncio.run(main())
