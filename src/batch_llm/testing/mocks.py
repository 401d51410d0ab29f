"""A pretended agent that answers, fails and lags as told."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import typing_extensions

    TAnswer = typing_extensions.TypeVar("TAnswer", default=dict[str, str])
else:
    # typing's own knows defaults only from Python 3.13 on.
    TAnswer = TypeVar("TAnswer")


_HANGING_SECONDS = 999.0


class ClientError(Exception):
    """A provider's refusal as it looks where its SDK is not installed: a name and a text."""


@dataclass
class MockUsage:
    """Token counts in the older vocabulary of PydanticAI."""

    request_tokens: int = 100
    response_tokens: int = 50

    @property
    def total_tokens(self) -> int:
        """Both together."""
        return self.request_tokens + self.response_tokens


@dataclass
class MockResult(Generic[TAnswer]):
    """What an agent's run returns.

    Attributes:
        output: The answer.
        usage_info: What ``usage()`` returns; None stands for a fresh ``MockUsage()``.
    """

    output: TAnswer
    usage_info: MockUsage | None = None

    def usage(self) -> MockUsage:
        """The tokens of the run: 100 in, 50 out, unless told otherwise."""
        return MockUsage() if self.usage_info is None else self.usage_info

    def all_messages(self) -> list[Any]:
        """The conversation; always empty."""
        return []


class MockModel(Generic[TAnswer]):
    """What MockAgent and MockStrategy share: calls that go as the arguments say.

    Args:
        response_factory: Makes the answer from the prompt; an exception of its own is the
            call's failure. None answers ``{"response": "Mock response to: …"}`` with the
            first 50 characters of the prompt.
        latency: Seconds each call takes, on the loop's clock.
        failure_rate: Share of calls, 0.0 to 1.0, that raise
            ``Exception("Random failure on call N")``.
        rate_limit_on_call: The one call, counted from 1 in the order in which calls begin,
            that raises a ``ClientError`` with the text ``429 RESOURCE_EXHAUSTED``.
        timeout_on_call: The one call that hangs for 999 seconds.
        seed: Makes the random failures the same each time; None draws from ``random``.

    Attributes:
        call_count: Calls begun so far.
    """

    def __init__(  # noqa: PLR0913 (an old contract)
        self,
        response_factory: Callable[[str], TAnswer] | None = None,
        latency: float = 0.1,
        failure_rate: float = 0.0,
        rate_limit_on_call: int | None = None,
        timeout_on_call: int | None = None,
        *,
        seed: int | None = None,
    ) -> None:
        self.response_factory = response_factory
        self.latency = latency
        self.failure_rate = failure_rate
        self.rate_limit_on_call = rate_limit_on_call
        self.timeout_on_call = timeout_on_call
        self.call_count: int = 0
        self._draw: Callable[[], float] = (
            random.random if seed is None else random.Random(seed).random
        )

    async def _answer(self, prompt: str) -> TAnswer:
        self.call_count += 1
        # Kept, since other calls begin while this one waits.
        call = self.call_count
        await asyncio.sleep(self.latency)
        if call == self.rate_limit_on_call:
            raise ClientError("429 RESOURCE_EXHAUSTED")
        if call == self.timeout_on_call:
            await asyncio.sleep(_HANGING_SECONDS)
        if self._draw() < self.failure_rate:
            raise Exception(f"Random failure on call {call}")
        respond: Callable[[str], Any] = self.response_factory or _default_response
        output: TAnswer = respond(prompt)
        return output


class MockAgent(MockModel[TAnswer]):
    """An agent in the manner of PydanticAI, for ``PydanticAIStrategy`` or ``mock_strategy``."""

    async def run(self, prompt: str, **kwargs: Any) -> MockResult[TAnswer]:
        """Answer one prompt.

        Args:
            prompt: What the answer is made from.
            **kwargs: What a real agent takes besides; passed over.

        Returns:
            The answer with 100/50/150 tokens.

        Raises:
            ClientError: This is the call to be rate limited.
            Exception: A random failure, or whatever ``response_factory`` raised.
        """
        return MockResult(await self._answer(prompt))


def _default_response(prompt: str) -> Any:
    return {"response": f"Mock response to: {prompt[:50]}"}
