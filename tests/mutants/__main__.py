"""Whether the tests notice when the code is wrong: each mutant must fail one of them.

    python -m tests.mutants [PATH ...]

A path is a module's, such as ``strategies/retry.py``; by default it is each of ``strategies``
and ``_engine``. A mutant lives in a forked process only, so the source stays as it is. Mutants
that behave like the original are listed with the reason in ``equivalent.toml``. The exit code
tells how many survive that are not in the list, and how many are in the list without need.
"""

import argparse
import ast
import importlib.machinery
import importlib.util
import os
import resource
import signal
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType

# Imported before the forks, since each of them would take as long as a test.
import hypothesis
import pydantic
import pytest

from tests.mutants.operators import mutants

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PACKAGE = ROOT / "src" / "batch_llm"
EQUIVALENT = HERE / "equivalent.toml"
PRELOADED = (pydantic,)

STRATEGIES = (
    "tests/strategies",
    "tests/engine/test_adaptive.py",
    "tests/engine/test_retries.py",
    "tests/engine/test_rate_limits.py",
    "tests/engine/test_quotas.py",
)
ENGINE = (
    "tests/engine",
    # Takes as long as all the others.
    "--ignore=tests/engine/test_state_machine.py",
    "tests/middleware",
    "tests/observers/test_events.py",
    "tests/observers/test_slow_observers.py",
    "tests/test_doors.py",
    "tests/test_exact_gates.py",
    "tests/test_logging.py",
    "tests/test_named_strategies.py",
    "tests/test_post_processor.py",
    "tests/test_shared_strategies.py",
    "tests/test_token_tracking.py",
)
# The tests that notice most of a module's mutants, and are asked first.
FIRST: dict[str, tuple[str, ...]] = {
    "strategies/_http.py": (
        "tests/strategies/test_http.py",
        "tests/strategies/test_default_classifier.py",
    ),
    "strategies/adaptive.py": (
        "tests/strategies/test_adaptive.py",
        "tests/strategies/test_adaptive_budgets.py",
        "tests/strategies/test_adaptive_tokens.py",
        "tests/strategies/test_adaptive_providers.py",
    ),
    "strategies/errors.py": ("tests/strategies/test_default_classifier.py",),
    "strategies/budget.py": ("tests/strategies/test_budget.py",),
    "strategies/pace.py": ("tests/strategies/test_pace.py",),
    "strategies/rate_limit.py": ("tests/strategies/test_rate_limit.py",),
    "strategies/retry.py": ("tests/strategies/test_retry.py",),
    "strategies/tokens.py": ("tests/strategies/test_tokens.py",),
    "_engine/attempt.py": ("tests/engine/test_failures.py", "tests/engine/test_timeouts.py"),
    "_engine/deadlines.py": ("tests/engine/test_deadlines.py",),
    "_engine/doors.py": ("tests/test_doors.py", "tests/llm_strategies/test_gemini_client.py"),
    "_engine/engine.py": (
        "tests/engine/test_run_end.py",
        "tests/engine/test_stopping.py",
        "tests/engine/test_collaborators.py",
        "tests/test_shared_strategies.py",
    ),
    "_engine/estimates.py": ("tests/engine/test_tokens.py",),
    "_engine/events.py": (
        "tests/observers/test_events.py",
        "tests/observers/test_slow_observers.py",
    ),
    "_engine/gate.py": (
        "tests/engine/test_gate.py",
        "tests/engine/test_pacing.py",
        "tests/engine/test_rate_limits.py",
        "tests/engine/test_adaptive.py",
    ),
    "_engine/gates.py": ("tests/engine/test_quotas.py", "tests/engine/test_rate_limits.py"),
    "_engine/hedge.py": (
        "tests/engine/test_hedging.py",
        "tests/engine/test_hedging_costs.py",
    ),
    "_engine/hooks.py": ("tests/middleware",),
    "_engine/interrupts.py": ("tests/engine/test_interrupts.py",),
    "_engine/item.py": ("tests/engine/test_failures.py", "tests/engine/test_lifecycle.py"),
    "_engine/journal.py": ("tests/engine/test_results.py", "tests/engine/test_retries.py"),
    "_engine/lifecycle.py": (
        "tests/engine/test_lifecycle.py",
        "tests/test_shared_strategies.py",
    ),
    "_engine/meters.py": (
        "tests/engine/test_meter_blocks.py",
        "tests/engine/test_pacing.py",
        "tests/engine/test_meter_properties.py",
    ),
    "_engine/options.py": ("tests/test_doors.py",),
    "_engine/pool.py": ("tests/engine/test_workers.py", "tests/engine/test_stopping.py"),
    "_engine/progress.py": ("tests/test_progress.py",),
    "_engine/recovery.py": ("tests/engine/test_retries.py", "tests/engine/test_rate_limits.py"),
    "_engine/cooldown.py": ("tests/engine/test_rate_limits.py",),
    "_engine/state.py": ("tests/engine/test_state.py",),
    "_engine/tasks.py": ("tests/engine/test_tasks.py", "tests/engine/test_timeouts.py"),
    "_engine/waits.py": ("tests/engine/test_retries.py", "tests/engine/test_rate_limits.py"),
    "_engine/worker.py": ("tests/engine/test_workers.py",),
}
OPTIONS = (
    *("-x", "-q", "-p", "no:cacheprovider"),
    # A test that hangs has noticed something too.
    *("-o", "faulthandler_timeout=30", "-o", "faulthandler_exit_on_timeout=true"),
)
MOST_BYTES = 4 << 30


class Changed(importlib.machinery.SourceFileLoader):
    """Loads a mutant in the place of one module."""

    def __init__(self, path: str, tree: ast.Module) -> None:
        name = ".".join(("batch_llm", *Path(path).with_suffix("").parts))
        super().__init__(name, str(PACKAGE / path))
        self._tree = tree

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._tree, self.path, "exec")

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)


def modules() -> list[str]:
    """Every module of the rooms in which a mistake may lose an item, or money."""
    return [
        path.relative_to(PACKAGE).as_posix()
        for room in ("strategies", "_engine")
        for path in sorted((PACKAGE / room).glob("*.py"))
        if path.name != "__init__.py"
    ]


def is_noticed(path: str, tree: ast.Module, *, quiet: bool = True) -> bool:
    """Run a module's tests with the module changed; whether one fails."""
    rest = STRATEGIES if path.startswith("strategies/") else ENGINE
    stages = [tests for tests in (FIRST.get(path), rest) if tests]
    return any(_fails(tests, Changed(path, tree), quiet=quiet) for tests in stages)


def _fails(tests: Sequence[str], changed: Changed, *, quiet: bool) -> bool:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            # A mutant may never stop to ask for memory.
            resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
            if quiet:
                _be_quiet()
            sys.meta_path.insert(0, changed)
            code = pytest.main([*OPTIONS, *tests])
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) != 0


def _be_quiet() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def check(path: str, equivalent: Mapping[str, str]) -> int:
    """Try a module's mutants and tell of those that no test notices; how many there are."""
    source = (PACKAGE / path).read_text()
    if is_noticed(path, ast.parse(source), quiet=False):
        raise SystemExit(f"{path}: its tests fail without any change; mend them first")
    every = list(mutants(source))
    survivors = set[str]()
    for mutant in every:
        if not is_noticed(path, mutant.tree):
            survivors.add(mutant.name)
            if mutant.name not in equivalent:
                tell(f"{path}:{mutant.line}: {mutant.name}")
    for name in sorted(equivalent.keys() - survivors):
        tell(f"{path}: no survivor, so take it out of {EQUIVALENT.name}: {name}")
    unexplained = len(survivors ^ equivalent.keys())
    tell(f"{path}: {len(every)} mutants, {len(survivors)} unnoticed, {unexplained} to mend")
    return unexplained


def tell(line: str) -> None:
    print(line, flush=True)  # noqa: T201 (talks to a person)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("paths", nargs="*", metavar="PATH")
    paths = parser.parse_args().paths or modules()
    os.chdir(ROOT)
    sys.path.insert(0, str(PACKAGE.parent))  # before an installed one
    # In the order given, and without plugins that each fork would have to import.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    # A shell that runs this in the background has it ignored, which tests of Ctrl-C would notice.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The same examples for each mutant; the first that fails will do.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutants", derandomize=True, phases=phases)
    hypothesis.settings.load_profile("mutants")
    equivalent = tomllib.loads(EQUIVALENT.read_text())
    return min(100, sum(check(path, equivalent.get(path, {})) for path in paths))


if __name__ == "__main__":
    sys.exit(main())
