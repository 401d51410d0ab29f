"""Whole runs in virtual time: a real processor, a simulated provider, tasks in any order.

::

    scenario = Scenario(
        items=1_000,
        config=ProcessorConfig(max_workers=50),
        service=Service(quota=Quota(requests_per_minute=600)),
    )
    simulation = simulate(scenario, seed=1)
    check(simulation)
    print(simulation.seconds, simulation.peak_in_flight)

``python -m batch_llm.testing.simulate SEED`` plays the scenario that :func:`generate` makes of
a seed, ``--seeds N`` the first N.
"""

from batch_llm.testing.simulate.generate import generate
from batch_llm.testing.simulate.invariants import INVARIANTS, InvariantError, check
from batch_llm.testing.simulate.play import simulate
from batch_llm.testing.simulate.provider import (
    ProviderError,
    SimulatedProvider,
    SimulatedStrategy,
)
from batch_llm.testing.simulate.records import (
    Accepted,
    Call,
    Event,
    Moment,
    Run,
    Simulation,
    Snapshot,
    Upkeep,
)
from batch_llm.testing.simulate.scenario import (
    Faults,
    Hooks,
    Interruption,
    Latency,
    Manner,
    Outage,
    Quota,
    QuotaChange,
    Scenario,
    Service,
)
from batch_llm.testing.simulate.schedule import EndlessRunError, ShuffledLoop

__all__ = [
    "INVARIANTS",
    "Accepted",
    "Call",
    "EndlessRunError",
    "Event",
    "Faults",
    "Hooks",
    "Interruption",
    "InvariantError",
    "Latency",
    "Manner",
    "Moment",
    "Outage",
    "ProviderError",
    "Quota",
    "QuotaChange",
    "Run",
    "Scenario",
    "Service",
    "ShuffledLoop",
    "SimulatedProvider",
    "SimulatedStrategy",
    "Simulation",
    "Snapshot",
    "Upkeep",
    "check",
    "generate",
    "simulate",
]
