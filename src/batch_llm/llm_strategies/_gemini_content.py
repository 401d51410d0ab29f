"""What a cache holds: how to recognise it again, how to send it without a cache, how long it is."""

import base64
import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast
from urllib.parse import urlencode

from pydantic import BaseModel

# Fixed when a cache is created and shown in listings.
_DISPLAY_NAME_PREFIX = "batch-llm "
_MOST_CHARACTERS_OF_A_NAME = 128
_CHARACTERS_OF_CONTENTS = len(_DISPLAY_NAME_PREFIX) + 2 * hashlib.sha256().digest_size

# 120 bits in 20 characters, so that some of the tags can be read beside it.
_BYTES_OF_TAGS_DIGEST = 15

# English prose has about four characters to a token.
_CHARACTERS_PER_TOKEN = 4

_FIELDS_OF_TEXT = frozenset({"role", "parts", "text"})


def as_list(contents: Any) -> list[Any]:
    """One content or several as a list; nothing at all as an empty one."""
    if isinstance(contents, list | tuple):
        return list(cast("Sequence[Any]", contents))
    return [contents] if contents else []


def display_name_of(parts: Mapping[str, Any], tags: Mapping[str, str] | None = None) -> str:
    """A name that says what a cache holds: equal contents and tags, equal name, in any process.

    Contents of a kind that has no stable form give a new name every time, so that a
    cache is rather made twice than taken for another.
    """
    digest = hashlib.sha256(_canonical(parts).encode()).hexdigest()
    name = f"{_DISPLAY_NAME_PREFIX}{digest}"
    return f"{name} {_label_of(tags, _MOST_CHARACTERS_OF_A_NAME - len(name) - 1)}" if tags else name


def names_same_contents(name: object, other: str) -> bool:
    """Whether two display names differ in their tags at most."""
    end = _CHARACTERS_OF_CONTENTS
    return isinstance(name, str) and name[:end] == other[:end]


def _label_of(tags: Mapping[str, str], room: int) -> str:
    """The tags as in a URL's query; with a digest before their beginning if they do not fit."""
    label = urlencode(sorted(tags.items()), safe="/:@,", errors="surrogatepass")
    if len(label) <= room:
        return label
    digest = hashlib.sha256(label.encode()).digest()[:_BYTES_OF_TAGS_DIGEST]
    # No query has a "#" in it, so the one form is never taken for the other.
    return f"#{base64.urlsafe_b64encode(digest).decode()} {label}"[:room]


def estimate_tokens(parts: Mapping[str, Any]) -> int:
    """About how many tokens the contents have, going by their length."""
    return len(_canonical(parts)) // _CHARACTERS_PER_TOKEN


def most_tokens(parts: Mapping[str, Any]) -> int | None:
    """What the contents' tokens cannot exceed; None where not all of them is text.

    No token is shorter than a byte.
    """
    total = 0
    for text in _texts(list(parts.values())):
        if text is None:
            return None
        total += len(text.encode(errors="surrogatepass"))
    return total


def _texts(value: Any) -> Iterator[str | None]:
    """All texts in a content, and a None for anything else that is in it."""
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_none=True)
    if isinstance(value, list | tuple):
        for item in cast("Sequence[Any]", value):
            yield from _texts(item)
    elif isinstance(value, Mapping) and cast("Mapping[str, Any]", value).keys() <= _FIELDS_OF_TEXT:
        yield from _texts(list(cast("Mapping[str, Any]", value).values()))
    elif isinstance(value, str):
        yield value
    elif value is not None:
        yield None


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
