"""A missing extra names the command that installs it."""

import json
import sys

import pytest

from batch_llm.core.extras import require


def test_what_is_installed_is_imported() -> None:
    assert require("json", extra="gemini") is json


def test_what_is_missing_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.genai", None)
    with pytest.raises(ImportError, match=r"^'google.genai' could not be imported") as caught:
        require("google.genai", extra="gemini")
    assert 'pip install "batch-llm[gemini]"' in str(caught.value)
    assert isinstance(caught.value.__cause__, ImportError)
