"""What is a person told at the end?"""

import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator

from batch_llm.base import QuotaStatistics
from batch_llm.cli.jsonl import Result
from batch_llm.cli.progress import duration
from batch_llm.cli.report import Report

_WIDTH = 88
_MOST_REASONS = 10
_MOST_IDS = 10
_MOST_CHARACTERS = 200

_FAULTS = {
    "server_error": "server error",
    "validation_error": "unusable answer",
    "connection_error": "broken connection",
    "api_timeout": "timeout",
    "framework_timeout": "timeout",
    "cache_expired": "lost cache",
    "empty_response": "empty answer",
    "response_blocked": "blocked answer",
    "response_truncated": "truncated answer",
    "client_error": "refused request",
}

Row = tuple[str, str, str]

# Less is not worth a line.
_A_MOMENT = 0.1

_BLANK: Row = ("", "", "")


def summarize(report: Report) -> str:
    """The summary of a run: a headline, a table of numbers, and what to know besides."""
    sections = [
        [_headline(report)],
        _table([*_calls(report), _BLANK, *_tokens(report), _BLANK, *_rest(report)]),
        _failures(report),
        _sample(report),
        _closing(report),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _headline(report: Report) -> str:
    items, result = report.options.items, report.result
    if report.interrupted:
        return f"Interrupted. {_so_far(report)}"
    if report.write_error is not None:
        problem = f"{report.options.output} cannot be written ({report.write_error})"
        return f"Stopped, since {problem}. {_so_far(report)}"
    if report.complete:
        return f"All {items:,} rows succeeded." if items > 1 else "The row succeeded."
    if not result.succeeded:
        return f"All {items:,} rows failed." if items > 1 else "The row failed."
    return f"{result.failed:,} of {items:,} rows failed, {result.succeeded:,} succeeded."


def _so_far(report: Report) -> str:
    result, took = report.result, duration(report.wall_seconds)
    failed = f", {result.failed:,} of them failed" if result.failed else ""
    items = report.options.items
    return f"After {took} {result.total_items:,} of {items:,} rows were finished{failed}."


def _calls(report: Report) -> Iterator[Row]:
    result, refused = report.result, report.rate_limits
    yield "items", f"{result.total_items:,}", _items(report)
    failed = report.failed_attempts.total() - refused
    outcomes = [
        f"{result.succeeded:,} answered",
        f"{refused:,} refused (429)",
        f"{failed:,} failed",
    ]
    under_way = report.requests - result.succeeded - refused - failed
    if under_way > 0:
        outcomes.append(f"{under_way:,} cut short")
    yield "requests", f"{report.requests:,}", ", ".join(outcomes)
    if refused:
        seconds = report.cooldown_seconds
        pauses = f"with {duration(seconds)} of pauses for all workers"
        remark = pauses if seconds else "each came back as told, the others went on"
        yield "429s ridden out", f"{refused:,}", remark
    for quota, told in report.result.quotas.items():
        yield from _limits(quota, told)
    if failed:
        label = "faults ridden out" if report.complete else "failed calls"
        yield label, f"{failed:,}", _faults(report)


def _limits(quota: str, told: QuotaStatistics) -> Iterator[Row]:
    waits = {
        "by the quota": told.waited_for_quota_seconds,
        "in pauses": told.waited_for_cooldown_seconds,
        "by calls in flight": told.waited_for_slots_seconds,
    }
    held = [f"{duration(seconds)} {why}" for why, seconds in waits.items() if seconds >= _A_MOMENT]
    if held:
        yield "held back for", duration(sum(waits.values())), ", ".join(held)
    if told.learned_calls_per_second is not None:
        remark = f"as {quota} lets calls in; {told.calls_per_second:.1f} were answered a second"
        if told.learned_tokens_per_second is not None:
            remark += f"; by tokens, {told.learned_tokens_per_second:,.0f} a second"
        yield "pace learned", f"{told.learned_calls_per_second:.1f}/s", remark
    if told.learned_in_flight is not None:
        in_flight = f"{told.learned_in_flight:,}"
        yield "in flight, learned", in_flight, f"as many calls at once as {quota} lets in"


def _items(report: Report) -> str:
    remark = f"{report.result.succeeded:,} succeeded, {report.result.failed:,} failed"
    kinds = Counter((result.error or "unknown").split(":", 1)[0] for result in _failed(report))
    if kinds:
        remark += ": " + ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    return remark


def _faults(report: Report) -> str:
    named: Counter[str] = Counter()
    for category, count in report.failed_attempts.items():
        if category != "rate_limit":
            named[_FAULTS.get(category, category.replace("_", " "))] += count
    return ", ".join(_counted(count, name) for name, count in named.most_common())


def _tokens(report: Report) -> Iterator[Row]:
    result = report.result
    yield "input tokens", f"{result.total_input_tokens:,}", "of all calls, failed ones included"
    hit_rate = f"{result.cache_hit_rate():.1f} % hit rate"
    yield "  from the cache", f"{result.total_cached_tokens:,}", hit_rate
    yield "output tokens", f"{result.total_output_tokens:,}", ""
    effective = f"{result.effective_input_tokens():,}"
    yield "effective input", effective, "a cached token is billed as a tenth"
    yield "saved by caching", f"{report.saved_tokens:,}", _saved(report)


def _saved(report: Report) -> str:
    if report.saved_tokens < 0:
        return f"making the cache took {report.creation_tokens:,}: it pays from the second book on"
    if not report.result.total_cached_tokens:
        return "nothing came from a cache"
    share = f"{100 * report.saved_tokens / report.result.total_input_tokens:.1f} % of the input"
    if report.creation_tokens:
        return f"{share}; the {report.creation_tokens:,} for making the cache are deducted"
    return share


def _rest(report: Report) -> Iterator[Row]:
    cache = report.cache
    if cache.name is None:
        remark = "there is none" if report.interrupted else "none could be had, as warned above"
    elif cache.created:
        remark = f"{cache.tokens:,} tokens of instructions, shared by all prompts"
    else:
        remark = f"one of an earlier run was there, {cache.tokens:,} tokens"
    yield "caches created", f"{cache.created:,}", remark
    per_second = report.result.total_items / report.wall_seconds if report.wall_seconds else 0.0
    yield "wall time", duration(report.wall_seconds), f"{per_second:.1f} books a second"


def _table(rows: list[Row]) -> list[str]:
    labels = max(len(label) for label, _, _ in rows)
    numbers = max(len(number) for _, number, _ in rows)
    return [
        f"  {label:<{labels}}  {number:>{numbers}}  {remark}".rstrip()
        for label, number, remark in rows
    ]


def _failures(report: Report) -> list[str]:
    ids_by_reason: defaultdict[str, list[str]] = defaultdict(list)
    for result in _failed(report):
        ids_by_reason[_reason(result)].append(result.item_id)
    if not ids_by_reason:
        return []
    lines = ["Failed rows:"]
    for reason, ids in list(ids_by_reason.items())[:_MOST_REASONS]:
        more = f" and {len(ids) - _MOST_IDS:,} more" if len(ids) > _MOST_IDS else ""
        lines += _wrapped(f"{', '.join(ids[:_MOST_IDS])}{more}: {reason}", indent="  ")
    rest = sum(len(ids) for ids in list(ids_by_reason.values())[_MOST_REASONS:])
    if rest:
        lines.append(f"  and {rest:,} more, each with its reason in {report.options.output}")
    return lines


def _failed(report: Report) -> list[Result]:
    return [result for result in report.result.results if not result.success]


def _reason(result: Result) -> str:
    """The error on one line, without the whole body that an SDK puts into its text."""
    code, message = (getattr(result.exception, name, None) for name in ("code", "message"))
    text = result.error or "no error was told"
    if isinstance(message, str) and message in text:
        text = f"{type(result.exception).__name__}: {code} {message}"
    text = " ".join(text.split())
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"


def _sample(report: Report) -> list[str]:
    answered = [result for result in report.result.results if result.success]
    if not answered:
        return []
    first = min(answered, key=lambda result: int(result.item_id))
    book, said = first.context, first.output
    assert book is not None
    assert said is not None
    return [
        "For example:" if report.options.live else "For example (invented by the emulator):",
        *_wrapped(f"{book.title}, by {book.authors}", indent="  "),
        *_wrapped(said.summary, indent="    "),
        *_wrapped(
            f"{', '.join(said.genres)} | {', '.join(said.themes)} | {said.audience}", indent="    "
        ),
    ]


def _closing(report: Report) -> list[str]:
    options, cache = report.options, report.cache
    rows = _counted(report.rows_written, "row")
    lines = [f"{rows} written to {options.output}, one JSON object a line."]
    if not options.live:
        lines.append("No real model was asked. For real answers: GEMINI_API_KEY=... and --live.")
    elif cache.name is not None:
        lines.append(
            f"{cache.name} stays for the next run, {duration(max(0.0, cache.seconds_left))} left."
        )
    return lines


def _counted(count: int, name: str) -> str:
    return f"{count:,} {name}" if count == 1 else f"{count:,} {name}s"


def _wrapped(text: str, *, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ")
