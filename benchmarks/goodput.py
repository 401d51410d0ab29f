"""How much of a quota gets used: each target beside what was measured, in virtual time.

    python benchmarks/goodput.py [--quick] [--only steady] [--policy ours] [--plot FILE]

A figure is T/T_min, the time of a run over the least that any policy could need
(`quota_rig.least_seconds`), and then the calls refused with 429 per item. Both are medians
over the seeds; items without an answer stand in parentheses, for the worst seed. Below 1
means that items were lost; "no end" is a day without an end or 30,000 refusals in a row.
Where no policy can finish, the seconds stand for T/T_min. Two of the policies beside ours
need tenacity, and are left out without it; the plot needs matplotlib. The exit code is the
number of targets missed.
"""

import argparse
import asyncio
import dataclasses
import importlib.util
import math
import statistics
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from quota_rig import (
    OUTPUT_TOKENS,
    Answer,
    Bucket,
    DayQuota,
    Job,
    Limit,
    Limits,
    OneRefusal,
    Outage,
    Policy,
    ProviderError,
    Scenario,
    Slots,
    Target,
    Task,
    Window,
    Workload,
    outcome,
    poisson,
)

from batch_llm import (
    DefaultErrorClassifier,
    ErrorInfo,
    ExponentialBackoffStrategy,
    GeminiErrorClassifier,
    LLMCallStrategy,
    LLMWorkItem,
    ParallelBatchProcessor,
    ProcessorConfig,
    TokenUsage,
)

SEEDS = 5
TRIES = 6
BURST = 10.0


class Calls(LLMCallStrategy[Answer]):
    """The provider's client, as a strategy."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.error_classifier = task.scenario.error_classifier

    async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
        job = self._task.jobs[int(prompt[:6])]
        answer = await self._task.provider.call(job)
        usage: TokenUsage = {
            "input_tokens": job.tokens - OUTPUT_TOKENS,
            "output_tokens": OUTPUT_TOKENS,
            "total_tokens": job.tokens,
        }
        return answer, usage, {"headers": answer.headers}


class Deaf(DefaultErrorClassifier):
    """Hears no hint how long to wait."""

    def classify(self, exception: Exception) -> ErrorInfo:
        return dataclasses.replace(super().classify(exception), suggested_wait=None)


Processor = ParallelBatchProcessor[str, Answer, None]


async def _process(task: Task, processor: Processor) -> None:
    strategy = Calls(task)
    for job in task.jobs:
        await processor.add_work(LLMWorkItem(job.prompt[:6], strategy, job.prompt))
    await processor.process_all()


async def ours(task: Task) -> None:
    scenario = task.scenario
    config = ProcessorConfig(
        max_workers=scenario.workers, max_requests_per_minute=scenario.given_per_minute
    )
    await _process(task, Processor(config=config))


async def defaults(task: Task) -> None:
    """A cooldown as long as the provider asks, then the slow start of 0.2.0."""
    workers = task.scenario.workers
    await _process(task, Processor(max_workers=workers, rate_limit_strategy=_cooldowns()))


async def deaf_defaults(task: Task) -> None:
    """The defaults of 0.2.0 as it was first released: 300 s, whatever the provider says."""
    workers = task.scenario.workers
    processor = Processor(
        max_workers=workers, rate_limit_strategy=_cooldowns(), error_classifier=Deaf()
    )
    await _process(task, processor)


def _cooldowns() -> ExponentialBackoffStrategy:
    return ExponentialBackoffStrategy(300.0, max_cooldown=600.0, backoff_multiplier=1.5)


async def _with_semaphore(task: Task, call: Callable[[Job], Awaitable[object]]) -> None:
    semaphore = asyncio.Semaphore(task.scenario.workers)

    async def one(job: Job) -> None:
        async with semaphore:
            try:
                await call(job)
            except ProviderError:
                return  # this item is lost

    await asyncio.gather(*map(one, task.jobs))


def _six_tries(call: Callable[[Job], Awaitable[object]]) -> Callable[[Job], Awaitable[object]]:
    from tenacity import AsyncRetrying, stop_after_attempt, wait_random_exponential

    def retrying(job: Job) -> Awaitable[object]:
        tries = AsyncRetrying(
            sleep=asyncio.sleep,
            wait=wait_random_exponential(min=1, max=60),
            stop=stop_after_attempt(TRIES),
            reraise=True,
        )
        return tries(call, job)

    return retrying


async def tenacity(task: Task) -> None:
    await _with_semaphore(task, _six_tries(task.provider.call))


async def limiter(task: Task) -> None:
    """A leaky bucket that knows the quota beforehand, burst included; six tries.

    aiolimiter does the same, but never ends where time stands still: its bucket comes short
    by a rounding error, for which it waits too short a time to move the clock.
    """
    interval = 1 / task.scenario.known_per_second
    tolerance = max(BURST, task.scenario.known_per_second) * interval
    reserved_until = 0.0

    async def call(job: Job) -> Answer:
        nonlocal reserved_until
        now = asyncio.get_running_loop().time()
        reserved_until = max(reserved_until, now) + interval
        await asyncio.sleep(reserved_until - tolerance - now)
        return await task.provider.call(job)

    await _with_semaphore(task, _six_tries(call))


async def retry_after(task: Task) -> None:
    """Each call waits as long as it was told, 1 s if it was told nothing, for ever."""

    async def call(job: Job) -> Answer:
        while True:
            try:
                return await task.provider.call(job)
            except ProviderError as error:
                await asyncio.sleep(error.retry_after or 1.0)

    await _with_semaphore(task, call)


POLICIES: dict[str, tuple[Policy, str]] = {
    "ours": (ours, "ours"),
    "tenacity": (tenacity, "semaphore + tenacity, 6 tries"),
    "retry-after": (retry_after, "semaphore + Retry-After, for ever"),
    "limiter": (limiter, "exact client-side limiter, 6 tries"),
    "0.2.0": (defaults, "0.2.0 defaults, 300 s or the hint"),
    "0.2.0-deaf": (deaf_defaults, "0.2.0 defaults, 300 s always"),
}
NEED_TENACITY = frozenset({"tenacity", "limiter"})


@dataclass(frozen=True)
class Summary:
    """A policy's runs of one scenario: medians, and the worst where nothing may go wrong."""

    least_seconds: float
    seconds: float
    ratio: float
    refusals: float
    lost: int
    ended: bool
    refusals_after_first_second: int
    cost_seconds: float | None

    def __str__(self) -> str:
        if not self.ended:
            text = "no end"
        elif math.isinf(self.least_seconds):
            text = f"{self.seconds:.0f} s"
        else:
            text = f"{self.ratio:.3f}" if self.ratio < 9.9995 else f"{self.ratio:.1f}"
        text += f", {self.refusals:.2f}"
        if self.cost_seconds is not None:
            text += f", {self.cost_seconds:+.2f} s"
        return f"{text} ({self.lost})" if self.lost else text


def summary(scenario: Scenario, policy: Policy, seeds: Sequence[int]) -> Summary:
    outcomes = [outcome(scenario, policy, seed) for seed in seeds]
    refused_at = [each.provider.refused_at for each in outcomes]
    return Summary(
        least_seconds=statistics.median(each.least_seconds for each in outcomes),
        seconds=statistics.median(each.seconds for each in outcomes),
        ratio=statistics.median(each.ratio for each in outcomes),
        refusals=statistics.median(map(len, refused_at)) / scenario.workload.items,
        refusals_after_first_second=max(sum(at > 1 for at in times) for times in refused_at),
        lost=max(each.lost for each in outcomes),
        ended=all(each.ended for each in outcomes),
        cost_seconds=_cost_seconds(scenario, policy, seeds),
    )


def _cost_seconds(scenario: Scenario, policy: Policy, seeds: Sequence[int]) -> float | None:
    """How much later the last call was let in: the tail of the last answers is no cost."""
    if scenario.compared_to is None:
        return None
    with_it, without = (
        [outcome(each, policy, seed).provider.admitted_at[-1] for seed in seeds]
        for each in (scenario, scenario.compared_to)
    )
    return statistics.median(map(float.__sub__, with_it, without))


@dataclass(frozen=True)
class Row:
    """A target beside what ours did."""

    scenario: str
    target: Target
    measured: Summary

    def _checks(self) -> list[tuple[str, float, float]]:
        """What is measured, how much, and its bound."""
        target, measured = self.target, self.measured
        late = measured.refusals_after_first_second
        return [
            ("T/T_min", measured.ratio, target.ratio),
            ("429s per item", measured.refusals, target.refusals),
            ("429s after 1 s", late, target.refusals_after_first_second),
            ("cost in s", measured.cost_seconds or 0.0, target.cost_seconds),
            ("lost", measured.lost, 0),
        ]

    @property
    def ok(self) -> bool:
        return all(value <= bound for _, value, bound in self._checks())

    @property
    def missed(self) -> bool:
        return not self.ok and self.target.is_built

    def __str__(self) -> str:
        verdict = ("ok" if self.ok else "MISSED") if self.target.is_built else "not built"
        parts = "; ".join(
            f"{name} {round(value, 3):g} <= {bound:g}"
            for name, value, bound in self._checks()
            if math.isfinite(bound)
        )
        return f"{self.target.name} {self.scenario:<18} {verdict:<9} {parts}"


def tokens_and_requests(seed: int) -> list[Limit]:
    return [Bucket([(0, 10)], 10), Bucket([(0, 7_000)], 8_000, of_tokens=True)]


def bucket(*rates: tuple[float, float], burst: float = 10.0) -> Limits:
    return lambda seed: [Bucket(rates, burst)]


def steady_with(*faults: Callable[[], Limit]) -> Limits:
    return lambda seed: [*(fault() for fault in faults), Bucket([(0, 10)], 10)]


STEADY = bucket((0, 10))
G1 = Target("G1", 1.05, 0.05)
G6 = Target("G6", 1.2)
G7 = Target("G7", cost_seconds=0.5)

steady = Scenario("steady", STEADY, G1)
unlimited = Scenario("unlimited", lambda seed: [])

QUOTAS = (
    steady,
    Scenario("halves-triples", bucket((0, 10), (60, 5), (160, 15)), Target("G2", 1.08, 0.05)),
    Scenario(
        "shared",
        lambda seed: [Bucket([(0, 10)], 10, others=poisson(3.0, seed))],
        Target("G2", 1.03, 0.05),
    ),
    Scenario(
        "tokens",
        tokens_and_requests,
        Target("G2", 1.05, 0.05),
        workload=Workload(mean_prompt_tokens=750, sigma_prompt_tokens=0.8),
    ),
    Scenario(
        "refusals-cost",
        lambda seed: [Bucket([(0, 10)], 10, refusals_cost=True)],
        Target("G3", 1.08),
    ),
)
HEADERS = Target("G4", 1.03, 0.01)
GIVEN = Target("G5", 1.03, refusals_after_first_second=0)
KNOWN = (
    Scenario("headers", STEADY, HEADERS, tells_limits=True, only_ours=True),
    Scenario("given", STEADY, GIVEN, given_per_minute=600, only_ours=True),
)
PROVIDERS = (
    Scenario("slots-8", lambda seed: [Slots(8)], Target("G6", 1.3)),
    Scenario("spacing", bucket((0, 10), burst=1), Target("G6", 1.7)),
)
RATES = tuple(
    Scenario(
        f"{rate}-per-second", bucket((0, rate), burst=max(10, rate)), G6, known_per_second=rate
    )
    for rate in (1, 2, 50, 200)
)
LATENCIES = tuple(
    Scenario(f"answers-{seconds:g}s", STEADY, G6, workload=Workload(mean_seconds=seconds))
    for seconds in (0.1, 2.0, 10.0)
)
ONE_REFUSAL = (
    Scenario(
        "steady-one-429",
        lambda seed: [Bucket([(0, 10)], 10), OneRefusal(100.0)],
        G7,
        compared_to=steady,
    ),
    Scenario("unlimited-one-429", lambda seed: [OneRefusal(5.0)], G7, compared_to=unlimited),
)
LATE = (
    Scenario("window-60s", lambda seed: [Window(600, 60.0)]),
    Scenario("outage-503", steady_with(lambda: Outage(60.0, 660.0, status=503))),
    Scenario("outage-429", steady_with(lambda: Outage(60.0, 660.0, status=429))),
    Scenario(
        "day-quota",
        lambda seed: [Bucket([(0, 10)], 10), DayQuota(500)],
        error_classifier=GeminiErrorClassifier(),
    ),
)
WORKERS = tuple(
    Scenario(f"{workers}-workers", STEADY, G1, workers=workers) for workers in (1, 5, 50, 500)
)

GROUPS: dict[str, Sequence[Scenario]] = {
    "Quotas, nothing configured": QUOTAS,
    "Quotas, told by headers or by the user": KNOWN,
    "Other limits": PROVIDERS,
    "One refusal without a reason: T/T_min, 429s per item, seconds that it costs": ONE_REFUSAL,
    "Other rates": RATES,
    "Other latencies": LATENCIES,
    "Windows and outages; the day's quota is spent after 500 calls": LATE,
    "Workers, steady": WORKERS,
}
QUICK_GROUPS = 4


def table(
    title: str, scenarios: Sequence[Scenario], policies: Sequence[str], seeds: Sequence[int]
) -> Iterator[str]:
    """The lines of a Markdown table: a policy a row, a scenario a column."""
    width = max(len(name) for _, name in POLICIES.values())
    yield f"\n{title}\n"
    yield f"| {'':<{width}} | " + " | ".join(f"{each.name:<22}" for each in scenarios) + " |"
    yield f"|{'-' * (width + 2)}|" + f"{'-' * 24}|" * len(scenarios)
    for policy, name in map(POLICIES.__getitem__, policies):
        if all(_applies(policy, scenario) for scenario in scenarios):
            cells = [str(summary(scenario, policy, seeds)) for scenario in scenarios]
            yield f"| {name:<{width}} | " + " | ".join(f"{cell:<22}" for cell in cells) + " |"


def _applies(policy: Policy, scenario: Scenario) -> bool:
    return policy is ours or not scenario.only_ours


def rows(scenarios: Sequence[Scenario], seeds: Sequence[int]) -> Iterator[Row]:
    for scenario in scenarios:
        if scenario.target is not None:
            yield Row(scenario.name, scenario.target, summary(scenario, ours, seeds))


def chosen_policies(patterns: Sequence[str]) -> list[str]:
    """Those asked for whose packages are there; a word about the others."""
    chosen = list[str]()
    for policy in POLICIES:
        if not _matches(policy, patterns):
            continue
        if policy in NEED_TENACITY and importlib.util.find_spec("tenacity") is None:
            print(f"left out: {policy}; pip install tenacity", file=sys.stderr)
        else:
            chosen.append(policy)
    return chosen


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatch(name, pattern) for pattern in patterns)


def plot(path: str, scenarios: Sequence[Scenario], policies: Sequence[str], seed: int) -> None:
    """Items answered over time, a panel for each scenario, as a PNG."""
    across = min(4, len(scenarios))
    down = math.ceil(len(scenarios) / across)
    matplotlib: Any = importlib.import_module("matplotlib.figure")
    figure = matplotlib.Figure(figsize=(4.5 * across, 3.2 * down + 0.6), layout="constrained")
    legend = dict[str, object]()
    for place, scenario in enumerate(scenarios, start=1):
        panel = figure.add_subplot(down, across, place, title=scenario.name)
        least = outcome(scenario, POLICIES[policies[0]][0], seed).least_seconds
        if math.isfinite(least):
            legend["T_min"] = panel.axvline(least, color="black", linestyle=":")
            panel.set_xlim(0, 2.5 * least)
        for number, (policy, name) in reversed([*enumerate(map(POLICIES.__getitem__, policies))]):
            if _applies(policy, scenario):
                times = sorted(outcome(scenario, policy, seed).provider.answered_at)
                (legend[name],) = panel.step(times, range(1, len(times) + 1), f"C{number}")
    figure.legend(legend.values(), legend.keys(), loc="outside upper center", ncols=across)
    figure.supxlabel("seconds")
    figure.supylabel("items answered")
    figure.savefig(path, format="png", dpi=110)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How much of a quota gets used.")
    parser.add_argument("--quick", action="store_true", help="one seed, the first four groups")
    parser.add_argument("--seeds", type=int, help=f"number of seeds, {SEEDS} by default")
    parser.add_argument(
        "--only", action="append", default=[], metavar="SCENARIO", help="may be a pattern: *-429"
    )
    parser.add_argument(
        "--policy", action="append", default=[], help=f"may be a pattern: {', '.join(POLICIES)}"
    )
    parser.add_argument("--plot", metavar="FILE", help="also draw a PNG, with matplotlib")
    arguments = parser.parse_args()
    if arguments.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib; pip install matplotlib")
    return arguments


def main() -> int:
    arguments = _arguments()
    seeds = range(arguments.seeds or (1 if arguments.quick else SEEDS))
    policies = chosen_policies(arguments.policy)
    missed, shown = 0, list[Scenario]()
    titles = list(GROUPS)[: QUICK_GROUPS if arguments.quick and not arguments.only else None]
    print(f"T/T_min, 429s per item (lost); seeds: {len(seeds)}")
    for title in titles:
        scenarios = [each for each in GROUPS[title] if _matches(each.name, arguments.only)]
        if not scenarios:
            continue
        shown += scenarios
        for line in table(title, scenarios, policies, seeds):
            print(line, flush=True)
        if "ours" in policies:
            print()
            for row in rows(scenarios, seeds):
                missed += row.missed
                print(row, flush=True)
    if not shown or not policies:
        sys.exit("nothing to run: --only and --policy name scenarios and policies of the tables")
    if arguments.plot:
        plot(arguments.plot, shown, policies, seeds[0])
    return missed


if __name__ == "__main__":
    sys.exit(main())
