"""Plays a provider over HTTP on 127.0.0.1, so that an example runs without a key."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

Headers = dict[str, str]
Answer = tuple[int, dict[str, Any], Headers]
"""Status, JSON body, further headers."""


@asynccontextmanager
async def fake_server(answer: Callable[[dict[str, Any]], Answer]) -> AsyncGenerator[str, None]:
    """Answer the JSON body of every POST by ``answer(body)``; gives the server's URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = re.search(r"content-length: *(\d+)", head, re.IGNORECASE)
            body = await reader.readexactly(int(length[1]) if length else 0)
            await asyncio.sleep(0.02)
            writer.write(_response(*answer(json.loads(body))))
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client is gone
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def _response(status: int, body: dict[str, Any], headers: Headers) -> bytes:
    content = json.dumps(body).encode()
    headers = headers | {
        "Content-Type": "application/json",
        "Content-Length": str(len(content)),
        "Connection": "close",
    }
    lines = [f"HTTP/1.1 {status} Fake", *(f"{name}: {headers[name]}" for name in headers)]
    return "\r\n".join([*lines, "", ""]).encode() + content
