"""What was asked for?"""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

MOST_ITEMS = 10_000
MOST_WORKERS = 1_000

_EPILOG = """\
exit code: 0 all rows succeeded, 1 some failed, 2 wrong usage, 130 interrupted

Without --live nothing leaves this machine: a local server plays Gemini, with a quota and
a few faults, and its answers are invented. With --live the same code asks the real
service, which bills what you use.
"""


class UsageError(Exception):
    """The command cannot be run as it was given; nothing has been sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What ``batch-llm demo`` is to do.

    Attributes:
        items: How many books, from the first of the bundled list on.
        workers: Calls in flight at once.
        output: Where the rows go, one JSON object a line.
        model: Name of the Gemini model.
        api_key: The real service's key; None for the emulator.
        seed: Varies the emulator's answers and faults.
    """

    items: int
    workers: int
    output: Path
    model: str
    api_key: str | None = field(repr=False)
    seed: int

    @property
    def live(self) -> bool:
        """Whether the real service is asked."""
        return self.api_key is not None


def parse(argv: Sequence[str] | None) -> DemoOptions:
    """Read the arguments.

    Raises:
        SystemExit: After --help or --version (0), and after a wrong argument (2).
        UsageError: --live was given without a key.
    """
    given = _parser().parse_args(argv)
    return DemoOptions(
        items=given.items,
        workers=given.workers,
        output=given.output or Path("enriched-books.jsonl" if given.live else "demo-books.jsonl"),
        model=given.model,
        api_key=_api_key() if given.live else None,
        seed=given.seed,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="batch-llm",
        description="Run many LLM calls: at the provider's limit, with nothing lost.",
    )
    parser.add_argument("--version", action="version", version=f"batch-llm {version('batch-llm')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo_arguments(
        commands.add_parser(
            "demo",
            help="describe real books with Gemini, played by a local server or --live",
            description="Describe books with Gemini: one prompt per book, one cached instruction.",
            epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    return parser


def _add_demo_arguments(demo: argparse.ArgumentParser) -> None:
    demo.add_argument(
        "--items",
        type=_whole_number(MOST_ITEMS),
        default=200,
        metavar="N",
        help=f"how many books, 1 to {MOST_ITEMS:,} (default: 200)",
    )
    demo.add_argument(
        "--workers",
        type=_whole_number(MOST_WORKERS),
        default=20,
        metavar="N",
        help=f"calls in flight at once, 1 to {MOST_WORKERS:,} (default: 20)",
    )
    demo.add_argument(
        "--live",
        action="store_true",
        help="ask the real Gemini API with the key in GEMINI_API_KEY",
    )
    demo.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="JSONL file to write (default: demo-books.jsonl, with --live enriched-books.jsonl)",
    )
    demo.add_argument(
        "--model",
        default="gemini-2.5-flash",
        metavar="NAME",
        help="Gemini model (default: gemini-2.5-flash)",
    )
    demo.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="vary the emulator's answers and faults (default: 0)",
    )


def _whole_number(most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = 0
        if not 1 <= number <= most:
            raise argparse.ArgumentTypeError(
                f"got {text!r}; must be a whole number from 1 to {most:,}"
            )
        return number

    return read


def _api_key() -> str:
    key = os.environ.get("GEMINI_API_KEY", "").strip()
    if not key:
        raise UsageError(
            "--live got no key in GEMINI_API_KEY; it must hold the key of a Gemini API project. "
            "Set it (export GEMINI_API_KEY=...), or leave out --live to use the emulator"
        )
    return key
