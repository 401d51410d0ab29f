"""The contract against the emulator: it does what tests/live sees the real API do."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from google.genai import Client

from batch_llm.testing.gemini import GeminiEmulator
from tests.live.gemini_contract import GeminiContract


class TestGeminiEmulator(GeminiContract):
    model = "gemini-2.5-flash"

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Client]:
        async with GeminiEmulator() as server:
            yield server.client()
