"""The emulated service through the real SDK: answers, usage, records, life and death."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from google.genai import Client, errors, types

from batch_llm.testing.gemini import Fault, GeminiEmulator, ModelRules, RecordedRequest, Reply

MODEL = "gemini-2.5-flash"


@asynccontextmanager
async def emulated(*args: Any, **options: Any) -> AsyncIterator[tuple[GeminiEmulator, Client]]:
    async with GeminiEmulator(*args, **options) as server:
        yield server, server.client()


async def ask(client: Client, prompt: Any = "Hello", **config: Any) -> Any:
    return await client.aio.models.generate_content(
        model=MODEL, contents=prompt, config=types.GenerateContentConfig(**config)
    )


def timers() -> list[asyncio.TimerHandle]:
    """The timers that the running loop still keeps."""
    kept: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled
    return [timer for timer in kept if not timer.cancelled()]


class Pondering:
    """A model that never comes to an answer."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def __call__(self, request: RecordedRequest) -> str:
        self.asked.set()
        await asyncio.get_running_loop().create_future()
        return request.prompt


class TestAnswers:
    async def test_text_by_default(self) -> None:
        async with emulated() as (_, client):
            response = await ask(client)
        assert response.text.endswith(".")
        assert response.candidates[0].finish_reason == types.FinishReason.STOP
        assert response.model_version == MODEL

    async def test_equal_prompts_get_equal_answers(self) -> None:
        async with emulated() as (_, client):
            first, again, other = [(await ask(client, p)).text for p in ("One", "One", "Two")]
        assert first == again
        assert first != other

    async def test_any_text_gets_an_answer(self) -> None:
        async with emulated(lambda request: request.prompt) as (_, client):
            assert (await ask(client, "half a \ud83d pair")).text == "half a ? pair"
        async with emulated() as (_, client):
            assert (await ask(client, "half a \ud83d pair")).text

    async def test_the_seed_varies_the_answers(self) -> None:
        async with emulated(seed=1) as (_, client), emulated(seed=2) as (_, other_client):
            assert (await ask(client)).text != (await ask(other_client)).text

    async def test_json_without_a_schema(self) -> None:
        async with emulated() as (_, client):
            response = await ask(client, response_mime_type="application/json")
        assert response.text.startswith('{"answer": ')

    @pytest.mark.parametrize(
        ("answer", "text"),
        [
            ("Plain", "Plain"),
            ({"title": "Pipí"}, '{"title": "Pipí"}'),
            ([1, 2], "[1, 2]"),
            (Reply("From a reply"), "From a reply"),
            (Reply(json=0), "0"),
        ],
    )
    async def test_respond_decides(self, answer: Any, text: str) -> None:
        async with emulated(lambda _: answer) as (_, client):
            assert (await ask(client)).text == text

    async def test_respond_sees_the_request(self) -> None:
        async with emulated(lambda request: request.prompt.upper()) as (_, client):
            assert (await ask(client, "hello")).text == "HELLO"

    async def test_respond_may_await(self) -> None:
        async def respond(request: RecordedRequest) -> str:
            await asyncio.sleep(0)
            return f"Later: {request.prompt}"

        async with emulated(respond) as (server, client):
            assert (await ask(client)).text == "Later: Hello"
            assert server.requests[0].status == 200

    @pytest.mark.parametrize("awaited", [False, True])
    async def test_a_failing_respond_is_an_internal_error(
        self, awaited: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(_: RecordedRequest) -> str:
            raise RuntimeError("no idea")

        async def fail_later(request: RecordedRequest) -> str:
            return fail(request)

        async with emulated(fail_later if awaited else fail) as (server, client):
            with pytest.raises(errors.ServerError, match="RuntimeError: no idea") as caught:
                await ask(client)
            assert server.requests[0].status == 500
        assert caught.value.code == 500
        assert "no idea" in caplog.text

    async def test_respond_must_return_an_answer(self) -> None:
        async with emulated(lambda _: None) as (_, client):
            with pytest.raises(errors.ServerError, match=r"must return .* \(got NoneType\)"):
                await ask(client)

    async def test_a_reply_can_be_an_error(self) -> None:
        async with emulated(lambda _: Reply(status=503)) as (_, client):
            with pytest.raises(errors.ServerError, match="model is overloaded") as caught:
                await ask(client)
        assert caught.value.code == 503

    async def test_a_reply_can_be_blocked(self) -> None:
        async with emulated(lambda _: Reply(block_reason="SAFETY")) as (_, client):
            response = await ask(client)
        assert response.candidates is None
        assert response.prompt_feedback.block_reason == types.BlockedReason.SAFETY

    async def test_a_reply_carries_safety_ratings(self) -> None:
        ratings = [{"category": "HARM_CATEGORY_HARASSMENT", "probability": "LOW"}]
        async with emulated(lambda _: Reply("Fine", safety_ratings=ratings)) as (_, client):
            response = await ask(client)
        assert response.candidates[0].safety_ratings[0].probability == types.HarmProbability.LOW

    async def test_a_refused_prompt_carries_safety_ratings(self) -> None:
        ratings = [{"category": "HARM_CATEGORY_HARASSMENT", "probability": "HIGH"}]
        reply = Reply(block_reason="SAFETY", safety_ratings=ratings)
        async with emulated(lambda _: reply) as (_, client):
            response = await ask(client)
        (rating,) = response.prompt_feedback.safety_ratings
        assert rating.category == types.HarmCategory.HARM_CATEGORY_HARASSMENT
        assert rating.probability == types.HarmProbability.HIGH

    async def test_another_version_of_the_model_may_answer(self) -> None:
        for version, told in ((None, MODEL), ("gemini-2.5-flash-002", "gemini-2.5-flash-002")):
            reply = Reply("Fine", model_version=version)
            async with emulated(lambda _, reply=reply: reply) as (_, client):
                assert (await ask(client)).model_version == told

    def test_a_reply_has_one_content(self) -> None:
        with pytest.raises(ValueError, match="both text and json"):
            Reply("text", json={})


class TestUsage:
    async def test_four_characters_are_a_token(self) -> None:
        async with emulated(lambda _: "123456789") as (_, client):
            usage = (await ask(client, "12345")).usage_metadata
        assert usage.prompt_token_count == 2
        assert usage.candidates_token_count == 3
        assert usage.total_token_count == 5
        assert usage.cached_content_token_count is None
        assert usage.thoughts_token_count is None
        assert usage.tool_use_prompt_token_count is None

    async def test_instruction_tools_and_media_count(self) -> None:
        picture = types.Part.from_bytes(data=b"png", mime_type="image/png")
        async with emulated() as (_, client):
            plain = await ask(client, "1234")
            instructed = await ask(client, "1234", system_instruction="12345678")
            pictured = await ask(client, ["1234", picture])
            tooled = await ask(client, "1234", tools=[{"google_search": {}}])
        counts = [r.usage_metadata.prompt_token_count for r in (plain, instructed, pictured)]
        assert counts == [1, 3, 259]
        assert tooled.usage_metadata.prompt_token_count > 1

    async def test_thoughts_and_tool_use_are_counted_apart(self) -> None:
        reply = Reply("1234", thoughts_tokens=30, tool_use_prompt_tokens=200)
        async with emulated(lambda _: reply) as (_, client):
            usage = (await ask(client, "1234")).usage_metadata
        assert usage.candidates_token_count == 1
        assert usage.thoughts_token_count == 30
        assert usage.tool_use_prompt_token_count == 200
        assert usage.total_token_count == 232

    async def test_a_reply_can_replace_counts(self) -> None:
        reply = Reply("1234", usage={"promptTokenCount": 70, "candidatesTokenCount": None})
        async with emulated(lambda _: reply) as (_, client):
            usage = (await ask(client)).usage_metadata
        assert usage.prompt_token_count == 70
        assert usage.candidates_token_count is None
        assert usage.total_token_count == 70

    async def test_usage_can_be_missing(self) -> None:
        nothing = dict.fromkeys(("promptTokenCount", "candidatesTokenCount", "totalTokenCount"))
        async with emulated(lambda _: Reply("1234", usage=nothing)) as (_, client):
            response = await ask(client)
        assert response.text == "1234"
        assert response.usage_metadata is None

    async def test_the_limit_cuts_the_answer(self) -> None:
        async with emulated(lambda _: "1234" * 10) as (_, client):
            cut = await ask(client, max_output_tokens=3)
            whole = await ask(client, max_output_tokens=10)
        assert cut.text == "1234" * 3
        assert cut.candidates[0].finish_reason == types.FinishReason.MAX_TOKENS
        assert cut.usage_metadata.candidates_token_count == 3
        assert whole.candidates[0].finish_reason == types.FinishReason.STOP

    async def test_thinking_can_use_up_the_limit(self) -> None:
        async with emulated(lambda _: Reply("1234", thoughts_tokens=5)) as (_, client):
            response = await ask(client, max_output_tokens=5)
        assert response.text is None
        assert response.candidates[0].finish_reason == types.FinishReason.MAX_TOKENS
        assert response.usage_metadata.thoughts_token_count == 5
        assert response.usage_metadata.candidates_token_count is None

    async def test_implicit_caching_finds_common_beginnings(self) -> None:
        shared = "b" * 4096
        async with emulated(implicit_caching=True) as (_, client):
            prompts = (shared + "one", shared + "two", "x" + shared, "short", "short")
            usages = [(await ask(client, prompt)).usage_metadata for prompt in prompts]
        assert [u.cached_content_token_count for u in usages] == [None, 1024, None, None, None]
        assert usages[1].prompt_token_count == 1025

    async def test_count_tokens(self) -> None:
        async with emulated() as (server, client):
            response = await client.aio.models.count_tokens(model=MODEL, contents="12345")
            with pytest.raises(errors.ClientError, match="not supported for countTokens"):
                await client.aio.models.count_tokens(model="unknown", contents="12345")
            assert server.count("count_tokens") == 2
        assert response.total_tokens == 2


class TestRecords:
    async def test_a_request_is_recorded(self) -> None:
        async with emulated() as (server, client):
            before = asyncio.get_running_loop().time()
            await ask(client, "First")
            await ask(client, "Second", temperature=0.5)
            first, second = server.requests
        assert (first.operation, first.method, first.model) == ("generate", "POST", MODEL)
        assert first.path.endswith(f"/models/{MODEL}:generateContent")
        assert first.arrived_at >= before
        assert (first.index, second.index) == (0, 1)
        assert (first.prompt, second.prompt) == ("First", "Second")
        assert (first.status, first.vertex, first.cached_content) == (200, False, None)
        assert first.headers["x-goog-api-key"] == "emulator"
        assert second.body["generationConfig"] == {"temperature": 0.5}
        assert second.generation_config == {"temperature": 0.5}

    async def test_the_prompt_is_what_the_user_said_last(self) -> None:
        turns = [
            types.UserContent("First"),
            types.ModelContent("Answer"),
            types.UserContent([types.Part(text="Two"), types.Part(text="parts")]),
            types.ModelContent("Prefill"),
        ]
        async with emulated() as (server, client):
            await ask(client, turns)
        assert server.requests[0].prompt == "Two\nparts"

    async def test_operations_are_counted_apart(self) -> None:
        async with emulated() as (server, client):
            await ask(client)
            await client.aio.caches.list()
            await ask(client)
        assert [(r.operation, r.index) for r in server.requests] == [
            ("generate", 0),
            ("cache_list", 0),
            ("generate", 1),
        ]
        assert (server.count("generate"), server.count("cache_list")) == (2, 1)
        assert server.count("cache_create") == 0

    async def test_the_status_is_none_until_answered(self) -> None:
        model = Pondering()
        async with emulated(model) as (server, client):
            call = asyncio.ensure_future(ask(client))
            await model.asked.wait()
            assert server.requests[0].status is None
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        assert server.requests[0].status is None


class TestTime:
    async def test_latency_delays_answers(self) -> None:
        loop = asyncio.get_running_loop()
        async with emulated(latency_seconds=0.1) as (_, client):
            started = loop.time()
            await asyncio.gather(ask(client), ask(client))
            assert loop.time() - started >= 0.1

    async def test_latency_can_depend_on_the_request(self) -> None:
        def latency(request: RecordedRequest) -> float:
            return 0.1 if request.prompt == "slow" else 0.0

        answered: list[str] = []

        async def call(client: Client, prompt: str) -> None:
            await ask(client, prompt)
            answered.append(prompt)

        async with emulated(latency_seconds=latency) as (_, client):
            await asyncio.gather(call(client, "slow"), call(client, "fast"))
        assert answered == ["fast", "slow"]

    async def test_refusals_and_caches_are_not_delayed(self) -> None:
        async with emulated(latency_seconds=1e6) as (server, client):
            server.script(Fault.status(500))
            with pytest.raises(errors.ServerError):
                await ask(client)
            with pytest.raises(errors.ClientError):
                await client.aio.models.generate_content(model="unknown", contents="Hello")
            await client.aio.caches.list()

    async def test_the_clock_only_moves_ahead(self) -> None:
        async with GeminiEmulator() as server:
            before = server.wall_time()
            server.advance(3600)
            assert server.wall_time() >= before + 3600
            with pytest.raises(ValueError, match="must not be negative"):
                server.advance(-1)


class TestModels:
    async def test_an_unknown_model_is_not_found(self) -> None:
        async with emulated() as (_, client):
            with pytest.raises(errors.ClientError, match="models/gpt-x is not found") as caught:
                await client.aio.models.generate_content(model="gpt-x", contents="Hello")
        assert (caught.value.code, caught.value.status) == (404, "NOT_FOUND")

    async def test_a_model_with_rules_exists(self) -> None:
        async with emulated(models={"gpt-x": ModelRules()}) as (server, client):
            await client.aio.models.generate_content(model="gpt-x", contents="Hello")
            await ask(client)
        assert [request.model for request in server.requests] == ["gpt-x", MODEL]

    async def test_vertex_paths_and_names(self) -> None:
        async with GeminiEmulator() as server:
            client = server.client(vertex=True)
            assert (await ask(client)).text
            request = server.requests[0]
        assert request.path.endswith(
            "/projects/emulator/locations/us-central1"
            f"/publishers/google/models/{MODEL}:generateContent"
        )
        assert (request.vertex, request.model) == (True, MODEL)

    async def test_vertex_with_an_api_key(self) -> None:
        async with GeminiEmulator() as server:
            options = {"project": None, "location": None, "credentials": None}
            client = server.client(vertex=True, api_key="express", **options)
            assert (await ask(client)).text
        assert server.requests[0].vertex

    @pytest.mark.parametrize("version", ["v1", "v1beta"])
    async def test_both_api_versions(self, version: str) -> None:
        async with GeminiEmulator() as server:
            client = server.client(http_options={"api_version": version})
            assert (await ask(client)).text
        assert server.requests[0].path.startswith(f"/{version}/models/")


class TestLife:
    async def test_client_options_are_passed_on(self) -> None:
        options = types.HttpOptions(headers={"x-test": "yes"}, base_url="http://127.0.0.1:1")
        async with GeminiEmulator() as server:
            client = server.client(api_key="mine", http_options=options)
            await ask(client)
        assert server.requests[0].headers["x-test"] == "yes"
        assert server.requests[0].headers["x-goog-api-key"] == "mine"

    async def test_a_client_may_be_closed_earlier(self) -> None:
        async with GeminiEmulator() as server:
            client = server.client()
            await ask(client)
            await client.aio.aclose()
            client.close()

    async def test_a_client_that_cannot_be_closed_keeps_nothing_open(self) -> None:
        async def fail() -> None:
            raise RuntimeError("not my loop")

        server = await GeminiEmulator().__aenter__()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        server.client().aio.aclose = fail  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="not my loop"):
            await server.__aexit__(None, None, None)
        assert await reader.read() == b""
        writer.close()

    async def test_leaving_ends_everything(self) -> None:
        model = Pondering()
        async with GeminiEmulator(model) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            call = asyncio.ensure_future(ask(server.client()))
            await model.asked.wait()
            port = server.port
        assert await reader.read() == b""
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        (outcome,) = await asyncio.gather(call, return_exceptions=True)
        assert isinstance(outcome, Exception)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def test_an_abandoned_call_leaves_nothing(self) -> None:
        async with emulated(latency_seconds=1e6) as (server, client):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(ask(client), 0.05)
            assert server.requests[0].status is None
            server.script(Fault.empty())
            await ask(client)
        assert timers() == []

    async def test_leaving_waits_for_what_the_model_cleans_up(self) -> None:
        asked, cleaned_up = asyncio.Event(), asyncio.Event()

        async def respond(request: RecordedRequest) -> str:
            asked.set()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                await asyncio.sleep(0.05)
                cleaned_up.set()
            return request.prompt

        async with GeminiEmulator(respond) as server:
            call = asyncio.ensure_future(ask(server.client()))
            await asked.wait()
        assert cleaned_up.is_set()
        await asyncio.gather(call, return_exceptions=True)

    async def test_a_model_that_will_not_stop_answers_nobody(self) -> None:
        asked = asyncio.Event()

        async def respond(request: RecordedRequest) -> str:
            asked.set()
            with suppress(asyncio.CancelledError):
                await asyncio.get_running_loop().create_future()
            return request.prompt

        async with emulated(respond, latency_seconds=1e6) as (server, client):
            call = asyncio.ensure_future(ask(client))
            await asked.wait()
        await asyncio.gather(call, return_exceptions=True)
        assert server.requests[0].status is None
        assert timers() == []

    async def test_it_can_be_opened_again(self, caplog: pytest.LogCaptureFixture) -> None:
        server = GeminiEmulator()
        for _ in range(2):
            async with server:
                early = server.client()
                await ask(early)
                await early.aio.aclose()
                await asyncio.sleep(0.01)
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                await ask(server.client())
            assert await reader.read() == b""
            writer.close()
        assert server.count("generate") == 4
        assert [record for record in caplog.records if record.levelname == "ERROR"] == []

    async def test_it_is_open_only_once(self) -> None:
        async with GeminiEmulator() as server:
            with pytest.raises(RuntimeError, match="open already"):
                await server.__aenter__()

    async def test_closed_it_has_no_port(self) -> None:
        server = GeminiEmulator()
        with pytest.raises(RuntimeError, match="not open"):
            _ = server.base_url
        with pytest.raises(RuntimeError, match="not open"):
            server.client()

    async def test_a_port_can_be_chosen(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        async with GeminiEmulator(port=port) as server:
            assert server.port == port
            assert server.base_url == f"http://127.0.0.1:{port}"
            with pytest.raises(OSError, match=rf"Port {port} of 127\.0\.0\.1 .*in use"):
                async with GeminiEmulator(port=port):
                    pass
