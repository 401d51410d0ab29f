"""How does HTTP/1.1 go over a socket? One `Connection` for each.

Requests of one connection are answered one after the other, in order. A timer runs only while
an answer is to leave later, a task only while the handler awaits.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from types import ModuleType
from typing import Any, Literal

from batch_llm.core.extras import require
from batch_llm.testing.gemini.records import RecordedRequest

httptools: ModuleType = require("httptools", extra="testing")

MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 32 * 1024 * 1024
_MAX_WAITING_REQUESTS = 32
_REASONS = {status.value: status.phrase for status in HTTPStatus}


@dataclass(slots=True, kw_only=True)
class HttpRequest:
    """A complete request; header names are lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    keep_alive: bool


@dataclass(slots=True, kw_only=True)
class HttpAnswer:
    """What is to be sent, when, and how much of it.

    Attributes:
        status: HTTP status.
        body: The whole body.
        content_type: Its type.
        headers: Fields beside the usual ones or in their place. They may contradict the body,
            so the connection ends with such an answer.
        delay_seconds: How long to wait first.
        cut: Break the connection before the answer or in the middle of its body.
        record: The request's record; its status is set when the answer is sent.
    """

    status: int
    body: bytes
    content_type: str = "application/json; charset=UTF-8"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    delay_seconds: float = 0.0
    cut: Literal["before", "mid"] | None = None
    record: RecordedRequest | None = None


Handler = Callable[[HttpRequest], HttpAnswer | Coroutine[Any, Any, HttpAnswer]]


class _RefusedError(Exception):
    """Ends parsing; the answer is in the connection's ``_refusal``."""


class Connection(asyncio.Protocol):
    """One client's connection.

    Args:
        handle: Gives the answer to a request, at once or as a coroutine. Must not raise.
        on_open: Called with the connection once it is open.
        on_close: Called with the connection once it is closed.
    """

    def __init__(
        self,
        handle: Handler,
        on_open: "Callable[[Connection], None]",
        on_close: "Callable[[Connection], None]",
    ) -> None:
        self._handle = handle
        self._on_open = on_open
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._headers: dict[str, str] = {}
        self._head_bytes = 0
        self._chunks: list[bytes] = []
        self._body_bytes = 0
        self._waiting: deque[HttpRequest] = deque()
        self._refusal: HttpAnswer | None = None
        self._busy = False
        self._writable = True
        self._hung_up = False
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The task of a handler that awaits, None when there is none."""
        return self._task

    def abort(self) -> None:
        """Close the socket at once, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop, as are the next four."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._on_open(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all that was under way for this client."""
        self._transport = None
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        self._on_close(self)

    def data_received(self, data: bytes) -> None:
        """Parse, and answer what is complete; after a refusal the parser takes nothing more."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._refusal = self._refusal or _plain(400, f"Bad request: {error}")
        self._work()

    def pause_writing(self) -> None:
        """Hold back answers: the client does not read them."""
        self._writable = False

    def resume_writing(self) -> None:
        """Go on with what was held back."""
        self._writable = True
        self._work()

    def on_message_begin(self) -> None:
        """Called by the parser, as are the next five."""
        self._target = b""
        self._headers = {}
        self._head_bytes = 0
        self._chunks = []
        self._body_bytes = 0

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        self._target += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")
        self._count_head(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """The head is complete: refuse what need not be read on."""
        if self._parser.should_upgrade():
            self._refuse(400, "Upgrading the protocol is not supported.")
        announced = self._headers.get("content-length", "0")
        if int(announced) > MAX_BODY_BYTES:
            self._refuse(413, f"The body must not exceed {MAX_BODY_BYTES} bytes.")
        if self._headers.get("expect") == "100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, chunk: bytes) -> None:
        """A piece of the body, chunked or not."""
        self._body_bytes += len(chunk)
        if self._body_bytes > MAX_BODY_BYTES:
            self._refuse(413, f"The body must not exceed {MAX_BODY_BYTES} bytes.")
        self._chunks.append(chunk)

    def on_message_complete(self) -> None:
        """The request is complete and waits for its turn."""
        request = HttpRequest(
            method=self._parser.get_method().decode(),
            target=self._target.decode("latin-1"),
            headers=self._headers,
            body=b"".join(self._chunks),
            keep_alive=self._parser.should_keep_alive(),
        )
        self._waiting.append(request)

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"The request's head must not exceed {MAX_HEAD_BYTES} bytes.")

    def _refuse(self, status: int, message: str) -> None:
        self._refusal = _plain(status, message)
        raise _RefusedError

    def _work(self) -> None:
        """Answer what waits, as far as that goes without waiting."""
        while self._waiting and not self._busy and self._writable:
            request = self._waiting.popleft()
            self._busy = True
            answer = self._handle(request)
            if isinstance(answer, HttpAnswer):
                self._answer(request, answer)
            else:
                self._task = self._loop.create_task(self._answer_later(request, answer))
        transport = self._transport
        if transport is None:
            return
        if self._refusal is not None and not self._busy and not self._waiting:
            self._send_refusal(transport, self._refusal)
        elif len(self._waiting) > _MAX_WAITING_REQUESTS:
            transport.pause_reading()
        else:
            transport.resume_reading()

    async def _answer_later(
        self, request: HttpRequest, answer: Coroutine[Any, Any, HttpAnswer]
    ) -> None:
        try:
            ready = await answer
        except BaseException:
            self.abort()
            raise
        self._task = None
        self._answer(request, ready)
        self._work()

    def _answer(self, request: HttpRequest, answer: HttpAnswer) -> None:
        transport = self._transport
        if transport is None:
            return
        if answer.delay_seconds > 0:
            self._timer = self._loop.call_later(
                answer.delay_seconds, self._answer_in_time, transport, request, answer
            )
        else:
            self._send(transport, request, answer)

    def _answer_in_time(
        self, transport: asyncio.Transport, request: HttpRequest, answer: HttpAnswer
    ) -> None:
        self._timer = None
        self._send(transport, request, answer)
        self._work()

    def _send(self, transport: asyncio.Transport, request: HttpRequest, answer: HttpAnswer) -> None:
        self._busy = False
        if answer.cut == "before":
            self._waiting.clear()
            transport.abort()
            return
        keep_alive = request.keep_alive and not answer.headers
        message = _encoded(answer, keep_alive=keep_alive)
        if answer.cut == "mid":
            transport.write(message[: len(message) - len(answer.body) // 2 - 1])
        else:
            if answer.record is not None:
                answer.record.status = answer.status
            transport.write(message)
        if answer.cut == "mid" or not keep_alive:
            self._waiting.clear()
            transport.close()

    def _send_refusal(self, transport: asyncio.Transport, refusal: HttpAnswer) -> None:
        """Answer and end our side only: closing with unread input could reset the answer away."""
        if self._hung_up or transport.is_closing():
            return
        self._hung_up = True
        transport.write(_encoded(refusal, keep_alive=False))
        transport.write_eof()


def _plain(status: int, text: str) -> HttpAnswer:
    return HttpAnswer(status=status, body=text.encode(), content_type="text/plain")


def _encoded(answer: HttpAnswer, *, keep_alive: bool) -> bytes:
    fields = {
        "Content-Type": answer.content_type,
        "Content-Length": str(len(answer.body)),
        "Connection": "keep-alive" if keep_alive else "close",
    }
    fields |= {name.title(): value for name, value in answer.headers.items()}
    lines = [
        f"HTTP/1.1 {answer.status} {_REASONS.get(answer.status, 'Unknown')}",
        *(f"{name}: {value}" for name, value in fields.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + answer.body
