"""What became of the run?"""

from collections import Counter
from dataclasses import dataclass
from enum import IntEnum

from batch_llm.base import BatchResult
from batch_llm.cli.books import Book
from batch_llm.cli.enrichment import BookEnrichment
from batch_llm.cli.options import DemoOptions
from batch_llm.cli.strategy import CacheUse


class ExitCode(IntEnum):
    """What the shell is told."""

    ALL_SUCCEEDED = 0
    SOME_FAILED = 1
    WRONG_USAGE = 2
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that the summary tells.

    Attributes:
        options: What was to be done.
        result: The rows that were finished, in the order in which they were.
        requests: Calls that were made to the model.
        failed_attempts: Those that brought no answer, by the category of their error.
        cooldown_seconds: How long all workers paused after rate limits.
        cache: What became of the cache.
        wall_seconds: How long it took.
        rows_written: Rows in the output file.
        write_error: Why rows could not be written, which stopped the run; None if they could.
        interrupted: Whether Ctrl-C ended the run.
    """

    options: DemoOptions
    result: BatchResult[BookEnrichment, Book]
    requests: int
    failed_attempts: Counter[str]
    cooldown_seconds: float
    cache: CacheUse
    wall_seconds: float
    rows_written: int
    write_error: str | None
    interrupted: bool

    @property
    def complete(self) -> bool:
        """Whether every row succeeded."""
        return self.result.succeeded == self.options.items

    @property
    def exit_code(self) -> ExitCode:
        """What the shell is told."""
        if self.interrupted:
            return ExitCode.INTERRUPTED
        is_fine = self.complete and self.write_error is None
        return ExitCode.ALL_SUCCEEDED if is_fine else ExitCode.SOME_FAILED

    @property
    def rate_limits(self) -> int:
        """Calls that were refused for the rate limit."""
        return self.failed_attempts["rate_limit"]

    @property
    def creation_tokens(self) -> int:
        """Tokens billed at the full price for making caches."""
        return self.cache.created * self.cache.tokens

    @property
    def saved_tokens(self) -> int:
        """Input tokens that caching saved, less those for making it; below 0 if it cost more."""
        result = self.result
        return result.total_input_tokens - result.effective_input_tokens() - self.creation_tokens
