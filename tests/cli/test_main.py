"""What the command line says before anything is run."""

import subprocess
import sys
from pathlib import Path

import pytest

from batch_llm import __version__
from batch_llm.cli import main
from batch_llm.cli.options import UsageError, parse
from batch_llm.cli.services import check_installed


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "COMMAND"),
        (["other"], "invalid choice: 'other'"),
        (["demo", "--items", "0"], "got '0'; must be a whole number from 1 to 10,000"),
        (["demo", "--items", "10001"], "got '10001'; must be a whole number from 1 to 10,000"),
        (["demo", "--items", "many"], "got 'many'; must be a whole number from 1 to 10,000"),
        (["demo", "--workers", "0"], "got '0'; must be a whole number from 1 to 1,000"),
        (["demo", "--output", "."], "got ., which cannot be written (Is a directory)"),
        (["demo", "--live"], "--live got no key in GEMINI_API_KEY"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_told_without_a_traceback(
    arguments: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    assert main(arguments) == 2
    assert not list(tmp_path.iterdir())
    shown = capsys.readouterr()
    assert complaint in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""


@pytest.mark.parametrize("missing", ["google.genai", "httptools"])
def test_a_missing_extra_is_told_with_the_command_that_installs_it(
    missing: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["demo", "--output", str(tmp_path / "books.jsonl")]) == 2
    assert 'pip install "batch-llm[gemini,testing]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_live_run_needs_no_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httptools", None)
    monkeypatch.setenv("GEMINI_API_KEY", "a key")
    check_installed(parse(["demo", "--live"]))
    with pytest.raises(UsageError):
        check_installed(parse(["demo"]))


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", " a key\n")
    played, live = parse(["demo"]), parse(["demo", "--live"])
    assert (played.items, played.output, played.live) == (200, Path("demo-books.jsonl"), False)
    assert (live.items, live.output, live.api_key) == (200, Path("enriched-books.jsonl"), "a key")
    assert "a key" not in repr(live)


def test_python_m_batch_llm() -> None:
    command = [sys.executable, "-m", "batch_llm", "--version"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.strip() == f"batch-llm {__version__}"


def test_help_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--help"]) == 0
    assert "0 all rows succeeded, 1 some failed, 2 wrong usage" in capsys.readouterr().out


def test_the_library_does_not_import_its_command_line() -> None:
    code = "import batch_llm, sys; print([m for m in sys.modules if m.startswith('batch_llm.cli')])"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == "[]"
