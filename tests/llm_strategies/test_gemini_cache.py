"""GeminiCachedStrategy through the real SDK: what is in the cache, what it costs, going without."""

import logging
import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest
from google.genai import types

from batch_llm.classifiers import GeminiErrorClassifier
from batch_llm.llm_strategies import GeminiCachedStrategy
from batch_llm.llm_strategies._gemini_content import display_name_of
from batch_llm.strategies import CacheUnavailableError, ResponseBlockedError
from batch_llm.testing.gemini import Fault, GeminiEmulator, ModelRules, Reply

pytestmark = pytest.mark.gemini

MODEL = "gemini-2.5-flash"
BOOK = "It was the best of times, it was the worst of times. " * 100
TOOL = {"function_declarations": [{"name": "look_up", "description": "Look a word up"}]}


def text_of(response: Any) -> str:
    return str(response.text)


def cached(server: GeminiEmulator, content: Any = BOOK, **options: Any) -> Any:
    client = server.client(vertex=options.pop("vertex", False))
    model = options.pop("model", MODEL)
    return GeminiCachedStrategy(model, client, text_of, content, **options)


async def ask(strategy: Any, prompt: str = "Who?") -> Any:
    return await strategy.execute(prompt, 1, 60.0)


class TestWhatTheCacheHolds:
    @pytest.mark.parametrize("vertex", [False, True])
    async def test_contents_instruction_and_tools_move_into_it(self, vertex: bool) -> None:
        config = types.GenerateContentConfig(
            system_instruction="Be brief",
            tools=[types.Tool.model_validate(TOOL)],
            tool_config=types.ToolConfig.model_validate(
                {"function_calling_config": {"mode": "NONE"}}
            ),
            temperature=0.5,
        )
        before = config.model_copy(deep=True)
        async with GeminiEmulator() as server:
            strategy = cached(server, config=config, vertex=vertex)
            await strategy.prepare()
            await ask(strategy)
            created = next(r for r in server.requests if r.operation == "cache_create").body
            asked = next(r for r in server.requests if r.operation == "generate").body
        assert created["ttl"] == "3600s"
        assert created["contents"] == [{"role": "user", "parts": [{"text": BOOK}]}]
        assert created["systemInstruction"]["parts"] == [{"text": "Be brief"}]
        assert created["tools"][0]["functionDeclarations"][0]["name"] == "look_up"
        assert "NONE" in str(created["toolConfig"])
        assert asked["cachedContent"] == strategy._cache.name
        assert asked["generationConfig"] == {"temperature": 0.5}
        assert not {"systemInstruction", "tools", "toolConfig"} & asked.keys()
        assert config == before

    @pytest.mark.parametrize(
        "config",
        [{"system_instruction": BOOK}, {"systemInstruction": BOOK, "cachedContent": "of/another"}],
        ids=["snake", "camel"],
    )
    async def test_a_dict_will_do_and_so_will_an_instruction_alone(self, config: Any) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server, [], config=config)
            await strategy.prepare()
            await ask(strategy)
            created, asked = (r.body for r in server.requests if r.operation != "cache_list")
        assert "contents" not in created
        assert created["systemInstruction"]["parts"] == [{"text": BOOK}]
        assert asked["cachedContent"] == strategy._cache.name

    def test_a_function_is_refused_since_no_cache_can_hold_it(self) -> None:
        with pytest.raises(ValueError, match="tools holds Python functions"):
            GeminiCachedStrategy(MODEL, MagicMock(), text_of, BOOK, config={"tools": [text_of]})


class TestUsage:
    async def test_cached_tokens_are_part_of_the_input(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            await strategy.prepare()
            _, usage = await ask(strategy)
            tokens = server.caches[strategy._cache.name].token_count
        assert usage["cached_input_tokens"] == tokens > 1024
        assert tokens < usage["input_tokens"] < tokens + 10
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]

    async def test_thoughts_and_tool_results_are_billed(self) -> None:
        reply = Reply("Hi", thoughts_tokens=7, tool_use_prompt_tokens=3)
        async with GeminiEmulator(lambda _: reply) as server:
            strategy = cached(server)
            _, usage = await ask(strategy, "Hi")
        assert usage["input_tokens"] - usage["cached_input_tokens"] == 3 + 1
        assert usage["output_tokens"] == 7 + 1

    async def test_a_refused_answer_and_an_unreadable_one_were_paid_for(self) -> None:
        def unreadable(_: Any) -> str:
            raise KeyError("title")

        async with GeminiEmulator() as server:
            strategy = cached(server)
            server.script(Fault.finish("SAFETY"))
            with pytest.raises(ResponseBlockedError) as blocked:
                await ask(strategy)
            strategy.response_parser = unreadable
            with pytest.raises(KeyError) as unread:
                await ask(strategy)
        usages = [blocked.value.usage, unread.value.__dict__["_failed_token_usage"]]
        for usage in usages:
            assert usage is not None
            assert usage["cached_input_tokens"] > 1024


class TestGoingOnWithout:
    @pytest.mark.parametrize(
        ("emulator", "options", "reason"),
        [
            ({}, {"content": "Short."}, "Cached content is too small"),
            ({"allow_cache_creation": False}, {}, "limit=0"),
            ({}, {"model": "gemini-4-argon"}, "is not supported for createCachedContent"),
            (
                {"faults": lambda r: Fault.status(403) if r.operation == "cache_create" else None},
                {},
                "403",
            ),
        ],
        ids=["too small", "free tier", "model without caches", "forbidden"],
    )
    async def test_the_contents_are_sent_with_each_request(
        self, emulator: Any, options: Any, reason: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        config = {"system_instruction": "Be brief", "tools": [TOOL]}
        async with GeminiEmulator(**emulator) as server:
            strategy = cached(server, config=config, **options)
            await strategy.prepare()
            for prompt in ("Who?", "When?"):
                output, usage = await ask(strategy, prompt)
                assert output
                assert usage["cached_input_tokens"] == 0
            bodies = [r.body for r in server.requests if r.operation == "generate"]
            assert server.count("cache_create") == 1
        content = options.get("content", BOOK)
        for body, prompt in zip(bodies, ("Who?", "When?"), strict=True):
            texts = [part["text"] for content in body["contents"] for part in content["parts"]]
            assert texts == [content, prompt]
            assert body["systemInstruction"]["parts"] == [{"text": "Be brief"}]
            assert body["tools"]
            assert "cachedContent" not in body
        (warning,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        assert reason in warning
        assert "at full price" in warning
        assert "Be brief" not in warning
        assert content not in warning

    async def test_the_warning_says_how_many_tokens(self, caplog: pytest.LogCaptureFixture) -> None:
        async with GeminiEmulator(min_cache_tokens=4096) as server:
            await cached(server).prepare()
            assert "about 1325 tokens" in caplog.text
        caplog.clear()
        async with GeminiEmulator(allow_cache_creation=False) as server:
            await cached(server).prepare()
            assert "about 1325 tokens" in caplog.text
        caplog.clear()
        async with GeminiEmulator() as server:
            await cached(server, "x" * 4000, model="gemini-4-argon").prepare()
            assert "about 1004 tokens" in caplog.text

    async def test_not_where_a_cache_is_required(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server, "Short.", require_cache=True)
            for call in (strategy.prepare, lambda: ask(strategy)):
                with pytest.raises(CacheUnavailableError, match="too small") as caught:
                    await call()
                assert not GeminiErrorClassifier().classify(caught.value).is_retryable
            assert server.count("generate") == 0

    @pytest.mark.parametrize(
        "fault",
        [
            Fault.status(500),
            Fault.status(503),
            Fault.rate_limit(20),
            Fault.rate_limit(bare=True),
            Fault.cut(),
            Fault.status(400, "API key not valid. Please pass a valid API key."),
            Fault.status(400, "User location is not supported for the API use."),
        ],
    )
    async def test_not_for_a_failure_that_may_be_mended(self, fault: Fault) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            server.script(fault, operation="cache_create")
            with pytest.raises(Exception) as caught:  # noqa: PT011 (each has its own)
                await strategy.prepare()
            assert not isinstance(caught.value, CacheUnavailableError)
            await strategy.prepare()
            _, usage = await ask(strategy)
        assert usage["cached_input_tokens"] > 1024

    async def test_rules_of_the_model_decide(self, caplog: pytest.LogCaptureFixture) -> None:
        rules = {"gemini-4-argon": ModelRules(explicit_caching=True, min_cache_tokens=1)}
        async with GeminiEmulator(models=rules) as server:
            strategy = cached(server, "Short.", model="gemini-4-argon")
            await strategy.prepare()
            assert strategy._cache is not None
        assert not caplog.records

    async def test_caches_that_keep_dying_unused_are_given_up(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        faults: Any = lambda r: Fault.cache_gone() if r.cached_content else None  # noqa: E731
        async with GeminiEmulator(faults=faults) as server:
            strategy = cached(server)
            for _ in range(5):
                with pytest.raises(Exception, match="CachedContent not found"):
                    await ask(strategy)
            assert (await ask(strategy))[1]["cached_input_tokens"] == 0
            assert server.count("cache_create") == 5
        assert "gone before they served" in caplog.text

    async def test_a_cache_that_served_is_no_reason_to_give_up(self) -> None:
        async with GeminiEmulator() as server:
            strategy = cached(server)
            for _ in range(7):
                await ask(strategy)
                server.script(Fault.cache_gone())
                with pytest.raises(Exception, match="CachedContent not found"):
                    await ask(strategy)
            assert (await ask(strategy))[1]["cached_input_tokens"] > 1024

    async def test_a_prompt_of_parts_follows_the_contents(self) -> None:
        async with GeminiEmulator(allow_cache_creation=False) as server:
            strategy = cached(server, [types.Part(text="One"), "Two"])
            await strategy.execute([types.Part(text="Three"), "Four"], 1, 60.0)
            body = next(r for r in server.requests if r.operation == "generate").body
        texts = [part["text"] for content in body["contents"] for part in content["parts"]]
        assert texts == ["One", "Two", "Three", "Four"]


class TestDisplayName:
    """Stays the same across processes and SDK releases, so the digests stand here in full."""

    @pytest.mark.parametrize(
        ("parts", "digest"),
        [
            (
                {"contents": ["One", "Zwölf"]},
                "ab4a167b817592c2c118cc4201a2d7848e8429f0362d01b63145f516cdfc378c",
            ),
            (
                {
                    "contents": [types.Content(role="user", parts=[types.Part(text="One")])],
                    "system_instruction": types.Part.from_bytes(data=b"\x00", mime_type="a/b"),
                    "tools": [types.Tool.model_validate(TOOL)],
                    "tool_config": types.ToolConfig(
                        function_calling_config=types.FunctionCallingConfig(
                            mode=types.FunctionCallingConfigMode.ANY
                        )
                    ),
                },
                "47df9b8361a94070cd858efc2665ac815bb27991f20b5374c016dce64a47d1f4",
            ),
        ],
        ids=["texts", "everything"],
    )
    def test_is_fixed(self, parts: Any, digest: str) -> None:
        assert display_name_of(parts) == f"batch-llm {digest}"

    def test_model_and_dict_are_the_same(self) -> None:
        part = types.Part(text="One", inline_data=types.Blob(data=b"\x00\xff", mime_type="a/b"))
        plain = {"text": "One", "inline_data": {"data": "AP8=", "mime_type": "a/b"}}
        assert display_name_of({"contents": [part]}) == display_name_of({"contents": [plain]})

    def test_any_difference_is_one(self) -> None:
        variants: list[dict[str, Any]] = [
            {"contents": ["One"]},
            {"contents": ["One", ""]},
            {"contents": [b"One"]},
            {"contents": [types.Content(role="user", parts=[types.Part(text="One")])]},
            {"contents": [types.Content(role="model", parts=[types.Part(text="One")])]},
            {"contents": ["One"], "system_instruction": "One"},
            {"contents": ["One"], "tools": [types.Tool()]},
            {"contents": ["One"], "tool_config": types.ToolConfig()},
            {"contents": ["One"], "tools": [{"a": types.FunctionCallingConfigMode.ANY}]},
        ]
        names = [display_name_of(parts) for parts in variants]
        assert len(set(names)) == len(names)
        assert [display_name_of(parts) for parts in variants] == names
        assert all(len(name) <= 128 for name in names)

    def test_what_is_not_set_does_not_count(self) -> None:
        bare, full = {"contents": ["One"]}, {"contents": ["One"], "tools": None}
        assert display_name_of(bare) == display_name_of(full)

    def test_contents_without_a_stable_form_are_never_taken_for_others(self) -> None:
        parts = {"contents": [object()]}
        assert display_name_of(parts) != display_name_of(parts)


async def test_without_the_sdk_a_mock_is_sent_plain_dicts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "google.genai.types", None)
    client = MagicMock()
    client.aio.caches.list = AsyncMock(return_value=[])
    client.aio.caches.create = AsyncMock(return_value=SimpleNamespace(name="cachedContents/1"))
    client.aio.models.generate_content = AsyncMock(return_value=MagicMock(text="Hi"))
    config = {"temperature": 0.5, "system_instruction": "Be brief", "tools": [TOOL]}
    strategy = GeminiCachedStrategy(MODEL, client, text_of, BOOK, config=config)
    await strategy.prepare()
    assert (await ask(strategy))[0] == "Hi"
    created = client.aio.caches.create.await_args.kwargs["config"]
    assert created.pop("display_name").startswith("batch-llm ")
    assert created == {
        "ttl": "3600s",
        "contents": BOOK,
        "system_instruction": "Be brief",
        "tools": [TOOL],
    }
    assert client.aio.models.generate_content.await_args.kwargs["config"] == {
        "temperature": 0.5,
        "automatic_function_calling": {"disable": True},
        "cached_content": "cachedContents/1",
    }
