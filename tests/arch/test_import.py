"""Importing the package does nothing but define names, and needs nothing but pydantic."""

import subprocess
import sys

import pytest

WATCHED = """
import asyncio, logging, os, signal, sys, threading, warnings
from pydantic import BaseModel

def state():
    return {
        "threads": threading.enumerate(),
        "environment": dict(os.environ),
        "warning filters": list(warnings.filters),
        "root handlers": list(logging.root.handlers),
        "root level": logging.root.level,
        "signal handlers": [signal.getsignal(number) for number in signal.valid_signals()],
        "hooks": [sys.excepthook, threading.excepthook, sys.unraisablehook],
    }

def forbid(event, arguments):
    writes = event == "open" and arguments[1] not in {"r", "rb", None}
    assert not writes and not event.startswith(("socket.", "subprocess.")), (event, arguments)

before = state()
sys.addaudithook(forbid)
%s
assert state() == before, (before, state())
"""

WITHOUT_EXTRAS = """
import importlib, pkgutil, sys
from pydantic import BaseModel

PYDANTIC = {"annotated_types", "pydantic_core", "typing_extensions", "typing_inspection"}

class NothingElse:
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root not in sys.stdlib_module_names | PYDANTIC | {"batch_llm", "pydantic"}:
            raise ModuleNotFoundError(f"{name} is not a dependency", name=name)

sys.meta_path.insert(0, NothingElse())
%s
"""

EVERY_MODULE = """
import batch_llm
# The program itself, and what only a test suite imports, with the extra that is for it.
APART = ("batch_llm.__main__", "batch_llm.testing.gemini", "batch_llm.testing.pytest_plugin")
for module in pkgutil.walk_packages(batch_llm.__path__, "batch_llm."):
    if not module.name.startswith(APART):
        importlib.import_module(module.name)
"""


def complaints(code: str) -> str:
    """Run a program; whatever it prints."""
    command = [sys.executable, "-B", "-W", "error", "-c", code]
    output = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return output.stdout + output.stderr


def test_importing_does_nothing() -> None:
    assert complaints(WATCHED % "import batch_llm") == ""


def test_importing_every_module_needs_no_extra() -> None:
    assert complaints(WITHOUT_EXTRAS % EVERY_MODULE) == ""


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        (WATCHED % "logging.basicConfig()", "root handlers"),
        (WATCHED % "threading.Thread(target=signal.pause, daemon=True).start()", "threads"),
        (WATCHED % "import socket; socket.socket()", "socket.__new__"),
        (WATCHED % "open('/dev/null', 'w')", "/dev/null"),
        (WATCHED % "warnings.simplefilter('ignore')", "warning filters"),
        (WITHOUT_EXTRAS % "import httptools", "not a dependency"),
    ],
    ids=["logging", "thread", "socket", "file", "warnings", "extra"],
)
def test_what_an_import_must_not_do_is_found(code: str, complaint: str) -> None:
    assert complaint in complaints(code)
