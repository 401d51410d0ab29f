"""The demo: real books, described by Gemini or by a server that plays it."""

import asyncio
import contextlib
import sys
from typing import TextIO

from batch_llm.base import BatchResult, LLMWorkItem
from batch_llm.classifiers import GeminiErrorClassifier
from batch_llm.cli.books import Book, read_books
from batch_llm.cli.enrichment import BookEnrichment, prompt_for
from batch_llm.cli.jsonl import JsonLines, Result
from batch_llm.cli.options import DemoOptions
from batch_llm.cli.progress import ProgressLine
from batch_llm.cli.report import ExitCode, Report
from batch_llm.cli.services import check_installed, open_client, quota_per_minute
from batch_llm.cli.strategy import BookStrategy
from batch_llm.cli.summary import summarize
from batch_llm.core.clock import loop_time
from batch_llm.core.config import ProcessorConfig, RetryConfig
from batch_llm.observers import MetricsObserver
from batch_llm.parallel import ParallelBatchProcessor


async def run(options: DemoOptions) -> ExitCode:
    """Describe the books, and tell how far it is and how it went.

    Raises:
        UsageError: It cannot begin, and nothing has been sent.
    """
    report = await enrich(options)
    _print(f"\n{summarize(report)}", sys.stdout)
    return report.exit_code


async def enrich(options: DemoOptions) -> Report:
    """Describe the books, writing each row as it is there.

    Raises:
        UsageError: It cannot begin, and nothing has been sent.
    """
    check_installed(options)
    line = ProgressLine(sys.stderr)
    with contextlib.closing(JsonLines(options)) as rows, line.with_warnings():
        _print(_opening(options), sys.stderr)
        async with open_client(options) as client:
            return await _process(options, BookStrategy(options.model, client), rows, line)


async def _process(
    options: DemoOptions, strategy: BookStrategy, rows: JsonLines, line: ProgressLine
) -> Report:
    metrics, finished = MetricsObserver(), list[Result]()
    started = loop_time()
    write_error: str | None = None

    async def keep(result: Result) -> None:
        nonlocal write_error
        finished.append(result)
        try:
            rows.write(result)
        except OSError as error:
            # Going on would only pay for answers that are lost.
            write_error = error.strerror
            await processor.shutdown()

    async with ParallelBatchProcessor[str, BookEnrichment, Book](
        config=_config(options),
        error_classifier=GeminiErrorClassifier(),
        post_processor=keep,
        observers=[line, metrics],
    ) as processor:
        for book in read_books(options.items):
            await processor.add_work(LLMWorkItem(book.book_id, strategy, prompt_for(book), book))
        try:
            interrupted = (await processor.process_all()).interrupted and write_error is None
        except asyncio.CancelledError:
            interrupted = True
    return Report(
        options=options,
        # What was finished counts, also when the run was ended before its time.
        result=BatchResult(finished, quotas=processor.quotas),
        requests=strategy.requests,
        failed_attempts=strategy.failed_attempts,
        cooldown_seconds=metrics.metrics["total_cooldown_time"],
        cache=strategy.cache_use(),
        wall_seconds=loop_time() - started,
        rows_written=rows.rows,
        write_error=write_error,
        interrupted=interrupted,
    )


def _config(options: DemoOptions) -> ProcessorConfig:
    return ProcessorConfig(
        max_workers=options.workers,
        timeout_per_item=60.0,
        retry=RetryConfig(max_attempts=5, initial_wait=0.5),
    )


def _opening(options: DemoOptions) -> str:
    books = f"{options.items:,} books" if options.items > 1 else "a book"
    plan = f"Describing {books} with {options.model}, {options.workers:,} at a time."
    if options.live:
        return plan
    return (
        f"{plan}\nA local server plays Gemini: its answers are invented, it grants "
        f"{quota_per_minute(options.items):,} requests\na minute, and now and then it fails on "
        "purpose."
    )


def _print(text: str, stream: TextIO) -> None:
    """Print what the stream's encoding can hold; a title may be in any script."""
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), file=stream, flush=True)
