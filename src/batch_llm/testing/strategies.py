"""Pretended strategies: a pipeline's tests need no provider."""

from batch_llm.base import TokenUsage, TOutput
from batch_llm.core.protocols import AgentLike
from batch_llm.llm_strategies.base import LLMCallStrategy
from batch_llm.llm_strategies.pydantic_ai import PydanticAIStrategy
from batch_llm.testing.mocks import MockModel, MockUsage, TAnswer


class MockStrategy(MockModel[TAnswer], LLMCallStrategy[TAnswer]):
    """A ready strategy that answers, fails and lags as its arguments say."""

    async def execute(
        self, prompt: str, attempt: int, timeout: float
    ) -> tuple[TAnswer, TokenUsage]:
        """Answer one prompt.

        Returns:
            The answer and its tokens: 100 in, 50 out, 150 together.

        Raises:
            ClientError: This is the call to be rate limited.
            Exception: A random failure, or whatever ``response_factory`` raised.
        """
        output = await self._answer(prompt)
        usage = MockUsage()
        return output, {
            "input_tokens": usage.request_tokens,
            "output_tokens": usage.response_tokens,
            "total_tokens": usage.total_tokens,
        }


def mock_strategy(agent: AgentLike[TOutput]) -> PydanticAIStrategy[TOutput]:
    """The strategy for an agent such as MockAgent; PydanticAI need not be installed."""
    return PydanticAIStrategy(agent)
