"""Clients of the google-genai SDK: one that is fit for many workers, and how many others are."""

import inspect
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies

from batch_llm.core.extras import require

if TYPE_CHECKING:
    from google.genai import Client

# Where a user's own decides how many connections there are.
_TRANSPORTS = ("httpx_async_client", "aiohttp_client")
_TRANSPORT_ARGUMENTS = ("limits", "transport", "mounts")

# As long as aiohttp does.
_KEEP_ALIVE_SECONDS = 15.0
# A streamed answer comes in lines, and a line may hold a whole picture.
_READ_BUFFER_BYTES = 4 * 1024 * 1024


@asynccontextmanager
async def gemini_client(
    *, max_connections: int, http_options: Any = None, **options: Any
) -> AsyncGenerator["Client", None]:
    """A ``google.genai.Client`` that can make as many calls at once as there are workers.

    The SDK's own holds 100 connections, unless aiohttp is installed. With aiohttp this one
    uses it where the SDK takes a session, for about half the CPU time per call. It sends
    nothing twice by itself, and everything it opened is closed at the end::

        async with gemini_client(api_key=key, max_connections=200) as client:
            strategy = GeminiStrategy("gemini-2.5-flash", client, parse)

    It belongs to the event loop that it was entered in.

    Args:
        max_connections: Calls in flight at once: ``max_workers``, or the sum of them where
            several processors share the client.
        http_options: ``HttpOptions``, or the same as a dict; they stay as they are, except
            that without ``retry_options`` there are no retries.
        options: Passed on to ``google.genai.Client``: ``api_key``, or ``vertexai``,
            ``project`` and ``location``. What is missing is read from the environment.

    Raises:
        ImportError: google-genai is not installed.
        ValueError: ``max_connections`` is no number above 0, ``http_options`` bring their
            own connections, or the SDK misses a key or a project.
    """
    _check_number(max_connections)
    genai = require("google.genai", extra="gemini")
    given: Any = genai.types.HttpOptions.model_validate(http_options or {})
    _check_options(given)
    changes: dict[str, Any] = {}
    known = genai.types.HttpOptions.model_fields
    if "retry_options" in known and given.retry_options is None:
        changes["retry_options"] = genai.types.HttpRetryOptions(attempts=1)
    async with AsyncExitStack() as stack:
        changes |= await stack.enter_async_context(_transport(given, max_connections))
        client = _built(genai, http_options=given.model_copy(update=changes), **options)
        stack.callback(client.close)
        stack.push_async_callback(client.aio.aclose)
        yield client


def pool_size(client: Any) -> int | None:
    """How many calls a client can have in flight; None where that is unlimited or unknown.

    The SDK does not tell, so this asks the transport that it uses, and takes whatever looks
    otherwise for unknown: mocks, and what other releases may do.
    """
    if not type(client).__module__.startswith("google.genai"):
        return None
    api = getattr(client, "_api_client", None)
    uses_aiohttp = getattr(api, "_use_aiohttp", bool)
    path = (
        "_http_options.aiohttp_client.connector.limit"
        if uses_aiohttp()
        else "_async_httpx_client._transport._pool._max_connections"
    )
    found = api
    for name in path.split("."):
        found = getattr(found, name, None)
    # aiohttp's word for no limit is 0, httpx's is the largest number.
    return found if isinstance(found, int) and 0 < found < sys.maxsize else None


def _check_number(max_connections: Any) -> None:
    if type(max_connections) is not int or max_connections < 1:
        raise ValueError(
            f"max_connections must be a whole number >= 1 (got {max_connections!r}); pass what "
            "you pass as max_workers"
        )


def _check_options(given: Any) -> None:
    """Refuse a transport of the user's own, whose connections could not be counted."""
    arguments: dict[str, Any] = given.async_client_args or {}
    brought = [name for name in _TRANSPORTS if getattr(given, name, None) is not None]
    brought += [
        f"async_client_args[{name!r}]" for name in _TRANSPORT_ARGUMENTS if name in arguments
    ]
    if brought:
        raise ValueError(
            f"http_options must leave the connections to gemini_client (got {brought[0]}); "
            "leave it out, or build your own google.genai.Client"
        )


def _built(genai: ModuleType, **options: Any) -> "Client":
    try:
        client: Client = genai.Client(**options)
    except ValueError as error:
        raise ValueError(
            f"google-genai refused to build a client ({error}); pass api_key=... or set "
            "GEMINI_API_KEY, or pass vertexai=True with project=... and location=..."
        ) from error
    return client


@asynccontextmanager
async def _transport(given: Any, max_connections: int) -> AsyncGenerator[dict[str, Any], None]:
    """The options that let the SDK have this many connections, by what is installed."""
    # Not httpx's own class, which the SDK would take for a wish to use that instead of httpx2.
    limits = SimpleNamespace(
        max_connections=max_connections,
        max_keepalive_connections=max_connections,
        keepalive_expiry=_KEEP_ALIVE_SECONDS,
    )
    arguments: dict[str, Any] = {**(given.async_client_args or {}), "limits": limits}
    aiohttp, httpx = _installed("aiohttp"), _installed("httpx")
    if aiohttp is None:
        yield {"async_client_args": arguments}
    elif httpx is None or _keeps_from_sending_again():
        async with _aiohttp_session(aiohttp, max_connections) as session:
            yield {"aiohttp_client": session}
    else:
        async with _httpx_client(httpx, arguments) as client:
            # In its place a transport would do; early releases look for one before they
            # decide for aiohttp, and then take the client.
            yield {
                "httpx_async_client": client,
                "async_client_args": {**arguments, "transport": client},
            }


def _installed(module: str) -> Any:
    """The module, None where it is missing: the SDK has it for an extra of its own."""
    try:
        return require(module, extra="gemini")
    except ImportError:
        return None


def _keeps_from_sending_again() -> bool:
    """Whether the SDK, on aiohttp, can be told not to repeat a call when its connection broke.

    Those releases that cannot all bring httpx; some of them fail with a session of ours.
    """
    internals = _installed("google.genai._api_client")
    send_once = getattr(getattr(internals, "BaseApiClient", None), "_async_request_once", None)
    return callable(send_once) and "implicit_retry" in inspect.signature(send_once).parameters


def _aiohttp_session(aiohttp: Any, max_connections: int) -> Any:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=max_connections),
        # To look for proxies at each call takes long: only where there are any.
        trust_env=bool(getproxies()),
        read_bufsize=_READ_BUFFER_BYTES,
    )


def _httpx_client(httpx: Any, arguments: dict[str, Any]) -> Any:
    """A client like the one that the SDK builds from such arguments."""
    return httpx.AsyncClient(**{"timeout": None, "follow_redirects": True} | arguments)
