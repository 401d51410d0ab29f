"""A provider with quotas in virtual time: what it lets in, what it refuses, what it says.

A call travels 10 to 60 ms to the server, which decides at its arrival. An answer's seconds
are counted from there until the client has it, the way back included. A refusal is back
with the client 50 ms after the arrival. Times are loop times; a run starts at 0.
"""

import asyncio
import functools
import itertools
import math
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any, ClassVar

from batch_llm import ErrorClassifier
from batch_llm.testing.loop import run

NETWORK_SECONDS = (0.010, 0.060)
REFUSAL_SECONDS = 0.050
OUTPUT_TOKENS = 250
LONGEST_PROMPT_TOKENS = 7_000
STUCK_REFUSALS = 30_000
LONGEST_SECONDS = 24 * 3600.0

# Sums of floats come out a little short.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Job:
    """One item.

    Attributes:
        prompt: Starts with the item's number; four characters count as a token.
        tokens: What it costs in tokens, those of the answer included.
        seconds: How long its answer takes once it is let in.
    """

    prompt: str
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Workload:
    """What the items are like.

    Attributes:
        items: How many.
        mean_seconds: Of the lognormal time that an answer takes.
        mean_prompt_tokens: Of the lognormal length of a prompt.
        sigma_prompt_tokens: 0 makes all prompts equally long.
    """

    items: int = 2_000
    mean_seconds: float = 0.4
    mean_prompt_tokens: float = 100.0
    sigma_prompt_tokens: float = 0.0

    def jobs(self, seed: int) -> list[Job]:
        """The same items for every policy."""
        dice = Random(f"workload {seed}")
        return [self._job(number, dice) for number in range(self.items)]

    def _job(self, number: int, dice: Random) -> Job:
        seconds = _lognormal(dice, self.mean_seconds, 0.5)
        drawn = _lognormal(dice, self.mean_prompt_tokens, self.sigma_prompt_tokens)
        tokens = max(10, min(round(drawn), LONGEST_PROMPT_TOKENS))
        return Job(f"{number:06d} ".ljust(4 * tokens, "x"), tokens + OUTPUT_TOKENS, seconds)


def _lognormal(dice: Random, mean: float, sigma: float) -> float:
    return dice.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call was not let in.

    Attributes:
        seconds: Until it could be let in, as far as the limit can tell; 0 for at once.
        status: HTTP status.
        retry_after: What the server says, in seconds; None if it says nothing.
        details: The body, as google-genai gives it.
    """

    seconds: float
    status: int = 429
    retry_after: float | None = 1.0
    details: Mapping[str, Any] | None = None


class Limit:
    """One of the conditions under which a provider lets a call in; by itself, none."""

    def refusal(self, job: Job, now: float) -> Refusal | None:
        """Why the job is not let in now, None if it may come."""
        return None

    def take(self, job: Job) -> None:
        """Let it in; all limits allow it."""

    def charge(self, job: Job) -> None:
        """It was refused, by this limit or another."""

    def release(self) -> None:
        """One that was let in has ended."""


def _refused_for(seconds: float) -> Refusal:
    return Refusal(seconds, retry_after=max(1.0, math.ceil(seconds - _ROUNDING)))


class Bucket(Limit):
    """A token bucket, full at first.

    Args:
        rates: Per second, each from its moment on.
        burst: What it holds.
        of_tokens: Whether a call costs its tokens rather than 1.
        refusals_cost: Whether a refused call costs as much; the debt grows up to the burst.
        others: Moments at which somebody else takes 1, also when there is none.
    """

    def __init__(
        self,
        rates: Sequence[tuple[float, float]],
        burst: float,
        *,
        of_tokens: bool = False,
        refusals_cost: bool = False,
        others: Iterator[float] | None = None,
    ) -> None:
        self._rates = iter([*rates, (math.inf, 0.0)])
        self._burst = self._level = burst
        self._of_tokens = of_tokens
        self._refusals_cost = refusals_cost
        self._others = others or iter(())
        self._other_at = next(self._others, math.inf)
        self._now = 0.0
        self._rate = 0.0
        self._rate_at, self._next_rate = next(self._rates)
        self._advance(0.0)

    def refusal(self, job: Job, now: float) -> Refusal | None:
        self._advance(now)
        lacking = self._cost(job) - self._level
        return None if lacking <= _ROUNDING else _refused_for(lacking / self._rate)

    def take(self, job: Job) -> None:
        self._level -= self._cost(job)

    def charge(self, job: Job) -> None:
        if self._refusals_cost:
            self._level = max(-self._burst, self._level - self._cost(job))

    def headers(self) -> dict[str, str]:
        """What OpenAI and others tell with each response."""
        return {
            "x-ratelimit-limit-requests": f"{self._rate * 60:g}",
            "x-ratelimit-remaining-requests": f"{max(0, math.floor(self._level))}",
            "x-ratelimit-reset-requests": f"{(self._burst - self._level) / self._rate:.3f}s",
        }

    def _cost(self, job: Job) -> float:
        return job.tokens if self._of_tokens else 1.0

    def _advance(self, now: float) -> None:
        while (moment := min(self._rate_at, self._other_at)) <= now:
            self._fill(moment)
            if moment == self._rate_at:
                self._rate = self._next_rate
                self._rate_at, self._next_rate = next(self._rates)
            else:
                self._level -= 1
                self._other_at = next(self._others, math.inf)
        self._fill(now)

    def _fill(self, now: float) -> None:
        self._level = min(self._burst, self._level + self._rate * (now - self._now))
        self._now = now


class Window(Limit):
    """So many calls in each fixed window of time; what is left of it is the hint."""

    def __init__(self, calls: int, seconds: float) -> None:
        self._calls, self._seconds = calls, seconds
        self._window, self._taken = 0, 0

    def refusal(self, job: Job, now: float) -> Refusal | None:
        window = math.floor(now / self._seconds)
        if window != self._window:
            self._window, self._taken = window, 0
        if self._taken < self._calls:
            return None
        return _refused_for((window + 1) * self._seconds - now)

    def take(self, job: Job) -> None:
        self._taken += 1


class Slots(Limit):
    """So many calls at once; nobody can tell when one will be free."""

    def __init__(self, count: int) -> None:
        self.count = self._free = count

    def refusal(self, job: Job, now: float) -> Refusal | None:
        return None if self._free else Refusal(0.0)

    def take(self, job: Job) -> None:
        self._free -= 1

    def release(self) -> None:
        self._free += 1


class Outage(Limit):
    """Every call is refused for a while, in one way."""

    def __init__(self, start: float, end: float, *, status: int) -> None:
        self._start, self._end, self._status = start, end, status

    def refusal(self, job: Job, now: float) -> Refusal | None:
        if not self._start <= now < self._end:
            return None
        retry_after = 1.0 if self._status == 429 else None
        return Refusal(self._end - now, self._status, retry_after)


class OneRefusal(Limit):
    """The first call at or after a moment is refused, for no reason."""

    def __init__(self, at: float) -> None:
        self._at = at

    def refusal(self, job: Job, now: float) -> Refusal | None:
        if now < self._at:
            return None
        self._at = math.inf
        return Refusal(0.0)


class DayQuota(Limit):
    """Gemini's: it names the quota, and a delay that only brings the same refusal again."""

    _TYPE = "type.googleapis.com/google.rpc."
    _DETAILS: ClassVar = [
        {
            "@type": _TYPE + "QuotaFailure",
            "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel"}],
        },
        {"@type": _TYPE + "RetryInfo", "retryDelay": "3s"},
    ]

    def __init__(self, calls: int) -> None:
        self._left = calls

    def refusal(self, job: Job, now: float) -> Refusal | None:
        details = {"error": {"details": self._DETAILS}}
        return None if self._left else Refusal(math.inf, retry_after=3.0, details=details)

    def take(self, job: Job) -> None:
        self._left -= 1


def poisson(per_second: float, seed: int) -> Iterator[float]:
    """Moments of a random consumer."""
    dice = Random(f"others {seed}")
    return itertools.accumulate(iter(lambda: dice.expovariate(per_second), None))


class ProviderError(Exception):
    """What a client raises; statuses and headers are where HTTP clients have them."""

    def __init__(self, refusal: Refusal, headers: Mapping[str, str]) -> None:
        super().__init__(f"{refusal.status} refused")
        self.code = refusal.status
        self.details = refusal.details
        self.response = SimpleNamespace(headers=dict(headers))
        self.retry_after = refusal.retry_after
        if refusal.retry_after is not None:
            self.response.headers["Retry-After"] = f"{refusal.retry_after:g}"


class ClientError(ProviderError):
    """google-genai's name for a 4xx."""


class ServerError(ProviderError):
    """google-genai's name for a 5xx."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call gives."""

    text: str
    headers: Mapping[str, str]


@dataclass
class Provider:
    """The server, its network, and its books.

    Attributes:
        limits: All must allow a call.
        tells_limits: Whether responses carry x-ratelimit headers of the first limit.
        admitted_at: When calls were let in.
        refused_at: When calls were refused with 429.
        answered_at: When answers were back.
        stuck: Set when tens of thousands of calls in a row were refused.
    """

    limits: Sequence[Limit]
    seed: int
    tells_limits: bool = False
    admitted_at: list[float] = field(default_factory=list[float])
    refused_at: list[float] = field(default_factory=list[float])
    answered_at: list[float] = field(default_factory=list[float])
    stuck: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._random = Random(f"network {self.seed}")
        self._refused_in_a_row = 0

    async def call(self, job: Job) -> Answer:
        """One request.

        Raises:
            ClientError: 429, with what the server says.
            ServerError: 503.
        """
        await asyncio.sleep(self._random.uniform(*NETWORK_SECONDS))
        now = asyncio.get_running_loop().time()
        refusal = next(filter(None, (limit.refusal(job, now) for limit in self.limits)), None)
        if refusal is not None:
            await self._refuse(job, refusal, now)
        self._refused_in_a_row = 0
        self.admitted_at.append(now)
        for limit in self.limits:
            limit.take(job)
        headers = self._headers()
        try:
            await asyncio.sleep(job.seconds)
        finally:
            for limit in self.limits:
                limit.release()
        self.answered_at.append(now + job.seconds)
        return Answer(job.prompt[:6], headers)

    async def _refuse(self, job: Job, refusal: Refusal, now: float) -> None:
        for limit in self.limits:
            limit.charge(job)
        self._refused_in_a_row += 1
        if self._refused_in_a_row >= STUCK_REFUSALS:
            self.stuck.set()
        if refusal.status == 429:
            self.refused_at.append(now)
        headers = self._headers()
        await asyncio.sleep(REFUSAL_SECONDS)
        raise (ClientError if refusal.status < 500 else ServerError)(refusal, headers)

    def _headers(self) -> Mapping[str, str]:
        first = self.limits[0] if self.tells_limits else None
        return first.headers() if isinstance(first, Bucket) else {}


def least_seconds(jobs: Sequence[Job], limits: Sequence[Limit], workers: int) -> float:
    """T_min: no policy can have answered all jobs before.

    It is the largest of three bounds:

    * for each bucket or window alone: the moment at which it can have let in everything,
      if calls wait at its door from the earliest arrival on, and the shortest answer;
    * all seconds of answers and of the network (its mean) over the number of workers;
    * where the provider has slots, all seconds of answers over their number.
    """
    quotas = [limit for limit in limits if isinstance(limit, Bucket | Window)]
    rest = [limit for limit in limits if limit not in quotas and not isinstance(limit, Slots)]
    answers = sum(job.seconds for job in jobs)
    network = sum(NETWORK_SECONDS) / 2 * len(jobs)
    bounds = [(answers + network) / workers]
    bounds += [answers / limit.count for limit in limits if isinstance(limit, Slots)]
    shortest = min(job.seconds for job in jobs)
    bounds += [_last_admission(jobs, [quota, *rest]) + shortest for quota in quotas]
    return max(bounds)


def _last_admission(jobs: Sequence[Job], limits: Sequence[Limit]) -> float:
    now = NETWORK_SECONDS[0]
    for job in jobs:
        while refusals := [found for limit in limits if (found := limit.refusal(job, now))]:
            wait = max(refusal.seconds for refusal in refusals)
            if math.isinf(wait):
                return math.inf
            now += wait
        for limit in limits:
            limit.take(job)
    return now


@dataclass(frozen=True)
class Target:
    """Upper bounds for ours; nothing may be lost under any of them."""

    name: str
    ratio: float = math.inf
    refusals: float = math.inf
    refusals_after_first_second: float = math.inf
    cost_seconds: float = math.inf
    is_built: bool = True


Limits = Callable[[int], Sequence[Limit]]


@dataclass(frozen=True, eq=False)
class Scenario:
    """A provider, what it is asked, and by how many workers.

    Attributes:
        limits: The provider's limits, anew for each run; by seed.
        known_per_second: The rate that a client-side limiter is set to.
        given_per_minute: The one setting of ours beside max_workers.
        only_ours: Whether it means nothing to other policies.
        compared_to: The same without its refusal; the difference is what that costs.
        error_classifier: What a strategy for this provider brings.
    """

    name: str
    limits: Limits
    target: Target | None = None
    workers: int = 50
    workload: Workload = field(default_factory=Workload)
    known_per_second: float = 10.0
    given_per_minute: float | None = None
    tells_limits: bool = False
    only_ours: bool = False
    compared_to: "Scenario | None" = None
    error_classifier: ErrorClassifier | None = None


@dataclass(frozen=True)
class Task:
    """What a policy is given."""

    scenario: Scenario
    provider: Provider
    jobs: Sequence[Job]


Policy = Callable[[Task], Awaitable[object]]


@dataclass(frozen=True)
class Outcome:
    """One run; times are seconds since its start, the provider keeps the books."""

    least_seconds: float
    seconds: float
    ended: bool
    lost: int
    provider: Provider

    @property
    def ratio(self) -> float:
        return self.seconds / self.least_seconds if self.ended else math.inf


@functools.cache
def outcome(scenario: Scenario, policy: Policy, seed: int) -> Outcome:
    """Run a policy once; what it and the library draw is seeded too."""
    random.seed(seed)
    jobs = scenario.workload.jobs(seed)
    provider = Provider(scenario.limits(seed), seed, scenario.tells_limits)
    ended, seconds = run(_bounded(policy, Task(scenario, provider, jobs)))
    least = least_seconds(jobs, scenario.limits(seed), scenario.workers)
    lost = len(jobs) - len(provider.answered_at)
    return Outcome(least, seconds, ended, lost, provider)


async def _bounded(policy: Policy, task: Task) -> tuple[bool, float]:
    """Whether it came to its end, and when; what is stuck or takes a day is cancelled."""
    work = asyncio.ensure_future(policy(task))
    stuck = asyncio.ensure_future(task.provider.stuck.wait())
    await asyncio.wait({work, stuck}, timeout=LONGEST_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    ended, seconds = work.done(), asyncio.get_running_loop().time()
    stuck.cancel()
    if ended:
        await work
    else:
        work.cancel()
        await asyncio.wait({work})
    return ended, seconds
