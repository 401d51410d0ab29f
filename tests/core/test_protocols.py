"""What is asked of an agent framework's objects."""

from types import SimpleNamespace
from typing import Any

from batch_llm.core import AgentLike, ResultLike, UsageLike
from batch_llm.testing import MockAgent, MockResult, MockUsage


def test_agents() -> None:
    assert isinstance(MockAgent[Any](), AgentLike)
    assert not isinstance(SimpleNamespace(ask=print), AgentLike)


def test_results() -> None:
    assert isinstance(MockResult("x"), ResultLike)
    assert not isinstance(SimpleNamespace(output="x"), ResultLike)


def test_usage() -> None:
    usage: UsageLike = MockUsage()
    assert usage.total_tokens == 150
