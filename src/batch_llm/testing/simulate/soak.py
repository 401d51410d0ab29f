"""Many seeds, one after the other and side by side."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from batch_llm.testing.simulate.invariants import InvariantError, check
from batch_llm.testing.simulate.play import simulate

_CHUNK = 250


@dataclass
class Tally:
    """What came of some seeds.

    Attributes:
        seeds: How many were played.
        items: Items accepted.
        calls: Calls made.
        virtual_seconds: All their time together.
        failures: For each seed that broke an invariant, what it broke.
    """

    seeds: int = 0
    items: int = 0
    calls: int = 0
    virtual_seconds: float = 0.0
    failures: dict[int, str] = field(default_factory=dict[int, str])

    def add(self, other: "Tally") -> None:
        """Take in another tally."""
        self.seeds += other.seeds
        self.items += other.items
        self.calls += other.calls
        self.virtual_seconds += other.virtual_seconds
        self.failures |= other.failures

    def __str__(self) -> str:
        """The closing report, with the command that replays each failure."""
        told = "".join(f"seed {seed}\n{text}\n\n" for seed, text in sorted(self.failures.items()))
        return (
            f"{told}{self.seeds} seeds, {len(self.failures)} failed; {self.items} items, "
            f"{self.calls} calls, {self.virtual_seconds / 3600:.0f} virtual hours"
        )


def play_seeds(seeds: Iterable[int]) -> Tally:
    """Play the generated scenario of each seed, and check every invariant."""
    tally = Tally()
    for seed in seeds:
        simulation = simulate(seed=seed)
        tally.seeds += 1
        tally.items += len(simulation.accepted)
        tally.calls += len(simulation.calls)
        tally.virtual_seconds += simulation.seconds
        try:
            check(simulation)
        except InvariantError as error:
            tally.failures[seed] = str(error)
    return tally


def play_side_by_side(seeds: range, *, jobs: int) -> Iterator[Tally]:
    """The same in several processes; gives the tally of some seeds at a time."""
    chunks = [seeds[start : start + _CHUNK] for start in range(0, len(seeds), _CHUNK)]
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(play_seeds, chunks)
