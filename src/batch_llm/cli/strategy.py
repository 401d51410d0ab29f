"""How is Gemini asked, and what happened on the way?"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from batch_llm.base import TokenUsage
from batch_llm.classifiers import GeminiErrorClassifier
from batch_llm.cli.enrichment import BookEnrichment, instructions, parse_answer, request_config
from batch_llm.llm_strategies import GeminiCachedStrategy


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheUse:
    """What became of the cache in a run.

    Attributes:
        created: Caches that the run made; 0 when it found one that lives.
        name: The cache in use at the end, None if there was none.
        tokens: Tokens that it holds.
        seconds_left: How long it lives on.
    """

    created: int
    name: str | None
    tokens: int
    seconds_left: float


class BookStrategy(GeminiCachedStrategy[BookEnrichment]):
    """Asks about one book per call, and counts what a summary is to tell.

    Attributes:
        requests: Calls that were made, repeated ones included.
        failed_attempts: Calls that brought no answer, by the category of their error.
    """

    def __init__(self, model: str, client: Any) -> None:
        super().__init__(
            model, client, parse_answer, cached_content=instructions(), config=request_config()
        )
        self.requests: int = 0
        self.failed_attempts: Counter[str] = Counter()
        self._classifier = GeminiErrorClassifier()
        self._caches_created = 0

    async def _create(self) -> None:
        await super()._create()
        self._caches_created += 1

    async def execute(
        self, prompt: str, attempt: int, timeout: float
    ) -> tuple[BookEnrichment, TokenUsage]:
        """Ask, and count the call."""
        self.requests += 1
        return await super().execute(prompt, attempt, timeout)

    async def on_error(self, exception: Exception, attempt: int) -> None:
        """Count a call that brought no answer."""
        self.failed_attempts[self._classifier.classify(exception).error_category] += 1

    def cache_use(self) -> CacheUse:
        """What became of the cache."""
        info = self.cache_info()
        return CacheUse(
            created=self._caches_created,
            name=info.name,
            tokens=info.token_count or 0,
            seconds_left=info.remaining_seconds or 0.0,
        )
