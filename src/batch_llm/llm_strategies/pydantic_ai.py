"""Agents in the manner of PydanticAI as a strategy."""

from typing import Any, Generic

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
        self.quota: str | None = _quota_of(agent)

    async def execute(
        self, prompt: str, attempt: int, timeout: float
    ) -> tuple[TOutput, TokenUsage]:
        """Run the agent on the prompt."""
        result = await self.agent.run(prompt)
        return result.output, read_usage(getattr(result, "usage", None))


def _quota_of(agent: Any) -> str | None:
    """Provider and model, such as ``"openai/gpt-5"``; None where the agent does not tell them."""
    model = getattr(agent, "model", None)
    if isinstance(model, str):
        return model.replace(":", "/", 1)
    provider, name = getattr(model, "system", None), getattr(model, "model_name", None)
    return f"{provider}/{name}" if isinstance(provider, str) and isinstance(name, str) else None
