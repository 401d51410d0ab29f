"""Ctrl-C at a real script: a process of its own, and the signal that a shell would send."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# Each call says that it was made, and answers once a line comes in.
SCRIPT = """
import asyncio, logging, sys
from batch_llm import LLMCallStrategy, LLMWorkItem, ParallelBatchProcessor

logging.basicConfig()

class Patient(LLMCallStrategy):
    def __init__(self):
        self.turn = asyncio.Lock()

    async def execute(self, prompt, attempt, timeout):
        print("called", prompt, flush=True)
        async with self.turn:
            line = await asyncio.to_thread(sys.stdin.readline)
        return line.strip(), {}

async def main():
    strategy = Patient()
    async with ParallelBatchProcessor(max_workers=2) as processor:
        for number in range(5):
            await processor.add_work(LLMWorkItem(str(number), strategy, str(number)))
        try:
            result = await processor.process_all()
        finally:
            print("so far", [each.item_id for each in processor.results], flush=True)
    print("interrupted", result.interrupted, result.not_run, flush=True)

asyncio.run(main())
"""


@contextmanager
def script() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_lines(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return sorted(process.stdout.readline().strip() for _ in range(count))


def answer(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text + "\n")
    process.stdin.flush()


def press_ctrl_c(process: subprocess.Popen[str]) -> str:
    """Interrupt the script; gives what it says to that."""
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    return process.stderr.readline()


needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for one process")


@needs_signals
def test_the_first_ctrl_c_lets_the_script_end_as_it_would() -> None:
    with script() as process:
        assert read_lines(process, 2) == ["called 0", "called 1"]
        answer(process, "yes")
        assert read_lines(process, 1) == ["called 2"]
        assert "the run ends: Ctrl-C; 2 items in flight" in press_ctrl_c(process)
        answer(process, "yes")
        answer(process, "yes")
        assert process.stdout is not None
        assert process.stdout.read().splitlines() == [
            "so far ['0', '1', '2']",
            "interrupted True ['3', '4']",
        ]
        assert process.wait() == 0


@needs_signals
def test_the_second_ctrl_c_stops_it_at_once() -> None:
    with script() as process:
        assert read_lines(process, 2) == ["called 0", "called 1"]
        answer(process, "yes")
        assert read_lines(process, 1) == ["called 2"]
        press_ctrl_c(process)
        process.send_signal(signal.SIGINT)
        assert read_lines(process, 1) == ["so far ['0']"]
        # The thread that reads would keep the process alive until it has its line.
        answer(process, "")
        assert process.stderr is not None
        assert process.stderr.read().rstrip().endswith("KeyboardInterrupt")
        assert process.wait() == -signal.SIGINT
