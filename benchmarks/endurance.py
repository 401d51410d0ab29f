"""What long runs leave behind, in real time: memory, sockets, tasks, and the tokens' ledger.

    python benchmarks/endurance.py [--quick]

First a million items are streamed whose calls do nothing; nobody keeps them, so memory must
not grow. Then 20,000 calls go over HTTP to the emulator, through the real SDK, and one request
in fifty fails: refused, cut off, slow, spoilt. Linux only, whose /proc tells what is open. The
exit code is the number of broken expectations.
"""

import argparse
import asyncio
import gc
import json
import logging
import os
import random
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

from overhead import Row
from rig import Echo

from batch_llm import (
    BatchResult,
    GeminiStrategy,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    RateLimitConfig,
    RetryConfig,
    WorkItemResult,
    gemini_client,
)
from batch_llm.testing.gemini import Fault, GeminiEmulator, RecordedRequest, Reply

MODEL = "gemini-2.5-flash"
STREAM_WORKERS = 100
QUEUE_SIZE = 1_000
GROWTH_LIMIT_MB = 5.0

HTTP_WORKERS = 200
# Beside the two ends of each connection: the listening socket and the loop's own two.
OTHER_SOCKETS = 3
FAULT_SHARE = 0.02
TIMEOUT_SECONDS = 10.0
FAULTS = {
    "429 with a hint": Fault.rate_limit(0.2),
    "429": Fault.rate_limit(bare=True),
    "500": Fault.status(500),
    "503": Fault.status(503),
    "502 of a proxy": Fault.html(502),
    "cut before the answer": Fault.cut(),
    "cut amid the answer": Fault.cut(mid_answer=True),
    "slow": Fault.slow(0.5),
    "never answered": Fault.slow(6 * TIMEOUT_SECONDS),
    "malformed answer": Fault.malformed_json(),
    "malformed text": Fault.malformed_json(in_text=True),
    "empty answer": Fault.empty(),
}
# A whole answer comes with them all the same, and has its price.
BILLED = {None, "slow", "malformed text"}


@dataclass(frozen=True)
class Effort:
    """How much is run; memory is looked at every so many items."""

    streamed: int
    own_strategies: int
    look_every: int
    calls: int


FULL = Effort(streamed=1_000_000, own_strategies=100_000, look_every=10_000, calls=20_000)
QUICK = Effort(streamed=50_000, own_strategies=20_000, look_every=5_000, calls=2_000)


@dataclass
class Memory:
    """Megabytes in use, look by look; the first look is what the others are compared to."""

    resident: list[float] = field(default_factory=list[float])
    traced: list[float] = field(default_factory=list[float])

    def look(self) -> None:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.resident.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
        self.traced.append(tracemalloc.get_traced_memory()[0] / 1e6)


def growth(megabytes: list[float]) -> float:
    return max(megabytes) - megabytes[0]


async def streamed(count: int, look_every: int, *, own_strategies: bool) -> tuple[Memory, int]:
    """Stream items that a producer makes as there is room; also, how many ids were wrong."""
    processor = ParallelBatchProcessor[str, str, None](
        config=ProcessorConfig(max_workers=STREAM_WORKERS, max_queue_size=QUEUE_SIZE)
    )
    shared = Echo()

    async def produce() -> None:
        for number in range(count):
            strategy = Echo() if own_strategies else shared
            await processor.add_work(LLMWorkItem(str(number), strategy, "a prompt"))

    memory, seen = Memory(), bytearray(count)
    # It takes its first turn between the run's beginning and that of the first worker.
    producing = asyncio.create_task(produce())
    stream = processor._stream()  # pyright: ignore[reportPrivateUsage]
    async with aclosing(stream) as results:
        done = 0
        async for result in results:
            seen[int(result.item_id)] += result.success
            done += 1
            if done % look_every == 0:
                memory.look()
    await producing
    return memory, count - seen.count(1)


def memory_rows(effort: Effort) -> Iterator[Row]:
    for name, count, own in (
        ("streamed", effort.streamed, False),
        ("streamed, each with its own strategy", effort.own_strategies, True),
    ):
        tracemalloc.start()
        start = time.perf_counter()
        memory, wrong = asyncio.run(streamed(count, effort.look_every, own_strategies=own))
        seconds = time.perf_counter() - start
        tracemalloc.stop()
        note = f"{seconds:.0f} s, of which much is tracemalloc's"
        yield Row(f"{count:,} items {name}: not exactly one success", 0, wrong, "", note=note)
        since = f"from {effort.look_every:,} items on"
        for what, megabytes in (("resident", memory.resident), ("allocated", memory.traced)):
            note = f"{megabytes[0]:.1f} MB then, {megabytes[-1]:.1f} MB at the end"
            name_of_row = f"   growth of {what} memory, {since}"
            yield Row(name_of_row, GROWTH_LIMIT_MB, growth(megabytes), "MB", note=note)


@dataclass(frozen=True)
class Held:
    """What the process holds."""

    sockets: int
    descriptors: int
    threads: int

    @classmethod
    def now(cls) -> "Held":
        gc.collect()
        targets = list(_open_files())
        sockets = sum(target.startswith("socket:") for target in targets)
        return cls(sockets, len(targets), threading.active_count())


def _open_files() -> Iterator[str]:
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - one call, one descriptor of its own
        try:
            yield str((Path("/proc/self/fd") / name).readlink())
        except FileNotFoundError:
            continue  # the descriptor of the listing itself


@dataclass
class Provider:
    """Decides what the emulator answers, and keeps the books that the library's must equal."""

    random: random.Random
    kinds: Iterator[str] = field(default_factory=lambda: cycle(FAULTS))
    faults_by_request: dict[int, str] = field(default_factory=dict[int, str])

    def fault(self, request: RecordedRequest) -> Fault | None:
        if self.random.random() >= FAULT_SHARE:
            return None
        name = next(self.kinds)
        self.faults_by_request[request.index] = name
        return FAULTS[name]

    def reply(self, request: RecordedRequest) -> Reply:
        read, written = price(request)
        usage: dict[str, int | None] = {
            "promptTokenCount": read,
            "candidatesTokenCount": written,
            "totalTokenCount": read + written,
        }
        return Reply(request.prompt, usage=usage)

    def billed(self, requests: list[RecordedRequest]) -> tuple[int, int]:
        """Input and output tokens of every whole answer that left."""
        prices = [
            price(request)
            for request in requests
            if request.status == 200 and self.faults_by_request.get(request.index) in BILLED
        ]
        return sum(read for read, _ in prices), sum(written for _, written in prices)


def price(request: RecordedRequest) -> tuple[int, int]:
    """Tokens of a prompt and of its answer, which only its number decides."""
    number: int = json.loads(request.prompt)["number"]
    return 10 + number % 7, 3 + number % 5


@dataclass
class Called:
    """What came of the calls."""

    batch: BatchResult[int, None]
    stats: dict[str, Any]
    billed: tuple[int, int]
    faults: Counter[str]
    requests: int
    most_sockets: int
    tasks_left: int
    seconds: float


def parse(response: Any) -> int:
    number: int = json.loads(response.text)["number"]
    return number


async def called(count: int, seed: int) -> Called:
    """Make the calls; everything that was opened for them is closed."""
    provider = Provider(random.Random(seed))
    config = ProcessorConfig(
        max_workers=HTTP_WORKERS,
        timeout_per_item=TIMEOUT_SECONDS,
        retry=RetryConfig(max_attempts=8, initial_wait=0.1, max_wait=1.0),
        rate_limit=RateLimitConfig(cooldown_seconds=0.2, slow_start_items=0),
    )
    most_sockets = 0

    def look(result: WorkItemResult[int, None]) -> None:
        nonlocal most_sockets
        if int(result.item_id) % 1_000 == 0:
            most_sockets = max(most_sockets, Held.now().sockets)

    start = time.perf_counter()
    async with GeminiEmulator(provider.reply, faults=provider.fault) as emulator:
        async with (
            gemini_client(
                api_key="emulated",
                max_connections=HTTP_WORKERS,
                http_options={"base_url": emulator.base_url},
            ) as client,
            ParallelBatchProcessor[str, int, None](config=config, post_processor=look) as processor,
        ):
            strategy = GeminiStrategy(MODEL, client, parse)
            for number in range(count):
                prompt = json.dumps({"number": number})
                await processor.add_work(LLMWorkItem(str(number), strategy, prompt))
            batch = await processor.process_all()
            stats = await processor.get_stats()
        requests = emulator.requests
    await asyncio.sleep(0.1)  # the transports' last callbacks
    return Called(
        batch=batch,
        stats=stats,
        billed=provider.billed(requests),
        faults=Counter(provider.faults_by_request.values()),
        requests=len(requests),
        most_sockets=most_sockets,
        tasks_left=len(asyncio.all_tasks()) - 1,
        seconds=time.perf_counter() - start,
    )


def http_rows(effort: Effort) -> Iterator[Row]:
    asyncio.run(called(HTTP_WORKERS, seed=0))  # what stays from a first use stays once
    before = Held.now()
    outcome = asyncio.run(called(effort.calls, seed=1))
    after = Held.now()
    batch, stats = outcome.batch, outcome.stats
    right = Counter((int(result.item_id), result.output) for result in batch.results)
    wrong = effort.calls - sum(right[number, number] == 1 for number in range(effort.calls))
    faults = sum(outcome.faults.values())
    note = f"{outcome.seconds:.0f} s, {outcome.requests:,} requests, {faults} faults"
    yield Row(f"{effort.calls:,} calls over HTTP: not exactly one answer", 0, wrong, "", note=note)
    note = ", ".join(f"{number} {name}" for name, number in sorted(outcome.faults.items()))
    missing = len(FAULTS) - len(outcome.faults)
    yield Row("   kinds of faults that did not occur", 0, missing, "", note=note)
    read, written = outcome.billed
    note = f"{read:,} in, {written:,} out billed"
    for book, tokens in {
        "batch": (batch.total_input_tokens, batch.total_output_tokens),
        "stats": (stats["total_input_tokens"], stats["total_output_tokens"]),
    }.items():
        off = abs(tokens[0] - read) + abs(tokens[1] - written)
        yield Row(
            f"   tokens that the {book} counts otherwise than the provider", 0, off, "", note=note
        )
    limit = 2 * HTTP_WORKERS + OTHER_SOCKETS
    yield Row("   most sockets open, both ends", limit, outcome.most_sockets, "")
    yield Row("   tasks left", 0, outcome.tasks_left, "")
    for what in ("sockets", "descriptors", "threads"):
        left = getattr(after, what) - getattr(before, what)
        yield Row(f"   {what} left", 0, left, "", note=f"{getattr(before, what)} before")


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a twentieth of it, in a minute")
    effort = QUICK if parser.parse_args().quick else FULL
    logging.getLogger("batch_llm").setLevel(logging.CRITICAL)
    missed = 0
    for part in (memory_rows, http_rows):
        for row in part(effort):
            missed += not row.ok
            print(row, flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main())
