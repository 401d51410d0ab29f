"""Playing, replaying and reporting."""

import os
import random
import subprocess
import sys
from hashlib import sha256
from typing import Any

import pytest

import batch_llm.testing.simulate.__main__ as command
from batch_llm import (
    BatchResult,
    ParallelBatchProcessor,
    ProcessorConfig,
    RateLimitConfig,
    RetryConfig,
)
from batch_llm.testing.simulate import (
    Faults,
    Hooks,
    Interruption,
    InvariantError,
    Latency,
    Outage,
    Quota,
    QuotaChange,
    Scenario,
    Service,
    check,
    generate,
    simulate,
)
from batch_llm.testing.simulate.soak import play_seeds

SEEDS = range(150)
DIGEST = """
from hashlib import sha256
from batch_llm.testing.simulate import simulate
for seed in range({}, {}):
    print(sha256(simulate(seed=seed).trace().encode()).hexdigest())
"""


@pytest.mark.no_cover
def test_a_seed_gives_the_same_trace_in_any_process() -> None:
    program = DIGEST.format(SEEDS.start, SEEDS.stop)
    elsewhere = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        for hash_seed in ("0", "7")
    ]
    here = [sha256(simulate(seed=seed).trace().encode()).hexdigest() for seed in SEEDS]
    differing = {
        seed
        for digests in elsewhere
        for seed, other, own in zip(SEEDS, digests, here, strict=True)
        if other != own
    }
    assert not differing


def test_seeds_differ() -> None:
    assert len({simulate(seed=seed).trace() for seed in range(30)}) == 30


def test_the_global_random_state_is_left_alone() -> None:
    before = random.getstate()
    simulate(Scenario(service=Service(faults=Faults(connection=0.5))), seed=1)
    assert random.getstate() == before


def test_jitter_comes_from_the_seed() -> None:
    scenario = Scenario(
        items=5,
        config=ProcessorConfig(retry=RetryConfig(max_attempts=9)),
        service=Service(faults=Faults(connection=0.5)),
    )
    seconds = {simulate(scenario, seed=3).seconds for _ in range(3)}
    assert len(seconds) == 1
    assert len({simulate(scenario, seed=seed).seconds for seed in range(3)}) == 3


async def test_inside_a_running_loop_it_is_refused() -> None:
    with pytest.raises(RuntimeError, match="running"):
        simulate(Scenario())


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="max_workers must be >= 1"):
        simulate(Scenario(config=ProcessorConfig(max_workers=0)))


def test_what_is_returned_tells_the_run() -> None:
    scenario = Scenario(
        items=20,
        config=ProcessorConfig(max_workers=4),
        service=Service(latency=Latency(median_seconds=3.0)),
    )
    simulation = simulate(scenario, seed=1)
    check(simulation)
    assert simulation.seconds == 15.0
    assert simulation.peak_in_flight == 4
    assert len(simulation.results) == len(simulation.calls) == 20
    assert simulation.ledger["input_tokens"] == sum(
        result.token_usage.get("input_tokens", 0) for result in simulation.results
    )
    assert "call     item 19, attempt 1" in simulation.trace()


def test_a_quota_bounds_the_time() -> None:
    scenario = Scenario(
        items=60,
        config=ProcessorConfig(max_workers=10, max_requests_per_minute=30),
        service=Service(quota=Quota(requests_per_minute=30)),
    )
    simulation = simulate(scenario, seed=1)
    check(simulation)
    assert simulation.seconds == pytest.approx(59 * 2 + 1)
    assert not [call for call in simulation.calls if call.is_rate_limited]


@pytest.mark.parametrize("kind", ["cancel", "cleanup", "keyboard"])
def test_an_interrupted_run(kind: str) -> None:
    scenario = Scenario(items=40, interruption=Interruption(at_seconds=3.5, kind=kind))
    simulation = simulate(scenario, seed=1)
    check(simulation)
    assert simulation.runs[0].interrupted
    assert simulation.seconds in (3.5, 4.0)
    assert len(simulation.calls) in range(20, 26)


def test_items_may_come_late_and_from_the_post_processor() -> None:
    scenario = Scenario(
        items=12,
        config=ProcessorConfig(max_queue_size=3),
        strategies=2,
        late_items=4,
        late_gap_seconds=0.4,
        added_items=5,
    )
    simulation = simulate(scenario, seed=1)
    check(simulation)
    assert {result.context for result in simulation.results} == set(range(17))


def test_a_scenario_prints_as_the_expression_for_it() -> None:
    for seed in range(100):
        scenario = generate(seed)
        assert eval(str(scenario), globals()) == scenario


def test_generated_scenarios_have_everything() -> None:
    text = "".join(str(generate(seed)) for seed in range(500))
    names = {
        *Faults.__dataclass_fields__,
        *Hooks.__dataclass_fields__,
        *Service.__dataclass_fields__,
        *Scenario.__dataclass_fields__,
        *(cls.__name__ for cls in (Outage, QuotaChange, RateLimitConfig, RetryConfig)),
    }
    # Shares and sizes that make no difference in kind stay as they are.
    plain = {"misbehaving", "input_tokens", "output_tokens"}
    assert {name for name in names if f"{name}=" not in text and f"{name}(" not in text} == plain


def lose_results(monkeypatch: pytest.MonkeyPatch) -> None:
    process_all = ParallelBatchProcessor.process_all

    async def lose(self: Any) -> BatchResult[Any, Any]:
        await process_all(self)
        return BatchResult([])

    monkeypatch.setattr(ParallelBatchProcessor, "process_all", lose)


def test_a_failure_prints_the_command_that_replays_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lose_results(monkeypatch)
    assert command.main(["2"]) == 1
    printed = capsys.readouterr().out
    assert "results: item 0 has no result" in printed
    assert printed.endswith("Play it again: python -m batch_llm.testing.simulate 2\n")


def test_for_a_scenario_of_ones_own_it_prints_the_expression(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lose_results(monkeypatch)
    with pytest.raises(InvariantError, match=r"simulate\(Scenario\(items=7\), 3\)"):
        check(simulate(Scenario(items=7), seed=3))


def test_the_command_plays_one_seed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["3"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == str(generate(3))
    assert printed[-1].startswith("Every invariant holds: ")


def test_the_command_plays_many_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--seeds", "20", "--first", "10", "--jobs", "1"]) == 0
    assert capsys.readouterr().out.startswith("20 seeds, 0 failed; ")


def test_the_command_tells_which_seeds_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "play_side_by_side", lambda seeds, jobs: [play_seeds(seeds)])
    lose_results(monkeypatch)
    assert command.main(["--seeds", "3"]) == 1
    printed = capsys.readouterr().out
    assert "Play it again: python -m batch_llm.testing.simulate 2" in printed
    assert printed.splitlines()[-1].startswith("3 seeds, ")
