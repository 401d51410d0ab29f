"""A provider's limit, found by a run that was told nothing of it."""

import asyncio
import copy
import dataclasses
import itertools
import math
from typing import Any

import pytest

from batch_llm import (
    FixedDelayStrategy,
    ProcessingEvent,
    ProcessorConfig,
    RateLimitConfig,
    RetryConfig,
)
from batch_llm.strategies.adaptive import FIRST_WAVE, AdaptiveLimit
from tests.engine.support import (
    Call,
    Item,
    Processor,
    Provider,
    Refused,
    items,
    now,
    run,
    script,
    start,
)
from tests.helpers import Recorder


class Quota:
    """A bucket of so many calls a second; whatever is over it is refused at once."""

    def __init__(
        self, per_second: float, *, seconds: float = 0.4, hint: float | None = 1.0
    ) -> None:
        self.per_second, self.seconds, self.hint = per_second, seconds, hint
        self.level, self.at = per_second, 0.0
        self.refused: list[float] = []
        self.outage = (math.inf, math.inf)

    async def __call__(self, call: Call) -> Any:
        self.level = min(self.per_second, self.level + (now() - self.at) * self.per_second)
        self.at = now()
        if self.level < 1 or self.outage[0] <= now() < self.outage[1]:
            self.refused.append(now())
            raise Refused(self.hint)
        self.level -= 1
        await asyncio.sleep(self.seconds)
        return call.prompt


def workers(count: int, **fields: Any) -> ProcessorConfig:
    return ProcessorConfig(max_workers=count, **fields)


@pytest.mark.parametrize("max_workers", [1, 5, 50, 300])
async def test_a_run_stays_at_its_quota(max_workers: int) -> None:
    quota = Quota(10.0)
    result = await run(*items(Provider(quota), 1_000), config=workers(max_workers))
    assert result.succeeded == 1_000
    assert now() <= 1.03 * max(99.4, 400.0 / max_workers)
    assert len(quota.refused) <= 50
    assert {each.attempts for each in result.results} == {1}


class TokenQuota(Provider):
    """A bucket of a thousand tokens a second, of which every fourth call takes half."""

    def __init__(self) -> None:
        super().__init__()
        self.level, self.at, self.refused = 1_000.0, 0.0, 0

    async def execute(self, prompt: str, attempt: int, timeout: float) -> Any:
        self.level = min(1_000.0, self.level + 1_000.0 * (now() - self.at))
        self.at = now()
        tokens = self.tokens_of(prompt)
        if self.level < tokens:
            self.refused += 1
            raise Refused(1.0)
        self.level -= tokens
        await asyncio.sleep(0.4)
        return prompt, {"input_tokens": tokens, "output_tokens": 0, "total_tokens": tokens}

    def tokens_of(self, prompt: str) -> int:
        return 20 if int(prompt.removeprefix("prompt ")) % 4 else 500


class Knowing:
    """Expects what a call will cost."""

    def estimate(self, strategy: TokenQuota, prompt: str) -> float:
        return strategy.tokens_of(prompt)

    def learn(self, strategy: object, prompt: str, usage: object) -> None:
        pass


async def test_a_run_stays_at_its_quota_of_tokens() -> None:
    quota = TokenQuota()
    result = await run(*items(quota, 2_000), config=workers(20, token_estimator=Knowing()))
    assert result.succeeded == 2_000
    assert now() <= 1.1 * result.total_input_tokens / 1_000
    assert quota.refused <= 50
    learned = result.quotas["default"].learned_tokens_per_second
    assert learned == pytest.approx(1_000, rel=0.2)


async def test_a_cap_on_calls_in_flight_is_found_too() -> None:
    in_flight = refused = 0

    async def execute(call: Call) -> Any:
        nonlocal in_flight, refused
        await asyncio.sleep(0.02)
        if in_flight >= 8:
            refused += 1
            raise Refused(1.0)
        in_flight += 1
        await asyncio.sleep(0.4)
        in_flight -= 1

    result = await run(*items(Provider(execute), 2_000), config=workers(50))
    assert result.succeeded == 2_000
    assert now() <= 1.4 * 2_000 * 0.42 / 8
    assert refused <= 100


async def test_a_refused_call_waits_for_its_hint_and_the_others_do_not() -> None:
    async def refuse_the_first(call: Call) -> Any:
        await asyncio.sleep(0.05)
        if call.prompt == "prompt 0" and now() < 60.0:
            raise Refused(60.0)
        await asyncio.sleep(1.0)

    provider = Provider(refuse_the_first)
    await run(*items(provider, 20), config=workers(5))
    asked = [call.at for call in provider.calls if call.prompt == "prompt 0"]
    assert asked == [0.0, 60.05]
    assert max(call.at for call in provider.calls if call.prompt != "prompt 0") < 10.0


async def test_a_run_that_nothing_refuses_is_not_held_back() -> None:
    provider = Provider(seconds=1.0)
    await run(*items(provider, 500), config=workers(100))
    # The first wave waits for its first answer alone.
    assert provider.instants[: FIRST_WAVE + 1] == [0.0] * FIRST_WAVE + [1.0]
    assert now() == 6.0


async def test_an_outage_is_a_cooldown_to_whoever_watches() -> None:
    quota, recorder = Quota(10.0), Recorder()
    quota.outage = (20.0, 200.0)
    result = await run(*items(Provider(quota), 600), config=workers(20), observers=[recorder])
    assert result.succeeded == 600
    started = recorder.of(ProcessingEvent.COOLDOWN_STARTED)
    ended = recorder.of(ProcessingEvent.COOLDOWN_ENDED)
    waits = [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 30.0, 30.0]
    assert [data["duration"] for data in started] == pytest.approx(waits)
    assert [data["consecutive"] for data in started] == list(range(1, 11))
    assert [data["duration"] for data in ended] == pytest.approx(waits)
    assert len(quota.refused) <= 60
    assert len(recorder.of(ProcessingEvent.RATE_LIMIT_HIT)) == len(quota.refused)


async def test_a_call_that_is_let_out_and_never_made_leaves_its_place() -> None:
    quota = Quota(1.0, seconds=0.1)
    async with Processor(config=workers(3)) as processor:
        running = await start(processor, *items(Provider(quota), 30))
        for _ in range(20):
            await asyncio.sleep(0.5)
            names = [task for task in asyncio.all_tasks() if "worker" in task.get_name()]
            names[0].cancel()
        result = await running
        assert result.total_items == 30


async def test_a_pause_from_outside_holds_back_everybody() -> None:
    provider = Provider(seconds=0.1)
    async with Processor(config=workers(30)) as processor:
        running = await start(processor, *items(provider, 300))
        await processor._handle_rate_limit()
        assert now() == 300.0
        await running
        assert not [at for at in provider.instants if 0.5 < at < 300.0]


def mutated() -> ProcessorConfig:
    config = ProcessorConfig()
    config.rate_limit.cooldown_seconds = 7.0
    return config


async def cooldowns(**options: Any) -> list[float]:
    recorder = Recorder()
    provider = Provider(script(Refused()))
    await run(*items(provider), observers=[recorder], **options)
    return [data["duration"] for data in recorder.of(ProcessingEvent.COOLDOWN_STARTED)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"config": ProcessorConfig(rate_limit=RateLimitConfig())}, 300.0),
        ({"config": mutated()}, 7.0),
        ({"config": ProcessorConfig(), "rate_limit_cooldown": 9.0}, 9.0),
        ({"config": ProcessorConfig(), "rate_limit_strategy": FixedDelayStrategy(5.0)}, 5.0),
    ],
    ids=["a config", "a changed default", "a cooldown", "a strategy"],
)
async def test_whoever_asks_for_cooldowns_gets_them(
    options: dict[str, Any], expected: float
) -> None:
    assert await cooldowns(**options) == [expected]


@pytest.mark.parametrize(
    "config",
    [
        ProcessorConfig(),
        dataclasses.replace(ProcessorConfig(), max_workers=3),
        copy.deepcopy(ProcessorConfig()),
    ],
    ids=["default", "replaced", "copied"],
)
async def test_whoever_asks_for_nothing_gets_none(config: ProcessorConfig) -> None:
    assert await cooldowns(config=config) == []
    assert config.rate_limit == RateLimitConfig()


async def test_a_strategy_that_is_assigned_later_decides() -> None:
    recorder = Recorder()
    async with Processor(config=ProcessorConfig(), observers=[recorder]) as processor:
        processor.rate_limit_strategy = FixedDelayStrategy(5.0)
        item: Item
        [item] = items(Provider(script(Refused())))
        await processor.add_work(item)
        await processor.process_all()
    [started] = recorder.of(ProcessingEvent.COOLDOWN_STARTED)
    assert started["duration"] == 5.0


async def test_while_nothing_is_let_in_a_prepare_waits_for_its_turn_too() -> None:
    async def until_100_seconds() -> None:
        if now() < 100.0:
            raise Refused(1.0)

    class Late(Provider):
        async def prepare(self) -> None:
            await super().prepare()
            await until_100_seconds()

    async def execute(call: Call) -> Any:
        await asyncio.sleep(0.1)
        await until_100_seconds()

    provider, late, recorder = Provider(execute), Late(), Recorder()
    async with Processor(config=workers(4), observers=[recorder]) as processor:
        running = await start(processor, *items(provider, 2))
        await asyncio.sleep(20.0)
        for item in items(late, 3):
            await processor.add_work(item)
        assert (await running).succeeded == 5
    changes = (ProcessingEvent.COOLDOWN_STARTED, ProcessingEvent.COOLDOWN_ENDED)
    told = [event for event, _ in recorder.seen if event in changes]
    assert told == [*changes] * (len(told) // 2)
    # Two others were in line before it.
    tries = [at for at in sorted(provider.instants + late.prepared) if 20.0 < at < 100.0]
    assert (len(tries), tries[-1]) == (3, late.prepared[0])
    assert len(late.prepared) == 2


async def test_calls_that_ended_while_nobody_counted_take_nobodys_place() -> None:
    busy, provider = Provider(seconds=100.0), Provider(seconds=1.0)
    config = workers(5, max_requests_per_minute=6_000)
    async with Processor(config=config) as processor:
        running = await start(processor, *items(busy), *items(provider, 4))
        await asyncio.sleep(0.5)
        processor.set_limits(requests_per_minute=None)
        await asyncio.sleep(10.0)
        processor.set_limits(requests_per_minute=6_000)
        for item in items(provider):
            await processor.add_work(item)
        assert (await running).succeeded == 6
    assert provider.instants[-1] == 10.5


async def test_a_call_that_is_left_behind_gives_its_place_free() -> None:
    async def execute(call: Call) -> Any:
        if call.prompt == "prompt 0":
            raise Refused(1.0)
        if call.prompt == "prompt 1" and call.attempt == 1:
            for _ in range(5):
                try:
                    await asyncio.sleep(100.0)
                except asyncio.CancelledError:
                    continue

    provider = Provider(execute)
    config = workers(2, timeout_per_item=10.0)
    async with Processor(config=config) as processor:
        running = await start(processor, *items(provider, 2))
        await asyncio.sleep(5.0)
        assert processor._gate._limit is not None
        assert processor._gate._limit._in_flight == 1
        await asyncio.sleep(7.0)
        assert processor._gate._limit._in_flight == 0
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    await asyncio.sleep(1_000.0)


async def test_a_prepare_during_an_outage_is_one_of_the_single_tries() -> None:
    quota = Quota(10.0)
    quota.outage = (0.0, 300.0)

    class Late(Provider):
        async def prepare(self) -> None:
            await super().prepare()
            if now() < 300.0:
                raise Refused(1.0)

    early, late = Provider(quota), Late(quota)
    async with Processor(config=workers(2)) as processor:
        running = await start(processor, *items(early))
        await asyncio.sleep(40.0)
        for item in items(late):
            await processor.add_work(item)
        result = await running
    assert result.succeeded == 2
    assert 40.0 < late.prepared[0] < 300.0
    tries = sorted(at for at in early.instants + late.prepared if 40.0 < at < 300.0)
    assert min(after - before for before, after in itertools.pairwise(tries)) > 29.0


async def test_a_refused_prepare_takes_no_calls_place() -> None:
    class Waking(Provider):
        async def prepare(self) -> None:
            await super().prepare()
            if len(self.prepared) == 1:
                raise Refused(1.0)

    waking = Waking()
    result = await run(*items(waking, 3), config=workers(1))
    assert result.succeeded == 3
    assert waking.prepared == [0.0, 1.0]


async def test_a_refused_prepare_counts_the_calls_that_are_under_way() -> None:
    class Waking(Provider):
        async def prepare(self) -> None:
            await super().prepare()
            await asyncio.sleep(1)
            if len(self.prepared) == 1:
                raise Refused(20.0)

    busy, waking = Provider(seconds=10.0), Waking()
    async with Processor(config=workers(10)) as processor:
        running = await start(processor, *items(busy, 9), *items(waking, 1))
        await asyncio.sleep(5)
        limit = processor._gate._limit
        assert limit is not None
        assert limit.is_engaged
        assert limit._in_flight == 9
        await running


async def test_the_calls_in_flight_are_counted_whoever_is_cancelled() -> None:
    quota, in_flight = Quota(2.0, seconds=0.7), 0

    async def execute(call: Call) -> Any:
        nonlocal in_flight
        in_flight += 1
        try:
            return await quota(call)
        finally:
            in_flight -= 1

    async with Processor(config=workers(5)) as processor:
        running = await start(processor, *items(Provider(execute), 60))
        for step in range(40):
            await asyncio.sleep(0.33)
            limit = processor._gate._limit
            assert limit is not None
            assert limit._in_flight == (in_flight if limit.is_engaged else 0)
            [worker] = [
                task
                for task in asyncio.all_tasks()
                if task.get_name() == f"batch_llm worker {step % 5}"
            ]
            worker.cancel()
        assert (await running).total_items == 60


async def test_that_a_limit_is_learned_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    quota = Quota(10.0)
    await run(*items(Provider(quota), 200), config=workers(10))
    assert len(quota.refused) > 1
    told = [record.getMessage() for record in caplog.records]
    assert told.count("rate limited: from now on calls go out as the provider lets them in") == 1


async def test_in_an_outage_the_first_try_waits_for_the_providers_hint(
    caplog: pytest.LogCaptureFixture,
) -> None:
    quota, recorder = Quota(10.0, hint=7.0), Recorder()
    quota.outage = (0.0, 20.0)
    await run(*items(Provider(quota), 10), config=workers(10), observers=[recorder])
    [first, *_] = recorder.of(ProcessingEvent.COOLDOWN_STARTED)
    assert first == {"worker_id": 0, "duration": pytest.approx(7.0), "consecutive": 1}
    assert "rate limited: nothing is let in; the next try is in 7 s" in caplog.messages


async def test_where_nobody_else_waits_each_try_ends_a_cooldown_too() -> None:
    quota, recorder = Quota(10.0), Recorder()
    quota.outage = (0.0, 100.0)
    await run(*items(Provider(quota)), config=workers(1), observers=[recorder])
    hit = ProcessingEvent.RATE_LIMIT_HIT
    started, ended = ProcessingEvent.COOLDOWN_STARTED, ProcessingEvent.COOLDOWN_ENDED
    told = [event for event, _ in recorder.seen if event in (hit, started, ended)]
    first = told.index(started)
    tries = len(told[first:]) // 3
    assert tries > 3
    assert told[first:] == [started, ended, hit] * tries + [started, ended]


async def test_who_is_cancelled_once_let_out_makes_way_for_the_next() -> None:
    async with Processor(config=workers(3)) as processor:
        gate, limit = processor._gate, AdaptiveLimit(1, now())
        limit.engage(answered=0, in_flight=0)
        gate.start(limit)
        first = await gate.acquire()
        second, third = [asyncio.create_task(gate.acquire()) for _ in range(2)]
        await asyncio.sleep(1.0)
        assert [second.done(), third.done()] == [False, False]
        gate.ended(first, answered=True)
        second.cancel()
        assert await third is not None
        assert second.cancelled()


async def test_beside_a_learned_limit_other_failures_are_repeated_as_ever() -> None:
    provider = Provider(script(ConnectionError(), ConnectionError()))
    result = await run(*items(provider), config=workers(1, retry=RetryConfig(jitter=False)))
    assert result.succeeded == 1
    assert provider.instants == [0.0, 1.0, 3.0]


async def test_a_prepare_that_was_a_try_once_is_none_when_it_is_repeated() -> None:
    quota = Quota(10.0)
    quota.outage = (0.0, 100.0)

    class Late(Provider):
        async def prepare(self) -> None:
            await super().prepare()
            if now() < 100.0:
                # Longer than the next try is ever put off.
                raise Refused(1_000.0)

    early, late = Provider(quota), Late(seconds=10.0)
    async with Processor(config=workers(5)) as processor:
        running = await start(processor, *items(early))
        await asyncio.sleep(20.0)
        for item in items(late):
            await processor.add_work(item)
        await asyncio.sleep(80.0)
        [tried] = late.prepared
        await asyncio.sleep(tried + 1_005.0 - now())
        assert early.instants[-1] < late.prepared[-1] == tried + 1_000.0
        limit = processor._gate._limit
        assert limit is not None
        assert limit._in_flight == 1
        assert (await running).succeeded == 2
