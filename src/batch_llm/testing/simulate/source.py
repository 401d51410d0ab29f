"""The items of a simulation, and when they come."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

from batch_llm.base import LLMWorkItem
from batch_llm.parallel import ParallelBatchProcessor
from batch_llm.testing.simulate.provider import SimulatedProvider, SimulatedStrategy
from batch_llm.testing.simulate.records import Accepted
from batch_llm.testing.simulate.scenario import Scenario


class Source:
    """Adds the items of a scenario before the runs, and while they go on.

    Args:
        scenario: How many there are, and when they come.
        provider: Makes their strategies.
        processor: Gets them.

    Attributes:
        accepted: The items that the processor has accepted.
    """

    def __init__(
        self,
        scenario: Scenario,
        provider: SimulatedProvider,
        processor: ParallelBatchProcessor[str, Any, int],
    ) -> None:
        self._scenario = scenario
        self._provider = provider
        self._processor = processor
        self._shared = [provider.strategy() for _ in range(scenario.strategies or 0)]
        self._queued: Counter[SimulatedStrategy] = Counter()
        self._next = 0
        self._extra = 0
        self.accepted: list[Accepted] = []

    @property
    def is_exhausted(self) -> bool:
        """Whether every item of the scenario has been added, extra ones aside."""
        return self._next == self._scenario.items

    async def queue(self, waiting: int, *, is_first: bool) -> None:
        """Add what is there before a run, as far as the queue has room.

        Args:
            waiting: Items that are in the queue already.
            is_first: Whether there was no run yet; late items are late for the first only.
        """
        scenario = self._scenario
        room = scenario.config.max_queue_size or scenario.items
        there = scenario.items - scenario.late_items * is_first
        until = min(there, self._next + room - waiting)
        self._queued.clear()
        while self._next < until:
            strategy = self._strategy()
            self._queued[strategy] += 1
            await self._add_next(strategy)

    @contextlib.asynccontextmanager
    async def feeding(self) -> AsyncGenerator[None]:
        """Add the others meanwhile."""
        if self.is_exhausted:
            yield
            return
        feeder = asyncio.create_task(self._feed())
        try:
            yield
        finally:
            feeder.cancel()
            await asyncio.wait((feeder,))

    async def _feed(self) -> None:
        # The run may end while an item waits for room; it is added again before the next run.
        with contextlib.suppress(RuntimeError):
            while not self.is_exhausted:
                await asyncio.sleep(self._scenario.late_gap_seconds)
                strategy = self._strategy()
                # One that has a single item so far is cleaned up with it, so it gets no more.
                has_several = self._queued[strategy] > 1
                await self._add_next(strategy if has_several else self._provider.strategy())

    async def add_extra(self) -> None:
        """Add an item beyond those of the scenario, as long as it wants any."""
        if self._extra < self._scenario.added_items:
            self._extra += 1
            number = self._scenario.items + self._extra - 1
            await self._add(number, self._provider.strategy())

    def _strategy(self) -> SimulatedStrategy:
        if not self._shared:
            return self._provider.strategy()
        return self._shared[self._next % len(self._shared)]

    async def _add_next(self, strategy: SimulatedStrategy) -> None:
        await self._add(self._next, strategy)
        self._next += 1

    async def _add(self, number: int, strategy: SimulatedStrategy) -> None:
        item_id = f"row {number // 3 if self._scenario.equal_ids else number}"
        item = LLMWorkItem[str, Any, int](item_id, strategy, f"item {number}", number)
        await self._processor.add_work(item)
        at = self._provider.clock.moment()
        self.accepted.append(Accepted(at, number, item_id, strategy.number))
