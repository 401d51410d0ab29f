"""What each room of the package may do, beside the import directions that import-linter checks."""

import ast
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import batch_llm

PACKAGE = Path(batch_llm.__file__).parent
# These run or simulate a program of their own around the library.
PROGRAMS = {"cli", "testing", "integrations", "__main__"}


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of whatever a module imports at run time, in functions too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which room they reach into"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from imports(node)


def waiting(tree: ast.AST) -> Iterator[int]:
    waits = ast.Await | ast.AsyncFor | ast.AsyncWith
    return (node.lineno for node in ast.walk(tree) if isinstance(node, waits))


def logging(tree: ast.AST) -> Iterator[int]:
    return (line for line, name in imports(tree) if name.split(".")[0] == "logging")


def clock_reading(tree: ast.AST) -> Iterator[int]:
    yield from (line for line, name in imports(tree) if name.split(".")[0] == "time")
    yield from _calls(tree, r"(.*\.)?(datetime\.(now|utcnow|today)|date\.today)")


def task_making(tree: ast.AST) -> Iterator[int]:
    return _calls(tree, r"(.*\.)?(create_task|ensure_future|gather|TaskGroup)")


def _calls(tree: ast.AST, function: str) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and re.fullmatch(function, ast.unparse(node.func), re.DOTALL):
            yield node.lineno


def optional_importing(tree: ast.AST) -> Iterator[int]:
    """Packages that only an extra installs go through core/extras.py, which names the remedy."""
    always_there = sys.stdlib_module_names | {"pydantic", "batch_llm"}
    return (line for line, name in imports(tree) if name.split(".")[0] not in always_there)


def sharing_code(tree: ast.AST) -> Iterator[int]:
    own = ("batch_llm.core.", "batch_llm.testing.gemini.")
    for line, name in imports(tree):
        if name.startswith("batch_llm") and not f"{name}.".startswith(own):
            yield line


@dataclass(frozen=True)
class Rule:
    """What the modules of some rooms must not do, and modules that do."""

    breaches: Callable[[ast.AST], Iterator[int]]
    applies: Callable[[Path], bool]
    samples: list[str]


def rooms(*names: str) -> Callable[[Path], bool]:
    return lambda path: path.parts[0].removesuffix(".py") in names


def library_but(*exceptions: str) -> Callable[[Path], bool]:
    return lambda path: not rooms(*PROGRAMS)(path) and path.as_posix() not in exceptions


RULES = [
    Rule(
        waiting,
        rooms("core", "strategies", "classifiers"),
        ["async def f(): await g()", "async def f():\n async with g: pass"],
    ),
    Rule(
        logging,
        rooms("core", "strategies", "classifiers", "parallel"),
        ["from logging import getLogger", "import logging.handlers"],
    ),
    Rule(
        clock_reading,
        library_but("core/clock.py"),
        ["def f(): import time", "datetime.datetime.now(UTC)"],
    ),
    Rule(
        task_making,
        library_but("_engine/tasks.py", "base.py"),
        ["asyncio.create_task(work())", "async def f():\n async with TaskGroup() as group: pass"],
    ),
    Rule(
        optional_importing,
        lambda path: path.as_posix() != "testing/pytest_plugin.py",
        ["import openai", "def f(): from google.genai import types"],
    ),
    Rule(
        sharing_code,
        lambda path: path.parts[:2] == ("testing", "gemini"),
        ["from batch_llm import base", "import batch_llm.testing.mocks"],
    ),
]
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.breaches.__name__)


@each_rule
def test_the_package_keeps_the_rule(rule: Rule) -> None:
    found = [
        f"{path}:{line}"
        for path in sorted(file.relative_to(PACKAGE) for file in PACKAGE.rglob("*.py"))
        if rule.applies(path)
        for line in rule.breaches(ast.parse((PACKAGE / path).read_text()))
    ]
    assert not found


@each_rule
def test_a_breach_of_the_rule_is_found(rule: Rule) -> None:
    assert all(list(rule.breaches(ast.parse(sample))) for sample in rule.samples)


def test_imports_for_a_type_checker_are_nobodys_business() -> None:
    assert not list(imports(ast.parse("if TYPE_CHECKING:\n    from google.genai import types")))


def test_each_rule_has_modules_to_hold_for() -> None:
    paths = [file.relative_to(PACKAGE) for file in PACKAGE.rglob("*.py")]
    assert all(any(rule.applies(path) for path in paths) for rule in RULES)
