"""A local server that answers like the Gemini API, for tests without network or cost.

The real google-genai SDK talks HTTP to it on 127.0.0.1, so transport, parsing and errors
are the real ones::

    async with GeminiEmulator(requests_per_minute=60) as server:
        client = server.client()
        await client.aio.models.generate_content(model="gemini-2.5-flash", contents="Hello")
        assert server.count("generate") == 1
"""

from batch_llm.testing.gemini.caches import CacheRecord
from batch_llm.testing.gemini.emulator import GeminiEmulator
from batch_llm.testing.gemini.faults import Fault
from batch_llm.testing.gemini.models import ModelRules
from batch_llm.testing.gemini.records import Operation, RecordedRequest, Reply

__all__ = [
    "CacheRecord",
    "Fault",
    "GeminiEmulator",
    "ModelRules",
    "Operation",
    "RecordedRequest",
    "Reply",
]
