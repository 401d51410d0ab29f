"""Answers of the Gemini API as nobody wishes for them: real ones, mutated."""

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any

from hypothesis import strategies as st

from batch_llm.testing.gemini import Fault

TYPES = "type.googleapis.com/google.rpc."
GENERATED: dict[str, Any] = {
    "candidates": [
        {
            "content": {"parts": [{"text": "A whale, and many chapters."}], "role": "model"},
            "finishReason": "STOP",
            "index": 0,
            "safetyRatings": [
                {"category": "HARM_CATEGORY_DANGEROUS_CONTENT", "probability": "NEGLIGIBLE"}
            ],
        }
    ],
    "usageMetadata": {
        "promptTokenCount": 1500,
        "candidatesTokenCount": 7,
        "thoughtsTokenCount": 40,
        "totalTokenCount": 1547,
        "cachedContentTokenCount": 1400,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 1500}],
    },
    "modelVersion": "gemini-2.5-flash",
    "responseId": "emulator-1",
}
BLOCKED: dict[str, Any] = {
    "promptFeedback": {"blockReason": "PROHIBITED_CONTENT", "safetyRatings": []},
    "usageMetadata": {"promptTokenCount": 9, "totalTokenCount": 9},
}
OVERLOADED: dict[str, Any] = {
    "error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}
}
EXHAUSTED: dict[str, Any] = {
    "error": {
        "code": 429,
        "message": "You exceeded your current quota, limit: 250, model: gemini-2.5-flash",
        "status": "RESOURCE_EXHAUSTED",
        "details": [
            {
                "@type": TYPES + "QuotaFailure",
                "violations": [{"quotaId": "GenerateRequestsPerMinute", "quotaValue": "250"}],
            },
            {"@type": TYPES + "Help", "links": [{"url": "https://ai.google.dev"}]},
            {"@type": TYPES + "RetryInfo", "retryDelay": "7.5s"},
        ],
    }
}
CACHE_GONE: dict[str, Any] = {
    "error": {
        "code": 403,
        "message": "CachedContent not found (or permission denied)",
        "status": "PERMISSION_DENIED",
    }
}
CACHE: dict[str, Any] = {
    "name": "cachedContents/1",
    "model": "models/gemini-2.5-flash",
    "createTime": "2026-01-01T00:00:00.000000Z",
    "updateTime": "2026-01-01T00:00:00.000000Z",
    "expireTime": "2026-01-01T01:00:00.000000Z",
    "displayName": "batch-llm 0",
    "usageMetadata": {"totalTokenCount": 1400},
}
CACHES: dict[str, Any] = {"cachedContents": [CACHE], "nextPageToken": ""}
REFUSALS = (OVERLOADED, EXHAUSTED, CACHE_GONE)

PAGE = (
    "<!DOCTYPE html><html><head><title>{title}</title></head><body><h1>{title}</h1>"
    "<p>The cached session has expired; the upstream timed out.</p></body></html>\n"
)

# What stands where something else belongs. NaN and numbers without end are no JSON, and
# Python's parser takes them all the same.
VALUES = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        1.5,
        1e308,
        -1e308,
        float("nan"),
        float("inf"),
        10**400,
        "",
        " ",
        "text",
        "-5",
        "12",
        "\ud800",
        "\x00",
        "9" * 30 + "s",
        "1969-12-31T23:59:59Z",
        "9999-12-31T23:59:59Z",
        "long " * 1000,
        [],
        {},
        [None],
        [[]],
        [{}],
        {"": None},
        {"error": "text"},
    ]
)
STATUSES = st.sampled_from(
    [200, 200, 200, 429, 503, 400, 403, 404, 500, 502, 504, 201, 204, 302, 304, 409, 999]
)
HEADERS = st.sampled_from(
    [
        {},
        {},
        {},
        {"Content-Type": "text/html"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Type": "application/json; charset=no-such-thing"},
        {"Content-Type": ""},
        {"Content-Length": "5"},
        {"Content-Length": "99999"},
        {"Content-Length": "many"},
        {"Content-Encoding": "gzip"},
        {"Transfer-Encoding": "chunked"},
        {"Retry-After": "9" * 30},
        {"Retry-After": "-1"},
        {"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT", "Date": "Mon, 01 Jan 2001 00:00:00 GMT"},
        {"Retry-After": "Sun, 09 Sep 99999999999999 01:46:40 GMT", "Date": "today"},
    ]
)
NO_TEXT = [b"", b"\x00", b"\xff\xfe\xfa", b"\xef\xbb\xbf{}", b"[" * 100_000, b'{"a":' * 9_000]


def mutated(*bodies: Mapping[str, Any]) -> st.SearchStrategy[bytes]:
    """One of the bodies, with some of its nodes gone or something else."""
    return st.one_of([_mutated(body) for body in bodies])


def broken(*bodies: Mapping[str, Any]) -> st.SearchStrategy[bytes]:
    """One of the bodies, broken off, in another encoding or with bytes that are no text."""
    return st.one_of(
        [_cut(json.dumps(body).encode()) for body in bodies]
        + [_with_wrong_bytes(json.dumps(body).encode()) for body in bodies]
        + [st.sampled_from([json.dumps(body).encode("utf-16") for body in bodies])]
    )


def pages() -> st.SearchStrategy[bytes]:
    """What a proxy says instead."""
    titles = ["502 Bad Gateway", "503 Service Unavailable", "429 Too Many Requests", "Log in"]
    return st.sampled_from([PAGE.format(title=title).encode() for title in titles])


def answers(*bodies: Mapping[str, Any]) -> st.SearchStrategy[Fault]:
    """Answers of any status that are like one of these, or like nothing."""
    every = (*bodies, *REFUSALS)
    body = mutated(*bodies) | mutated(*every) | broken(*every) | pages() | st.sampled_from(NO_TEXT)
    return st.builds(Fault.raw, body, status=STATUSES, headers=HEADERS)


@st.composite
def _mutated(draw: st.DrawFn, body: Mapping[str, Any]) -> bytes:
    tree = {"root": copy.deepcopy(body)}
    for _ in range(draw(st.integers(1, 3))):
        parents = list(_parents(tree))
        holder, key = parents[draw(st.integers(0, len(parents) - 1))]
        if holder is not tree and draw(st.booleans()):
            del holder[key]
        else:
            holder[key] = copy.deepcopy(draw(VALUES))
    return json.dumps(tree["root"]).encode()


def _parents(node: Any) -> Iterator[tuple[Any, Any]]:
    """The place of every value in a tree: what holds it, and under which key."""
    keys = list(node) if isinstance(node, dict) else range(len(node))
    for key in keys:
        yield node, key
        if isinstance(node[key], dict | list):
            yield from _parents(node[key])


@st.composite
def _cut(draw: st.DrawFn, body: bytes) -> bytes:
    return body[: draw(st.integers(0, len(body) - 1))]


@st.composite
def _with_wrong_bytes(draw: st.DrawFn, body: bytes) -> bytes:
    place = draw(st.integers(0, len(body)))
    wrong = draw(st.sampled_from([b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\x00", b"\xf0\x9f"]))
    return body[:place] + wrong + body[place:]
