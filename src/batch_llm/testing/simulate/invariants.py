"""What must be true of every simulation, whatever its provider and its hooks did."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from batch_llm.base import WorkItemResult
from batch_llm.observers.events import ProcessingEvent
from batch_llm.strategies.errors import BatchLLMError
from batch_llm.testing.simulate.records import (
    Call,
    Event,
    Moment,
    Run,
    Simulation,
    Upkeep,
    total_usage,
)

_MOST_TOLD = 5
_TOLERANCE = 1e-6
# What a call is expected to use before any was answered; prompts are short.
_FIRST_ESTIMATE_TOKENS = 350
_NEVER = Moment(math.inf, 0)


class InvariantError(BatchLLMError, AssertionError):
    """A simulation broke what must always be true.

    Attributes:
        broken: Each broken invariant's name, with what speaks against it.
    """

    def __init__(self, broken: dict[str, list[str]], replay: str) -> None:
        lines = [f"{name}: {fact}" for name, facts in broken.items() for fact in _few(facts)]
        super().__init__("\n".join([*lines, f"Play it again: {replay}"]))
        self.broken = broken


def check(simulation: Simulation) -> None:
    """Check every invariant.

    Raises:
        InvariantError: Some are broken; the text has the facts, and how to play it again.
    """
    facts = {name: list(holds(simulation)) for name, holds in INVARIANTS.items()}
    broken = {name: found for name, found in facts.items() if found}
    if broken:
        raise InvariantError(broken, simulation.replay)


def _few(facts: list[str]) -> list[str]:
    more = len(facts) - _MOST_TOLD
    return [*facts[:_MOST_TOLD], f"and {more} more"] if more > 0 else facts


def _ends(played: Simulation) -> Iterator[str]:
    """Virtual time ends: no deadlock, no livelock, nothing unexpected out of the processor."""
    if played.failure is not None:
        yield played.failure


def _one_result_each(played: Simulation) -> Iterator[str]:
    """One result for each accepted item, with its id, its context and its own answer."""
    items = {item.number: item for item in played.accepted}
    counts = Counter(_number(result) for result in played.results)
    for number, count in counts.items():
        if number not in items or count > 1:
            yield f"{count} results with context {number!r}, which is item {items.get(number)}"
    if played.failure is None:
        for item in played.accepted:
            overtaken = any(run.interrupted and item.at <= run.ended for run in played.runs)
            if item.number not in counts and not overtaken:
                yield f"{item.prompt} has no result"
    for result in played.results:
        expected = items.get(_number(result))
        if expected is not None and result.item_id != expected.item_id:
            yield f"{expected.prompt} is {expected.item_id!r}, its result {result.item_id!r}"
        yield from _speaks_for_itself(result, dry=played.scenario.config.dry_run)
    for run in played.runs:
        yield from _post_processed_once(run, played)


def _number(result: WorkItemResult[Any, Any]) -> Any:
    """The number of its item, which is its context."""
    return result.context


def _speaks_for_itself(result: WorkItemResult[Any, Any], *, dry: bool) -> Iterator[str]:
    expected = f"answer to item {result.context}"
    if result.success and not (dry or result.output == expected):
        yield f"item {result.context} succeeded with the output {result.output!r}"
    if result.success == bool(result.error):
        yield f"item {result.context}: success is {result.success}, error is {result.error!r}"


def _post_processed_once(run: Run, played: Simulation) -> Iterator[str]:
    hooks = played.scenario.hooks
    if run.interrupted or not (hooks.post_processor or played.scenario.added_items):
        return
    given = Counter(id(result) for result in run.post_processed)
    wrong = [result for result in run.results if given[id(result)] != 1]
    if wrong or len(given) != len(run.results):
        ids = [result.item_id for result in wrong]
        yield f"the post-processor got {len(given)} results, not each of them once: {ids}"


def _prepared_and_cleaned_up_once(played: Simulation) -> Iterator[str]:
    """Each strategy used in a run is prepared once before, and cleaned up once after."""
    starts = [run.started for run in played.runs]
    # A cleanup may come after a run whose very end was interrupted.
    for start, end in pairwise([*starts, _NEVER]):
        calls = _by_strategy(played.calls, start, end)
        upkeep = _by_strategy(played.upkeep, start, end)
        for strategy in {*calls, *upkeep}:
            facts = _upkeep_facts(calls[strategy], upkeep[strategy], played)
            yield from (f"strategy {strategy} {fact}" for fact in facts)


def _upkeep_facts(calls: list[Call], upkeep: list[Upkeep], played: Simulation) -> Iterator[str]:
    prepares = [entry for entry in upkeep if entry.kind == "prepare"]
    cleanups = [entry for entry in upkeep if entry.kind == "cleanup"]
    succeeded = [entry for entry in prepares if entry.succeeded]
    if len(succeeded) > 1 or len(prepares) > played.scenario.config.retry.max_attempts:
        yield f"was prepared {len(prepares)} times, {len(succeeded)} times with success"
    if calls and not (succeeded and succeeded[0].started < calls[0].started):
        yield "was called before it was prepared"
    if played.failure is None and len(cleanups) != min(1, len(prepares)):
        yield f"was cleaned up {len(cleanups)} times, and prepared {len(prepares)} times"
    ends = [call.ended for call in calls if call.ended and not call.is_left_behind]
    if cleanups and ends and cleanups[0].started < max(ends):
        yield "was cleaned up before its last call ended"


def _attempts_count_from_one(played: Simulation) -> Iterator[str]:
    """Attempts are 1, 2, 3, …; a number comes again after a rate limit, and only then."""
    most = played.scenario.config.retry.max_attempts
    for run in played.runs:
        by_prompt: dict[str, list[Call]] = defaultdict(list)
        for call in played.calls:
            if run.has(call.started):
                by_prompt[call.prompt].append(call)
        for prompt, calls in by_prompt.items():
            numbers = [call.attempt for call in calls]
            expected = [1]
            for call, _ in pairwise(calls):
                expected.append(expected[-1] + (not call.is_rate_limited))
            if numbers != expected or max(numbers) > most:
                yield f"{prompt} was called with attempts {numbers}, not {expected} up to {most}"
        for result in run.results:
            calls = by_prompt.get(f"item {result.context}", [])
            last = max((call.attempt for call in calls), default=result.attempts)
            if result.attempts != last:
                yield f"item {result.context} had {last} attempts, its result {result.attempts}"


def _nobody_calls_in_a_cooldown(played: Simulation) -> Iterator[str]:
    """No call, and no prepare, goes out between the start of a cooldown and its end."""
    for start, end in _cooldowns(played.events):
        for call in played.calls:
            if call.started.order > start.at.order and call.started.seconds < end:
                yield f"{call.prompt} called at {call.started.seconds} s, cooldown until {end} s"
        for upkeep in played.upkeep:
            if upkeep.kind == "prepare" and start.at.seconds < upkeep.started.seconds < end:
                yield f"a prepare at {upkeep.started.seconds} s, cooldown until {end} s"


def _cooldowns(events: tuple[Event, ...]) -> Iterator[tuple[Event, float]]:
    """Each cooldown's start, and the time of its end."""
    start: Event | None = None
    for event in events:
        if event.kind is ProcessingEvent.COOLDOWN_STARTED:
            start = event
        elif event.kind in _END_OF_COOLDOWN and start is not None:
            yield start, event.at.seconds
            start = None


_END_OF_COOLDOWN = (ProcessingEvent.COOLDOWN_ENDED, ProcessingEvent.BATCH_COMPLETED)


def _calls_keep_their_pace(played: Simulation) -> Iterator[str]:
    """Any window of w seconds has at most w * N / 60 calls, and a second's worth less one more."""
    per_minute = played.scenario.config.max_requests_per_minute
    if per_minute is None or math.isinf(per_minute):
        return
    per_second = per_minute / 60
    burst = max(1.0, per_second - 1)
    # The window from call i to call j is too full when j + 1 - i > (t_j - t_i) * rate + burst.
    least = math.inf
    for number, call in enumerate(played.calls):
        least = min(least, number - call.started.seconds * per_second)
        excess = number + 1 - call.started.seconds * per_second - least - burst
        if excess > _TOLERANCE:
            yield f"call {number} at {call.started.seconds} s is {excess:.6f} calls too early"


def _tokens_keep_their_pace(played: Simulation) -> Iterator[str]:
    """Any window of w seconds has at most w * N / 60 tokens, a second's worth, and misjudgements.

    A call may go out although it takes more than is left, and each worker's call may turn out
    larger than was expected, or have been booked for more.
    """
    config = played.scenario.config
    per_minute = config.max_tokens_per_minute
    if per_minute is None or config.dry_run:
        return
    used = [total_usage([call]).get("total_tokens", 0) for call in played.calls]
    largest = max(_FIRST_ESTIMATE_TOKENS, *used, 0)
    per_second = per_minute / 60
    slack = max(1.0, per_second) + (2 * config.max_workers + 1) * largest
    total, least = 0, math.inf
    for call, tokens in zip(played.calls, used, strict=True):
        least = min(least, total - call.started.seconds * per_second)
        total += tokens
        excess = total - call.started.seconds * per_second - least - slack
        if excess > _TOLERANCE:
            yield f"{call.prompt} at {call.started.seconds} s is {excess:.6f} tokens too early"


def _in_flight_up_to_max_workers(played: Simulation) -> Iterator[str]:
    """No more calls at a time than workers, those aside that were left behind."""
    most = played.scenario.config.max_workers
    if played.peak_in_flight > most:
        yield f"{played.peak_in_flight} calls were in flight at a time, with {most} workers"


def _tokens_equal_the_ledger(played: Simulation) -> Iterator[str]:
    """Every token that the processor was told of is in a result and in the stats."""
    if played.scenario.config.dry_run:
        return
    for run in played.runs:
        calls = [call for call in played.calls if run.has(call.started)]
        by_prompt: dict[str, list[Call]] = defaultdict(list)
        for call in calls:
            by_prompt[call.prompt].append(call)
        for result in run.results:
            billed: Any = total_usage(by_prompt[f"item {result.context}"])
            got: Any = result.token_usage
            wrong = [key for key in _COUNTED if got.get(key, 0) != billed[key]]
            if wrong:
                yield f"item {result.context} was billed {billed}, its result says {got}"
        ledger = total_usage(calls)
        stats = {key: run.stats[f"total_{key}"] for key in ("input_tokens", "output_tokens")}
        stats["total_tokens"] = run.stats["total_tokens"]
        stats["cached_input_tokens"] = run.stats["cached_input_tokens"]
        if not run.interrupted and stats != ledger:
            yield f"the provider's ledger has {ledger}, the stats have {stats}"


_COUNTED = ("input_tokens", "output_tokens", "cached_input_tokens")


def _events_equal_results(played: Simulation) -> Iterator[str]:
    """What observers are told adds up to the results, the rate limits and the workers."""
    for run in played.runs:
        events = [event for event in played.events if run.has(event.at)]
        yield from _batch_and_workers(run, events, played)
        if not run.interrupted:
            yield from _items_told(run, events)
            yield from _rate_limits_told(run, events, played)


def _batch_and_workers(run: Run, events: list[Event], played: Simulation) -> Iterator[str]:
    kinds = [event.kind for event in events]
    began, completed = (kinds.count(kind) for kind in _OF_BATCHES)
    # A cancellation may even meet the end of the run.
    if began != 1 or not 1 - run.interrupted <= completed <= 1:
        yield f"{began} times batch_started, {completed} times batch_completed"
    after = kinds[kinds.index(ProcessingEvent.BATCH_COMPLETED) :] if completed else []
    yield from (f"{kind.value} came after batch_completed" for kind in after if kind in _OF_ITEMS)
    started, stopped = (kinds.count(kind) for kind in _OF_WORKERS)
    # A worker whose call ignores the end of the run stops later.
    late = run.interrupted * sum(call.is_left_behind for call in played.calls)
    most = played.scenario.config.max_workers
    if started != most or not most - late <= stopped <= most:
        yield f"{started} workers started, {stopped} stopped"


def _items_told(run: Run, events: list[Event]) -> Iterator[str]:
    answered = [result for result in run.results if result.success]
    failed = [result for result in run.results if not result.success]
    for kind, results in zip(_OF_ITEMS, (run.results, answered, failed), strict=True):
        told = Counter(event.data["item_id"] for event in events if event.kind is kind)
        are = Counter(result.item_id for result in results)
        if told != are:
            yield f"{kind.value} without result: {told - are}, the reverse: {are - told}"
    for event in events:
        if event.kind is ProcessingEvent.BATCH_COMPLETED:
            numbers = (event.data["succeeded"], event.data["failed"])
            if numbers != (len(answered), len(failed)):
                yield f"batch_completed tells {numbers}, not {len(answered)}, {len(failed)}"


def _rate_limits_told(run: Run, events: list[Event], played: Simulation) -> Iterator[str]:
    kinds = [event.kind for event in events]
    refused = sum(run.has(call.started) and call.is_rate_limited for call in played.calls)
    told, counted = kinds.count(ProcessingEvent.RATE_LIMIT_HIT), run.stats["rate_limit_count"]
    if not refused == told == counted:
        yield f"{refused} refusals, {told} events, {counted} in the stats"
    cooldowns = [kind for kind in kinds if kind in _OF_COOLDOWNS]
    # A run whose last item gives up waiting ends in its cooldown.
    if any(kind is not _OF_COOLDOWNS[place % 2] for place, kind in enumerate(cooldowns)):
        yield f"cooldowns: {[kind.value for kind in cooldowns]}"


_OF_BATCHES = (ProcessingEvent.BATCH_STARTED, ProcessingEvent.BATCH_COMPLETED)
_OF_WORKERS = (ProcessingEvent.WORKER_STARTED, ProcessingEvent.WORKER_STOPPED)
_OF_COOLDOWNS = (ProcessingEvent.COOLDOWN_STARTED, ProcessingEvent.COOLDOWN_ENDED)
_OF_ITEMS = (
    ProcessingEvent.ITEM_STARTED,
    ProcessingEvent.ITEM_COMPLETED,
    ProcessingEvent.ITEM_FAILED,
)


def _stats_add_up(played: Simulation) -> Iterator[str]:
    """At every moment: processed = succeeded + failed <= total, and nothing ever falls."""
    for run in played.runs:
        shots = [shot for shot in played.snapshots if run.has(shot.at)]
        for shot in shots:
            sums = shot.processed == shot.succeeded + shot.failed and shot.errors == shot.failed
            if not (sums and shot.processed <= shot.total):
                yield f"{shot}"
        for earlier, later in pairwise(shots):
            if any(before > after for before, after in zip(earlier[1:], later[1:], strict=True)):
                yield f"{later} after {earlier}"
        if not run.interrupted and run.stats["processed"] != len(run.results):
            yield f"{run.stats['processed']} processed, {len(run.results)} results"


def _nothing_is_left(played: Simulation) -> Iterator[str]:
    """No task, timer or thread outlives the processor, and it can run again."""
    yield from played.left


def _few_results_wait(played: Simulation) -> Iterator[str]:
    """A stream holds a few results per worker, however slow its consumer is."""
    most = 40 + 6 * played.scenario.config.max_workers
    if played.scenario.streaming and played.most_waiting > most:
        yield f"{played.most_waiting} results waited for the consumer, more than {most}"


def _by_strategy(entries: tuple[Any, ...], start: Moment, end: Moment) -> dict[int, list[Any]]:
    by_strategy: dict[int, list[Any]] = defaultdict(list)
    for entry in entries:
        if start <= entry.started < end:
            by_strategy[entry.strategy].append(entry)
    return by_strategy


INVARIANTS: dict[str, Callable[[Simulation], Iterator[str]]] = {
    "ends": _ends,
    "results": _one_result_each,
    "lifecycle": _prepared_and_cleaned_up_once,
    "attempts": _attempts_count_from_one,
    "cooldown": _nobody_calls_in_a_cooldown,
    "pace": _calls_keep_their_pace,
    "token pace": _tokens_keep_their_pace,
    "in flight": _in_flight_up_to_max_workers,
    "tokens": _tokens_equal_the_ledger,
    "events": _events_equal_results,
    "stats": _stats_add_up,
    "leftovers": _nothing_is_left,
    "memory": _few_results_wait,
}
"""What :func:`check` checks, by name."""
