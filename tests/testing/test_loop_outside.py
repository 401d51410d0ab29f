"""Threads and sockets keep their own pace, and virtual time does not jump over them."""

import asyncio
import hashlib
import os
import selectors
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import pytest

from batch_llm.testing.loop import DeadlockError, _in_flight, run
from tests.testing.impatience import HOUR, now, run_impatiently


def compute(rounds: int = 20_000) -> bytes:
    """Keep a thread busy for some real milliseconds without holding the interpreter."""
    return hashlib.pbkdf2_hmac("sha256", b"", b"", rounds)


@pytest.mark.parametrize(
    "in_thread",
    [
        lambda: asyncio.to_thread(compute),
        lambda: asyncio.get_running_loop().run_in_executor(None, compute),
        lambda: asyncio.get_running_loop().getaddrinfo("localhost", 80),
    ],
    ids=["to_thread", "run_in_executor", "getaddrinfo"],
)
def test_time_stands_still_while_a_thread_works(in_thread: Callable[[], Any]) -> None:
    async def main() -> float:
        async with asyncio.timeout(0.001):
            await in_thread()
        return now()

    assert run(main()) == 0.0


def test_a_thread_may_set_timers_and_wake_the_loop() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        await asyncio.to_thread(loop.call_soon_threadsafe, lambda: loop.call_later(HOUR, woken.set))
        await woken.wait()
        return now()

    assert run(main()) == HOUR


def test_a_thread_that_waits_for_the_loop_does_not_stop_the_clock_for_ever() -> None:
    async def main() -> tuple[str, float]:
        loop = asyncio.get_running_loop()

        def ask_the_loop() -> str:
            return asyncio.run_coroutine_threadsafe(asyncio.sleep(HOUR, "slept"), loop).result()

        return await asyncio.to_thread(ask_the_loop), now()

    assert run_impatiently(main(), thread_grace_seconds=0.01) == ("slept", HOUR)


def test_a_long_job_without_timers_is_no_deadlock() -> None:
    release = threading.Event()

    def releases_later() -> None:
        compute()
        release.set()

    async def main() -> bool:
        work = asyncio.create_task(asyncio.to_thread(release.wait))
        # That this timer fires means that the job has used up its grace.
        await asyncio.sleep(1)
        thread = threading.Thread(target=releases_later)
        thread.start()
        try:
            return await work
        finally:
            thread.join()

    assert run_impatiently(main(), grace_seconds=0.0, thread_grace_seconds=0.01) is True


def test_a_cancelled_job_is_joined_at_the_end() -> None:
    ended: list[bool] = []

    async def main() -> None:
        task = asyncio.create_task(asyncio.to_thread(lambda: ended.append(bool(compute()))))
        await asyncio.sleep(0)
        task.cancel()

    run(main())
    assert ended == [True]


def test_a_plain_thread_can_wake_a_loop_that_has_nothing_else() -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str] = loop.create_future()
        thread = threading.Thread(
            target=loop.call_soon_threadsafe, args=(answer.set_result, "woken")
        )
        thread.start()
        try:
            return await answer
        finally:
            thread.join()

    assert run(main()) == "woken"


def test_a_job_that_is_done_hides_no_deadlock() -> None:
    async def main() -> None:
        await asyncio.to_thread(compute)
        await asyncio.Event().wait()

    with pytest.raises(DeadlockError):
        run_impatiently(main(), thread_grace_seconds=0.01)


async def serve(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]],
) -> tuple[asyncio.Server, int]:
    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answer(reader, writer)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


def test_no_timeout_overtakes_a_conversation_over_loopback() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(5):
            writer.write((await reader.readexactly(1_000)) * 300)
            await writer.drain()
            await asyncio.sleep(119)

    async def call(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(5):
            async with asyncio.timeout(120):
                writer.write(bytes(1_000))
                await reader.readexactly(300_000)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

    async def main() -> float:
        server, port = await serve(answer)
        async with server:
            await asyncio.gather(*(call(port) for _ in range(20)))
        return now()

    assert run(main()) == 5 * 119.0


def test_a_reader_that_sleeps_on_full_buffers_does_not_stop_the_clock() -> None:
    size = 16_000_000

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(10):
            await asyncio.sleep(1)
        await reader.readexactly(size)
        writer.write(b"!")

    async def main() -> float:
        server, port = await serve(answer)
        async with server:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(bytes(size))
            assert await reader.read() == b"!"
            writer.close()
            await writer.wait_closed()
        return now()

    assert run(main()) == 10.0


linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="asks the kernel what is on its way"
)


@linux_only
def test_time_stands_still_while_bytes_are_on_their_way() -> None:
    size = 400_000

    def peer(listener: socket.socket) -> None:
        """Answer while most of the question is still under way, and only then take the rest."""
        connection, _ = listener.accept()
        with connection:
            connection.recv(1)
            compute(200_000)
            connection.sendall(b"!")
            while connection.recv(1_000_000):
                pass

    async def main(listener: socket.socket) -> float:
        connection = socket.socket()
        # Room for the whole question at this end, so that only the kernel knows of it.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * size)
        connection.connect(listener.getsockname())
        reader, writer = await asyncio.open_connection(sock=connection)
        with closing(writer):
            writer.write(bytes(size))
            async with asyncio.timeout(0.001):
                assert await reader.readexactly(1) == b"!"
        await writer.wait_closed()
        return now()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        thread = threading.Thread(target=peer, args=(listener,))
        thread.start()
        try:
            assert run_impatiently(main(listener), grace_seconds=60.0) == 0.0
        finally:
            thread.join()


def test_time_stands_still_while_something_waits_to_become_writable() -> None:
    def drain(source: int) -> None:
        compute(200_000)
        while os.read(source, 1_000_000):
            pass

    async def main(sink: int) -> float:
        os.set_blocking(sink, False)
        with suppress(BlockingIOError):
            while os.write(sink, bytes(65_536)):
                pass
        writable = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_writer(sink, writable.set)
        async with asyncio.timeout(0.001):
            await writable.wait()
        loop.remove_writer(sink)
        return now()

    source, sink = os.pipe()
    thread = threading.Thread(target=drain, args=(source,))
    thread.start()
    try:
        assert run_impatiently(main(sink), grace_seconds=60.0) == 0.0
    finally:
        os.close(sink)
        thread.join()
        os.close(source)


@contextmanager
def pipe() -> Iterator[int]:
    source, sink = os.pipe()
    yield source
    os.close(source)
    os.close(sink)


@linux_only
def test_bytes_that_have_arrived_are_not_waited_for() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as near,
        listener.accept()[0] as far,
        selectors.DefaultSelector() as selector,
        pipe() as no_socket,
    ):
        for fd in (near.fileno(), no_socket, far.fileno()):
            selector.register(fd, selectors.EVENT_READ)
        for _ in range(20):
            near.sendall(b"question")
            assert far.recv(100) == b"question"
            assert not _in_flight(selector.get_map())
            far.sendall(b"answer")
            assert near.recv(100) == b"answer"


def test_waiting_for_a_caller_who_never_comes_is_a_deadlock() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None: ...

    async def main() -> None:
        server, _ = await serve(answer)
        async with server:
            await server.serve_forever()

    with pytest.raises(DeadlockError, match="serve_forever"):
        run_impatiently(main())
