"""The progress line, in virtual time."""

import asyncio
import io
import logging
import re
from typing import Any

import pytest

from batch_llm.cli.progress import ProgressLine, duration
from batch_llm.observers import ProcessingEvent as Event


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def play(line: ProgressLine, *events: tuple[float, Event, dict[str, Any]]) -> None:
    """Tell the line what happens, with seconds to pass before each event."""
    for seconds, event, data in events:
        await asyncio.sleep(seconds)
        await line.on_event(event, data)


def started(total: int) -> tuple[float, Event, dict[str, Any]]:
    return 0.0, Event.BATCH_STARTED, {"total": total}


def answered(seconds: float) -> tuple[float, Event, dict[str, Any]]:
    return seconds, Event.ITEM_COMPLETED, {}


ENDED: tuple[float, Event, dict[str, Any]] = (0.0, Event.BATCH_COMPLETED, {})


async def test_a_log_gets_a_line_at_each_tenth_and_one_at_the_end() -> None:
    log = io.StringIO()
    line = ProgressLine(log)
    await play(line, started(100), *[answered(0.5)] * 100, ENDED)
    lines = log.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "[##------------------]  10 %  10 of 100  2.0/s  45 s left"
    assert lines[-1] == "[####################] 100 %  100 of 100  2.0/s"


async def test_a_log_of_a_fast_run_gets_at_most_a_line_a_second() -> None:
    log = io.StringIO()
    await play(ProgressLine(log), started(100), *[answered(0.03125)] * 100, ENDED)
    counts = [line.split(" %  ")[1].split()[0] for line in log.getvalue().splitlines()]
    assert counts == ["32", "64", "96", "100"]


async def test_a_terminal_gets_one_line_that_is_rewritten() -> None:
    terminal = Terminal()
    await play(ProgressLine(terminal), started(100), *[answered(0.03125)] * 100, ENDED)
    shown = terminal.getvalue()
    assert shown.count("\n") == 1
    assert shown.endswith("100 of 100  32.0/s\n")
    redraws = shown.split("\r\x1b[K")[1:]
    assert 20 <= len(redraws) <= 32
    assert all(len(redraw) <= 80 for redraw in redraws)


async def test_a_narrow_terminal_does_not_wrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal()
    await play(ProgressLine(terminal), started(1), answered(1.0), ENDED)
    assert terminal.getvalue() == "\r\x1b[K[##################\n"


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
async def test_a_pause_and_what_it_was_for_are_shown(stream: type[io.StringIO]) -> None:
    out = stream()
    await play(
        ProgressLine(out),
        started(8),
        answered(1.0),
        (0.5, Event.RATE_LIMIT_HIT, {}),
        (0.5, Event.COOLDOWN_STARTED, {"duration": 30.0}),
        (30.0, Event.COOLDOWN_ENDED, {"duration": 30.0}),
        (1.0, Event.ITEM_FAILED, {}),
        ENDED,
    )
    shown = re.split(r"[\r\n]+", out.getvalue().strip())
    pausing = next(line for line in shown if "pausing" in line)
    assert "1 of 8  0.5/s  429s: 1  pausing 30.0 s" in pausing
    assert "2 of 8  0.1/s  1 min 39 s left  1 failed  429s: 1" in shown[-1]


async def test_a_terminal_shows_a_pause_at_once() -> None:
    terminal = Terminal()
    pause = (0.0, Event.COOLDOWN_STARTED, {"duration": 0.5})
    await play(ProgressLine(terminal), started(8), answered(1.0), pause)
    assert terminal.getvalue().endswith("1 of 8  1.0/s  pausing 0.5 s")


@pytest.mark.parametrize(
    ("stream", "erased"), [(io.StringIO, ""), (Terminal, "\r\x1b[K")], ids=["log", "terminal"]
)
def test_warnings_of_the_library_are_shown_above(stream: type[io.StringIO], erased: str) -> None:
    out = stream()
    line = ProgressLine(out)
    logger = logging.getLogger("batch_llm.somewhere")
    with line.with_warnings():
        logger.warning("cache %s is gone", "X")
        logger.info("not this")
        logging.getLogger("batch_llm._engine.gate").warning("nor what the line itself tells")
    logger.warning("nor this")
    assert out.getvalue() == f"{erased}warning: cache X is gone\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (8.12, "8.1 s"), (59.4, "59.4 s"), (151, "2 min 31 s"), (3900, "1 h 5 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
