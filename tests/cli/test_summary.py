"""The summary, from reports made by hand."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from batch_llm.base import BatchResult, QuotaStatistics, TokenUsage, WorkItemResult
from batch_llm.cli.books import Book
from batch_llm.cli.enrichment import Audience, BookEnrichment, Genre
from batch_llm.cli.options import DemoOptions
from batch_llm.cli.report import Report
from batch_llm.cli.strategy import CacheUse
from batch_llm.cli.summary import summarize

BOOK = Book("1", "Emma", "Jane Austen", "1815", "eng")
ANSWER = BookEnrichment(
    genres=[Genre.ROMANCE, Genre.CLASSIC],
    themes=["class", "marriage"],
    audience=Audience.ADULT,
    summary="A young woman arranges other people's lives.",
)


def answered(item_id: int, cached: int = 4500) -> WorkItemResult[BookEnrichment, Book]:
    usage = TokenUsage(input_tokens=5000, output_tokens=50, cached_input_tokens=cached)
    return WorkItemResult(str(item_id), True, ANSWER, context=BOOK, token_usage=usage)


def failed(
    item_id: int, error: str, exception: BaseException | None = None
) -> WorkItemResult[BookEnrichment, Book]:
    result: Any = WorkItemResult(str(item_id), False, error=error, context=BOOK)
    result.exception = exception
    return result


def report(
    *results: WorkItemResult[BookEnrichment, Book], api_key: str | None = None, **changes: Any
) -> Report:
    defaults: dict[str, Any] = {
        "requests": len(results),
        "failed_attempts": Counter[str](),
        "cooldown_seconds": 0.0,
        "cache": CacheUse(created=1, name="cachedContents/a", tokens=4500, seconds_left=3540.0),
        "wall_seconds": 10.0,
        "rows_written": len(results),
        "write_error": None,
        "interrupted": False,
    }
    options = DemoOptions(
        items=changes.pop("items", len(results)),
        workers=5,
        output=Path("books.jsonl"),
        model="gemini-2.5-flash",
        api_key=api_key,
        seed=0,
    )
    result = BatchResult(list(results), quotas=changes.pop("quotas", {}))
    return Report(options=options, result=result, **defaults | changes)


def test_a_run_that_succeeded() -> None:
    text = summarize(
        report(
            *[answered(item_id) for item_id in range(1, 101)],
            requests=107,
            failed_attempts=Counter(rate_limit=4, server_error=2, validation_error=1),
            cooldown_seconds=1.5,
        )
    )
    assert text == (
        """\
All 100 rows succeeded.

  items                  100  100 succeeded, 0 failed
  requests               107  100 answered, 4 refused (429), 3 failed
  429s ridden out          4  with 1.5 s of pauses for all workers
  faults ridden out        3  2 server errors, 1 unusable answer

  input tokens       500,000  of all calls, failed ones included
    from the cache   450,000  90.0 % hit rate
  output tokens        5,000
  effective input     95,000  a cached token is billed as a tenth
  saved by caching   400,500  80.1 % of the input; the 4,500 for making the cache are deducted

  caches created           1  4,500 tokens of instructions, shared by all prompts
  wall time           10.0 s  10.0 books a second

For example (invented by the emulator):
  Emma, by Jane Austen
    A young woman arranges other people's lives.
    romance, classic | class, marriage | adult

100 rows written to books.jsonl, one JSON object a line.
No real model was asked. For real answers: GEMINI_API_KEY=... and --live."""
    )


def test_refusals_that_made_nobody_pause() -> None:
    text = summarize(report(answered(1), requests=3, failed_attempts=Counter(rate_limit=2)))
    assert "2  each came back as told, the others went on\n" in text


def test_the_example_is_the_first_book_of_the_list() -> None:
    late, early = answered(10), answered(2)
    late.context = Book("10", "Zuleika Dobson", "Max Beerbohm", "1911", "eng")
    text = summarize(report(late, early))
    assert "Emma" in text
    assert "Zuleika" not in text


def test_a_live_run_names_its_cache_and_no_emulator() -> None:
    text = summarize(report(answered(1), answered(2), api_key="a key"))
    assert text.endswith("\ncachedContents/a stays for the next run, 59 min 0 s left.")
    assert "emulator" not in text
    assert "No real model" not in text


def test_a_cache_for_a_single_book_costs_more_than_it_saves() -> None:
    text = summarize(report(answered(1)))
    assert text.startswith("The row succeeded.\n")
    assert "-450  making the cache took 4,500: it pays from the second book on" in text


def test_a_cache_of_an_earlier_run_costs_nothing() -> None:
    found = CacheUse(created=0, name="cachedContents/a", tokens=4500, seconds_left=60.0)
    text = summarize(report(answered(1), cache=found))
    assert "4,050  81.0 % of the input\n" in text
    assert "0  one of an earlier run was there, 4,500 tokens" in text


def test_a_run_without_a_cache_says_so() -> None:
    nothing = CacheUse(created=0, name=None, tokens=0, seconds_left=0.0)
    text = summarize(report(answered(1, cached=0), cache=nothing, api_key="a key"))
    assert "0  nothing came from a cache" in text
    assert "0  none could be had, as warned above" in text
    assert "stays" not in text


def test_failures_are_listed_by_reason() -> None:
    text = summarize(
        report(
            answered(1),
            *[failed(item_id, "ServerError: 503\nUNAVAILABLE") for item_id in range(2, 15)],
            failed(15, "ResponseBlockedError: the prompt was blocked"),
            failed_attempts=Counter(server_error=65, response_blocked=1),
        )
    )
    assert text.startswith("14 of 15 rows failed, 1 succeeded.\n")
    assert "1 succeeded, 14 failed: 13 ServerError, 1 ResponseBlockedError" in text
    assert "failed calls 66 65 server errors, 1 blocked answer" in " ".join(text.split())
    assert (
        "Failed rows:\n"
        "  2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 3 more: ServerError: 503 UNAVAILABLE\n"
        "  15: ResponseBlockedError: the prompt was blocked\n"
    ) in text


def test_only_ten_reasons_are_listed_and_the_rest_is_counted() -> None:
    text = summarize(report(*[failed(number, f"E: {number}") for number in range(1, 13)]))
    assert text.startswith("All 12 rows failed.\n")
    assert "  10: E: 10\n  and 2 more, each with its reason in books.jsonl\n" in text
    assert "11: E: 11" not in text
    assert "For example" not in text


def test_the_row_failed() -> None:
    assert summarize(report(failed(1, "E: no"))).startswith("The row failed.\n")


def test_a_reason_is_short_and_leaves_out_the_body_of_the_response() -> None:
    class ClientError(Exception):
        code, message = 400, "API key not valid."

    error = ClientError("400 INVALID_ARGUMENT. {'error': {'message': 'API key not valid.'}}")
    text = summarize(
        report(failed(1, f"ClientError: {error}", error), failed(2, "E: " + "x" * 999))
    )
    assert "  1: ClientError: 400 API key not valid.\n" in text
    assert f"{'x' * 100}" not in text.replace("\n", "") or "…" in text
    assert len(text.split("Failed rows:")[1]) < 450


@pytest.mark.parametrize(
    ("results", "headline"),
    [
        ([answered(1)], "Interrupted. After 10.0 s 1 of 9 rows were finished."),
        (
            [answered(1), failed(2, "E: no")],
            "Interrupted. After 10.0 s 2 of 9 rows were finished, 1 of them failed.",
        ),
        ([], "Interrupted. After 10.0 s 0 of 9 rows were finished."),
    ],
    ids=["answered", "failed", "nothing"],
)
def test_a_run_that_was_ended(
    results: list[WorkItemResult[BookEnrichment, Book]], headline: str
) -> None:
    text = summarize(report(*results, items=9, requests=5, interrupted=True))
    answers = sum(result.success for result in results)
    assert text.startswith(f"{headline}\n")
    assert f"{answers} answered, 0 refused (429), 0 failed, {5 - answers} cut short" in text


def lines_of(quota: QuotaStatistics) -> list[str]:
    text = summarize(report(answered(1), quotas={"gemini/x": quota}))
    labels = ("held back", "pace learned", "in flight")
    return [line.strip() for line in text.splitlines() if line.strip().startswith(labels)]


def test_what_held_the_run_back_is_told_with_what_was_learned() -> None:
    assert lines_of(
        QuotaStatistics(
            seconds=100.0,
            answered=950,
            waited_for_quota_seconds=80.0,
            waited_for_cooldown_seconds=1.5,
            waited_for_slots_seconds=0.2,
            learned_calls_per_second=9.84,
            learned_tokens_per_second=12_345.6,
            learned_in_flight=8,
        )
    ) == [
        (
            "held back for       1 min 22 s  "
            "1 min 20 s by the quota, 1.5 s in pauses, 0.2 s by calls in flight"
        ),
        (
            "pace learned             9.8/s  "
            "as gemini/x lets calls in; 9.5 were answered a second; by tokens, 12,346 a second"
        ),
        "in flight, learned           8  as many calls at once as gemini/x lets in",
    ]


def test_a_run_that_nothing_held_back_says_nothing_of_it() -> None:
    assert lines_of(QuotaStatistics(seconds=10.0, answered=5, waited_for_slots_seconds=0.05)) == []
