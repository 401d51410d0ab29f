"""Agents in the manner of PydanticAI as a strategy."""

from typing import Generic

from batch_llm.base import TokenUsage, TOutput
from batch_llm.core.protocols import AgentLike
from batch_llm.llm_strategies._usage import read_usage
from batch_llm.llm_strategies.base import LLMCallStrategy


class PydanticAIStrategy(LLMCallStrategy[TOutput], Generic[TOutput]):
    """Runs an agent once per attempt.

    Args:
        agent: Any object with an async ``run(prompt)`` whose result has ``output`` and
            ``usage`` (a method or a property); a ``pydantic_ai.Agent`` is one.
    """

    def __init__(self, agent: AgentLike[TOutput]) -> None:
        self.agent = agent

    async def execute(
        self, prompt: str, attempt: int, timeout: float
    ) -> tuple[TOutput, TokenUsage]:
        """Run the agent on the prompt."""
        result = await self.agent.run(prompt)
        return result.output, read_usage(getattr(result, "usage", None))
