"""How long is a text in tokens? A fixed estimate, so that every count can be foretold.

One token is four characters, rounded up once per request and once per answer. A media part
(inline or by reference) counts as 258 tokens, as an image does. Tools and function calls
count by the length of their JSON.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from batch_llm.testing.gemini.shapes import is_list, is_object

CHARACTERS_PER_TOKEN = 4
TOKENS_PER_MEDIA_PART = 258


def text_tokens(text: str) -> int:
    """Tokens of one text."""
    return _tokens(len(text))


def request_tokens(body: Mapping[str, Any]) -> int:
    """Tokens of a request's contents, system instruction and tools.

    Args:
        body: Body of a generate, count or cache-create request in wire form.
    """
    contents, instruction = body.get("contents"), [body.get("systemInstruction")]
    parts = [*parts_of(contents), *parts_of(instruction)]
    characters = sum(map(_part_characters, parts))
    tools = body.get("tools")
    if tools:
        characters += _json_characters(tools)
    return _tokens(characters)


def request_text(body: Mapping[str, Any]) -> str:
    """All text of a request, system instruction first."""
    instruction = parts_of([body.get("systemInstruction")])
    return "".join(_texts([*instruction, *parts_of(body.get("contents"))]))


def last_user_text(contents: Any) -> str:
    """Text of the last content that the user said, its parts joined by newlines."""
    if not is_list(contents):
        return ""
    for content in reversed(contents):
        if is_object(content) and content.get("role", "user") == "user":
            return "\n".join(_texts(parts_of([content])))
    return ""


def parts_of(contents: Any) -> list[dict[str, Any]]:
    """The parts of a list of contents in order; what has another shape is left out."""
    if not is_list(contents):
        return []
    parts: list[dict[str, Any]] = []
    for content in contents:
        given = content.get("parts") if is_object(content) else None
        if is_list(given):
            parts.extend(part for part in given if is_object(part))
    return parts


def _tokens(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)


def _texts(parts: Iterable[dict[str, Any]]) -> list[str]:
    return [text for part in parts if isinstance(text := part.get("text"), str)]


def _part_characters(part: dict[str, Any]) -> int:
    text = part.get("text")
    if isinstance(text, str):
        return len(text)
    if "inlineData" in part or "fileData" in part:
        return TOKENS_PER_MEDIA_PART * CHARACTERS_PER_TOKEN
    return _json_characters(part)


def _json_characters(value: Any) -> int:
    return len(json.dumps(value, separators=(",", ":")))
