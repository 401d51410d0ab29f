"""The contract against the real API: cheap calls, made only with a GEMINI_API_KEY."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from google.genai import Client

from tests.live.gemini_contract import GeminiContract


class TestGeminiApi(GeminiContract):
    model = os.environ.get("GEMINI_MODEL", "gemini-2.5-flash")

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Client]:
        client = Client(api_key=os.environ["GEMINI_API_KEY"])
        try:
            yield client
        finally:
            await client.aio.aclose()
            client.close()
