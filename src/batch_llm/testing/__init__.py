"""Who pretends: agents, strategies and time, for tests of pipelines."""

from batch_llm.testing.loop import DeadlockError, VirtualTimeLoop, run
from batch_llm.testing.mocks import MockAgent, MockResult, MockUsage
from batch_llm.testing.strategies import MockStrategy, mock_strategy

__all__ = [
    "DeadlockError",
    "MockAgent",
    "MockResult",
    "MockStrategy",
    "MockUsage",
    "VirtualTimeLoop",
    "mock_strategy",
    "run",
]
