"""The nouns: what goes into a run, what comes out, and what is counted on the way."""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Generic, Self, TypedDict, TypeVar, cast

if TYPE_CHECKING:
    from batch_llm.llm_strategies.base import LLMCallStrategy

TInput = TypeVar("TInput")
TOutput = TypeVar("TOutput")
TContext = TypeVar("TContext")

# A cached prompt token is billed at a tenth of a normal one by the providers' current models.
_CACHE_DISCOUNT = 0.9


class TokenUsage(TypedDict, total=False):
    """Tokens billed for one call, or summed over several. Any key may be missing.

    ``input_tokens`` includes ``cached_input_tokens``; ``output_tokens`` includes
    the tokens of a model's thinking.
    """

    input_tokens: int
    output_tokens: int
    total_tokens: int
    cached_input_tokens: int


@dataclass
class LLMWorkItem(Generic[TInput, TOutput, TContext]):
    """One prompt, and how to answer it.

    Attributes:
        item_id: Names the item in results, logs and events. Any text that is not
            blank; two items may have the same.
        strategy: Makes the calls; many items may share one. May be the name of one that
            the processor knows by ``register_strategy``.
        prompt: Handed to the strategy as it is.
        context: Anything of the caller's, handed back with the result.

    Raises:
        ValueError: item_id is not a str, or is empty or blank.
    """

    item_id: str
    strategy: "LLMCallStrategy[TOutput]"
    prompt: str = ""
    context: TContext | None = None

    if TYPE_CHECKING:
        # Takes a name too, though what an item has in a run is always a strategy.
        def __init__(
            self,
            item_id: str,
            strategy: "LLMCallStrategy[TOutput] | str",
            prompt: str = "",
            context: TContext | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        """Refuse an id that could not be found again in a log."""
        if not isinstance(self.item_id, str) or not self.item_id:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(
                f"item_id must be a non-empty string (got {self.item_id!r}); "
                "pass a text that names the row, such as str(row_number)"
            )
        if not self.item_id.strip():
            raise ValueError(
                f"item_id cannot be whitespace only (got {self.item_id!r}); "
                "pass a text that names the row, such as str(row_number)"
            )


class RetryState(dict[str, Any]):
    """What an item remembers from its first attempt to its end, apart from all other items.

    A strategy whose ``execute`` or ``on_error`` has a parameter ``state`` gets it there, and
    may keep in it whatever the next attempt should know.

    Args:
        item_id: The item's id.
        context: The item's context.
    """

    __slots__ = ("_context", "_item_id")

    def __init__(self, item_id: str, context: Any = None) -> None:
        super().__init__()
        self._item_id = item_id
        self._context = context

    @property
    def item_id(self) -> str:
        """The item's id."""
        return self._item_id

    @property
    def context(self) -> Any:
        """The item's context."""
        return self._context


@dataclass
class WorkItemResult(Generic[TOutput, TContext]):
    """What became of one item.

    Attributes:
        item_id: The item's id.
        success: Whether ``output`` is an answer.
        output: The strategy's output, None for a failed item.
        error: ``"TypeName: message"`` of the failure that ended the item.
        context: The item's context.
        token_usage: Tokens of all attempts together, failed ones included.
        gemini_safety_ratings: Probability by category, where a strategy reports it.
        attempts: Attempts that were begun; calls repeated after a rate limit are
            not counted again.
        metadata: What the strategy returned beside output and usage, None for nothing.
    """

    item_id: str
    success: bool
    output: TOutput | None = None
    error: str | None = None
    context: TContext | None = None
    token_usage: TokenUsage = field(default_factory=TokenUsage)
    gemini_safety_ratings: dict[str, str] | None = None
    attempts: int = field(default=0, compare=False)
    metadata: Any = None

    @property
    def exception(self) -> BaseException | None:
        """The exception behind ``error``, without its traceback.

        It is no field, and stays behind when the result is copied or pickled: what others
        raise need not survive that.
        """
        return self.__dict__.get("_exception")

    @exception.setter
    def exception(self, exception: BaseException | None) -> None:
        self.__dict__["_exception"] = exception

    @property
    def retry_state(self) -> RetryState | None:
        """What the item remembered, if anybody asked for it; no field, like ``exception``."""
        return self.__dict__.get("_retry_state")

    @retry_state.setter
    def retry_state(self, state: RetryState | None) -> None:
        self.__dict__["_retry_state"] = state

    def __getstate__(self) -> dict[str, Any]:
        """Every field."""
        return {name: value for name, value in self.__dict__.items() if name[0] != "_"}


def _get(usage: Any, key: str) -> object:
    return cast("Mapping[str, object]", usage).get(key) if isinstance(usage, Mapping) else None


def _sum(usages: list[Any], key: str) -> int:
    total: Any = None
    try:
        try:
            total = sum(map(itemgetter(key), usages))
        except LookupError:
            total = sum([usage[key] for usage in usages if key in usage])
    except TypeError:
        pass
    if isinstance(total, int):
        return total
    # A result that the caller's code made may hold anything.
    return sum([count for usage in usages if isinstance(count := _get(usage, key), int)])


@dataclass(frozen=True)
class QuotaStatistics:
    """What a run got out of one quota, and what held it back.

    Attributes:
        seconds: How long the run took, or takes so far.
        answered: Calls that were answered.
        refused: Calls that were refused for the rate limit (429).
        tokens: Tokens that all calls were billed for, as far as their strategies told.
        waited_for_quota_seconds: Time in which calls waited for requests or tokens per
            minute, given or learned. A moment counts once, however many calls wait in it,
            and by what the first of them waits for.
        waited_for_cooldown_seconds: Likewise, for the end of a pause or the next try.
        waited_for_slots_seconds: Likewise, until fewer calls were in flight.
        requests_per_minute: The limit that was set; None for none.
        tokens_per_minute: The limit that was set; None for none.
        learned_calls_per_second: The pace that was learned last; None if none was.
        learned_tokens_per_second: The same in tokens; None where calls were not refused for
            their tokens.
        learned_in_flight: Calls that may be in flight at once, as was learned; None if that
            many workers may have one each.
    """

    seconds: float = 0.0
    answered: int = 0
    refused: int = 0
    tokens: int = 0
    waited_for_quota_seconds: float = 0.0
    waited_for_cooldown_seconds: float = 0.0
    waited_for_slots_seconds: float = 0.0
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    learned_calls_per_second: float | None = None
    learned_tokens_per_second: float | None = None
    learned_in_flight: int | None = None

    @property
    def calls_per_second(self) -> float:
        """Answered calls per second of the run; 0 before it has begun."""
        return self.answered / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Billed tokens per second of the run; 0 before it has begun."""
        return self.tokens / self.seconds if self.seconds else 0.0


PostProcessorFunc = Callable[[WorkItemResult[TOutput, TContext]], Awaitable[None] | None]
"""Gets each finished item's result, the very object that the run returns."""

ProgressCallbackFunc = Callable[[int, int, str], Awaitable[None] | None]
"""Gets (items finished, items accepted, id of the item that finished last)."""


@dataclass
class BatchResult(Generic[TOutput, TContext]):
    """The results of one run, in the order in which the items finished.

    The counts are computed from ``results``; what is passed for them is ignored.

    Attributes:
        results: One for each finished item.
        total_items: How many there are.
        succeeded: Items with an answer.
        failed: Items without one.
        total_input_tokens: Prompt tokens of all attempts, cached ones included.
        total_output_tokens: Answer tokens of all attempts.
        total_cached_tokens: Prompt tokens that came from a cache.
        interrupted: Whether the run was ended before it was over: by Ctrl-C, by ``cleanup``,
            or because the provider's quota for the day is spent.
        stop_reason: Why it was, None if it was not.
        not_run: Ids of the items that have no result because of that, begun ones first.
        quotas: What the run got out of each quota, by its name (``LLMCallStrategy.quota``);
            ``"default"`` is that of strategies which name none, and of all of them where
            cooldowns were asked for.
    """

    results: list[WorkItemResult[TOutput, TContext]]
    total_items: int = 0
    succeeded: int = 0
    failed: int = 0
    total_input_tokens: int = 0
    total_output_tokens: int = 0
    total_cached_tokens: int = 0
    interrupted: bool = False
    not_run: list[str] = field(default_factory=list[str])
    stop_reason: str | None = None
    quotas: dict[str, QuotaStatistics] = field(default_factory=dict[str, QuotaStatistics])

    def __post_init__(self) -> None:
        """Count the results."""
        self.total_items = len(self.results)
        self.succeeded = len([result for result in self.results if result.success])
        self.failed = self.total_items - self.succeeded
        usages: list[Any] = [result.token_usage for result in self.results]
        self.total_input_tokens = _sum(usages, "input_tokens")
        self.total_output_tokens = _sum(usages, "output_tokens")
        self.total_cached_tokens = _sum(usages, "cached_input_tokens")

    def _all_input_tokens(self) -> int:
        """Input tokens with the cached part, for providers that report it apart too."""
        if self.total_cached_tokens > self.total_input_tokens:
            return self.total_input_tokens + self.total_cached_tokens
        return self.total_input_tokens

    def cache_hit_rate(self) -> float:
        """Share of the input tokens that came from a cache, in percent (0.0 to 100.0)."""
        if not self.total_input_tokens:
            return 0.0
        return 100.0 * self.total_cached_tokens / self._all_input_tokens()

    def effective_input_tokens(self) -> int:
        """Input tokens as billed, a cached one counting a tenth: input - int(cached * 0.9)."""
        return self._all_input_tokens() - int(self.total_cached_tokens * _CACHE_DISCOUNT)


@dataclass
class ProcessingStats:
    """Counters of a run, up to date whenever they are read.

    Attributes:
        total: Items accepted.
        processed: Items finished, always ``succeeded + failed``.
        succeeded: Items that ended with an answer.
        failed: Items that ended without one, skipped ones included.
        start_time: Start of the run in seconds since the epoch; None before the first.
        error_counts: Failed items by the type name of their error.
        rate_limit_count: Calls that the provider refused for its rate limit.
        total_input_tokens: Prompt tokens of all attempts, cached ones included.
        total_output_tokens: Answer tokens of all attempts.
        total_tokens: All tokens of all attempts.
        cached_input_tokens: Prompt tokens that came from a cache.
        hedged_calls: Duplicates of late calls (``ProcessorConfig.hedge_after``).
    """

    total: int = 0
    processed: int = 0
    succeeded: int = 0
    failed: int = 0
    start_time: float | None = None
    error_counts: dict[str, int] = field(default_factory=dict[str, int])
    rate_limit_count: int = 0
    total_input_tokens: int = 0
    total_output_tokens: int = 0
    total_tokens: int = 0
    cached_input_tokens: int = 0
    hedged_calls: int = 0

    @property
    def total_cached_tokens(self) -> int:
        """Prompt tokens that came from a cache."""
        return self.cached_input_tokens

    @total_cached_tokens.setter
    def total_cached_tokens(self, tokens: int) -> None:
        self.cached_input_tokens = tokens

    def copy(self) -> dict[str, Any]:
        """A snapshot as a plain dict that later changes do not touch."""
        return {
            **vars(self),
            "error_counts": dict(self.error_counts),
            "total_cached_tokens": self.cached_input_tokens,
        }


class BatchProcessor(ABC, Generic[TInput, TOutput, TContext]):
    """What every processor offers; a subclass says how a worker works.

    A worker takes items from ``self._queue`` until it is empty and appends what
    ``_process_item`` made of them to ``self._results``.

    Attributes:
        max_workers: Workers of a run.
        post_processor: Gets each result as it is made.
        max_queue_size: Items that may wait for a worker; 0 means any number.
        progress_callback: Told how far the run is.
        progress_callback_timeout: Seconds that one progress call may take.
    """

    def __init__(
        self,
        max_workers: int = 5,
        post_processor: PostProcessorFunc[TOutput, TContext] | None = None,
        max_queue_size: int = 0,
        progress_callback: ProgressCallbackFunc | None = None,
        progress_callback_timeout: float | None = None,
    ) -> None:
        self.max_workers = max_workers
        self.post_processor = post_processor
        self.max_queue_size = max_queue_size
        self.progress_callback = progress_callback
        self.progress_callback_timeout = progress_callback_timeout
        self._queue: deque[LLMWorkItem[TInput, TOutput, TContext]] = deque()
        self._results: list[WorkItemResult[TOutput, TContext]] = []

    async def add_work(self, work_item: LLMWorkItem[TInput, TOutput, TContext]) -> None:
        """Queue an item.

        Raises:
            RuntimeError: The queue is full.
        """
        if self.max_queue_size:
            self._check_room()
        self._queue.append(work_item)

    def _check_room(self) -> None:
        if len(self._queue) >= self.max_queue_size:
            raise RuntimeError(
                f"the queue is full ({len(self._queue)} items, max_queue_size="
                f"{self.max_queue_size}); run process_all() first or raise max_queue_size"
            )

    async def process_all(self) -> BatchResult[TOutput, TContext]:
        """Let ``max_workers`` workers run until each is done, and return their results."""
        async with asyncio.TaskGroup() as workers:
            for worker_id in range(self.max_workers):
                workers.create_task(self._worker(worker_id))
        results, self._results = self._results, []
        return BatchResult(results)

    async def cleanup(self) -> None:
        """Forget what is queued."""
        self._queue.clear()

    async def __aenter__(self) -> Self:
        """Use the processor in ``async with``: it is cleaned up on the way out."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Clean up; an exception goes on."""
        await self.cleanup()

    @abstractmethod
    async def _worker(self, worker_id: int) -> None:
        """Process queued items until there are none."""

    @abstractmethod
    async def _process_item(
        self, work_item: LLMWorkItem[TInput, TOutput, TContext]
    ) -> WorkItemResult[TOutput, TContext]:
        """Turn one item into its result."""
