"""The emulator as tests see it: a server to enter, to question and to trouble."""

import asyncio
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from batch_llm.core.extras import require
from batch_llm.testing.gemini.cache_api import CacheApi, CacheRules
from batch_llm.testing.gemini.caches import CacheRecord, CacheStore
from batch_llm.testing.gemini.clock import EmulatorClock
from batch_llm.testing.gemini.connection import Connection
from batch_llm.testing.gemini.faults import Fault, FaultPlan
from batch_llm.testing.gemini.generation import ImplicitCache, Respond
from batch_llm.testing.gemini.models import ModelRules, Models
from batch_llm.testing.gemini.quota import Quota
from batch_llm.testing.gemini.records import Operation, RecordedRequest
from batch_llm.testing.gemini.service import Behaviour, Latency, Service

if TYPE_CHECKING:
    from google.genai import Client

HOST = "127.0.0.1"


# Connections that may wait to be accepted: a pool of workers makes all of its own at once, and
# one that finds no place is tried again a second later.
_BACKLOG = 1_024


class GeminiEmulator:
    """A local Gemini API in the caller's event loop, open inside ``async with``.

    It serves generateContent, countTokens and cachedContents in the style of the Developer
    API and of Vertex AI. It starts no task and no timer of its own: only an answer that is to
    leave later has a timer, on the loop's clock, and only an awaitable ``respond`` a task. A
    second ``async with`` opens it again with all its records and caches.

    Args:
        respond: Gives the answer to a generate request: a text, a JSON object or list, or a
            `Reply`, also as an awaitable. By default an answer that fits the response schema,
            or a short text; equal prompts get equal answers.
        requests_per_minute: Quota of generate requests for each model, None for no quota. It is
            a token bucket that holds a minute's worth and starts full; a request beyond it gets
            429 with RetryInfo and QuotaFailure and costs nothing.
        tokens_per_minute: The same for prompt tokens.
        quota_burst_seconds: For how many seconds unused quota is kept.
        latency_seconds: Time from a generate request to its answer, or a function that gives
            it. Errors, faults that refuse, and other operations are answered at once.
        faults: Says for each request of any operation what goes wrong with it, if anything.
        min_cache_tokens: Smallest cache of models that have no rules of their own.
        models: Rules by model name. A model named here exists; so does every other one whose
            name begins with ``gemini-``. From gemini-4 on they have no explicit caching.
        allow_cache_creation: False answers every create with 429 and limit=0, as the free
            tier does.
        implicit_caching: Whether a prompt's beginning that it shares with the model's last
            prompt counts as cached, from 1,024 tokens on.
        page_size: Most caches in one page of a list.
        port: Port to listen on, 0 for any free one.
        seed: Varies the default answers and the caches' names.

    Raises:
        ImportError: httptools is not installed.
        ValueError: A quota is not above 0.
    """

    def __init__(  # noqa: PLR0913 (one knob for each trait of the service)
        self,
        respond: Respond | None = None,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        quota_burst_seconds: float = 60.0,
        latency_seconds: Latency = 0.0,
        faults: Callable[[RecordedRequest], Fault | None] | None = None,
        min_cache_tokens: int = 1024,
        models: Mapping[str, ModelRules] | None = None,
        allow_cache_creation: bool = True,
        implicit_caching: bool = False,
        page_size: int = 50,
        port: int = 0,
        seed: int = 0,
    ) -> None:
        self._clock = EmulatorClock()
        self._store = CacheStore(seed)
        self._faults = FaultPlan(faults)
        served = Models(models)
        rules = CacheRules(
            min_tokens=min_cache_tokens, allow_creation=allow_cache_creation, page_size=page_size
        )
        quota = Quota(
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            burst_seconds=quota_burst_seconds,
            clock=self._clock,
        )
        behaviour = Behaviour(
            respond=respond,
            latency_seconds=latency_seconds,
            seed=seed,
            implicit_cache=ImplicitCache() if implicit_caching else None,
        )
        self._service = Service(
            behaviour=behaviour,
            models=served,
            caches=CacheApi(self._store, rules=rules, models=served, clock=self._clock),
            quota=quota,
            faults=self._faults,
        )
        self._wanted_port = port
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._all_closed: asyncio.Future[None] | None = None
        self._clients: list[Client] = []

    @property
    def requests(self) -> list[RecordedRequest]:
        """Every request so far in order of arrival."""
        return self._service.requests

    @property
    def caches(self) -> Mapping[str, CacheRecord]:
        """The caches alive now, by full name."""
        return self._store.live(self._clock.wall())

    @property
    def port(self) -> int:
        """The port it listens on.

        Raises:
            RuntimeError: The emulator is not open.
        """
        if self._server is None:
            raise RuntimeError(
                "The emulator is not open. Enter it with `async with GeminiEmulator() as server:`."
            )
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def base_url(self) -> str:
        """What to give to an SDK as base URL.

        Raises:
            RuntimeError: The emulator is not open.
        """
        return f"http://{HOST}:{self.port}"

    def count(self, operation: Operation) -> int:
        """How many requests of one operation arrived so far."""
        return self._service.count(operation)

    def wall_time(self) -> float:
        """Seconds since the epoch on the emulator's clock."""
        return self._clock.wall()

    def advance(self, seconds: float) -> None:
        """Move the emulator's clock ahead: caches expire, quotas fill up.

        Raises:
            ValueError: ``seconds`` is negative.
        """
        self._clock.advance(seconds)

    def script(self, *faults: Fault | None, operation: Operation = "generate") -> None:
        """Queue faults for the next requests of an operation, one for each, in order.

        They go before the ``faults`` function; None lets a request through unharmed.

        Raises:
            ValueError: There is no such operation.
        """
        self._faults.script(faults, operation)

    def client(self, *, vertex: bool = False, **options: Any) -> "Client":
        """A google-genai client that talks to this emulator; closed together with it.

        The SDK heeds HTTP_PROXY: where that is set, NO_PROXY has to name 127.0.0.1.

        Args:
            vertex: Speak to it as to Vertex AI (project "emulator", location "us-central1").
            options: Passed on to ``google.genai.Client``; ``http_options`` keep everything but
                their base URL.

        Raises:
            ImportError: google-genai is not installed.
            RuntimeError: The emulator is not open.
        """
        genai = require("google.genai", extra="gemini")
        http_options = genai.types.HttpOptions.model_validate(options.pop("http_options", {}))
        if vertex:
            credentials = require("google.oauth2.credentials", extra="gemini")
            defaults: dict[str, Any] = {
                "project": "emulator",
                "location": "us-central1",
                "credentials": credentials.Credentials(token="emulator"),
            }
        else:
            defaults = {"api_key": "emulator"}
        client: Client = genai.Client(
            vertexai=vertex,
            http_options=http_options.model_copy(update={"base_url": self.base_url}),
            **{**defaults, **options},
        )
        self._clients.append(client)
        return client

    async def __aenter__(self) -> Self:
        """Start to listen.

        Raises:
            OSError: The port cannot be had, most often because it is in use.
            RuntimeError: The emulator is open already.
        """
        if self._server is not None:
            raise RuntimeError(
                "The emulator is open already. Leave it first, or build a second one."
            )
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                self._connection, HOST, self._wanted_port, backlog=_BACKLOG
            )
        except OSError as error:
            raise OSError(
                error.errno,
                f"Port {self._wanted_port} of {HOST} cannot be listened on ({error.strerror}). "
                "Choose another, or port=0 for any free one.",
            ) from error
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close every socket, cancel what is under way, and wait until all is gone."""
        server, self._server = self._server, None
        assert server is not None
        server.close()
        try:
            await self._close_clients()
        finally:
            await self._close_connections()
            await server.wait_closed()

    async def _close_clients(self) -> None:
        clients, self._clients = self._clients, []
        for client in clients:
            await client.aio.aclose()
            client.close()

    async def _close_connections(self) -> None:
        tasks = [task for connection in self._connections if (task := connection.task)]
        self._all_closed = asyncio.get_running_loop().create_future()
        for connection in tuple(self._connections):
            connection.abort()
        if self._connections:
            await self._all_closed
        self._all_closed = None
        await asyncio.gather(*tasks, return_exceptions=True)

    def _connection(self) -> Connection:
        return Connection(self._service.handle, self._connections.add, self._closed)

    def _closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if self._all_closed is not None and not self._connections:
            self._all_closed.set_result(None)
