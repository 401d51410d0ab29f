"""HTTP at the emulator's socket, where the SDK never goes."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from batch_llm.testing.gemini import Fault, GeminiEmulator, RecordedRequest
from batch_llm.testing.gemini.connection import MAX_BODY_BYTES, MAX_HEAD_BYTES

PATH = "/v1beta/models/gemini-2.5-flash:generateContent"
KEY = {"x-goog-api-key": "emulator"}


class Peer:
    """A client that says exactly what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        return int(head[0].split()[1]), headers, body

    async def call(self, *args: Any, **kwargs: Any) -> tuple[int, Any]:
        self.writer.write(message(*args, **kwargs))
        status, _, body = await self.answer()
        return status, json.loads(body)

    async def at_end(self) -> bool:
        return await self._reader.read() == b""


def message(
    body: Any = None,
    *,
    method: str = "POST",
    path: str = PATH,
    headers: dict[str, str] = KEY,
    version: str = "1.1",
) -> bytes:
    """A request; text and bytes are sent as they are, other bodies as JSON."""
    if isinstance(body, str):
        body = body.encode()
    elif not isinstance(body, bytes):
        body = b"" if body is None else json.dumps(body).encode()
    fields = {"host": "localhost", "content-length": str(len(body)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
    return f"{method} {path} HTTP/{version}\r\n{head}\r\n".encode() + body


def prompt(text: str) -> dict[str, Any]:
    return {"contents": [{"parts": [{"text": text}]}]}


@asynccontextmanager
async def connected(server: GeminiEmulator) -> AsyncIterator[Peer]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield Peer(reader, writer)
    finally:
        writer.close()
        await writer.wait_closed()


def echo(request: RecordedRequest) -> str:
    return request.prompt


def text_of(body: bytes) -> str:
    text: str = json.loads(body)["candidates"][0]["content"]["parts"][0]["text"]
    return text


async def many_turns() -> None:
    """Let the loop move everything that can be moved without waiting for time."""
    for _ in range(500):
        await asyncio.sleep(0)


class TestConnections:
    async def test_kept_alive(self) -> None:
        async with GeminiEmulator(echo) as server, connected(server) as peer:
            for text in ("one", "two"):
                peer.writer.write(message(prompt(text)))
                status, headers, body = await peer.answer()
                assert (status, headers["connection"]) == (200, "keep-alive")
                assert text_of(body) == text

    @pytest.mark.parametrize(
        ("version", "headers"), [("1.1", {"connection": "close"}), ("1.0", {})]
    )
    async def test_closed_when_asked(self, version: str, headers: dict[str, str]) -> None:
        async with GeminiEmulator() as server, connected(server) as peer:
            peer.writer.write(message(prompt("a"), version=version, headers=KEY | headers))
            status, answered, _ = await peer.answer()
            assert (status, answered["connection"]) == (200, "close")
            assert await peer.at_end()

    async def test_pipelined_requests_are_answered_in_order(self) -> None:
        def latency(request: RecordedRequest) -> float:
            return 0.02 if request.index == 0 else 0.0

        async with (
            GeminiEmulator(echo, latency_seconds=latency) as server,
            connected(server) as peer,
        ):
            peer.writer.write(b"".join(message(prompt(str(n))) for n in range(100)))
            texts = [text_of((await peer.answer())[2]) for _ in range(100)]
            assert texts == [str(n) for n in range(100)]

    async def test_requests_in_small_pieces(self) -> None:
        async with GeminiEmulator(echo) as server, connected(server) as peer:
            for byte in message(prompt("piecemeal")):
                peer.writer.write(bytes([byte]))
                await asyncio.sleep(0)
            assert text_of((await peer.answer())[2]) == "piecemeal"

    async def test_chunked_bodies(self) -> None:
        body = json.dumps(prompt("chunked")).encode()
        chunks = [body[:10], body[10:]]
        head = message(headers={**KEY, "content-length": "", "transfer-encoding": "chunked"})
        async with GeminiEmulator(echo) as server, connected(server) as peer:
            framed = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
            peer.writer.write(head + framed + b"0\r\n\r\n")
            assert text_of((await peer.answer())[2]) == "chunked"

    async def test_expected_continue(self) -> None:
        whole = message(prompt("go on"), headers={**KEY, "expect": "100-continue"})
        head, separator, body = whole.partition(b"\r\n\r\n")
        async with GeminiEmulator(echo) as server, connected(server) as peer:
            peer.writer.write(head + separator)
            assert (await peer.answer())[0] == 100
            peer.writer.write(body)
            assert text_of((await peer.answer())[2]) == "go on"

    async def test_a_reader_that_lags_holds_back_the_answers(self) -> None:
        async with GeminiEmulator(lambda _: "x" * 1_000_000) as server:
            async with connected(server) as peer:
                peer.writer.write(b"".join(message(prompt(str(n))) for n in range(40)))
                await many_turns()
                assert server.count("generate") < 40
                for _ in range(40):
                    assert len(text_of((await peer.answer())[2])) == 1_000_000
            assert server.count("generate") == 40

    async def test_what_waits_is_bounded(self) -> None:
        async with (
            GeminiEmulator(latency_seconds=1e6) as server,
            connected(server) as peer,
        ):
            peer.writer.write(message(prompt("x" * 100_000)) * 300)
            await many_turns()
            assert peer.writer.transport.get_write_buffer_size() > 0
            peer.writer.transport.abort()

    async def test_heads_are_measured_one_by_one(self) -> None:
        headers = {**KEY, "x-long": "x" * (MAX_HEAD_BYTES // 2)}
        async with GeminiEmulator() as server, connected(server) as peer:
            for _ in range(3):
                assert (await peer.call(prompt("a"), headers=headers))[0] == 200

    @pytest.mark.parametrize("mid_answer", [False, True])
    async def test_a_cut_is_no_complete_answer(self, mid_answer: bool) -> None:
        async with GeminiEmulator() as server, connected(server) as peer:
            server.script(Fault.cut(mid_answer=mid_answer))
            peer.writer.write(message(prompt("a")) + message(prompt("b")))
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await peer.answer()
            assert server.count("generate") == 1

    async def test_a_client_that_leaves_stops_its_model(self) -> None:
        asked = asyncio.Event()
        stopped = asyncio.Event()

        async def respond(request: RecordedRequest) -> str:
            asked.set()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                stopped.set()
            return request.prompt

        async with GeminiEmulator(respond) as server:
            async with connected(server) as peer:
                peer.writer.write(message(prompt("a")))
                await asked.wait()
            await stopped.wait()
            assert server.requests[0].status is None

    async def test_a_model_that_cancels_itself_breaks_the_connection(self) -> None:
        async def respond(_: RecordedRequest) -> str:
            raise asyncio.CancelledError

        async with GeminiEmulator(respond) as server, connected(server) as peer:
            peer.writer.write(message(prompt("a")))
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await peer.answer()


class TestRefusals:
    @pytest.mark.parametrize(
        ("request_", "status"),
        [
            (b"what?\r\n\r\n", 400),
            (message(headers={"content-length": str(MAX_BODY_BYTES + 1)}), 413),
            (message(headers={"x-long": "x" * MAX_HEAD_BYTES}), 431),
            (message(path="/" + "x" * MAX_HEAD_BYTES), 431),
            (message(headers={"connection": "upgrade", "upgrade": "h2c"}), 400),
        ],
        ids=["no HTTP", "long body", "long header", "long path", "upgrade"],
    )
    async def test_bad_http_is_answered_and_ended(
        self, request_: bytes, status: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with GeminiEmulator() as server, connected(server) as peer:
            peer.writer.write(request_)
            answered, headers, _ = await peer.answer()
            assert (answered, headers["connection"]) == (status, "close")
            peer.writer.write(message(prompt("more")))
            assert await peer.at_end()
            assert server.requests == []
            await many_turns()
        assert not caplog.records

    async def test_an_endless_body_is_cut_off(self) -> None:
        head = message(headers={"content-length": "", "transfer-encoding": "chunked"})
        megabyte = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
        async with GeminiEmulator() as server, connected(server) as peer:
            peer.writer.write(head)
            for _ in range(MAX_BODY_BYTES // 0x100000 + 1):
                peer.writer.write(megabyte)
                await peer.writer.drain()
            assert (await peer.answer())[0] == 413

    async def test_what_came_before_is_answered_first(self) -> None:
        async with (
            GeminiEmulator(echo, latency_seconds=0.02) as server,
            connected(server) as peer,
        ):
            peer.writer.write(message(prompt("good")) + b"bad\r\n\r\n")
            assert text_of((await peer.answer())[2]) == "good"
            assert (await peer.answer())[0] == 400
            assert await peer.at_end()

    @pytest.mark.parametrize("body", [b'{"contents": [', b"[1]", b"\xff\xfe", b"[" * 100_000])
    async def test_no_json_object(self, body: bytes) -> None:
        async with GeminiEmulator() as server, connected(server) as peer:
            status, answer = await peer.call(body)
            assert server.requests[0].body == {}
        assert (status, answer["error"]["status"]) == (400, "INVALID_ARGUMENT")
        assert answer["error"]["message"].startswith("Invalid JSON payload received.")

    @pytest.mark.parametrize("body", [None, {}, {"contents": []}])
    async def test_no_contents(self, body: Any) -> None:
        async with GeminiEmulator() as server, connected(server) as peer:
            status, answer = await peer.call(body)
        assert status == 400
        assert "contents is not specified" in answer["error"]["message"]

    @pytest.mark.parametrize(
        "body",
        [
            {"contents": "text"},
            {"contents": ["text", {"parts": "text"}, {"parts": ["text", {"text": 1}]}]},
            {**prompt("a"), "generationConfig": [], "systemInstruction": 3},
            {**prompt("a"), "generationConfig": {"maxOutputTokens": "3", "responseSchema": 3}},
        ],
    )
    async def test_odd_shapes_are_no_failures_of_ours(self, body: Any) -> None:
        async with GeminiEmulator() as server, connected(server) as peer:
            assert (await peer.call(body))[0] == 200

    async def test_tokens_of_a_whole_request(self) -> None:
        body = {"generateContentRequest": {**prompt("12345678"), "model": "models/m"}}
        path = PATH.replace("generateContent", "countTokens")
        async with GeminiEmulator() as server, connected(server) as peer:
            assert await peer.call(body, path=path) == (200, {"totalTokens": 2})
            odd = {"generateContentRequest": 3}
            assert await peer.call(odd, path=path) == (200, {"totalTokens": 0})

    async def test_a_model_alone_has_no_prompt(self) -> None:
        body = {"contents": [{"role": "model", "parts": [{"text": "Hello"}]}]}
        async with GeminiEmulator() as server, connected(server) as peer:
            assert (await peer.call(body))[0] == 200
            assert server.requests[0].prompt == ""

    async def test_a_cache_needs_a_model(self) -> None:
        async with GeminiEmulator() as server, connected(server) as peer:
            status, answer = await peer.call({}, path="/v1/cachedContents")
        assert status == 400
        assert "model is not specified" in answer["error"]["message"]

    async def test_one_version_is_vertex_alone(self) -> None:
        async with GeminiEmulator() as server, connected(server) as peer:
            await peer.call(method="GET", path="/v1beta1/cachedContents")
            await peer.call(method="GET", path="/v1beta/cachedContents")
            assert [request.vertex for request in server.requests] == [True, False]

    async def test_no_key(self) -> None:
        async with GeminiEmulator() as server, connected(server) as peer:
            status, answer = await peer.call(prompt("a"), headers={})
        assert (status, answer["error"]["status"]) == (403, "PERMISSION_DENIED")
        assert "unregistered callers" in answer["error"]["message"]

    async def test_no_token_on_vertex(self) -> None:
        path = "/v1beta1/projects/p/locations/l/cachedContents"
        async with GeminiEmulator() as server, connected(server) as peer:
            status, answer = await peer.call(method="GET", path=path, headers={})
        assert (status, answer["error"]["status"]) == (401, "UNAUTHENTICATED")

    async def test_the_key_may_stand_in_the_query(self) -> None:
        path = "/v1beta/cachedContents?key=mine&pageSize=5"
        async with GeminiEmulator() as server, connected(server) as peer:
            assert await peer.call(method="GET", path=path, headers={}) == (200, {})
            assert server.requests[0].query == {"key": "mine", "pageSize": "5"}
            assert server.requests[0].path == "/v1beta/cachedContents"

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("POST", "/v1beta/models/gemini-2.5-flash:embedContent"),
            ("GET", PATH),
            ("PUT", "/v1beta/cachedContents/a"),
        ],
    )
    async def test_what_is_not_emulated_says_so(self, method: str, path: str) -> None:
        async with GeminiEmulator() as server, connected(server) as peer:
            status, answer = await peer.call(method=method, path=path)
            assert server.requests[0].operation == "other"
        assert (status, answer["error"]["status"]) == (501, "UNIMPLEMENTED")
        assert f"does not serve {method} {path}" in answer["error"]["message"]

    async def test_an_unknown_path_is_a_page(self) -> None:
        async with GeminiEmulator() as server, connected(server) as peer:
            peer.writer.write(message(path="/v9/models/x:generateContent"))
            status, headers, body = await peer.answer()
        assert (status, headers["content-type"]) == (404, "text/html")
        assert b"Not Found" in body
