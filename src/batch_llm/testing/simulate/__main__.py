"""``python -m batch_llm.testing.simulate``: one seed in detail, or many and which of them fail."""

import argparse
import os
import sys
from collections.abc import Sequence

from batch_llm.testing.simulate.invariants import InvariantError, check
from batch_llm.testing.simulate.play import simulate
from batch_llm.testing.simulate.soak import Tally, play_side_by_side


def main(argv: Sequence[str] | None = None) -> int:
    """Play what the command line says.

    Args:
        argv: The arguments; by default those of the process.

    Returns:
        0 if every invariant held, otherwise 1.
    """
    options = _parser().parse_args(argv)
    if options.seed is not None:
        return _play_one(options.seed)
    return _play_many(range(options.first, options.first + options.seeds), options.jobs)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m batch_llm.testing.simulate",
        description="Play generated scenarios with a real processor in virtual time.",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("seed", nargs="?", type=int, help="play this one, and tell all of it")
    which.add_argument("--seeds", type=int, metavar="N", help="play so many, tell which fail")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first of them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes side by side")
    return parser


def _play_one(seed: int) -> int:
    simulation = simulate(seed=seed)
    print(simulation.scenario, simulation.trace(), sep="\n")
    try:
        check(simulation)
    except InvariantError as error:
        print(error)
        return 1
    print(
        f"Every invariant holds: {len(simulation.results)} results, {len(simulation.calls)} calls, "
        f"at most {simulation.peak_in_flight} in flight, {simulation.seconds:g} virtual seconds"
    )
    return 0


def _play_many(seeds: range, jobs: int) -> int:
    tally = Tally()
    for part in play_side_by_side(seeds, jobs=jobs):
        tally.add(part)
        if sys.stderr.isatty():
            print(f"\r{tally.seeds} of {len(seeds)} seeds", end="", file=sys.stderr)
    print(tally)
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
