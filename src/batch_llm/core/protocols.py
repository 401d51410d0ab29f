"""What the library needs of objects that others make, and nothing more."""

from collections.abc import Mapping
from typing import Protocol, TypeVar, runtime_checkable

TOutput_co = TypeVar("TOutput_co", covariant=True)


class UsageLike(Protocol):
    """Token counts of one agent run, in either of the two vocabularies in use.

    Older frameworks say ``request_tokens`` and ``response_tokens``, newer ones
    ``input_tokens`` and ``output_tokens``; ``total_tokens`` is common to both.
    """

    @property
    def total_tokens(self) -> int | None:
        """All tokens of the run."""
        ...


@runtime_checkable
class ResultLike(Protocol[TOutput_co]):
    """The result of one agent run."""

    @property
    def output(self) -> TOutput_co:
        """The validated output."""
        ...

    def usage(self) -> UsageLike:
        """The tokens the run used."""
        ...


@runtime_checkable
class AgentLike(Protocol[TOutput_co]):
    """Anything with an async ``run(prompt)``, such as a PydanticAI agent."""

    async def run(self, user_prompt: str, /) -> ResultLike[TOutput_co]:
        """Send one prompt and return the result."""
        ...


class TokenEstimator(Protocol):
    """Tells what a call will cost, for ``ProcessorConfig.max_tokens_per_minute``."""

    def estimate(self, strategy: object, prompt: str) -> float:
        """Tokens that a call will use, input and output together.

        Args:
            strategy: Will make the call.
            prompt: What it will ask.
        """
        ...

    def learn(self, strategy: object, prompt: str, usage: Mapping[str, int]) -> None:
        """Take in what a call has used, a failed one too where that is known.

        Args:
            strategy: Made the call.
            prompt: What it asked.
            usage: ``input_tokens``, ``output_tokens`` and ``total_tokens``, as far as the
                strategy told them; the total is always there.
        """
        ...
