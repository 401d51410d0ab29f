"""What the library adds to the calls it makes: each target beside what was measured.

    python benchmarks/overhead.py [--quick]

A figure is a ratio to the floor (N tasks that pull from one iterator, await the call and
store its result) measured in the same process, turn and turn about, the least of several
rounds each. Time is CPU time of the process, except in P5, whose subject is the wall clock.
Items are made before the clock starts. The exit code is the number of targets missed.
"""

import argparse
import asyncio
import gc
import logging
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO

from counts import per_item
from rig import Item, Run, floor, queued, streamed, work_items

from batch_llm import BaseObserver

WORKERS = 100
WAIT_SECONDS = 0.05
TICK_SECONDS = 0.001

# Sets a measurement up, off the clock, and gives what is measured.
Contender = Callable[[], Awaitable[Run]]


@dataclass
class Row:
    """One line of the table; a target is an upper bound unless it says otherwise."""

    name: str
    target: float
    measured: float
    unit: str = "x"
    at_least: bool = False
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.measured >= self.target if self.at_least else self.measured <= self.target

    def __str__(self) -> str:
        bound = f"{'>=' if self.at_least else '<='} {self.target:g} {self.unit}"
        verdict = "ok" if self.ok else "MISSED"
        measured = f"{self.measured:.2f} {self.unit}"
        return f"{self.name:<62} {bound:>15} {measured:>15}  {verdict:<7} {self.note}".rstrip()


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    rounds: int
    items: int
    many_items: int
    many_workers: int
    waiting_items: int


FULL = Effort(rounds=45, items=3_000, many_items=100_000, many_workers=10_000, waiting_items=4_000)
QUICK = Effort(rounds=20, items=3_000, many_items=20_000, many_workers=2_000, waiting_items=1_000)


def least(rounds: int, contenders: Mapping[str, Contender]) -> dict[str, float]:
    """CPU seconds of each contender's best round."""
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(rounds):
        for name, contender in contenders.items():
            best[name] = min(best[name], asyncio.run(_cpu_seconds(contender)))
    return best


async def _cpu_seconds(contender: Contender) -> float:
    run = await contender()
    gc.collect()
    start = time.process_time()
    kept = await run()
    seconds = time.process_time() - start
    del kept  # off the clock: whoever ran it wants its results
    return seconds


def bare(items: list[Item], workers: int = WORKERS) -> Contender:
    async def setup() -> Run:
        return floor(items, workers)

    return setup


def library(items: list[Item], workers: int = WORKERS, observers: int = 0) -> Contender:
    async def setup() -> Run:
        return await queued(items, workers, [BaseObserver() for _ in range(observers)])

    return setup


def library_and_intake(items: list[Item]) -> Contender:
    async def setup() -> Run:
        async def run() -> object:
            process_all = await queued(items, WORKERS)
            return await process_all()

        return run

    return setup


def per_item_cost(effort: Effort) -> Iterator[Row]:
    items = work_items(effort.items)
    best = least(
        effort.rounds,
        {
            "floor": bare(items),
            "library": library(items),
            "intake": library_and_intake(items),
            "observer": library(items, observers=1),
            "streamed": lambda: streamed(items, WORKERS),
        },
    )

    def row(name: str, contender: str, target: float) -> Row:
        microseconds = best[contender] / len(items) * 1e6
        note = f"{microseconds:.1f} us per item"
        return Row(name, target, best[contender] / best["floor"], note=note)

    yield row("   the floor itself", "floor", 1.0)
    yield row("P1 per item: process_all, without add_work", "library", 3.0)
    yield row("P1 per item: add_work for each item, and process_all", "intake", 3.0)
    yield row("P2 per item: process_all with one observer, without add_work", "observer", 3.5)
    yield row("P2 per item: streamed, without add_work", "streamed", 3.5)


def growth(effort: Effort) -> Iterator[Row]:
    few, many = 1_000, effort.many_items
    best = least(
        max(3, effort.rounds // 3),
        {"few": library(work_items(few)), "many": library(work_items(many))},
    )
    ratio = (best["many"] / many) / (best["few"] / few)
    yield Row(f"P3 per item at {many:,} items against {few:,}", 1.3, ratio)

    few, many = effort.waiting_items, 5 * effort.many_workers
    best = least(
        3,
        {
            "few": library(work_items(few, WAIT_SECONDS)),
            "many": library(work_items(many, WAIT_SECONDS), effort.many_workers),
        },
    )
    ratio = (best["many"] / many) / (best["few"] / few)
    yield Row(f"P3 per item at {effort.many_workers:,} workers against {WORKERS}", 2.0, ratio)


def exact_gates(effort: Effort) -> Iterator[Row]:
    async def setup(items: int) -> Run:
        return await queued(work_items(items), WORKERS)

    counts = per_item(setup)
    for name, target in (("tasks", 0), ("timers", 0), ("futures", 0), ("callbacks", 1.1)):
        yield Row(f"P4 {name} per item", target, getattr(counts, name), unit="")
    note = f"{counts.python_calls:.1f} Python, {counts.c_calls:.1f} C"
    yield Row("P4 profiled calls per item", 60, counts.calls, unit="", note=note)


def waiting(effort: Effort) -> Iterator[Row]:
    """P5: the wall clock of many calls in flight, and how long others wait for the loop."""
    workers = 1_000
    items = work_items(20 * workers, WAIT_SECONDS)
    contenders = {"floor": bare(items, workers), "library": library(items, workers)}
    seconds = dict.fromkeys(contenders, float("inf"))
    lags = dict(seconds)
    for _ in range(max(3, effort.rounds // 3)):
        for name, contender in contenders.items():
            took, lag = asyncio.run(_wall_seconds_and_lag(contender))
            seconds[name], lags[name] = min(seconds[name], took), min(lags[name], lag)
    note = f"{20 * WAIT_SECONDS / seconds['library']:.2f} of the ideal"
    efficiency = seconds["floor"] / seconds["library"]
    yield Row("P5 1,000 workers: efficiency", 0.9, efficiency, at_least=True, note=note)
    note = f"{lags['floor'] * 1e3:.1f} and {lags['library'] * 1e3:.1f} ms"
    yield Row("P5 1,000 workers: p99 loop lag", 3.0, lags["library"] / lags["floor"], note=note)


async def _wall_seconds_and_lag(contender: Contender) -> tuple[float, float]:
    run = await contender()
    lags = list[float]()

    async def tick() -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(TICK_SECONDS)
            lags.append(time.perf_counter() - start - TICK_SECONDS)

    gc.collect()
    ticking = asyncio.create_task(tick())
    start = time.perf_counter()
    await run()
    took = time.perf_counter() - start
    ticking.cancel()
    return took, sorted(lags)[int(len(lags) * 0.99)]


def memory(effort: Effort) -> Iterator[Row]:
    few, many = effort.items, 4 * effort.items
    kept = (_bytes_kept(many) - _bytes_kept(few)) / (many - few)
    yield Row("P6 kept per collected item beyond the input", 300, kept, unit="B")


def _bytes_kept(count: int) -> int:
    """What a run leaves allocated while its result is held, and its items with it."""
    items = work_items(count)

    async def run() -> int:
        process_all = await queued(items, WORKERS)
        gc.collect()
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        result = await process_all()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert result.succeeded == count
        return after - before

    return asyncio.run(run())


def logging_cost(effort: Effort) -> Iterator[Row]:
    items = work_items(effort.items)
    logger = logging.getLogger("batch_llm")
    handler = logging.StreamHandler(StringIO())

    def at(level: int) -> Contender:
        async def setup() -> Run:
            logger.setLevel(level)
            return await queued(items, WORKERS)

        return setup

    logger.addHandler(handler)
    best = least(effort.rounds, {"on": at(logging.INFO), "off": at(logging.CRITICAL)})
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)
    yield Row("P7 INFO logging on against off", 1.3, best["on"] / best["off"])


def admission(effort: Effort) -> Iterator[Row]:
    """The gate with everything to count and nothing to wait for."""
    items = work_items(effort.items)

    async def limited() -> Run:
        limits = {"max_requests_per_minute": 1e9, "max_tokens_per_minute": 1e12}
        return await queued(items, WORKERS, **limits)

    best = least(effort.rounds, {"free": library(items), "limited": limited})
    note = f"{(best['limited'] - best['free']) / effort.items * 1e6:.1f} us more"
    ratio = best["limited"] / best["free"]
    yield Row("admission: RPM, TPM and adaptation against adaptation alone", 1.3, ratio, note=note)


PARTS = (per_item_cost, admission, growth, exact_gates, waiting, memory, logging_cost)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="less of everything, in 15 seconds")
    effort = QUICK if parser.parse_args().quick else FULL
    missed = 0
    print(f"call: sleep(0), {effort.items:,} items, {WORKERS} workers; waiting call: 50 ms")
    for part in PARTS:
        for row in part(effort):
            missed += not row.ok
            print(row, flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main())
