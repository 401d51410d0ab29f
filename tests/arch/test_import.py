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

QUICKLY = """
import sys
# What it may take with it; anything else has to be worth its time, or be imported where it is used.
import asyncio, bisect, concurrent.futures.thread, json, pydantic, queue, random
before = set(sys.modules)
%s
added = [name for name in sys.modules if name not in before and not name.startswith("_")]
ours = [name for name in added if name.partition(".")[0] == "batch_llm"]
of_one_provider = [name for name in ours if "gemini" in name or "pydantic_ai" in name]
assert added == ours and not of_one_provider, added
"""

LATE = """
import batch_llm
assert {"GeminiStrategy", "classifiers", "llm_strategies"} <= set(dir(batch_llm))
assert {"GeminiStrategy", "LLMCallStrategy", "gemini_cache"} <= set(dir(batch_llm.llm_strategies))
assert batch_llm.classifiers.gemini.GeminiErrorClassifier is batch_llm.GeminiErrorClassifier
assert batch_llm.llm_strategies.gemini.GeminiStrategy is batch_llm.GeminiStrategy
from batch_llm.llm_strategies import *
assert GeminiCachedStrategy is batch_llm.llm_strategies.gemini_cache.GeminiCachedStrategy
from batch_llm import *
assert PydanticAIStrategy is batch_llm.llm_strategies.pydantic_ai.PydanticAIStrategy
assert not hasattr(batch_llm, "OpenAIStrategy") and not hasattr(batch_llm.classifiers, "openai")
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


def test_importing_loads_little() -> None:
    assert complaints(QUICKLY % "import batch_llm") == ""


def test_names_that_are_imported_late_are_there_when_asked_for() -> None:
    assert complaints(LATE) == ""


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        (WATCHED % "logging.basicConfig()", "root handlers"),
        (WATCHED % "threading.Thread(target=signal.pause, daemon=True).start()", "threads"),
        (WATCHED % "import socket; socket.socket()", "socket.__new__"),
        (WATCHED % "open('/dev/null', 'w')", "/dev/null"),
        (WATCHED % "warnings.simplefilter('ignore')", "warning filters"),
        (WITHOUT_EXTRAS % "import httptools", "not a dependency"),
        (QUICKLY % "import email", "'email'"),
        (QUICKLY % "from pydantic import BaseModel", "'pydantic.main'"),
        (QUICKLY % "from batch_llm import GeminiErrorClassifier", "'batch_llm.classifiers.gemini'"),
    ],
    ids=[
        "logging",
        "thread",
        "socket",
        "file",
        "warnings",
        "extra",
        "stdlib",
        "pydantic",
        "provider",
    ],
)
def test_what_an_import_must_not_do_is_found(code: str, complaint: str) -> None:
    assert complaint in complaints(code)
