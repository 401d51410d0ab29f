"""How fast Gemini calls go: the library beside the bare SDK and plain aiohttp, over real HTTP.

    python benchmarks/gemini_throughput.py [--quick]

The server is the emulator, in a process of its own. All contenders make the same calls, turn
and turn about; each one's best round counts. A call's cost is CPU time of this process, a
ratio to the bare SDK (N tasks that pull from one iterator and await the SDK) with the same
client and the same config. Where the user has none the library sends one, which keeps the SDK
from continuing answers at the user's cost: the bare SDK is told the same, and what it costs
where it may continue is told beside that. The last row is about the wall clock, and compares
with the client that the SDK builds by itself. The exit code is the number of targets missed.
"""

import argparse
import asyncio
import gc
import importlib
import logging
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from google import genai
from overhead import Row
from rig import Item, Run, floor, queued

from batch_llm import GeminiStrategy, LLMCallStrategy, LLMWorkItem, TokenUsage, gemini_client
from batch_llm.testing.gemini import GeminiEmulator

MODEL = "gemini-2.5-flash"
PROMPT = "Is this review positive? I could not put the book down until three in the morning."
CONFIG = genai.types.GenerateContentConfig(temperature=0.2, max_output_tokens=500)
# What the library sends of its own accord, as far as the installed SDK knows it.
OWN_FIELDS: dict[str, Any] = {
    "automatic_continuation": False,
    "automatic_function_calling": {"disable": True},
}
WORKERS = (10, 100, 500)
LATENCY_SECONDS = 0.02
LONG_LATENCY_SECONDS = 1.0


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    rounds: int
    calls: int
    long_rounds: int
    long_calls: int


FULL = Effort(rounds=8, calls=1_000, long_rounds=2, long_calls=2_000)
QUICK = Effort(rounds=3, calls=600, long_rounds=1, long_calls=1_000)
# To begin a worker is no part of what a call costs.
CALLS_PER_WORKER = 4


@dataclass
class Cost:
    """The best of all rounds, for one call."""

    cpu_seconds: float = float("inf")
    wall_seconds: float = float("inf")

    def best(self, cpu_seconds: float, wall_seconds: float) -> None:
        self.cpu_seconds = min(self.cpu_seconds, cpu_seconds)
        self.wall_seconds = min(self.wall_seconds, wall_seconds)


class BareSdk(LLMCallStrategy[str]):
    """What a user would write: one call of the SDK."""

    def __init__(self, client: genai.Client, config: Any) -> None:
        self.client = client
        self.config = config

    async def execute(self, prompt: str, attempt: int, timeout: float) -> tuple[str, TokenUsage]:
        response = await self.client.aio.models.generate_content(
            model=MODEL, contents=prompt, config=self.config
        )
        return str(response.text), {}


class PlainAiohttp(LLMCallStrategy[str]):
    """The least that such a call can cost."""

    def __init__(self, session: Any, base_url: str) -> None:
        self.session = session
        self.url = f"{base_url}/v1beta/models/{MODEL}:generateContent"

    async def execute(self, prompt: str, attempt: int, timeout: float) -> tuple[str, TokenUsage]:
        body = {
            "contents": [{"role": "user", "parts": [{"text": prompt}]}],
            "generationConfig": {"temperature": 0.2, "maxOutputTokens": 500},
        }
        headers = {"x-goog-api-key": "emulated"}
        async with self.session.post(self.url, json=body, headers=headers) as response:
            answer = await response.json()
        return answer["candidates"][0]["content"]["parts"][0]["text"], {}


def items_of(strategy: LLMCallStrategy[str], count: int) -> list[Item]:
    return [LLMWorkItem(f"row {number}", strategy, PROMPT) for number in range(count)]


def bare(strategy: LLMCallStrategy[str], workers: int, calls: int) -> Run:
    return floor(items_of(strategy, calls), workers)


def library(client: genai.Client, config: Any, workers: int, calls: int) -> Run:
    strategy = GeminiStrategy(MODEL, client, lambda response: str(response.text), config)
    items = items_of(strategy, calls)

    async def run() -> object:
        process_all = await queued(items, workers)
        result = await process_all()
        assert result.succeeded == calls, result.results[0].error
        return result

    return run


async def cost_of(rounds: int, calls: int, contenders: dict[str, Run]) -> dict[str, Cost]:
    """What a call of each contender costs; a first round that does not count connects them."""
    costs = {name: Cost() for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            await run()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if number:
                costs[name].best(cpu / calls, wall / calls)
    return costs


async def per_call(base_url: str, workers: int, effort: Effort) -> list[Row]:
    calls = max(effort.calls, CALLS_PER_WORKER * workers)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(connected(base_url, workers))
        contenders = {
            "bare": bare(BareSdk(client, CONFIG), workers, calls),
            "library": library(client, CONFIG, workers, calls),
            "bare, no config": bare(BareSdk(client, own_config()), workers, calls),
            "library, no config": library(client, None, workers, calls),
            "bare, may continue": bare(BareSdk(client, None), workers, calls),
        }
        if aiohttp := installed("aiohttp"):
            session = await stack.enter_async_context(
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=workers))
            )
            contenders["aiohttp"] = bare(PlainAiohttp(session, base_url), workers, calls)
        costs = await cost_of(effort.rounds, calls, contenders)
    rows = [row_of(costs, workers, suffix) for suffix in ("", ", no config")]
    free = costs["library, no config"].cpu_seconds / costs["bare, may continue"].cpu_seconds
    rows[-1].note += f", {free:.2f} x the bare SDK's that may continue"
    return rows


def own_config() -> Any:
    known = genai.types.GenerateContentConfig.model_fields
    own = {name: value for name, value in OWN_FIELDS.items() if name in known}
    return genai.types.GenerateContentConfig(**own)


def row_of(costs: dict[str, Cost], workers: int, suffix: str) -> Row:
    ours, sdk = costs[f"library{suffix}"], costs[f"bare{suffix}"]
    note = f"{ours.cpu_seconds * 1e6:,.0f} us, {1 / ours.wall_seconds:,.0f} calls/s"
    if "aiohttp" in costs:
        times = ours.cpu_seconds / costs["aiohttp"].cpu_seconds
        note += f", {times:.1f} x plain aiohttp"
    name = f"{workers} workers{suffix}: CPU per call, to the bare SDK's"
    return Row(name, 1.1, ours.cpu_seconds / sdk.cpu_seconds, note=note)


async def in_flight(base_url: str, effort: Effort) -> Row:
    """Workers that wait for answers: how many calls a second come through."""
    workers, calls = max(WORKERS), effort.long_calls
    async with connected(base_url, workers) as client, plain_client(base_url) as plain:
        contenders = {
            "library": library(client, CONFIG, workers, calls),
            "SDK": bare(BareSdk(plain, CONFIG), workers, calls),
        }
        costs = await cost_of(effort.long_rounds, calls, contenders)
    ours, sdk = (1 / costs[name].wall_seconds for name in contenders)
    note = f"{ours:,.0f} and {sdk:,.0f} calls/s"
    name = f"{workers} workers, answers after 1 s: calls/s, to the SDK's own client"
    return Row(name, 0.9, ours / sdk, at_least=True, note=note)


def connected(base_url: str, workers: int) -> Any:
    http_options = {"base_url": base_url}
    return gemini_client(api_key="emulated", max_connections=workers, http_options=http_options)


@asynccontextmanager
async def plain_client(base_url: str) -> AsyncGenerator[genai.Client, None]:
    client = genai.Client(api_key="emulated", http_options={"base_url": base_url})
    yield client
    await client.aio.aclose()
    client.close()


def installed(module: str) -> ModuleType | None:
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


@asynccontextmanager
async def server(latency_seconds: float) -> AsyncGenerator[str, None]:
    """The emulator in another process; gives its URL."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        "--serve",
        str(latency_seconds),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip()
    finally:
        # The end of its input is the end of it.
        await process.communicate(b"")


async def serve(latency_seconds: float) -> None:
    async with GeminiEmulator(latency_seconds=latency_seconds) as emulator:
        print(emulator.base_url, flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def rows(effort: Effort) -> AsyncGenerator[Row, None]:
    async with server(LATENCY_SECONDS) as base_url:
        for workers in WORKERS:
            for row in await per_call(base_url, workers, effort):
                yield row
    async with server(LONG_LATENCY_SECONDS) as base_url:
        yield await in_flight(base_url, effort)


async def measure(effort: Effort) -> int:
    transport = "aiohttp" if installed("aiohttp") else "httpx"
    print(f"google-genai {genai.__version__}, {transport}")
    missed = 0
    async for row in rows(effort):
        missed += not row.ok
        print(row, flush=True)
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, in some four minutes")
    parser.add_argument("--serve", type=float, metavar="SECONDS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        asyncio.run(serve(options.serve))
        return 0
    # The SDK and its HTTP clients have a line for each call at INFO.
    logging.getLogger().setLevel(logging.WARNING)
    return asyncio.run(measure(QUICK if options.quick else FULL))


if __name__ == "__main__":
    sys.exit(main())
