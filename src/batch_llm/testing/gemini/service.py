"""What happens to a request? It is recorded, fails as planned, or is served."""

import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any
from urllib.parse import parse_qsl

from batch_llm.core.clock import loop_time
from batch_llm.testing.gemini import errors, generation, routes
from batch_llm.testing.gemini.cache_api import CacheApi
from batch_llm.testing.gemini.connection import HttpAnswer, HttpRequest
from batch_llm.testing.gemini.errors import ApiError
from batch_llm.testing.gemini.faults import (
    Cut,
    Fault,
    FaultPlan,
    LoseCache,
    RawAnswer,
    Refuse,
    Spoil,
)
from batch_llm.testing.gemini.generation import Answer, ImplicitCache, Respond
from batch_llm.testing.gemini.models import Models
from batch_llm.testing.gemini.quota import Quota
from batch_llm.testing.gemini.records import RecordedRequest
from batch_llm.testing.gemini.routes import Route
from batch_llm.testing.gemini.shapes import is_object
from batch_llm.testing.gemini.tokens import request_tokens

Latency = float | Callable[[RecordedRequest], float]

_MIN_IMPLICIT_CACHE_TOKENS = 1024
_NOT_FOUND_PAGE = (
    "<!DOCTYPE html>\n<html lang=en>\n<title>Error 404 (Not Found)!!1</title>\n"
    "<p>The requested URL was not found on this server.\n"
)
_encode = json.JSONEncoder(ensure_ascii=False).encode
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How the emulated models behave.

    Attributes:
        respond: Gives the answers; None for the default ones.
        latency_seconds: How long an answer takes.
        seed: Varies the default answers.
        implicit_cache: Finds common beginnings of prompts; None: no implicit caching.
    """

    respond: Respond | None
    latency_seconds: Latency
    seed: int
    implicit_cache: ImplicitCache | None


class Service:
    """The emulated API behind HTTP: requests in, answers out.

    Attributes:
        requests: Every request in order of arrival.
    """

    def __init__(
        self,
        *,
        behaviour: Behaviour,
        models: Models,
        caches: CacheApi,
        quota: Quota,
        faults: FaultPlan,
    ) -> None:
        self.requests: list[RecordedRequest] = []
        self._counts: Counter[str] = Counter()
        self._behaviour = behaviour
        self._models = models
        self._caches = caches
        self._quota = quota
        self._faults = faults

    def count(self, operation: str) -> int:
        """How many requests of an operation arrived."""
        return self._counts[operation]

    def handle(self, http: HttpRequest) -> HttpAnswer | Coroutine[Any, Any, HttpAnswer]:
        """The answer to a request; a coroutine when ``respond`` has to be awaited."""
        path, _, query = http.target.partition("?")
        route = routes.find(http.method, path)
        record, problem = self._recorded(http, path, query, route)
        fault = None
        try:
            fault = self._faults.due(record)
            served = self._serve(route, record, fault, problem)
        except Exception as error:
            served = _failure(error)
        if isinstance(served, HttpAnswer):
            return _sealed(served, record, fault)
        return _sealed_later(served, record, fault)

    def _recorded(
        self, http: HttpRequest, path: str, query: str, route: Route
    ) -> tuple[RecordedRequest, ApiError | None]:
        """Write down a request; the error says why its body cannot be read."""
        body, problem = _json_object(http.body)
        named = body.get("model") if route.operation == "cache_create" else route.model
        cache = body.get("cachedContent") if route.cache is None else route.cache
        operation = route.operation
        record = RecordedRequest(
            operation=operation,
            method=http.method,
            path=path,
            query=dict(parse_qsl(query)) if query else {},
            headers=http.headers,
            body=body,
            model=named.rpartition("/")[2] if isinstance(named, str) else None,
            cached_content=route.full_cache(cache) if isinstance(cache, str) else None,
            vertex=route.vertex,
            arrived_at=loop_time(),
            index=self._counts[operation],
        )
        self._counts[operation] += 1
        self.requests.append(record)
        return record, problem

    def _serve(
        self,
        route: Route,
        record: RecordedRequest,
        fault: Fault | None,
        problem: ApiError | None,
    ) -> HttpAnswer | Coroutine[Any, Any, HttpAnswer]:
        match fault.effect if fault else None:
            case Refuse(error):
                raise error(record)
            case RawAnswer(status, body, content_type, headers):
                return HttpAnswer(
                    status=status, body=body, content_type=content_type, headers=headers
                )
            case LoseCache(expired, vertex):
                style = record.vertex if vertex is None else vertex
                raise self._caches.lose(record.cached_content, expired=expired, vertex=style)
            case _:
                pass
        if problem is not None:
            raise problem
        if not _has_credentials(record):
            raise errors.no_credentials(vertex=route.vertex)
        if route.operation == "generate":
            return self._generate(route, record, fault)
        return self._serve_rest(route, record)

    def _serve_rest(self, route: Route, record: RecordedRequest) -> HttpAnswer:
        match route.operation:
            case "count_tokens":
                return _json_answer(self._count_tokens(route, record.body))
            case "cache_create":
                return _json_answer(self._caches.create(route, record.body))
            case "cache_list":
                return _json_answer(self._caches.list(route, record.query))
            case "cache_get":
                return _json_answer(self._caches.get(route))
            case "cache_update":
                return _json_answer(self._caches.update(route, record.body))
            case "cache_delete":
                return _json_answer(self._caches.delete(route))
            case _ if route.version:
                raise ApiError(
                    501,
                    f"The emulator does not serve {record.method} {record.path}; it serves "
                    "generateContent, countTokens and cachedContents.",
                )
            case _:
                return HttpAnswer(
                    status=404, body=_NOT_FOUND_PAGE.encode(), content_type="text/html"
                )

    def _count_tokens(self, route: Route, body: dict[str, Any]) -> dict[str, Any]:
        self._models.rules(route.model or "", version=route.version, method="countTokens")
        counted = body.get("generateContentRequest")
        return {"totalTokens": request_tokens(counted if is_object(counted) else body)}

    def _generate(
        self, route: Route, record: RecordedRequest, fault: Fault | None
    ) -> HttpAnswer | Coroutine[Any, Any, HttpAnswer]:
        model, body = route.model or "", record.body
        self._models.rules(model, version=route.version, method="generateContent")
        if not body.get("contents"):
            raise errors.invalid_argument(
                "* GenerateContentRequest.contents: contents is not specified\n"
            )
        cache = self._caches.for_generation(record.cached_content, route, body)
        prompt_tokens = request_tokens(body)
        cached_tokens = 0
        if cache is not None:
            cached_tokens = cache.token_count
            prompt_tokens += cached_tokens
        self._quota.admit(model, tokens=prompt_tokens)
        if cache is None and self._behaviour.implicit_cache is not None:
            cached_tokens = self._behaviour.implicit_cache.hit_tokens(
                model, body, _MIN_IMPLICIT_CACHE_TOKENS
            )

        def answer(given: Answer) -> HttpAnswer:
            return self._generated(record, fault, given, prompt_tokens, cached_tokens)

        if self._behaviour.respond is None:
            return answer(generation.default_answer(record, seed=self._behaviour.seed))
        given = self._behaviour.respond(record)
        return _awaited(given, answer) if isawaitable(given) else answer(given)

    def _generated(
        self,
        record: RecordedRequest,
        fault: Fault | None,
        given: Answer,
        prompt_tokens: int,
        cached_tokens: int,
    ) -> HttpAnswer:
        reply = generation.as_reply(given)
        if reply.status != 200:
            raise ApiError(reply.status, reply.message)
        if fault is not None and isinstance(fault.effect, Spoil):
            reply = fault.effect.change(reply)
        answer = _json_answer(
            generation.response_body(
                generation.within_limit(reply, record.generation_config.get("maxOutputTokens")),
                model=record.model or "",
                response_id=f"emulator-{record.index}",
                prompt_tokens=prompt_tokens,
                cached_tokens=cached_tokens,
            )
        )
        latency = self._behaviour.latency_seconds
        answer.delay_seconds = latency(record) if callable(latency) else latency
        return answer


async def _awaited(given: Awaitable[Answer], answer: Callable[[Answer], HttpAnswer]) -> HttpAnswer:
    return answer(await given)


async def _sealed_later(
    served: Coroutine[Any, Any, HttpAnswer], record: RecordedRequest, fault: Fault | None
) -> HttpAnswer:
    try:
        answer = await served
    except Exception as error:
        answer = _failure(error)
    return _sealed(answer, record, fault)


def _sealed(answer: HttpAnswer, record: RecordedRequest, fault: Fault | None) -> HttpAnswer:
    """The answer with its record, and with the faults that befall it on its way."""
    answer.record = record
    if fault is not None:
        answer.delay_seconds += fault.delay_seconds
        if isinstance(fault.effect, Cut):
            answer.cut = "mid" if fault.effect.mid_answer else "before"
    return answer


def _failure(error: Exception) -> HttpAnswer:
    """The API's own error; anything else comes from a function that the user gave."""
    if isinstance(error, ApiError):
        refusal = error
    else:
        _logger.error("A function given to the emulator failed", exc_info=error)
        what = f"{type(error).__name__}: {error}"
        refusal = ApiError(500, f"A function given to the emulator raised {what}")
    return _json_answer(refusal.to_wire(), status=refusal.code)


def _json_answer(value: Any, *, status: int = 200) -> HttpAnswer:
    return HttpAnswer(status=status, body=_encode(value).encode(errors="replace"))


def _json_object(body: bytes) -> tuple[dict[str, Any], ApiError | None]:
    if not body:
        return {}, None
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        return {}, errors.invalid_json(str(error))
    if not is_object(value):
        return {}, errors.invalid_json("Root element must be a message.")
    return value, None


def _has_credentials(record: RecordedRequest) -> bool:
    return bool(
        record.headers.get("x-goog-api-key")
        or record.headers.get("authorization")
        or record.query.get("key")
    )
