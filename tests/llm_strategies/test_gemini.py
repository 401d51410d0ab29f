"""GeminiStrategy through the real SDK: what it sends, what it counts, what it refuses."""

import logging
import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest
from google.genai import types
from pydantic import BaseModel, ValidationError

from batch_llm.classifiers import GeminiErrorClassifier
from batch_llm.llm_strategies import GeminiStrategy
from batch_llm.strategies import (
    EmptyResponseError,
    ResponseBlockedError,
    ResponseError,
    ResponseTruncatedError,
)
from batch_llm.testing.gemini import Fault, GeminiEmulator, Reply

pytestmark = pytest.mark.gemini

MODEL = "gemini-2.5-flash"
COUNTS = {
    "promptTokenCount": 100,
    "candidatesTokenCount": 20,
    "thoughtsTokenCount": 7,
    "toolUsePromptTokenCount": 3,
    "cachedContentTokenCount": 60,
    "totalTokenCount": 130,
}
TOKENS = {
    "input_tokens": 103,
    "output_tokens": 27,
    "total_tokens": 130,
    "cached_input_tokens": 60,
}


class Book(BaseModel):
    title: str


def text_of(response: Any) -> str:
    return str(response.text)


def strategy_for(server: GeminiEmulator, config: Any = None, **options: Any) -> GeminiStrategy[str]:
    return GeminiStrategy(MODEL, server.client(**options), text_of, config)


async def test_the_parser_gets_the_raw_response() -> None:
    async with GeminiEmulator(lambda request: request.prompt.upper()) as server:
        strategy = GeminiStrategy(MODEL, server.client(), lambda response: response)
        response, _ = await strategy.execute("hello", 1, 60.0)
    assert isinstance(response, types.GenerateContentResponse)
    assert response.text == "HELLO"
    assert server.requests[0].model == MODEL
    assert strategy.quota == f"gemini/{MODEL}"


@pytest.mark.parametrize(
    "config",
    [
        types.GenerateContentConfig(temperature=0.5, system_instruction="Be brief"),
        {"temperature": 0.5, "system_instruction": "Be brief"},
        {"temperature": 0.5, "systemInstruction": "Be brief"},
    ],
    ids=["model", "dict", "dict in camel case"],
)
async def test_the_config_arrives_and_stays_the_users_own(config: Any) -> None:
    before = config.model_copy(deep=True) if isinstance(config, BaseModel) else dict(config)
    async with GeminiEmulator() as server:
        await strategy_for(server, config).execute("Hello", 1, 60.0)
        body = server.requests[0].body
    assert body["generationConfig"] == {"temperature": 0.5}
    assert body["systemInstruction"]["parts"] == [{"text": "Be brief"}]
    assert config == before


async def test_a_config_changed_between_calls_counts_from_the_next_call_on() -> None:
    config = types.GenerateContentConfig(temperature=0.0)
    async with GeminiEmulator() as server:
        strategy = strategy_for(server, config)
        await strategy.execute("Hello", 1, 60.0)
        config.temperature = 0.9
        await strategy.execute("Hello", 2, 60.0)
        strategy.config = {"temperature": 0.3}
        await strategy.execute("Hello", 3, 60.0)
        sent = [request.body["generationConfig"] for request in server.requests]
    assert sent == [{"temperature": 0.0}, {"temperature": 0.9}, {"temperature": 0.3}]


async def test_structured_output() -> None:
    config = {"response_mime_type": "application/json", "response_schema": Book}
    async with GeminiEmulator(lambda _: {"title": "Emma"}) as server:
        strategy = GeminiStrategy(
            MODEL, server.client(), lambda response: Book.model_validate_json(response.text), config
        )
        output, _ = await strategy.execute("A book", 1, 60.0)
    assert output == Book(title="Emma")


class TestUsage:
    async def test_thoughts_and_tool_results_are_billed(self) -> None:
        async with GeminiEmulator(lambda _: Reply("Hi", usage=COUNTS)) as server:
            _, usage = await strategy_for(server).execute("Hello", 1, 60.0)
        assert usage == TOKENS

    async def test_the_total_is_the_apis_own(self) -> None:
        counts = {**COUNTS, "totalTokenCount": 999}
        async with GeminiEmulator(lambda _: Reply("Hi", usage=counts)) as server:
            _, usage = await strategy_for(server).execute("Hello", 1, 60.0)
        assert usage["total_tokens"] == 999

    async def test_a_missing_total_is_the_sum(self) -> None:
        counts = {**COUNTS, "totalTokenCount": None}
        async with GeminiEmulator(lambda _: Reply("Hi", usage=counts)) as server:
            _, usage = await strategy_for(server).execute("Hello", 1, 60.0)
        assert usage == TOKENS

    async def test_usage_that_nobody_reports_is_zero(self) -> None:
        for response in (
            SimpleNamespace(text="Hi"),
            SimpleNamespace(text="Hi", usage_metadata=None),
            MagicMock(text="Hi"),
        ):
            client = MagicMock()
            client.aio.models.generate_content = AsyncMock(return_value=response)
            output, usage = await GeminiStrategy(MODEL, client, text_of).execute("Hello", 1, 60.0)
            assert output == "Hi"
            assert usage == dict.fromkeys(TOKENS, 0)

    async def test_an_answer_nobody_can_parse_was_paid_for(self) -> None:
        async with GeminiEmulator(lambda _: Reply("no JSON", usage=COUNTS)) as server:
            strategy = GeminiStrategy(
                MODEL, server.client(), lambda response: Book.model_validate_json(response.text)
            )
            with pytest.raises(ValidationError) as caught:
                await strategy.execute("Hello", 1, 60.0)
        assert caught.value.__dict__["_failed_token_usage"] == TOKENS
        assert GeminiErrorClassifier().classify(caught.value).error_category == "validation_error"


class TestRefusals:
    @pytest.mark.parametrize(
        ("fault", "error", "reason", "retryable"),
        [
            (Fault.blocked("SAFETY"), ResponseBlockedError, "SAFETY", False),
            (
                Fault.blocked("PROHIBITED_CONTENT"),
                ResponseBlockedError,
                "PROHIBITED_CONTENT",
                False,
            ),
            (Fault.finish("SAFETY"), ResponseBlockedError, "SAFETY", False),
            (Fault.finish("RECITATION"), ResponseBlockedError, "RECITATION", True),
            (Fault.finish("SPII"), ResponseBlockedError, "SPII", False),
            (Fault.truncated(), ResponseTruncatedError, "MAX_TOKENS", False),
            (Fault.empty(), EmptyResponseError, "", True),
        ],
    )
    async def test_what_is_no_answer_never_reaches_the_parser(
        self, fault: Fault, error: type[ResponseError], reason: str, retryable: bool
    ) -> None:
        parser = MagicMock()
        async with GeminiEmulator() as server:
            server.script(fault)
            strategy = GeminiStrategy(MODEL, server.client(), parser)
            with pytest.raises(error) as caught:
                await strategy.execute("Hello", 1, 60.0)
        parser.assert_not_called()
        assert caught.value.reason == reason
        assert reason in str(caught.value)
        assert GeminiErrorClassifier().classify(caught.value).is_retryable is retryable

    @pytest.mark.parametrize("fault", [Fault.blocked(), Fault.finish("SAFETY"), Fault.truncated()])
    async def test_what_it_cost_is_told(self, fault: Fault) -> None:
        async with GeminiEmulator() as server:
            server.script(fault)
            with pytest.raises(ResponseError) as caught:
                await strategy_for(server).execute("Hello there", 1, 60.0)
        assert caught.value.usage is not None
        assert caught.value.usage["input_tokens"] > 0

    async def test_a_candidate_without_content_is_empty_though_it_stopped(self) -> None:
        async with GeminiEmulator(lambda _: Reply(None)) as server:
            with pytest.raises(EmptyResponseError) as caught:
                await strategy_for(server).execute("Hello", 1, 60.0)
        assert caught.value.reason == "STOP"

    @pytest.mark.filterwarnings("ignore:.*is not a valid FinishReason")
    @pytest.mark.parametrize("reason", ["OTHER", "A_REASON_OF_TOMORROW"])
    async def test_an_odd_reason_passes_with_content(self, reason: str) -> None:
        async with GeminiEmulator(lambda _: Reply("Hi", finish_reason=reason)) as server:
            output, _ = await strategy_for(server).execute("Hello", 1, 60.0)
        assert output == "Hi"

    @pytest.mark.parametrize("parts", [None, []], ids=repr)
    async def test_a_content_without_parts_is_empty(self, parts: Any) -> None:
        candidate = types.Candidate(
            content=types.Content(parts=parts), finish_reason=types.FinishReason.STOP
        )
        client = MagicMock()
        client.aio.models.generate_content = AsyncMock(
            return_value=types.GenerateContentResponse(candidates=[candidate])
        )
        with pytest.raises(EmptyResponseError, match="STOP"):
            await GeminiStrategy(MODEL, client, text_of).execute("Hello", 1, 60.0)

    async def test_one_good_candidate_is_an_answer(self) -> None:
        def candidate(reason: str, content: Any) -> SimpleNamespace:
            return SimpleNamespace(finish_reason=reason, content=content)

        content = SimpleNamespace(parts=[SimpleNamespace(text="Hi")])
        good, bad = candidate("STOP", content), candidate("SAFETY", None)
        client = MagicMock()
        client.aio.models.generate_content = AsyncMock(
            side_effect=[
                SimpleNamespace(candidates=[bad, good], text="Hi"),
                SimpleNamespace(candidates=[bad, bad], text=None),
            ]
        )
        strategy = GeminiStrategy(MODEL, client, text_of)
        assert (await strategy.execute("Hello", 1, 60.0))[0] == "Hi"
        with pytest.raises(ResponseBlockedError):
            await strategy.execute("Hello", 1, 60.0)

    async def test_a_mocks_attributes_refuse_nothing(self) -> None:
        candidates = [MagicMock(), [MagicMock()], [SimpleNamespace()]]
        for found in candidates:
            client = MagicMock()
            client.aio.models.generate_content = AsyncMock(
                return_value=MagicMock(text="Hi", candidates=found)
            )
            strategy = GeminiStrategy(MODEL, client, text_of)
            assert (await strategy.execute("Hello", 1, 60.0))[0] == "Hi"


class TestOneOwnerOfRetries:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"http_options": types.HttpOptions(retry_options=types.HttpRetryOptions(attempts=4))},
        ],
        ids=["default client", "client told to retry"],
    )
    @pytest.mark.parametrize(
        "config",
        [
            None,
            {"http_options": {"headers": {"x-mine": "yes"}}},
            types.GenerateContentConfig(http_options=types.HttpOptions(headers={"x-mine": "yes"})),
        ],
        ids=["no config", "dict", "model"],
    )
    async def test_the_sdk_sends_a_failed_request_once(self, options: Any, config: Any) -> None:
        async with GeminiEmulator(faults=lambda _: Fault.status(503)) as server:
            with pytest.raises(Exception, match="overloaded"):
                await strategy_for(server, config, **options).execute("Hello", 1, 60.0)
            assert server.count("generate") == 1
            assert (server.requests[0].headers.get("x-mine") == "yes") is (config is not None)

    async def test_what_the_user_set_for_the_request_stays(self) -> None:
        retries = types.HttpRetryOptions(attempts=3)
        config = types.GenerateContentConfig(http_options=types.HttpOptions(retry_options=retries))
        options = types.HttpOptions(retry_options=types.HttpRetryOptions(attempts=2))
        async with GeminiEmulator(faults=lambda _: Fault.status(503)) as server:
            with pytest.raises(Exception, match="overloaded"):
                await strategy_for(server, config, http_options=options).execute("Hello", 1, 60.0)
            assert server.count("generate") == 3

    async def test_aiohttp_counts_as_a_retrying_transport(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def http_options(strategy: GeminiStrategy[str]) -> Any:
            return strategy._configs.for_request(strategy.config).http_options

        async with GeminiEmulator() as server:
            client, told = (
                server.client(),
                server.client(
                    http_options=types.HttpOptions(retry_options=types.HttpRetryOptions(attempts=1))
                ),
            )
            assert http_options(GeminiStrategy(MODEL, client, text_of)) is None
            monkeypatch.setitem(sys.modules, "aiohttp", MagicMock(__spec__=MagicMock()))
            options = http_options(GeminiStrategy(MODEL, client, text_of))
            assert options.retry_options.attempts == 1
            assert http_options(GeminiStrategy(MODEL, told, text_of)) is None


class TestFunctionCalls:
    async def test_automatic_calls_are_off(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        async with GeminiEmulator() as server:
            await strategy_for(server).execute("Hello", 1, 60.0)
        assert not [record for record in caplog.records if "AFC" in record.getMessage()]

    @pytest.mark.parametrize(
        ("config", "disabled"),
        [
            ({}, True),
            ({"tools": [types.Tool()]}, True),
            ({"tools": [{"google_search": {}}]}, True),
            ({"tools": [text_of]}, None),
            ({"automatic_function_calling": {"maximum_remote_calls": 2}}, None),
        ],
    )
    async def test_unless_the_config_needs_them(
        self, config: dict[str, Any], disabled: bool | None
    ) -> None:
        async with GeminiEmulator() as server:
            sent = strategy_for(server, config)._configs.for_request(config)
        calling = sent.automatic_function_calling
        assert (calling.disable if calling else None) is disabled

    @pytest.mark.skipif(
        "automatic_continuation" not in types.GenerateContentConfig.model_fields,
        reason="this google-genai does not continue by itself",
    )
    async def test_automatic_continuation_is_off_unless_the_user_set_it(self) -> None:
        async with GeminiEmulator() as server:
            configs = strategy_for(server)._configs
        assert configs.for_request(None).automatic_continuation is False
        for chosen in (True, False):
            config = types.GenerateContentConfig(automatic_continuation=chosen)
            assert configs.for_request(config).automatic_continuation is chosen

    @pytest.mark.parametrize(
        "config",
        [
            types.GenerateContentConfig(stop_sequences=["END"], temperature=0.2),
            types.GenerateContentConfig(tools=[types.Tool(code_execution={})]),
            types.GenerateContentConfig(http_options=types.HttpOptions(headers={"X": "1"})),
            types.GenerateContentConfig(temperature=0.2, system_instruction="Be brief."),
        ],
        ids=["a list", "a tool", "headers", "plain values"],
    )
    async def test_what_the_sdk_changes_in_its_copy_stays_there(
        self, config: types.GenerateContentConfig
    ) -> None:
        before = config.model_copy(deep=True)
        async with GeminiEmulator() as server:
            copy = strategy_for(server)._configs.for_request(config).model_copy(deep=True)
        assert (
            copy.model_dump(exclude_none=True).items()
            >= before.model_dump(exclude_none=True).items()
        )
        copy.temperature = 1.0
        for name in ("stop_sequences", "tools"):
            (getattr(copy, name) or []).clear()
        if copy.http_options:
            copy.http_options.headers["X"] = "2"
        assert config == before


class TestConstruction:
    @pytest.mark.parametrize(
        ("client", "advice"),
        [
            (None, "google.genai.Client"),
            ("AIza-a-key", "google.genai.Client"),
            (SimpleNamespace(models=None), "not its .aio"),
        ],
        ids=["nothing", "a key", "the asynchronous part"],
    )
    def test_a_client_of_the_wrong_kind(self, client: Any, advice: str) -> None:
        with pytest.raises(TypeError, match=r"client must be a google\.genai\.Client") as caught:
            GeminiStrategy(MODEL, client, text_of)
        assert advice in str(caught.value)
        assert "AIza" not in str(caught.value)

    async def test_the_asynchronous_part_of_a_client(self) -> None:
        async with GeminiEmulator() as server:
            client = server.client()
            with pytest.raises(TypeError, match=r"pass the Client itself, not its \.aio"):
                GeminiStrategy(MODEL, client.aio, text_of)

    def test_a_parser_that_is_no_function(self) -> None:
        with pytest.raises(TypeError, match="response_parser must be a function"):
            GeminiStrategy(MODEL, MagicMock(), Book(title="Emma"))  # type: ignore[arg-type]

    def test_a_parser_that_would_have_to_be_awaited(self) -> None:
        async def parse(response: Any) -> Any: ...

        with pytest.raises(TypeError, match="response_parser must not be async"):
            GeminiStrategy(MODEL, MagicMock(), parse)

    def test_a_config_that_is_none(self) -> None:
        with pytest.raises(TypeError, match="config must be a GenerateContentConfig"):
            GeminiStrategy(MODEL, MagicMock(), text_of, "hot")
        with pytest.raises(ValidationError, match="warmth"):
            GeminiStrategy(MODEL, MagicMock(), text_of, {"warmth": 1})

    async def test_mocks_of_everything(self) -> None:
        client = MagicMock()
        client.aio.models.generate_content = AsyncMock(return_value=MagicMock(text="Hi"))
        strategy = GeminiStrategy(MODEL, client, text_of, MagicMock())
        output, usage = await strategy.execute("Hello", 1, 60.0)
        assert (output, usage["input_tokens"]) == ("Hi", 0)


async def test_without_the_sdk_a_mock_is_sent_a_plain_dict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "google.genai.types", None)
    client = MagicMock()
    client.aio.models.generate_content = AsyncMock(return_value=MagicMock(text="Hi"))
    for config, sent in ((None, {}), ({"temperature": 0.5}, {"temperature": 0.5})):
        await GeminiStrategy(MODEL, client, text_of, config).execute("Hello", 1, 60.0)
        client.aio.models.generate_content.assert_awaited_with(
            model=MODEL,
            contents="Hello",
            config={**sent, "automatic_function_calling": {"disable": True}},
        )


async def test_the_sdk_need_not_look_through_the_whole_config_for_each_field(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which would take it a quarter of a millisecond."""
    looked = 0
    through = types.GenerateContentConfig.__iter__

    def count(config: types.GenerateContentConfig) -> Any:
        nonlocal looked
        looked += 1
        return through(config)

    monkeypatch.setattr(types.GenerateContentConfig, "__iter__", count)
    config = types.GenerateContentConfig(temperature=0.5, stop_sequences=["END"])
    async with GeminiEmulator() as server:
        await strategy_for(server, config).execute("Hello", 1, 60.0)
        sent = server.requests[0].body["generationConfig"]
    assert sent == {"temperature": 0.5, "stopSequences": ["END"]}
    assert looked == 0
