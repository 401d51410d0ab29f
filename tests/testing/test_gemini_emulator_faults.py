"""What goes wrong in the emulated service, as the real SDK shows it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from google.genai import Client, errors, types

from batch_llm.testing.gemini import Fault, GeminiEmulator, RecordedRequest

MODEL = "gemini-2.5-flash"


async def ask(client: Client, prompt: str = "Hello") -> Any:
    return await client.aio.models.generate_content(model=MODEL, contents=prompt)


async def refusal(call: Awaitable[Any]) -> errors.APIError:
    with pytest.raises(errors.APIError) as caught:
        await call
    return caught.value


def detail(error: errors.APIError, kind: str) -> dict[str, Any] | None:
    """The detail of one type in an error's body, if it has one."""
    details = error.details["error"].get("details", [])
    return next(
        (d for d in details if d["@type"] == f"type.googleapis.com/google.rpc.{kind}"), None
    )


class TestRateLimits:
    async def test_with_a_hint(self) -> None:
        async with GeminiEmulator() as server:
            server.script(Fault.rate_limit(retry_delay_seconds=45.8379))
            error = await refusal(ask(server.client()))
            assert server.requests[0].status == 429
        assert (error.code, error.status) == (429, "RESOURCE_EXHAUSTED")
        assert error.message is not None
        assert "Please retry in 45.8379s." in error.message
        assert detail(error, "RetryInfo")["retryDelay"] == "45.8379s"
        (violation,) = detail(error, "QuotaFailure")["violations"]
        assert "PerMinute" in violation["quotaId"]
        assert violation["quotaDimensions"]["model"] == MODEL

    async def test_without_a_hint(self) -> None:
        async with GeminiEmulator() as server:
            server.script(Fault.rate_limit())
            error = await refusal(ask(server.client()))
        assert detail(error, "RetryInfo") is None
        assert detail(error, "QuotaFailure") is not None

    async def test_per_day(self) -> None:
        async with GeminiEmulator() as server:
            server.script(Fault.rate_limit(3, per_day=True))
            error = await refusal(ask(server.client()))
        assert "PerDay" in detail(error, "QuotaFailure")["violations"][0]["quotaId"]
        assert detail(error, "RetryInfo")["retryDelay"] == "3s"

    async def test_bare(self) -> None:
        async with GeminiEmulator() as server:
            server.script(Fault.rate_limit(bare=True))
            error = await refusal(ask(server.client()))
        assert error.message == "Resource has been exhausted (e.g. check quota)."
        assert "details" not in error.details["error"]

    def test_bare_has_no_hint(self) -> None:
        with pytest.raises(ValueError, match="carries no hint"):
            Fault.rate_limit(3, bare=True)


class TestStatuses:
    @pytest.mark.parametrize(
        ("code", "status", "message"),
        [
            (400, "INVALID_ARGUMENT", "Request contains an invalid argument."),
            (500, "INTERNAL", "An internal error has occurred. Please retry."),
            (503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
            (504, "DEADLINE_EXCEEDED", "Deadline expired before operation could complete."),
        ],
    )
    async def test_in_the_apis_words(self, code: int, status: str, message: str) -> None:
        async with GeminiEmulator() as server:
            server.script(Fault.status(code))
            error = await refusal(ask(server.client()))
        assert (error.code, error.status, error.message) == (code, status, message)
        assert isinstance(error, errors.ClientError if code < 500 else errors.ServerError)

    async def test_in_other_words(self) -> None:
        async with GeminiEmulator() as server:
            server.script(Fault.status(409, "Not now."))
            error = await refusal(ask(server.client()))
        assert (error.code, error.status, error.message) == (409, "ABORTED", "Not now.")

    async def test_a_proxys_page(self) -> None:
        async with GeminiEmulator() as server:
            server.script(Fault.html(502))
            error = await refusal(ask(server.client()))
        assert error.code == 502
        assert "502 Bad Gateway" in error.details["message"]


class TestBrokenAnswers:
    @pytest.mark.parametrize("mid_answer", [False, True])
    async def test_a_cut_connection(self, mid_answer: bool) -> None:
        async with GeminiEmulator() as server:
            client = server.client()
            server.script(Fault.cut(mid_answer=mid_answer))
            with pytest.raises(Exception, match=r"(?i)disconnected|without|closed") as caught:
                await ask(client)
            assert server.requests[0].status is None
            assert (await ask(client)).text
        assert not isinstance(caught.value, errors.APIError)

    async def test_a_broken_body(self) -> None:
        async with GeminiEmulator() as server:
            server.script(Fault.malformed_json())
            with pytest.raises(json.JSONDecodeError):
                await ask(server.client())

    async def test_a_broken_text(self) -> None:
        async with GeminiEmulator() as server:
            server.script(Fault.malformed_json(in_text=True))
            response = await ask(server.client())
        assert response.candidates[0].finish_reason == types.FinishReason.STOP
        with pytest.raises(json.JSONDecodeError):
            json.loads(response.text)

    async def test_an_empty_answer(self) -> None:
        async with GeminiEmulator() as server:
            server.script(Fault.empty())
            response = await ask(server.client())
        assert response.candidates is None
        assert response.usage_metadata is None

    async def test_half_an_answer(self) -> None:
        async with GeminiEmulator(lambda _: "12345678") as server:
            server.script(Fault.truncated())
            response = await ask(server.client())
        assert response.text == "1234"
        assert response.candidates[0].finish_reason == types.FinishReason.MAX_TOKENS
        assert response.usage_metadata.candidates_token_count == 1

    async def test_a_blocked_prompt(self) -> None:
        async with GeminiEmulator() as server:
            server.script(Fault.blocked("SAFETY"))
            response = await ask(server.client())
        assert response.text is None
        assert response.candidates is None
        assert response.prompt_feedback.block_reason == types.BlockedReason.SAFETY
        assert response.usage_metadata.prompt_token_count == 2
        assert response.usage_metadata.total_token_count == 2
        assert response.usage_metadata.candidates_token_count is None
        assert response.prompt_feedback.safety_ratings[0].blocked

    async def test_a_prompt_blocked_for_something_else_is_not_rated(self) -> None:
        async with GeminiEmulator() as server:
            server.script(Fault.blocked("PROHIBITED_CONTENT"))
            response = await ask(server.client())
        assert response.prompt_feedback.safety_ratings is None

    @pytest.mark.parametrize("refuse", [Fault.blocked, Fault.finish])
    async def test_a_refusal_with_ratings_of_ones_own(self, refuse: Callable[..., Fault]) -> None:
        given = {"category": "HARM_CATEGORY_HARASSMENT", "probability": "MEDIUM"}
        async with GeminiEmulator() as server:
            server.script(refuse("SAFETY", safety_ratings=[given]))
            response = await ask(server.client())
        rated = response.prompt_feedback or response.candidates[0]
        (rating,) = rated.safety_ratings
        assert rating.category == types.HarmCategory.HARM_CATEGORY_HARASSMENT
        assert rating.probability == types.HarmProbability.MEDIUM
        assert not rating.blocked

    @pytest.mark.parametrize("reason", ["SAFETY", "RECITATION"])
    async def test_a_withheld_answer(self, reason: str) -> None:
        async with GeminiEmulator() as server:
            server.script(Fault.finish(reason))
            response = await ask(server.client())
        (candidate,) = response.candidates
        assert response.text is None
        assert candidate.content is None
        assert candidate.finish_reason == types.FinishReason(reason)
        assert bool(candidate.safety_ratings[0].blocked) == (reason == "SAFETY")


class TestDelays:
    async def test_a_slow_answer_is_the_usual_one(self) -> None:
        loop = asyncio.get_running_loop()
        async with GeminiEmulator(latency_seconds=0.1) as server:
            client = server.client()
            usual = (await ask(client)).text
            server.script(Fault.slow(0.1))
            started = loop.time()
            assert (await ask(client)).text == usual
            assert loop.time() - started >= 0.2

    async def test_any_fault_can_come_late(self) -> None:
        loop = asyncio.get_running_loop()
        async with GeminiEmulator() as server:
            server.script(Fault.status(503).after(0.05).after(0.05))
            started = loop.time()
            assert (await refusal(ask(server.client()))).code == 503
            assert loop.time() - started >= 0.1

    async def test_a_cache_can_be_slow_too(self) -> None:
        loop = asyncio.get_running_loop()
        async with GeminiEmulator() as server:
            server.script(Fault.slow(0.1), operation="cache_list")
            started = loop.time()
            await server.client().aio.caches.list()
            assert loop.time() - started >= 0.1


class TestPlans:
    async def test_a_script_is_followed_in_order(self) -> None:
        async with GeminiEmulator() as server:
            client = server.client()
            server.script(Fault.status(503), None, Fault.status(500))
            server.script(Fault.status(504))
            await asyncio.gather(*(ask(client) for _ in range(5)), return_exceptions=True)
            assert [request.status for request in server.requests] == [503, 200, 500, 504, 200]

    async def test_a_script_is_one_operations(self) -> None:
        async with GeminiEmulator() as server:
            client = server.client()
            server.script(Fault.status(503), operation="cache_list")
            await ask(client)
            assert (await refusal(client.aio.caches.list())).code == 503
            await client.aio.caches.list()

    async def test_a_function_judges_every_request(self) -> None:
        def faults(request: RecordedRequest) -> Fault | None:
            return Fault.status(503) if request.prompt == "bad" else None

        async with GeminiEmulator(faults=faults) as server:
            client = server.client()
            await ask(client, "good")
            server.script(Fault.status(500))
            assert (await refusal(ask(client, "bad"))).code == 500
            assert (await refusal(ask(client, "bad"))).code == 503

    async def test_a_failing_function_is_an_internal_error(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def faults(_: RecordedRequest) -> Fault | None:
            raise RuntimeError("no plan")

        async with GeminiEmulator(faults=faults) as server:
            error = await refusal(ask(server.client()))
        assert error.code == 500
        assert "no plan" in caplog.text

    async def test_an_unknown_operation_is_refused(self) -> None:
        async with GeminiEmulator() as server:
            with pytest.raises(ValueError, match=r"must be one of generate, .*\(got 'chat'\)"):
                server.script(Fault.empty(), operation="chat")  # type: ignore[arg-type]

    async def test_a_refused_request_costs_no_quota(self) -> None:
        async with GeminiEmulator(requests_per_minute=1) as server:
            client = server.client()
            server.script(Fault.status(503))
            await refusal(ask(client))
            await ask(client)


class TestQuota:
    async def test_a_minutes_worth_then_an_even_flow(self) -> None:
        async with GeminiEmulator(requests_per_minute=3) as server:
            client = server.client()
            for _ in range(3):
                await ask(client)
            error = await refusal(ask(client))
            server.advance(20)
            await ask(client)
            assert (await refusal(ask(client))).code == 429
            server.advance(3600)
            await asyncio.gather(*(ask(client) for _ in range(4)), return_exceptions=True)
            assert [r.status for r in server.requests[-4:]] == [200, 200, 200, 429]
        assert error.code == 429
        (violation,) = detail(error, "QuotaFailure")["violations"]
        assert violation["quotaId"] == "GenerateRequestsPerMinutePerProjectPerModel"
        assert violation["quotaValue"] == "3"
        assert 19 < float(detail(error, "RetryInfo")["retryDelay"].removesuffix("s")) <= 20

    async def test_who_waits_as_told_is_served(self) -> None:
        async with GeminiEmulator(requests_per_minute=7, quota_burst_seconds=0) as server:
            client = server.client()
            await ask(client)
            for _ in range(10):
                hint = detail(await refusal(ask(client)), "RetryInfo")["retryDelay"]
                server.advance(float(hint.removesuffix("s")))
                await ask(client)

    async def test_each_model_has_its_own(self) -> None:
        async with GeminiEmulator(requests_per_minute=1) as server:
            client = server.client()
            await ask(client)
            await client.aio.models.generate_content(model="gemini-2.5-pro", contents="Hello")
            assert (await refusal(ask(client))).code == 429

    async def test_prompt_tokens_are_limited_too(self) -> None:
        async with GeminiEmulator(requests_per_minute=10, tokens_per_minute=100) as server:
            client = server.client()
            await ask(client, "x" * 320)
            error = await refusal(ask(client, "x" * 120))
            server.advance(6.001)
            await ask(client, "x" * 120)
            too_large = await refusal(ask(client, "x" * 404))
        (violation,) = detail(error, "QuotaFailure")["violations"]
        assert violation["quotaId"] == "GenerateContentPaidTierInputTokensPerModelPerMinute"
        assert 5 < float(detail(error, "RetryInfo")["retryDelay"].removesuffix("s")) <= 6
        assert detail(too_large, "RetryInfo")["retryDelay"] == "60s"

    async def test_less_than_one_a_minute(self) -> None:
        async with GeminiEmulator(requests_per_minute=0.5) as server:
            client = server.client()
            await ask(client)
            error = await refusal(ask(client))
        assert 119 < float(detail(error, "RetryInfo")["retryDelay"].removesuffix("s")) <= 120

    async def test_caches_cost_none(self) -> None:
        async with GeminiEmulator(requests_per_minute=1) as server:
            client = server.client()
            for _ in range(3):
                await client.aio.caches.list()
            await ask(client)

    @pytest.mark.parametrize("limit", ["requests_per_minute", "tokens_per_minute"])
    def test_a_quota_is_above_zero(self, limit: str) -> None:
        with pytest.raises(ValueError, match=r"must be above 0 \(got 0\)"):
            GeminiEmulator(**{limit: 0})
