"""What Gemini says of its answers, through the real SDK: ratings, finish reason, model."""

import copy
import json
import pickle
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock, Mock

import pytest
from google.genai import types

from batch_llm import (
    GeminiCachedStrategy,
    GeminiResponse,
    GeminiStrategy,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    ResponseBlockedError,
    ResponseError,
    RetryConfig,
    TokenUsage,
    WorkItemResult,
)
from batch_llm.llm_strategies._usage import ReportedUsage
from batch_llm.testing.gemini import Fault, GeminiEmulator, Reply

pytestmark = pytest.mark.gemini

MODEL = "gemini-2.5-flash"
VERSION = "gemini-2.5-flash-002"
RATINGS = {
    "HARM_CATEGORY_HARASSMENT": "NEGLIGIBLE",
    "HARM_CATEGORY_DANGEROUS_CONTENT": "MEDIUM",
}
SAID = {"safety_ratings": RATINGS, "finish_reason": "STOP", "model_version": VERSION}
USED = {"input_tokens": 2, "output_tokens": 2, "total_tokens": 4, "cached_input_tokens": 0}
LONG_TEXT = "Judge like a careful editor. " * 300

Build = Callable[..., GeminiStrategy[Any]]


def wire(ratings: dict[str, str]) -> list[dict[str, str]]:
    """Ratings as the API sends them."""
    return [
        {"category": category, "probability": probability}
        for category, probability in ratings.items()
    ]


def text_of(response: Any) -> str:
    return str(response.text)


def rated(_: object) -> Reply:
    return Reply("Hi there", safety_ratings=wire(RATINGS), model_version=VERSION)


def plain(server: GeminiEmulator, **options: Any) -> GeminiStrategy[Any]:
    return GeminiStrategy(MODEL, server.client(), text_of, **options)


def cached(server: GeminiEmulator, **options: Any) -> GeminiStrategy[Any]:
    return GeminiCachedStrategy(MODEL, server.client(), text_of, LONG_TEXT, **options)


each_strategy = pytest.mark.parametrize("build", [plain, cached])


def mocked(response: Any, **options: Any) -> GeminiStrategy[Any]:
    client = MagicMock()
    client.aio.models.generate_content = AsyncMock(return_value=response)
    return GeminiStrategy(MODEL, client, lambda response: response.text, **options)


@asynccontextmanager
async def reported(*answers: Reply | Fault) -> AsyncGenerator[WorkItemResult[Any, None]]:
    """The result of one item that is asked about once for each answer, without a retry's wait."""
    replies = iter(answers)

    def respond(_: object) -> Reply:
        reply = next(replies)
        return reply if isinstance(reply, Reply) else Reply("Hi")

    async with GeminiEmulator(respond) as server:
        server.script(*[answer if isinstance(answer, Fault) else None for answer in answers])
        config = ProcessorConfig(retry=RetryConfig(max_attempts=len(answers)))
        async with ParallelBatchProcessor[str, Any, None](config=config) as processor:
            await processor.add_work(LLMWorkItem("row", plain(server), "Hello"))
            yield (await processor.process_all()).results[0]


class TestTheWholeResponse:
    @each_strategy
    async def test_is_the_output_where_that_is_asked_for(self, build: Build) -> None:
        async with GeminiEmulator(rated) as server:
            output, usage = await build(server, include_metadata=True).execute("Hello", 1, 60.0)
        assert isinstance(output, GeminiResponse)
        assert output.output == "Hi there"
        assert output.safety_ratings == RATINGS
        assert output.finish_reason == "STOP"
        assert output.model_version == VERSION
        assert output.token_usage == usage
        assert isinstance(output.raw_response, types.GenerateContentResponse)
        assert output.raw_response.text == "Hi there"

    @each_strategy
    async def test_stays_away_otherwise(self, build: Build) -> None:
        async with GeminiEmulator(rated) as server:
            for options in ({}, {"include_metadata": False}):
                output, _ = await build(server, **options).execute("Hello", 1, 60.0)
                assert output == "Hi there"

    async def test_has_no_ratings_where_the_api_sends_none(self) -> None:
        for ratings in (None, []):
            answer = Reply("Hi", safety_ratings=ratings)
            async with GeminiEmulator(lambda _, answer=answer: answer) as server:
                output, usage = await plain(server, include_metadata=True).execute("Hi", 1, 60.0)
            assert output.safety_ratings is None
            assert "safety_ratings" not in usage.metadata

    def test_can_be_built_by_hand_in_a_test(self) -> None:
        response = GeminiResponse[str]("text", safety_ratings=RATINGS)
        assert response.output == "text"
        assert response == GeminiResponse("text", RATINGS, None, {}, None, None)

    def test_cannot_be_changed(self) -> None:
        with pytest.raises(AttributeError, match="output"):
            GeminiResponse("text").output = "other"  # type: ignore[misc]

    async def test_survives_pickling(self) -> None:
        async with GeminiEmulator(rated) as server:
            output, _ = await plain(server, include_metadata=True).execute("Hello", 1, 60.0)
        assert pickle.loads(pickle.dumps(output)) == output

    def test_keeps_the_raw_response_out_of_its_text(self) -> None:
        assert "SECRET" not in repr(GeminiResponse("text", raw_response="SECRET"))

    async def test_stands_in_for_itself_in_a_dry_run(self) -> None:
        async with GeminiEmulator() as server:
            output, usage = await plain(server, include_metadata=True).dry_run("Hello")
            plain_output, plain_usage = await plain(server).dry_run("Hello")
            assert server.requests == []
        assert output == GeminiResponse(plain_output, token_usage=usage)
        assert usage == plain_usage

    async def test_of_an_answer_nobody_can_parse_there_is_none(self) -> None:
        def refuse(response: Any) -> str:
            raise KeyError("title")

        async with GeminiEmulator(rated) as server:
            strategy = GeminiStrategy(MODEL, server.client(), refuse, include_metadata=True)
            with pytest.raises(KeyError) as caught:
                await strategy.execute("Hello", 1, 60.0)
        assert caught.value.__dict__["_failed_token_usage"] == USED


class TestUsageBringsAlong:
    @each_strategy
    @pytest.mark.parametrize("include_metadata", [False, True])
    async def test_what_the_api_says(self, build: Build, include_metadata: bool) -> None:
        async with GeminiEmulator(rated) as server:
            strategy = build(server, include_metadata=include_metadata)
            _, usage = await strategy.execute("Hello", 1, 60.0)
        assert usage.metadata == SAID

    async def test_only_what_it_says(self) -> None:
        candidate = types.Candidate(content=types.Content(parts=[types.Part(text="Hi")]))
        answer = types.GenerateContentResponse(candidates=[candidate])
        output, usage = await mocked(answer, include_metadata=True).execute("Hello", 1, 60.0)
        assert usage.metadata == {}
        assert (output.safety_ratings, output.finish_reason, output.model_version) == (None,) * 3

    @pytest.mark.filterwarnings("ignore:.*is not a valid Harm")
    async def test_words_of_tomorrow(self) -> None:
        said = {"HARM_CATEGORY_OF_TOMORROW": "CERTAIN", "HARM_CATEGORY_HARASSMENT": "LOW"}
        async with GeminiEmulator(lambda _: Reply("Hi", safety_ratings=wire(said))) as server:
            _, usage = await plain(server).execute("Hello", 1, 60.0)
        assert usage.metadata["safety_ratings"] == said
        assert {
            type(word) for pair in usage.metadata["safety_ratings"].items() for word in pair
        } == {str}

    async def test_a_rating_without_a_probability_is_none(self) -> None:
        ratings = [{"category": "HARM_CATEGORY_HARASSMENT"}, {"probability": "LOW"}]
        async with GeminiEmulator(lambda _: Reply("Hi", safety_ratings=ratings)) as server:
            _, usage = await plain(server).execute("Hello", 1, 60.0)
        assert "safety_ratings" not in usage.metadata

    @pytest.mark.parametrize(
        "response",
        [
            MagicMock(text="Hi"),
            MagicMock(text="Hi", candidates=[MagicMock()]),
            MagicMock(text="Hi", candidates=[MagicMock(safety_ratings=[MagicMock()])]),
            MagicMock(text="Hi", candidates=[Mock()]),
            SimpleNamespace(text="Hi"),
        ],
        ids=["mock", "mocked candidate", "mocked rating", "plain mock", "nothing"],
    )
    async def test_nothing_of_a_mock(self, response: Any) -> None:
        output, usage = await mocked(response, include_metadata=True).execute("Hello", 1, 60.0)
        assert usage.metadata == {}
        assert (output.output, output.raw_response) == ("Hi", response)

    async def test_the_words_of_the_first_candidate_that_answered(self) -> None:
        def candidate(probability: str, reason: str, content: Any) -> SimpleNamespace:
            rating = SimpleNamespace(
                category=types.HarmCategory.HARM_CATEGORY_HARASSMENT,
                probability=types.HarmProbability(probability),
            )
            return SimpleNamespace(finish_reason=reason, content=content, safety_ratings=[rating])

        content = SimpleNamespace(parts=[SimpleNamespace(text="Hi")])
        withheld = candidate("HIGH", "SAFETY", None)
        answers = [candidate("LOW", "STOP", content), candidate("MEDIUM", "STOP", content)]
        response = SimpleNamespace(text="Hi", candidates=[withheld, *answers])
        _, usage = await mocked(response).execute("Hello", 1, 60.0)
        assert usage.metadata["safety_ratings"] == {"HARM_CATEGORY_HARASSMENT": "LOW"}
        assert usage.metadata["finish_reason"] == "STOP"

    def test_and_is_a_dict_otherwise(self) -> None:
        usage = ReportedUsage(TokenUsage(input_tokens=3), SAID)
        assert usage == {"input_tokens": 3}
        assert json.loads(json.dumps(usage)) == {"input_tokens": 3}
        assert type(dict(usage)) is dict

    @pytest.mark.parametrize(
        "duplicate",
        [lambda usage: pickle.loads(pickle.dumps(usage)), copy.copy, copy.deepcopy],
        ids=["pickle", "copy", "deepcopy"],
    )
    def test_and_keeps_it_when_copied(self, duplicate: Callable[[Any], Any]) -> None:
        twin = duplicate(ReportedUsage(TokenUsage(input_tokens=3), SAID))
        assert twin == {"input_tokens": 3}
        assert twin.metadata == SAID


class TestRefusals:
    @each_strategy
    @pytest.mark.parametrize(
        "fault",
        [
            Fault.blocked("SAFETY", safety_ratings=wire(RATINGS)),
            Fault.finish("SAFETY", safety_ratings=wire(RATINGS)),
            Fault.finish("RECITATION", safety_ratings=wire(RATINGS)),
            Fault.finish("MAX_TOKENS", safety_ratings=wire(RATINGS)),
            Fault.finish("STOP", safety_ratings=wire(RATINGS)),
        ],
        ids=["prompt", "answer", "recitation", "truncated", "empty"],
    )
    async def test_tell_the_ratings(self, build: Build, fault: Fault) -> None:
        async with GeminiEmulator() as server:
            server.script(fault)
            with pytest.raises(ResponseError) as caught:
                await build(server).execute("Hello", 1, 60.0)
        assert caught.value.safety_ratings == RATINGS

    @pytest.mark.parametrize(
        "fault", [Fault.blocked("PROHIBITED_CONTENT"), Fault.finish("SAFETY", safety_ratings=[])]
    )
    async def test_without_ratings(self, fault: Fault) -> None:
        async with GeminiEmulator() as server:
            server.script(fault)
            with pytest.raises(ResponseBlockedError) as caught:
                await plain(server).execute("Hello", 1, 60.0)
        assert caught.value.safety_ratings is None

    async def test_an_empty_answer_has_none(self) -> None:
        async with GeminiEmulator() as server:
            server.script(Fault.empty())
            with pytest.raises(ResponseError) as caught:
                await plain(server).execute("Hello", 1, 60.0)
        assert caught.value.safety_ratings is None


class TestResults:
    @each_strategy
    @pytest.mark.parametrize("include_metadata", [False, True])
    async def test_have_the_ratings_in_either_mode(
        self, build: Build, include_metadata: bool
    ) -> None:
        async with GeminiEmulator(rated) as server, ParallelBatchProcessor() as processor:
            strategy = build(server, include_metadata=include_metadata)
            await processor.add_work(LLMWorkItem("row", strategy, "Hello"))
            (result,) = (await processor.process_all()).results
        assert result.gemini_safety_ratings == RATINGS
        assert result.metadata == SAID
        assert isinstance(result.output, GeminiResponse) is include_metadata
        assert result.token_usage["output_tokens"] == 2

    async def test_have_none_where_the_api_sends_none(self) -> None:
        async with reported(Reply("Hi")) as result:
            assert result.success
            assert result.gemini_safety_ratings is None
            assert result.metadata == {"finish_reason": "STOP", "model_version": MODEL}

    @pytest.mark.parametrize(
        "fault",
        [
            Fault.blocked("SAFETY", safety_ratings=wire(RATINGS)),
            Fault.finish("SAFETY", safety_ratings=wire(RATINGS)),
        ],
        ids=["prompt", "answer"],
    )
    async def test_keep_them_when_blocked(self, fault: Fault) -> None:
        async with reported(fault) as result:
            assert isinstance(result.exception, ResponseBlockedError)
            assert result.gemini_safety_ratings == RATINGS

    async def test_have_those_of_the_last_attempt(self) -> None:
        blocked = Fault.finish(
            "RECITATION", safety_ratings=wire({"HARM_CATEGORY_HARASSMENT": "HIGH"})
        )
        async with reported(blocked, rated(None)) as result:
            assert (result.success, result.attempts) == (True, 2)
            assert result.gemini_safety_ratings == RATINGS
        async with reported(Reply(None), blocked) as result:
            assert (result.success, result.attempts) == (False, 2)
            assert result.gemini_safety_ratings == {"HARM_CATEGORY_HARASSMENT": "HIGH"}

    async def test_of_a_failure_without_ratings_have_none(self) -> None:
        async with reported(Fault.status(400)) as result:
            assert not result.success
            assert result.gemini_safety_ratings is None

    async def test_have_one_output_of_a_dry_run_too(self) -> None:
        config = ProcessorConfig(dry_run=True)
        async with (
            GeminiEmulator() as server,
            ParallelBatchProcessor[str, GeminiResponse[str], None](config=config) as processor,
        ):
            strategy = plain(server, include_metadata=True)
            await processor.add_work(LLMWorkItem("row", strategy, "Hello"))
            (result,) = (await processor.process_all()).results
        assert result.output is not None
        assert result.output.output.startswith("[DRY-RUN]")
