"""What is asked of an agent framework's objects."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from batch_llm.core import AgentLike, ResultLike, UsageLike
from batch_llm.testing import MockAgent, MockResult, MockUsage


@pytest.mark.parametrize("agent", [MockAgent[Any](), MagicMock()], ids=["MockAgent", "MagicMock"])
def test_agents(agent: object) -> None:
    assert isinstance(agent, AgentLike)
    assert not isinstance(SimpleNamespace(ask=print), AgentLike)


@pytest.mark.parametrize("result", [MockResult("x"), MagicMock()], ids=["MockResult", "MagicMock"])
def test_results(result: object) -> None:
    assert isinstance(result, ResultLike)
    assert not isinstance(SimpleNamespace(output="x"), ResultLike)


def test_usage() -> None:
    usage: UsageLike = MockUsage()
    assert usage.total_tokens == 150
