"""The emulator sends the very bytes that a test asks for."""

import asyncio

import pytest

from batch_llm.testing.gemini import Fault, GeminiEmulator

REQUEST = (
    b"POST /v1/models/gemini-2.5-flash:generateContent HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"
)


async def sent(server: GeminiEmulator, requests: int = 1) -> bytes:
    """All that comes back on one connection, whose last request is to be its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(REQUEST * requests)
    writer.write_eof()
    try:
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


async def test_status_and_body_as_they_are() -> None:
    async with GeminiEmulator() as server:
        server.script(Fault.raw(b"\xff\x00", status=418))
        head, _, body = (await sent(server)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 418 ")
        assert b"\r\nContent-Length: 2\r\n" in head
        assert b"\r\nConnection: close" in head
        assert body == b"\xff\x00"
        assert server.requests[0].status == 418


@pytest.mark.parametrize("name", ["Content-Length", "content-length"])
async def test_a_header_takes_the_place_of_the_usual_one(name: str) -> None:
    async with GeminiEmulator() as server:
        server.script(Fault.raw(b"{}", headers={name: "9", "retry-after": "soon"}))
        head = (await sent(server)).partition(b"\r\n\r\n")[0]
    assert head.count(b"\r\nContent-Length: ") == 1
    assert b"\r\nContent-Length: 9\r\n" in head
    assert head.endswith(b"\r\nRetry-After: soon")


@pytest.mark.parametrize("headers", [None, {"Content-Length": "9"}])
async def test_the_connection_ends_with_it(headers: dict[str, str] | None) -> None:
    async with GeminiEmulator() as server:
        server.script(Fault.empty(), Fault.raw(b"{}", headers=headers))
        answers = await sent(server, requests=3)
        assert answers.count(b"HTTP/1.1 200") == 2
        assert answers.count(b"Connection: close") == 1
        assert [request.status for request in server.requests] == [200, 200]


async def test_it_can_come_late_and_to_any_operation() -> None:
    loop = asyncio.get_running_loop()
    async with GeminiEmulator() as server:
        server.script(Fault.raw(b"{").after(5), operation="cache_list")
        started = loop.time()
        with pytest.raises(ValueError, match="Expecting"):
            await server.client().aio.caches.list()
        assert loop.time() - started >= 5
