"""gemini_client: as many calls in flight as it says, each sent once, and nothing left open."""

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from google import genai
from google.genai import types
from google.oauth2.credentials import Credentials

from batch_llm import GeminiStrategy, LLMWorkItem, ParallelBatchProcessor, gemini_client
from batch_llm.llm_strategies._gemini_client import pool_size
from batch_llm.testing.gemini import Fault, GeminiEmulator, RecordedRequest

pytestmark = pytest.mark.gemini

MODEL = "gemini-2.5-flash"
HAS_AIOHTTP = find_spec("aiohttp") is not None
HTTPX = getattr(genai._api_client, "httpx2", None) or genai._api_client.httpx


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOOGLE_API_KEY", "GEMINI_API_KEY", "GOOGLE_GENAI_USE_VERTEXAI"):
        monkeypatch.delenv(name, raising=False)


def text_of(response: Any) -> str:
    return str(response.text)


async def ask(client: genai.Client) -> Any:
    return await client.aio.models.generate_content(model=MODEL, contents="Hello")


@asynccontextmanager
async def client_of(
    server: GeminiEmulator, max_connections: int = 5, **options: Any
) -> AsyncGenerator[genai.Client, None]:
    http_options = {"base_url": server.base_url, **options.pop("http_options", {})}
    given = {"api_key": "key", "http_options": http_options, **options}
    async with gemini_client(max_connections=max_connections, **given) as client:
        yield client


class Crowd:
    """Answers nobody until so many wait for an answer at once; then everybody, a second later."""

    def __init__(self, wanted: int) -> None:
        self.present = self.peak = 0
        self._wanted = wanted
        self._complete = asyncio.Event()

    async def respond(self, request: RecordedRequest) -> str:
        self.present += 1
        self.peak = max(self.peak, self.present)
        if self.present == self._wanted:
            self._complete.set()
        await self._complete.wait()
        await asyncio.sleep(1)
        self.present -= 1
        return "Hi"


async def run_on(client: genai.Client, *, workers: int) -> None:
    strategy = GeminiStrategy(MODEL, client, text_of)
    async with ParallelBatchProcessor[str, str, None](max_workers=workers) as processor:
        for number in range(workers):
            await processor.add_work(LLMWorkItem(str(number), strategy, "Hello"))
        assert (await processor.process_all()).succeeded == workers


async def test_every_worker_has_a_call_in_flight() -> None:
    crowd = Crowd(wanted=200)
    async with GeminiEmulator(crowd.respond) as server, client_of(server, 200) as client:
        await run_on(client, workers=200)
    assert crowd.peak == 200


@pytest.mark.skipif(HAS_AIOHTTP, reason="on aiohttp the SDK's own client knows no limit")
async def test_the_sdks_own_client_keeps_half_of_them_waiting() -> None:
    crowd = Crowd(wanted=100)
    async with GeminiEmulator(crowd.respond) as server:
        await run_on(server.client(), workers=200)
    assert crowd.peak == 100


async def test_no_more_calls_in_flight_than_connections() -> None:
    crowd = Crowd(wanted=3)
    async with GeminiEmulator(crowd.respond) as server, client_of(server, 3) as client:
        await run_on(client, workers=9)
    assert crowd.peak == 3


async def test_vertex() -> None:
    vertex = {
        "api_key": None,
        "vertexai": True,
        "project": "p",
        "location": "us-central1",
        "credentials": Credentials(token="token"),  # type: ignore[no-untyped-call]
    }
    async with GeminiEmulator() as server, client_of(server, **vertex) as client:
        await ask(client)
        assert server.requests[0].vertex


@pytest.mark.parametrize("fault", [Fault.status(503), Fault.rate_limit(1.0), Fault.cut()])
async def test_nothing_is_sent_twice(fault: Fault) -> None:
    async with GeminiEmulator(faults=lambda _: fault) as server, client_of(server) as client:
        with pytest.raises(Exception, match=r"503|429|(?i:server disconnected)"):
            await ask(client)
        assert server.count("generate") == 1


async def test_a_strategy_need_not_say_so_with_each_request() -> None:
    async with GeminiEmulator() as server, client_of(server) as client:
        strategy = GeminiStrategy(MODEL, client, text_of)
        assert strategy._configs.for_request(None).http_options is None


class TestHttpOptions:
    async def test_stay_and_are_not_changed(self) -> None:
        async with GeminiEmulator() as server:
            given = types.HttpOptions(base_url=server.base_url, headers={"X-Team": "books"})
            before = given.model_copy(deep=True)
            async with gemini_client(
                api_key="key", max_connections=5, http_options=given
            ) as client:
                await ask(client)
            assert server.requests[0].headers["x-team"] == "books"
        assert given == before

    async def test_retries_that_were_asked_for_are_made(self) -> None:
        retries = {"attempts": 2, "initial_delay": 0.1}
        async with GeminiEmulator() as server:
            server.script(Fault.status(503))
            options = {"retry_options": retries}
            async with client_of(server, http_options=options) as client:
                await ask(client)
            assert server.count("generate") == 2

    async def test_arguments_of_the_http_client_stay(self) -> None:
        async with GeminiEmulator() as proxy:
            # A name that all of them know.
            options = {
                "base_url": "http://gemini.invalid",
                "async_client_args": {"proxy": proxy.base_url},
            }
            async with client_of(proxy, http_options=options) as client:
                with pytest.raises(genai.errors.ClientError):
                    await ask(client)
            assert proxy.requests[0].path.startswith("http://gemini.invalid/")

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"async_client_args": {"limits": None}}, r"async_client_args\['limits'\]"),
            ({"async_client_args": {"transport": None}}, r"async_client_args\['transport'\]"),
            ({"httpx_async_client": "client"}, "httpx_async_client"),
        ],
        ids=["limits", "transport", "client"],
    )
    async def test_must_not_bring_connections(self, options: dict[str, Any], named: str) -> None:
        if "httpx_async_client" in options:
            options = {"httpx_async_client": HTTPX.AsyncClient()}
        with pytest.raises(ValueError, match=rf"leave the connections .*\(got {named}\); leave"):
            async with gemini_client(api_key="key", max_connections=5, http_options=options):
                pass

    async def test_proxies_of_the_environment_are_used(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with GeminiEmulator() as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.base_url)
            monkeypatch.setenv("http_proxy", proxy.base_url)
            options = {"base_url": "http://gemini.invalid"}
            async with client_of(proxy, http_options=options) as client:
                with pytest.raises(genai.errors.ClientError):
                    await ask(client)
            assert proxy.requests[0].path.startswith("http://gemini.invalid/")


class TestTheEnd:
    async def test_the_client_is_closed(self) -> None:
        async with GeminiEmulator() as server:
            async with client_of(server) as client:
                await ask(client)
            with pytest.raises(RuntimeError, match="closed"):
                await ask(client)
            assert client._api_client._httpx_client.is_closed
            assert server.count("generate") == 1

    async def test_an_error_comes_out_and_leaves_nothing_open(self) -> None:
        async with GeminiEmulator() as server:
            entering = client_of(server)
            client = await entering.__aenter__()
            await ask(client)
            mine = LookupError("mine")
            assert not await entering.__aexit__(LookupError, mine, None)
            with pytest.raises(RuntimeError, match="closed"):
                await ask(client)


class TestTheDoor:
    @pytest.mark.parametrize("number", [0, -1, True, 2.5, "10", None])
    async def test_a_number_of_connections(self, number: Any) -> None:
        with pytest.raises(ValueError, match=r"^max_connections must be a whole number >= 1 \(got"):
            async with gemini_client(api_key="key", max_connections=number):
                pass

    # google-genai 1.46 cannot throw away a client that it refused to build.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    async def test_a_key(self) -> None:
        with pytest.raises(ValueError, match=r"refused to build a client \(.*set GEMINI_API_KEY"):
            async with gemini_client(max_connections=5):
                pass

    async def test_a_key_of_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GEMINI_API_KEY", "secret")
        async with GeminiEmulator() as server, client_of(server, api_key=None) as client:
            await ask(client)
            assert server.requests[0].headers["x-goog-api-key"] == "secret"

    async def test_the_sdk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "google.genai", None)
        with pytest.raises(ImportError, match=r'pip install "batch-llm\[gemini\]"'):
            async with gemini_client(api_key="key", max_connections=5):
                pass


class TestPoolSize:
    async def test_of_ours(self) -> None:
        async with GeminiEmulator() as server, client_of(server, 7) as client:
            assert pool_size(client) == 7

    async def test_of_the_sdks_own(self) -> None:
        async with GeminiEmulator() as server:
            assert pool_size(server.client()) == (None if HAS_AIOHTTP else 100)

    @pytest.mark.parametrize(("most", "size"), [(30, 30), (None, None)])
    async def test_of_a_clients_own_transport(self, most: int | None, size: int | None) -> None:
        transport = HTTPX.AsyncHTTPTransport(limits=HTTPX.Limits(max_connections=most))
        options = {"async_client_args": {"transport": transport}}
        async with GeminiEmulator() as server:
            assert pool_size(server.client(http_options=options)) == size

    @pytest.mark.parametrize(
        "client",
        [MagicMock(), SimpleNamespace(), None, types.Part(text="no client")],
        ids=["mock", "object", "None", "of the SDK"],
    )
    def test_of_whatever_else_is_unknown(self, client: Any) -> None:
        assert pool_size(client) is None

    def test_of_a_mock_is_not_asked_for(self) -> None:
        # Its test may count what was called.
        mock = MagicMock()
        pool_size(mock)
        assert mock.mock_calls == []

    async def test_of_a_release_that_looks_otherwise_inside(self) -> None:
        async with GeminiEmulator() as server:
            client = server.client()
            own, client._api_client = client._api_client, SimpleNamespace()
            assert pool_size(client) is None
            client._api_client = own


async def test_a_strategy_knows_the_connections_of_its_client() -> None:
    async with GeminiEmulator() as server, client_of(server, 7) as client:
        assert GeminiStrategy(MODEL, client, text_of).max_concurrency == 7
    assert GeminiStrategy(MODEL, MagicMock(), text_of).max_concurrency is None


async def test_too_few_connections_are_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    async with GeminiEmulator() as server, client_of(server, 7) as client:
        for max_workers in (7, 8):
            async with ParallelBatchProcessor[str, str, None](max_workers=max_workers) as processor:
                for number in range(3):
                    strategy = GeminiStrategy(MODEL, client, text_of)
                    await processor.add_work(LLMWorkItem(str(number), strategy, "a prompt"))
    [warning] = [each.getMessage() for each in caplog.records if "in flight" in each.getMessage()]
    assert warning == (
        "GeminiStrategy can have 7 calls in flight at once, fewer than max_workers=8; for Gemini, "
        "build its client with gemini_client(max_connections=8)"
    )
