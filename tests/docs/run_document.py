"""Run the Python snippets of a Markdown document in order, as one program.

A traceback shows the document's own lines. ``await`` may stand at the top level of a snippet.
"""

import ast
import asyncio
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from markdown_it import MarkdownIt
from markdown_it.token import Token


def fences(document: Path) -> Iterator[Token]:
    """The fenced code blocks of a document, in order."""
    tokens = MarkdownIt().parse(document.read_text())
    return (token for token in tokens if token.type == "fence")


def run(document: Path) -> None:
    """Execute each ``python`` block of a document in one and the same namespace."""
    program = sys.modules["__main__"] = ModuleType("__main__")
    with asyncio.Runner() as runner:
        for fence in fences(document):
            if fence.info == "python":
                assert fence.map is not None
                code = compile(
                    "\n" * (fence.map[0] + 1) + fence.content,
                    document,
                    "exec",
                    flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
                )
                outcome = eval(code, vars(program))
                if inspect.iscoroutine(outcome):
                    runner.run(outcome)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
