"""Gives the Gemini examples their client."""

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from google import genai

from batch_llm.testing.gemini import Fault, GeminiEmulator, RecordedRequest, Reply


@asynccontextmanager
async def gemini_client(
    respond: Callable[[RecordedRequest], str | dict[str, object] | Reply] | None = None,
    faults: Callable[[RecordedRequest], Fault | None] | None = None,
) -> AsyncGenerator[genai.Client, None]:
    """A client of the real service where GEMINI_API_KEY is set, else of a local server.

    Args:
        respond: What the local server answers; by default something that fits the schema.
        faults: What goes wrong at the local server; by default nothing.
    """
    if not os.environ.get("GEMINI_API_KEY"):
        async with GeminiEmulator(respond, faults=faults, latency_seconds=0.05) as emulator:
            yield emulator.client()
        return
    client = genai.Client()
    try:
        yield client
    finally:
        await client.aio.aclose()
        client.close()
