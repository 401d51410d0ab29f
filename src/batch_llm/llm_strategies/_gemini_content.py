"""What a cache holds: how to recognise it again, how to send it without a cache, how long it is."""

import base64
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, cast

from pydantic import BaseModel

# Fixed when a cache is created and shown in listings; the API allows 128 characters.
_DISPLAY_NAME_PREFIX = "batch-llm "

# English prose has about four characters to a token.
_CHARACTERS_PER_TOKEN = 4


def as_list(contents: Any) -> list[Any]:
    """One content or several as a list; nothing at all as an empty one."""
    if isinstance(contents, list | tuple):
        return list(cast("Sequence[Any]", contents))
    return [contents] if contents else []


def display_name_of(parts: Mapping[str, Any]) -> str:
    """A name that says what a cache holds: equal contents, equal name, in any process.

    Contents of a kind that has no stable form give a new name every time, so that a
    cache is rather made twice than taken for another.
    """
    digest = hashlib.sha256(_canonical(parts).encode()).hexdigest()
    return f"{_DISPLAY_NAME_PREFIX}{digest}"


def estimate_tokens(parts: Mapping[str, Any]) -> int:
    """About how many tokens the contents have, going by their length."""
    return len(_canonical(parts)) // _CHARACTERS_PER_TOKEN


def _canonical(parts: Mapping[str, Any]) -> str:
    return json.dumps(
        {name: part for name, part in parts.items() if part is not None},
        sort_keys=True,
        ensure_ascii=False,
        separators=(",", ":"),
        default=_plain,
    )


def _plain(value: Any) -> Any:
    """A JSON form of what json itself cannot write."""
    if isinstance(value, BaseModel):
        # Only what was set: other releases of the SDK know other fields.
        return value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, bytes | bytearray):
        return base64.b64encode(value).decode()
    return f"{type(value).__name__} {uuid.uuid4()}"
