"""Who answers?"""

import zlib
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

from batch_llm.cli.invented import answer_for
from batch_llm.cli.options import DemoOptions, UsageError
from batch_llm.core.extras import require

if TYPE_CHECKING:
    from batch_llm.testing.gemini import Fault, RecordedRequest

_EXTRAS = "gemini,testing"
_PAUSE_SECONDS = 1.5
_LEAST_REQUESTS_PER_SECOND = 25
_LONGEST_RUN_SECONDS = 120
_BURST_SECONDS = 2


def check_installed(options: DemoOptions) -> None:
    """Look whether what a service needs is there, before anything is begun.

    Raises:
        UsageError: An extra is missing; the message has the command that installs it.
    """
    try:
        require("google.genai", extra=_EXTRAS)
        if not options.live:
            require("httptools", extra=_EXTRAS)
    except ImportError as missing:
        raise UsageError(str(missing)) from missing


def open_client(options: DemoOptions) -> AbstractAsyncContextManager[Any]:
    """A google-genai client for ``async with``: of the real service, or of the emulator."""
    return _live(options) if options.live else _emulated(options)


def quota_per_minute(items: int) -> int:
    """Requests per minute that the emulator grants, more for a long run."""
    return 60 * max(_LEAST_REQUESTS_PER_SECOND, items // _LONGEST_RUN_SECONDS)


@asynccontextmanager
async def _live(options: DemoOptions) -> AsyncGenerator[Any, None]:
    genai = require("google.genai", extra=_EXTRAS)
    client = genai.Client(api_key=options.api_key, vertexai=False)
    try:
        yield client
    finally:
        await client.aio.aclose()
        client.close()


@asynccontextmanager
async def _emulated(options: DemoOptions) -> AsyncGenerator[Any, None]:
    from batch_llm.testing.gemini import GeminiEmulator  # noqa: PLC0415 - it needs an extra

    seed = options.seed
    async with GeminiEmulator(
        lambda request: answer_for(request.prompt, seed=seed),
        requests_per_minute=quota_per_minute(options.items),
        quota_burst_seconds=_BURST_SECONDS,
        latency_seconds=lambda request: 0.1 + 0.3 * _chance(request.prompt, seed) / 100,
        faults=_mishaps(options),
        seed=seed,
    ) as server:
        yield server.client()


def _mishaps(options: DemoOptions) -> "Callable[[RecordedRequest], Fault | None]":
    """What goes wrong: one refusal with a hint to wait, and a fault for every twentieth book."""
    from batch_llm.testing.gemini import Fault  # noqa: PLC0415 - it needs an extra

    by_chance = {
        7: Fault.status(503),
        29: Fault.malformed_json(in_text=True),
        48: Fault.cut(),
        66: Fault.html(502),
        83: Fault.malformed_json(),
    }
    befallen: set[str] = set()

    def mishap(request: "RecordedRequest") -> "Fault | None":
        if request.operation != "generate":
            return None
        if request.index == options.items // 3:
            return Fault.rate_limit(_PAUSE_SECONDS)
        fault = by_chance.get(_chance(request.prompt, options.seed))
        if fault is None or request.prompt in befallen:
            return None
        befallen.add(request.prompt)
        return fault

    return mishap


def _chance(prompt: str, seed: int) -> int:
    """A number from 0 to 99 that is always the same for a prompt."""
    return zlib.crc32(f"{seed}\0{prompt}".encode()) % 100
