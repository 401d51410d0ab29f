"""What does the model answer, and what does the API make of it?"""

import hashlib
import json
import random
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from batch_llm.testing.gemini import answers
from batch_llm.testing.gemini.records import RecordedRequest, Reply
from batch_llm.testing.gemini.shapes import is_object
from batch_llm.testing.gemini.tokens import CHARACTERS_PER_TOKEN, request_text, text_tokens

Answer = str | dict[str, Any] | list[Any] | Reply
Respond = Callable[[RecordedRequest], Answer | Awaitable[Answer]]


def default_answer(request: RecordedRequest, *, seed: int) -> Reply:
    """An answer that fits what was asked for; equal prompts of one seed get equal answers."""
    config = request.generation_config
    key = f"{seed}\0{request.prompt}".encode(errors="replace")
    rng = random.Random(hashlib.blake2b(key, digest_size=8).digest())
    schema = config.get("responseJsonSchema") or config.get("responseSchema")
    mime_type = config.get("responseMimeType")
    if is_object(schema):
        value = answers.compose(schema, rng)
        return Reply(str(value)) if mime_type == "text/x.enum" else Reply(json=value)
    text = answers.paragraph(rng)
    if mime_type == "application/json":
        return Reply(json={"answer": text})
    return Reply(text)


def as_reply(answer: object) -> Reply:
    """What ``respond`` gave, as a Reply with a text.

    Raises:
        TypeError: It gave something else.
    """
    if isinstance(answer, str):
        return Reply(answer)
    if not isinstance(answer, dict | list | Reply):
        raise TypeError(
            f"respond must return a str, dict, list or Reply (got {type(answer).__name__})."
        )
    reply = answer if isinstance(answer, Reply) else Reply(json=answer)
    if reply.json is None:
        return reply
    return replace(reply, text=json.dumps(reply.json, ensure_ascii=False), json=None)


def within_limit(reply: Reply, max_output_tokens: Any) -> Reply:
    """The reply cut off at maxOutputTokens; thinking uses them up first."""
    if not isinstance(max_output_tokens, int) or reply.text is None:
        return reply
    room = max_output_tokens - reply.thoughts_tokens
    if text_tokens(reply.text) <= room:
        return reply
    text = reply.text[: room * CHARACTERS_PER_TOKEN] if room > 0 else None
    return replace(reply, text=text, finish_reason="MAX_TOKENS")


def response_body(
    reply: Reply, *, model: str, response_id: str, prompt_tokens: int, cached_tokens: int
) -> dict[str, Any]:
    """The GenerateContentResponse.

    Args:
        reply: What the model said.
        model: Last segment of its name.
        response_id: Id of the answer.
        prompt_tokens: Tokens of the prompt, those of its cache included.
        cached_tokens: Tokens read from a cache, 0 for none.
    """
    body: dict[str, Any] = {}
    if reply.block_reason is not None:
        body["promptFeedback"] = {"blockReason": reply.block_reason, **_ratings(reply)}
    else:
        body["candidates"] = [_candidate(reply)]
    usage = _usage(reply, prompt_tokens, cached_tokens)
    if usage:
        body["usageMetadata"] = usage
    body["modelVersion"] = reply.model_version or model
    body["responseId"] = response_id
    return body


class ImplicitCache:
    """Remembers each model's last prompt and finds what the next one has in common with it."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def hit_tokens(self, model: str, body: Mapping[str, Any], minimum: int) -> int:
        """Tokens of the common beginning; 0 when it is shorter than ``minimum``."""
        text = request_text(body)
        last, self._last[model] = self._last.get(model, ""), text
        longest = min(len(text), len(last))
        common = bisect_left(
            range(1, longest + 1), True, key=lambda size: text[:size] != last[:size]
        )
        tokens = common // CHARACTERS_PER_TOKEN
        return tokens if tokens >= minimum else 0


def _candidate(reply: Reply) -> dict[str, Any]:
    candidate: dict[str, Any] = {
        "finishReason": reply.finish_reason,
        "index": 0,
        **_ratings(reply),
    }
    if reply.text is not None:
        candidate["content"] = {"parts": [{"text": reply.text}], "role": "model"}
    elif reply.finish_reason == "MAX_TOKENS":
        candidate["content"] = {"role": "model"}
    return candidate


def _ratings(reply: Reply) -> dict[str, Any]:
    return {} if reply.safety_ratings is None else {"safetyRatings": list(reply.safety_ratings)}


def _usage(reply: Reply, prompt_tokens: int, cached_tokens: int) -> dict[str, int]:
    """The counts by wire name; the API leaves out those that are zero."""
    overrides = reply.usage or {}
    billed: dict[str, int | None] = {
        "promptTokenCount": prompt_tokens,
        "candidatesTokenCount": text_tokens(reply.text or ""),
        "toolUsePromptTokenCount": reply.tool_use_prompt_tokens,
        "thoughtsTokenCount": reply.thoughts_tokens,
    }
    billed |= {name: overrides[name] for name in billed if name in overrides}
    counts = {
        **billed,
        "totalTokenCount": sum(count or 0 for count in billed.values()),
        "cachedContentTokenCount": cached_tokens,
        **overrides,
    }
    return {
        name: count
        for name, count in counts.items()
        if count is not None and (count or name in overrides)
    }
