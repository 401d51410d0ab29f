"""Whatever comes instead of an answer costs its item, never the run."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_llm import GeminiCachedStrategy, GeminiStrategy
from batch_llm.testing.gemini import Fault, GeminiEmulator
from tests.fuzz.answers import BLOCKED, EXHAUSTED, GENERATED, PAGE, answers
from tests.fuzz.support import (
    BOOK,
    MODEL,
    SETTINGS,
    client_of,
    of,
    run_all,
    run_among_good_ones,
    text_of,
)

# The SDK's own remark on a word that it does not know.
pytestmark = pytest.mark.filterwarnings("ignore:.* is not a valid:UserWarning")

MEGABYTE = 1_000_000
SHORT: dict[str, Any] = {
    "candidates": [{"content": {"parts": [{"text": "Ünlikely"}]}, "finishReason": "STOP"}],
    "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 2, "totalTokenCount": 11},
}


def plain(server: GeminiEmulator) -> GeminiStrategy[str]:
    return GeminiStrategy(MODEL, client_of(server), text_of)


def cached(server: GeminiEmulator) -> GeminiStrategy[str]:
    return GeminiCachedStrategy(MODEL, client_of(server), text_of, BOOK)


def numbered(faults: list[Fault]) -> dict[str, Fault]:
    return {f"bad {number}": fault for number, fault in enumerate(faults)}


@SETTINGS
@given(st.lists(answers(GENERATED, BLOCKED), min_size=4, max_size=12))
async def test_any_answer(faults: list[Fault]) -> None:
    await run_among_good_ones(numbered(faults), plain)


@SETTINGS
@given(st.lists(answers(GENERATED, BLOCKED), min_size=4, max_size=12))
async def test_any_answer_to_a_prompt_with_a_cache(faults: list[Fault]) -> None:
    await run_among_good_ones(numbered(faults), cached)


async def test_an_answer_that_breaks_off_at_any_byte() -> None:
    whole = json.dumps(SHORT, ensure_ascii=False).encode()
    faults = {f"bad {end}": Fault.raw(whole[:end]) for end in range(len(whole))}
    batch = await run_among_good_ones(faults, plain)
    assert batch.failed == len(whole)
    kinds = {(result.error or "").partition(":")[0] for result in batch.results} - {""}
    assert kinds == {"EmptyResponseError", "JSONDecodeError"}


ONCE = {
    "nothing": Fault.raw(b""),
    "a list": Fault.raw(b"[]"),
    "null": Fault.raw(b"null"),
    "a well": Fault.raw(b"[" * 100_000),
    "no text": Fault.raw(b"\xff\xfe"),
    "a portal": Fault.raw(PAGE.format(title="Log in").encode()),
    "a page": Fault.raw(PAGE.format(title="502").encode(), status=502),
    "an error that is no text": Fault.raw(b'{"error": {"message": "\xff"}}', status=503),
    "a mistyped error": Fault.raw(b'{"error": {"code": "x", "message": 5}}', status=503),
    "another encoding": Fault.raw(json.dumps({"error": {}}).encode("utf-16"), status=503),
    "half": Fault.raw(b'{"candidates": [', headers={"Content-Length": "500"}),
    "no length": Fault.raw(b"{}", headers={"Content-Length": "many"}),
    "no archive": Fault.raw(b"{}", headers={"Content-Encoding": "gzip"}),
    "no candidate": Fault.raw(b'{"candidates": []}'),
    "a candidate of nothing": Fault.raw(b'{"candidates": [null]}'),
    "no content": Fault.raw(b'{"candidates": [{"content": null}]}'),
    "no parts": Fault.raw(b'{"candidates": [{"content": {"parts": []}}]}'),
    "mistyped parts": Fault.raw(b'{"candidates": [{"content": {"parts": "text"}}]}'),
    "mistyped usage": Fault.raw(b'{"candidates": [], "usageMetadata": {"promptTokenCount": "x"}}'),
    "another success": Fault.raw(b"", status=204),
}


@pytest.mark.parametrize("what", ONCE)
async def test_the_next_attempt_helps(what: str) -> None:
    async with GeminiEmulator(lambda _: "fine") as server:
        server.script(ONCE[what])
        batch = await run_all(plain(server), ["prompt"])
    (result,) = batch.results
    assert (result.output, result.attempts) == ("fine", 2)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({}, (0, 0, 0, 0)),
        (None, (0, 0, 0, 0)),
        ({"promptTokenCount": None, "candidatesTokenCount": 3}, (0, 3, 3, 0)),
        ({"promptTokenCount": -7, "candidatesTokenCount": 3}, (0, 3, 3, 0)),
        ({"promptTokenCount": 7, "totalTokenCount": -1}, (7, 0, 7, 0)),
        ({"promptTokenCount": "7"}, (7, 0, 7, 0)),
        ({"promptTokenCount": 7.0}, (7, 0, 7, 0)),
        ({"promptTokenCount": 7, "cachedContentTokenCount": 70}, (7, 0, 7, 70)),
        ({"promptTokenCount": 10**400, "cachedContentTokenCount": 10**400}, (0, 0, 0, 0)),
        ({"promptTokenCount": 10**299, "candidatesTokenCount": 1}, (10**299, 1, 10**299 + 1, 0)),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_usage_that_cannot_be_costs_no_answer(
    usage: Any, expected: tuple[int, int, int, int]
) -> None:
    answer = Fault.raw(json.dumps({**SHORT, "usageMetadata": usage}).encode())
    batch = await run_among_good_ones({"odd": answer}, plain)
    result = of(batch, "odd")
    names = ("input_tokens", "output_tokens", "total_tokens", "cached_input_tokens")
    assert result.output == "Ünlikely"
    assert tuple(result.token_usage.get(name) for name in names) == expected


@pytest.mark.parametrize("word", ["cach", "not supported ", "quota ", "4", "timed ", "limit: "])
async def test_a_page_of_a_megabyte_is_no_more_than_an_error(word: str) -> None:
    page = (word * (MEGABYTE // len(word))).encode()
    bad = {str(status): Fault.raw(page, status=status) for status in (200, 400, 429, 502)}
    batch = await run_among_good_ones(bad, plain)
    assert batch.failed == len(bad)


async def test_a_wait_that_nobody_can_mean_is_not_waited() -> None:
    details = [{"@type": "google.rpc.RetryInfo", "retryDelay": "9" * 20 + "s"}]
    body = json.dumps({"error": {**EXHAUSTED["error"], "details": details}}).encode()
    bad = {"body": Fault.raw(body, status=429)}
    bad["header"] = Fault.raw(b"{}", status=429, headers={"Retry-After": "9" * 20})
    batch = await run_among_good_ones(bad, plain)
    assert {(result.error or "").partition(":")[0] for result in batch.results} == {
        "",
        "RateLimitExceededError",
    }
