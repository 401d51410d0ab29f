"""The command line: ``batch-llm demo``, or ``python -m batch_llm demo``."""

import asyncio
import sys
from collections.abc import Sequence

from batch_llm.cli.demo import run
from batch_llm.cli.options import UsageError, parse
from batch_llm.cli.report import ExitCode


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments after the program's name; by default those of the process.

    Returns:
        The exit code: 0 when every row succeeded, 1 when some did not, 2 when the
        command could not be run as it was given, 130 after Ctrl-C.
    """
    try:
        options = parse(argv)
        return asyncio.run(run(options))
    except SystemExit as leaving:
        # How argparse ends after --help (0) and after an error that it has told (2).
        return leaving.code if isinstance(leaving.code, int) else ExitCode.WRONG_USAGE
    except UsageError as error:
        print(f"batch-llm demo: error: {error}", file=sys.stderr)
        return ExitCode.WRONG_USAGE
    except KeyboardInterrupt:
        print("\nbatch-llm demo: interrupted", file=sys.stderr)
        return ExitCode.INTERRUPTED
