"""The demo from end to end: the real SDK talks to the emulator, mostly in virtual time."""

import asyncio
import io
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from batch_llm.cli import main
from batch_llm.cli.demo import enrich, run
from batch_llm.cli.enrichment import BookEnrichment
from batch_llm.cli.options import DemoOptions, UsageError
from batch_llm.cli.strategy import BookStrategy, CacheUse
from batch_llm.testing.gemini import Fault, GeminiEmulator, RecordedRequest

FULL_DEVICE = Path("/dev/full")
MakeOptions = Callable[..., DemoOptions]


@pytest.fixture
def options(tmp_path: Path) -> MakeOptions:
    def make(items: int, **changes: Any) -> DemoOptions:
        defaults: dict[str, Any] = {
            "workers": 5,
            "output": tmp_path / "books.jsonl",
            "model": "gemini-2.5-flash",
            "api_key": None,
            "seed": 0,
        }
        return DemoOptions(items=items, **defaults | changes)

    return make


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """An emulator in the place of the real service, for runs with a key."""

    @asynccontextmanager
    async def serve(**settings: Any) -> AsyncIterator[GeminiEmulator]:
        async with GeminiEmulator(**settings) as server:
            monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", server.base_url)
            yield server

    return serve


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_main_with_gemini_played_by_the_emulator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "books.jsonl"
    assert main(["demo", "--items", "7", "--output", str(output)]) == 0
    shown = capsys.readouterr()
    assert "All 7 rows succeeded." in shown.out
    assert "invented" in shown.out
    assert "7 of 7" in shown.err.splitlines()[-1]
    assert "warning" not in shown.err
    assert sorted(row["book_id"] for row in rows_of(output)) == list(range(1, 8))


@pytest.mark.parametrize("items", [1, 2, 120])
async def test_gemini_describes_every_book_once(
    options: MakeOptions, items: int, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = options(items, workers=20)
    report = await enrich(asked)
    assert report.complete
    assert "warning" not in capsys.readouterr().err
    assert report.cache.created == 1
    assert report.rate_limits >= 1
    [(quota, told)] = report.result.quotas.items()
    assert quota == f"gemini/{report.options.model}"
    assert (told.answered, told.refused) == (report.result.succeeded, report.rate_limits)
    assert told.learned_calls_per_second is not None
    rows = rows_of(asked.output)
    assert sorted(row["book_id"] for row in rows) == list(range(1, items + 1))
    for row in rows:
        BookEnrichment.model_validate(row)
        assert row["model"] == "emulator (invented)"


async def test_every_kind_of_trouble_is_met_and_ridden_out(options: MakeOptions) -> None:
    report = await enrich(options(120, workers=20))
    assert report.complete
    assert set(report.failed_attempts) == {
        "rate_limit",
        "server_error",
        "validation_error",
        "connection_error",
    }
    # The limit is found, so nobody has to pause for the refusals of others.
    assert report.cooldown_seconds == 0.0
    assert report.rate_limits <= 12


async def test_a_seed_gives_the_same_answers_again_and_another_gives_others(
    options: MakeOptions, tmp_path: Path
) -> None:
    answers = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        asked = options(10, seed=seed, output=tmp_path / name)
        await enrich(asked)
        answers.append(sorted(asked.output.read_text().splitlines()))
    assert answers[0] == answers[1] != answers[2]


async def test_the_numbers_are_those_that_gemini_would_bill(
    options: MakeOptions, served: Callable[..., Any]
) -> None:
    async with served(latency_seconds=0.1) as server:
        server.script(
            None, Fault.rate_limit(2.0), Fault.status(503), Fault.malformed_json(in_text=True)
        )
        report = await enrich(options(12, api_key="a key"))
        (cache,) = server.caches.values()
    generated = [request for request in server.requests if request.operation == "generate"]
    statuses = Counter(request.status for request in generated)
    assert report.requests == len(generated) == 15
    assert report.rate_limits == statuses[429] == 1
    assert report.failed_attempts == {"rate_limit": 1, "server_error": 1, "validation_error": 1}
    assert report.cache.created == server.count("cache_create") == 1
    assert report.cache.tokens == cache.token_count
    assert report.result.total_cached_tokens == statuses[200] * cache.token_count
    assert report.result.succeeded == 12


async def test_gemini_gets_the_instructions_only_once(
    options: MakeOptions, served: Callable[..., Any]
) -> None:
    async with served() as server:
        await enrich(options(3, api_key="a key"))
        (cache,) = server.caches.values()
    assert "# Describing books for a catalogue" in json.dumps(cache.body)
    prompts = [request.prompt for request in server.requests if request.operation == "generate"]
    assert min(prompts) == (
        "Title: Harry Potter and the Sorcerer's Stone (Harry Potter, #1)\n"
        "Authors: J.K. Rowling, Mary GrandPré\n"
        "First published: 1997\n"
        "Language: eng"
    )
    assert all(len(prompt) < 500 for prompt in prompts)


async def test_a_live_cache_serves_the_next_run(
    options: MakeOptions,
    served: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with served() as server:
        assert await run(options(2, api_key="a key", output=tmp_path / "first")) == 0
        assert "stays for the next run, 1 h 0 min left." in capsys.readouterr().out
        await asyncio.sleep(600)
        report = await enrich(options(2, api_key="a key", output=tmp_path / "second"))
        assert server.count("cache_create") == 1
    assert report.cache.created == 0
    assert report.cache.name in server.caches
    assert report.saved_tokens == int(0.9 * 2 * report.cache.tokens)


async def test_a_cache_that_has_to_be_made_again_is_counted(
    options: MakeOptions, served: Callable[..., Any]
) -> None:
    async with served() as server:
        server.script(None, Fault.cache_expired())
        report = await enrich(options(9, workers=1, api_key="a key"))
        assert report.cache.created == server.count("cache_create") == 2
    assert report.result.succeeded == 9


async def test_a_cache_that_was_extended_still_tells_its_size() -> None:
    async with GeminiEmulator() as server:
        strategy = BookStrategy("gemini-2.5-flash", server.client())
        await strategy.prepare()
        await asyncio.sleep(3400)
        await strategy.prepare()
        assert server.count("cache_update") == 1
        (cache,) = server.caches.values()
        use = strategy.cache_use()
    assert use == CacheUse(
        created=1, name=cache.name, tokens=cache.token_count, seconds_left=pytest.approx(3600)
    )


async def test_invented_answers_may_be_overwritten(options: MakeOptions) -> None:
    await enrich(options(3))
    await enrich(options(2))
    assert len(rows_of(options(2).output)) == 2


async def test_rows_that_fail_are_told_and_written(
    options: MakeOptions, served: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def block(request: RecordedRequest) -> Fault | None:
        return Fault.blocked() if "Hunger Games" in request.prompt else None

    asked = options(3, api_key="a key")
    async with served(faults=block):
        assert await run(asked) == 1
    shown = capsys.readouterr().out
    assert "1 of 3 rows failed, 2 succeeded." in shown
    assert "1: ResponseBlockedError: the prompt was blocked (PROHIBITED_CONTENT)" in shown
    failed = next(row for row in rows_of(asked.output) if row["book_id"] == 1)
    assert failed["error"].startswith("ResponseBlockedError: ")
    assert "summary" not in failed


async def test_a_refused_cache_is_warned_of(
    options: MakeOptions, served: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    async with served(allow_cache_creation=False):
        report = await enrich(options(2, api_key="a key"))
    assert report.complete
    assert report.cache.name is None
    assert "warning: no cache can be had" in capsys.readouterr().err


async def test_ctrl_c_keeps_what_is_finished(
    options: MakeOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = options(200)
    running = asyncio.create_task(run(asked))
    await asyncio.sleep(2.0)
    rows = rows_of(asked.output)
    assert 0 < len(rows) < 200
    running.cancel()
    assert await running == 130
    shown = capsys.readouterr().out
    assert rows_of(asked.output) == rows
    assert shown.startswith(f"\nInterrupted. After 2.0 s {len(rows)} of 200 rows were finished.")
    assert "cut short" in shown


def test_ctrl_c_at_a_shell(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "batch_llm", "demo", "--output", str(tmp_path / "books.jsonl")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if line.startswith("["))
        process.send_signal(signal.SIGINT)
        told, complaints = process.communicate()
    assert process.returncode == 130
    assert told.startswith("\nInterrupted.")
    assert "Traceback" not in complaints


def test_ctrl_c_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Impatient(io.StringIO):
        def write(self, text: str) -> int:
            if text.startswith("Describing"):
                signal.raise_signal(signal.SIGINT)
            return super().write(text)

    shown = Impatient()
    monkeypatch.setattr("sys.stderr", shown)
    assert main(["demo", "--output", str(tmp_path / "books.jsonl")]) == 130
    assert shown.getvalue().endswith("\nbatch-llm demo: interrupted\n")
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(not FULL_DEVICE.exists(), reason="needs a device that is always full")
async def test_a_full_disk_stops_the_spending(
    options: MakeOptions, served: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    async with served(latency_seconds=1.0) as server:
        assert await run(options(100, api_key="a key", output=FULL_DEVICE)) == 1
        assert server.count("generate") <= 10
    shown = capsys.readouterr().out
    assert "Stopped, since /dev/full cannot be written (No space left on device)." in shown
    assert "0 rows written to /dev/full" in shown


async def test_answers_that_were_paid_for_are_not_overwritten(
    options: MakeOptions, served: Callable[..., Any]
) -> None:
    asked = options(1, api_key="a key")
    asked.output.write_text('{"book_id": 1, "error": "ClientError: 400"}\n')
    async with served() as server:
        await enrich(asked)
        paid_for = asked.output.read_text()
        with pytest.raises(UsageError, match="which holds answers"):
            await enrich(asked)
        assert server.count("generate") == 1
    assert asked.output.read_text() == paid_for


@pytest.mark.parametrize("place", [".", "nowhere/books.jsonl"])
async def test_an_output_that_cannot_be_written_is_told_before_anything_is_sent(
    options: MakeOptions, served: Callable[..., Any], tmp_path: Path, place: str
) -> None:
    async with served() as server:
        with pytest.raises(UsageError, match="cannot be written"):
            await enrich(options(1, api_key="a key", output=tmp_path / place))
        assert server.requests == []
