"""PydanticAIStrategy with agents of every age."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from batch_llm.llm_strategies import PydanticAIStrategy
from batch_llm.testing import MockAgent, MockResult
from batch_llm.testing.mocks import MockUsage


class Agent:
    """Returns one result and remembers the prompts."""

    def __init__(self, result: Any) -> None:
        self.result = result
        self.prompts: list[str] = []

    async def run(self, user_prompt: str, /, **kwargs: Any) -> Any:
        assert not kwargs
        self.prompts.append(user_prompt)
        return self.result


async def usage_of(result: Any) -> dict[str, int]:
    output, usage = await PydanticAIStrategy(Agent(result)).execute("Hello", 1, 60.0)
    assert output == "Hi"
    return dict(usage)


async def test_the_agent_gets_the_prompt_and_gives_the_output() -> None:
    agent = Agent(MockResult("Hi", MockUsage(30, 12)))
    strategy = PydanticAIStrategy(agent)
    assert strategy.agent is agent
    assert await strategy.execute("Hello", 1, 60.0) == (
        "Hi",
        {"input_tokens": 30, "output_tokens": 12, "total_tokens": 42},
    )
    assert agent.prompts == ["Hello"]


@pytest.mark.parametrize("as_method", [True, False], ids=["method", "property"])
@pytest.mark.parametrize(
    "names",
    [("request_tokens", "response_tokens"), ("input_tokens", "output_tokens")],
    ids=["old names", "new names"],
)
async def test_usage_of_every_age(names: tuple[str, str], as_method: bool) -> None:
    counts = SimpleNamespace(**dict(zip(names, (7, 5), strict=True)), cache_read_tokens=3)
    result = SimpleNamespace(output="Hi", usage=(lambda: counts) if as_method else counts)
    assert await usage_of(result) == {
        "input_tokens": 7,
        "output_tokens": 5,
        "total_tokens": 12,
        "cached_input_tokens": 3,
    }


async def test_no_usage_costs_no_output() -> None:
    def broken() -> Any:
        raise RuntimeError("no usage")

    for result in (
        SimpleNamespace(output="Hi"),
        SimpleNamespace(output="Hi", usage=None),
        SimpleNamespace(output="Hi", usage=broken),
    ):
        assert await usage_of(result) == {}


async def test_the_agents_exception_is_the_attempts() -> None:
    agent = MockAgent(failure_rate=1.0)
    with pytest.raises(Exception, match="Random failure on call 1"):
        await PydanticAIStrategy(agent).execute("Hello", 1, 60.0)


async def test_an_agent_of_pydantic_ai_itself() -> None:
    pydantic_ai = pytest.importorskip("pydantic_ai")
    from pydantic_ai.models.test import TestModel

    agent = pydantic_ai.Agent(TestModel(custom_output_text="Hi"))
    output, usage = await PydanticAIStrategy(agent).execute("Hello", 1, 60.0)
    assert output == "Hi"
    assert usage["input_tokens"] > 0


@pytest.mark.parametrize(
    ("model", "quota"),
    [
        ("openai:gpt-5", "openai/gpt-5"),
        (SimpleNamespace(system="google-gla", model_name="gemini-x"), "google-gla/gemini-x"),
        (SimpleNamespace(system=None, model_name="gemini-x"), None),
        (MagicMock(), None),
        (None, None),
    ],
)
def test_the_quota_is_the_agents_provider_and_model(model: Any, quota: str | None) -> None:
    agent: Any = SimpleNamespace(model=model, run=None)
    assert PydanticAIStrategy[str](agent).quota == quota
    assert PydanticAIStrategy[str](Agent(None)).quota is None
