"""What importing the library costs: CPU time of fresh interpreters.

    python benchmarks/imports.py [--quick]

A program is run turn and turn about with the others; its best round counts. The exit code is
the number of targets missed.
"""

import argparse
import resource
import subprocess
import sys
from collections.abc import Iterator

from overhead import Row

# Whoever has pydantic pays for it anyway.
PROGRAMS = {
    "pydantic": "import pydantic",
    "asyncio": "import pydantic, asyncio",
    "library": "import pydantic, asyncio, batch_llm",
}


def least_cpu_seconds(rounds: int) -> dict[str, float]:
    """User and system time of each program's best round."""
    best = dict.fromkeys(PROGRAMS, float("inf"))
    for _ in range(rounds):
        for name, program in PROGRAMS.items():
            before = _children_seconds()
            # Isolated, so that the environment can forbid no .pyc files.
            subprocess.run([sys.executable, "-I", "-c", program], check=True)
            best[name] = min(best[name], _children_seconds() - before)
    return best


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def import_time(rounds: int) -> Iterator[Row]:
    best = least_cpu_seconds(rounds)
    total = (best["library"] - best["pydantic"]) * 1e3
    own = (best["library"] - best["asyncio"]) * 1e3
    note = f"{total - own:.1f} ms asyncio, {own:.1f} ms ours"
    yield Row("P8 import batch_llm, beyond pydantic: CPU", 50, total, unit="ms", note=note)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, in 3 seconds")
    missed = 0
    for row in import_time(rounds=8 if parser.parse_args().quick else 40):
        missed += not row.ok
        print(row)
    return missed


if __name__ == "__main__":
    sys.exit(main())
