"""No file of the package over 500 lines, no function over 50 (its docstring not counted)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import batch_llm

PACKAGE = Path(batch_llm.__file__).parent
MOST_LINES_IN_A_FILE = 500
MOST_LINES_IN_A_FUNCTION = 50


def oversized(source: str) -> Iterator[str]:
    """What is too long in a module, and by how much."""
    lines = len(source.splitlines())
    if lines > MOST_LINES_IN_A_FILE:
        yield f"{lines} lines in the file"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = _lines(node) - _docstring_lines(node)
            if lines > MOST_LINES_IN_A_FUNCTION:
                yield f"{lines} lines in {node.name}"


def _lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _docstring_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return _lines(function.body[0]) if ast.get_docstring(function) is not None else 0


def test_sizes() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}: {excess}"
        for path in PACKAGE.rglob("*.py")
        for excess in oversized(path.read_text())
    ]
    assert not found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1\n" * 500, []),
        ("x = 1\n" * 501, ["501 lines in the file"]),
        ("def f():\n" + "    x = 1\n" * 49, []),
        ("def f():\n" + "    x = 1\n" * 50, ["51 lines in f"]),
        ('async def f():\n    """\n    Long.\n    """\n' + "    x = 1\n" * 49, []),
        ("class C:\n    async def f(self):\n" + "        x = 1\n" * 50, ["51 lines in f"]),
    ],
    ids=["file", "long file", "function", "long function", "docstring", "long method"],
)
def test_the_limits(source: str, expected: list[str]) -> None:
    assert list(oversized(source)) == expected
