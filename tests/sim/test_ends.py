"""How runs end before their time, in scenarios of which a random one is rare."""

import pytest

from batch_llm import ProcessorConfig, RateLimitConfig
from batch_llm.testing.simulate import (
    Faults,
    Hooks,
    Interruption,
    Latency,
    Quota,
    Scenario,
    Service,
    check,
    simulate,
)

SCENARIOS = {
    "between two calls of a slow start": Scenario(
        items=4,
        config=ProcessorConfig(rate_limit=RateLimitConfig(cooldown_seconds=0.0)),
        service=Service(quota=Quota(requests_per_minute=1, hints=False), refusal_seconds=0.0),
        interruption=Interruption(at_seconds=7.0, kind="cleanup"),
    ),
    "a left-behind call answers while observers catch up": Scenario(
        items=4,
        service=Service(faults=Faults(stubborn=0.5, stubborn_seconds=3.0)),
        hooks=Hooks(observers=("slow",), misbehaving=1.0),
        interruption=Interruption(at_seconds=3.0, kind="cleanup"),
    ),
    "a stuck call is given up while observers catch up": Scenario(
        items=4,
        config=ProcessorConfig(timeout_per_item=3.0),
        service=Service(faults=Faults(stubborn=0.5, stubborn_seconds=9.0)),
        hooks=Hooks(observers=("slow",), misbehaving=1.0),
        interruption=Interruption(at_seconds=2.5, kind="cleanup"),
    ),
    "strategies are being prepared and cleaned up": Scenario(
        items=8,
        strategies=None,
        service=Service(latency=Latency(median_seconds=0.0)),
        interruption=Interruption(at_seconds=0.0, kind="keyboard"),
    ),
}


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_nothing_is_lost_or_left(scenario: Scenario) -> None:
    for seed in range(60):
        check(simulate(scenario, seed))
