"""A simulated provider, as ordinary strategies."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, NoReturn

from batch_llm.base import TokenUsage
from batch_llm.core.clock import loop_time
from batch_llm.llm_strategies.base import LLMCallStrategy
from batch_llm.testing.simulate.quota import QuotaMeter
from batch_llm.testing.simulate.records import Call, Clock, Upkeep
from batch_llm.testing.simulate.scenario import Service

_FOR_EVER_SECONDS = 1e6
_WRONG_SHAPES: tuple[object, ...] = (None, "a text", ("a text",), ("a text", None, 1, 2), 42)


class ProviderError(Exception):
    """What a provider's SDK raises for an HTTP status.

    Attributes:
        status_code: The status.
        response: Has the ``headers``, among them perhaps Retry-After.
    """

    def __init__(self, status: int, text: str, *, retry_after: float | None = None) -> None:
        super().__init__(f"{status} {text}")
        self.status_code = status
        self.headers: dict[str, str] = (
            {} if retry_after is None else {"Retry-After": repr(retry_after)}
        )
        self.response = self


class SimulatedProvider:
    """Answers, refuses, lags and fails as its service says, on the running loop's clock.

    What becomes of a call depends on the seed, the prompt and how often that prompt came
    before, not on the order of calls; what the quota, an outage or an expired cache does to
    it depends on the time.

    Args:
        service: What the provider is like.
        seed: The same gives the same.

    Attributes:
        calls: Every call of ``execute``, in the order in which they came.
        upkeep: Every ``prepare`` and ``cleanup``, likewise.
        clock: Tells when something happened.
        watch: Awaited as each call begins and ends; must not suspend.
        stubborn: Tasks of calls that ignore their cancellation.
        interrupts: Whether the next call raises a KeyboardInterrupt.
    """

    def __init__(self, service: Service, *, seed: int = 0) -> None:
        self.service = service
        self.calls: list[Call] = []
        self.upkeep: list[Upkeep] = []
        self.clock: Clock = Clock(loop_time)
        self.watch: Callable[[], Awaitable[None]] | None = None
        self.stubborn: set[asyncio.Task[Any]] = set()
        self.interrupts: bool = False
        self._seed = seed
        self._seen: Counter[str] = Counter()
        self._quota = QuotaMeter(service.quota, service.quota_changes)
        self._strategies = 0

    def strategy(self) -> "SimulatedStrategy":
        """Another strategy that calls this provider."""
        self._strategies += 1
        return SimulatedStrategy(self, self._strategies - 1)

    def random_for(self, what: str) -> Random:
        """The chance that decides about one event, the same in every process."""
        self._seen[what] += 1
        return Random(f"{self._seed} {what} {self._seen[what]}")

    async def answer(self, strategy: "SimulatedStrategy", prompt: str, attempt: int) -> Any:
        """Serve one call and take it down.

        Returns:
            An output and its usage, or something else in case of ``wrong_shape``.

        Raises:
            ProviderError: A refusal, a failure of the provider's, or an expired cache.
            ConnectionError: The connection broke, or there is an outage.
            TimeoutError: The provider's client gave up.
            json.JSONDecodeError: The answer was malformed.
            asyncio.CancelledError: The call was cancelled, or a stray one.
        """
        call = Call(strategy.number, prompt, attempt, self.clock.moment())
        self.calls.append(call)
        if self.watch is not None:
            await self.watch()
        try:
            return await self._serve(call, strategy)
        finally:
            call.ended = self.clock.moment()
            if self.watch is not None:
                await self.watch()

    async def _serve(self, call: Call, strategy: "SimulatedStrategy") -> Any:
        service, random = self.service, self.random_for(call.prompt)
        usage = self._usage(random)
        if self.interrupts:
            self.interrupts, call.outcome = False, "keyboard"
            raise KeyboardInterrupt
        await self._pass_outages(call)
        await self._pass_quota(call, usage)
        if strategy.cache_until is not None and strategy.cache_until <= loop_time():
            await asyncio.sleep(service.refusal_seconds)
            call.outcome = "cache_expired"
            raise ConnectionError("cache content is expired")
        fault = service.faults.draw(random)
        if fault == "stuck":
            await asyncio.sleep(_FOR_EVER_SECONDS)
        elif fault == "stubborn":
            await self._ignore_cancellation(call)
        elif (seconds := service.latency.draw(random)) > 0:
            await asyncio.sleep(seconds)
        call.outcome = fault
        if fault in _FAILURES:
            _FAILURES[fault](call, usage, random)
        if fault == "wrong_shape":
            return random.choice(_WRONG_SHAPES)
        call.usage = usage
        return f"answer to {call.prompt}", usage

    async def _pass_outages(self, call: Call) -> None:
        now = loop_time()
        for outage in self.service.outages:
            left = outage.start_seconds + outage.seconds - now
            if now >= outage.start_seconds and left > 0:
                hangs = outage.kind == "hang"
                await asyncio.sleep(left if hangs else self.service.refusal_seconds)
                call.outcome = "outage"
                raise ConnectionError("the provider is down")

    async def _pass_quota(self, call: Call, usage: TokenUsage) -> None:
        wait = self._quota.admit(usage.get("input_tokens", 0), loop_time())
        if wait is not None:
            hint = wait if self._quota.hints else None
            await asyncio.sleep(self.service.refusal_seconds)
            call.outcome = "quota"
            raise ProviderError(429, "too many requests", retry_after=hint)

    async def _ignore_cancellation(self, call: Call) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.stubborn.add(task)
        try:
            await asyncio.sleep(_FOR_EVER_SECONDS)
        except asyncio.CancelledError:
            call.cancelled_at = loop_time()
        await sleep_through(self.service.faults.stubborn_seconds)

    def _usage(self, random: Random) -> TokenUsage:
        """The tokens of one call, in one of the shapes that providers report."""
        given = self.service.input_tokens
        sent, received = (
            round(mean * random.uniform(0.5, 1.5)) for mean in (given, self.service.output_tokens)
        )
        full: TokenUsage = {
            "input_tokens": sent,
            "output_tokens": received,
            "total_tokens": sent + received,
            "cached_input_tokens": sent // 2,
        }
        shape = random.random()
        if shape < 0.8:
            return full
        return {"input_tokens": sent, "output_tokens": received} if shape < 0.9 else {}


async def sleep_through(seconds: float) -> None:
    """Sleep, and ignore every cancellation meanwhile."""
    until = loop_time() + seconds
    while (left := until - loop_time()) > 0:
        try:
            await asyncio.sleep(left)
        except asyncio.CancelledError:
            continue


def _broken(call: Call, usage: TokenUsage, random: Random) -> NoReturn:
    raise ConnectionError("connection reset by peer")


def _status(status: int, text: str) -> Callable[[Call, TokenUsage, Random], NoReturn]:
    def fail(call: Call, usage: TokenUsage, random: Random) -> NoReturn:
        raise ProviderError(status, text)

    return fail


def _timed_out(call: Call, usage: TokenUsage, random: Random) -> NoReturn:
    raise TimeoutError("the read operation took too long")


def _stray_cancellation(call: Call, usage: TokenUsage, random: Random) -> NoReturn:
    raise asyncio.CancelledError("nobody asked for this")


def _malformed(call: Call, usage: TokenUsage, random: Random) -> NoReturn:
    """Fail, and tell what was billed in one of the places where frameworks leave it."""
    call.usage = usage
    error = json.JSONDecodeError("no JSON", "oops", 0)
    place = random.randrange(3)
    if place == 0:
        error.usage = usage  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue]
        raise error
    if place == 1:
        error.__dict__["_failed_token_usage"] = usage
        raise error
    cause = ValueError("no JSON")
    cause.result = _Result(usage)  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue]
    raise error from cause


class _Result:
    def __init__(self, usage: TokenUsage) -> None:
        self._usage = usage

    def usage(self) -> TokenUsage:
        return self._usage


_FAILURES: dict[str, Callable[[Call, TokenUsage, Random], NoReturn]] = {
    "connection": _broken,
    "server": _status(503, "overloaded"),
    "client": _status(400, "invalid argument"),
    "malformed": _malformed,
    "rate_limit": _status(429, "resource exhausted"),
    "timeout": _timed_out,
    "cancelled": _stray_cancellation,
}


class SimulatedStrategy(LLMCallStrategy[Any]):
    """Calls a simulated provider; made by :meth:`SimulatedProvider.strategy`.

    Attributes:
        number: From 0, in the order in which the provider made them.
        cache_until: When the strategy's cache expires; None without one.
    """

    def __init__(self, provider: SimulatedProvider, number: int) -> None:
        self._provider = provider
        self.number = number
        self.cache_until: float | None = None

    async def prepare(self) -> None:
        """Make the cache, where the service has them; fails as often as its faults say."""
        upkeep = Upkeep(self.number, "prepare", self._provider.clock.moment())
        self._provider.upkeep.append(upkeep)
        await self._fail_now_and_then("prepare")
        self._renew_cache()
        upkeep.succeeded = True

    async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
        """Call the provider."""
        return await self._provider.answer(self, prompt, attempt)

    async def on_error(self, exception: BaseException, attempt: int) -> None:
        """Renew a cache that has expired; fails as often as the faults say."""
        if "expired" in str(exception):
            self._renew_cache()
        await self._fail_now_and_then("on_error")

    async def cleanup(self) -> None:
        """Do nothing, and fail at it as often as the faults say."""
        upkeep = Upkeep(self.number, "cleanup", self._provider.clock.moment())
        self._provider.upkeep.append(upkeep)
        await self._fail_now_and_then("cleanup")
        upkeep.succeeded = True

    def _renew_cache(self) -> None:
        ttl = self._provider.service.cache_ttl_seconds
        self.cache_until = None if ttl is None else loop_time() + ttl

    async def _fail_now_and_then(self, hook: str) -> None:
        share = self._provider.service.faults.hooks
        if not share:
            return
        random = self._provider.random_for(f"{hook} {self.number}")
        if random.random() < share:
            if random.random() < 0.5:
                await asyncio.sleep(_FOR_EVER_SECONDS)
            raise random.choice((ConnectionError("no route"), ValueError("no such model")))
