"""Where do the rows go?"""

import json
from pathlib import Path
from typing import Any, TextIO

from batch_llm.base import WorkItemResult
from batch_llm.cli.books import Book
from batch_llm.cli.enrichment import BookEnrichment
from batch_llm.cli.options import DemoOptions, UsageError

Result = WorkItemResult[BookEnrichment, Book]


class JsonLines:
    """A file with one JSON object per book, each written as soon as its result is there.

    A line has the book's columns, who answered ("model"), and the answer's fields, or an
    "error" in their place.

    Raises:
        UsageError: The file cannot be written, or holds answers that were paid for.
    """

    def __init__(self, options: DemoOptions) -> None:
        self.rows: int = 0
        self._answered_by = options.model if options.live else "emulator (invented)"
        self._file = _open(options.output, keep=options.live)

    def write(self, result: Result) -> None:
        """Add a row.

        Raises:
            OSError: It could not be written.
        """
        self._file.write(json.dumps(self._row(result), ensure_ascii=False) + "\n")
        self._file.flush()
        self.rows += 1

    def close(self) -> None:
        """Close the file; every row in it is complete already."""
        try:
            self._file.close()
        except OSError:
            # The rest of a row that could not be written, which the run has told.
            return

    def _row(self, result: Result) -> dict[str, Any]:
        book = result.context
        assert book is not None
        row: dict[str, Any] = {
            "book_id": int(book.book_id),
            "title": book.title,
            "authors": book.authors,
            "year": int(book.year) if book.year else None,
            "language": book.language or None,
            "model": self._answered_by,
        }
        if result.success and result.output is not None:
            return row | result.output.model_dump(mode="json")
        return row | {"error": result.error}


def _holds_answers(path: Path) -> bool:
    """Whether any line is not that of a row that failed."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        return any('"error": "' not in line for line in lines)


def _open(path: Path, *, keep: bool) -> TextIO:
    try:
        if keep and path.is_file() and _holds_answers(path):
            raise UsageError(
                f"--output got {path}, which holds answers; with --live it must be a new file, so "
                "that nothing that was paid for is lost. Move it away, or pass another --output"
            )
        return path.open("w", encoding="utf-8", newline="\n")
    except OSError as error:
        raise UsageError(
            f"--output got {path}, which cannot be written ({error.strerror}); it must be a file "
            "in a directory that exists and is yours to write to. Pass another --output"
        ) from error
