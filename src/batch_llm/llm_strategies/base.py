"""The shape of every strategy: how one provider is asked for one answer."""

from abc import ABC, abstractmethod
from typing import Any, Generic

from batch_llm.base import TokenUsage, TOutput
from batch_llm.strategies.errors import ErrorClassifier


class LLMCallStrategy(ABC, Generic[TOutput]):
    """Makes the calls of one or many work items.

    One instance may be shared by any number of items; then ``prepare`` and ``cleanup``
    run once for all of them, and ``execute`` runs concurrently.

    Attributes:
        error_classifier: Knows the errors of the strategy's provider; consulted where the
            processor was given no classifier.
        max_concurrency: Calls that it can have in flight at once, None for any number or an
            unknown one. A processor with more workers warns.
        quota: Names the provider's quota that the calls are counted against, such as
            ``"gemini/gemini-2.5-flash"``. Strategies of one name share its limits, given and
            learned; those of different names do not hold each other up. Those that name
            none share one. It is read when the first item of a run comes.
    """

    error_classifier: ErrorClassifier | None = None
    max_concurrency: int | None = None
    quota: str | None = None

    async def prepare(self) -> None:
        """Get ready: runs once per run, before the first ``execute``."""

    @abstractmethod
    async def execute(
        self, prompt: str, attempt: int, timeout: float
    ) -> tuple[TOutput, TokenUsage]:
        """Make one call.

        Args:
            prompt: The item's prompt.
            attempt: 1 for the first attempt. A call that is repeated after a rate
                limit has the same number again.
            timeout: Seconds until the attempt is cancelled.

        Returns:
            The output, and the tokens the call used (``{}`` where unknown).
        """

    async def cleanup(self) -> None:
        """Let go of what ``prepare`` got: runs once per run, after the last item."""

    async def on_error(self, exception: Exception, attempt: int) -> None:
        """Learn why an attempt failed, before it is decided whether there is another."""

    async def dry_run(self, prompt: str) -> tuple[TOutput, TokenUsage]:
        """Stand in for ``execute`` when ``ProcessorConfig.dry_run`` is on.

        Returns:
            A mock output with the head of the prompt, and 100/50/150 tokens. A strategy
            whose output is no text overrides this.
        """
        output: Any = f"[DRY-RUN] Mock output for prompt: {prompt[:50]}..."
        return output, {"input_tokens": 100, "output_tokens": 50, "total_tokens": 150}
