"""Where in a model's text is the JSON, and what keeps it from being any?

Only what cannot change a value is mended: a fence or prose around it, a comma behind the last
element, a raw line break in a string. Nothing is closed, quoted or chosen from several.
"""

import json
import re
from contextlib import suppress
from typing import Any

from pydantic import TypeAdapter, ValidationError

# Possessive, so that no text takes more than linear time.
_MARGIN_BEFORE = re.compile(r"[\s\ufeff]*+(?:```[^\S\n]*+\w*+[^\S\n]*+\n\s*+)?")
_MARGIN_BEHIND = re.compile(r"\s*+(?:```\s*+)?\Z")
_SPACE = re.compile(r"\s*+")
# What prose does not hold by chance: "[1]" may be a reference, "{}" a placeholder.
_START = re.compile(r'\{\s*+(?:"|\Z)|\[\s*+(?:["{\[]|\Z)')
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?'
_PLAIN_STRING = r'"[^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+"'
_STRINGS = re.compile(_STRING, re.DOTALL)
# What stays as it is, is taken a thousand pieces at a time: any number would take much memory, and
# a possessive group of such pieces matches too much before Python 3.11.5.
_RAW_STRINGS = re.compile(rf'(?P<kept>(?:[^"]++|{_PLAIN_STRING}){{1,1000}})|{_STRING}', re.DOTALL)
# A comma is the last one of something only if there is something before it.
_LAST_COMMAS = re.compile(
    rf"""(?P<kept>(?:
        {_STRING} | [^"\[{{,:]++ | [\[{{,:]\s*+, | ,(?!\s*+[}}\]]) | [\[{{:]
    ){{1,1000}}) | ,""",
    re.DOTALL | re.VERBOSE,
)
_ESCAPES = {code: f"\\u{code:04x}" for code in range(0x20)}


class NoJsonError(Exception):
    """A text holds no JSON value, or not exactly one.

    Attributes:
        position: Where that shows.
        truncated: Whether it is JSON as far as it goes, and the text merely ends too early.
        finished: The whole fields of a truncated object, as the text of one.
    """

    def __init__(
        self, reason: str, position: int, *, truncated: bool = False, finished: str | None = None
    ) -> None:
        super().__init__(reason)
        self.position = position
        self.truncated = truncated
        self.finished = finished


def find_json(text: str) -> str:
    """The one JSON value in a text: any if there is nothing else, or an object or array in prose.

    Raises:
        NoJsonError: There is none, more than one, or one that does not end.
    """
    start = _behind(_MARGIN_BEFORE, text, 0)
    try:
        end = _decode(_STRICT, text, start)
        if _MARGIN_BEHIND.match(text, end):
            return text[start:end]
        failure = json.JSONDecodeError("Extra data", text, end)
    except json.JSONDecodeError as error:
        failure = error
    found = _START.search(text, start)
    if found is None or _leads_into(text[start : found.start()]):
        raise _flaw(text, start, failure)
    return _mended(text, found.start())


def _mended(text: str, start: int) -> str:
    """The value that begins at ``start``, if it can be read and nothing speaks against it."""
    # Of the same length, so that positions stay true.
    text = text[:start] + _LAST_COMMAS.sub(lambda part: part["kept"] or " ", text[start:])
    try:
        end = _decode(_LENIENT, text, start)
        if _START.search(text, end):
            raise json.JSONDecodeError("More than one value", text, end)
        if _goes_on(text[end:]):
            raise json.JSONDecodeError("More of the value behind its end", text, end)
    except json.JSONDecodeError as error:
        raise _flaw(text, start, error) from None
    return _with_escapes(text[start:end])


def _flaw(text: str, start: int, failure: json.JSONDecodeError) -> NoJsonError:
    """Why the value that begins at ``start`` cannot be read."""
    truncated = _ends_early(_with_escapes(text[start:]))
    return NoJsonError(
        f"{failure.msg} at line {failure.lineno}, column {failure.colno}",
        failure.pos,
        truncated=truncated,
        finished=_finished_fields(text, start) if truncated else None,
    )


def _ends_early(text: str) -> bool:
    """Whether the text ends in the middle of a value, which only pydantic's parser tells."""
    try:
        _ANYTHING.validate_json(text)
    except ValidationError as error:
        return "EOF while parsing" in error.errors(include_url=False)[0]["msg"]
    return False


def _finished_fields(text: str, start: int) -> str | None:
    """A truncated object, closed behind its last value that a comma follows."""
    if not text.startswith("{", start):
        return None
    end = start + 1
    with suppress(json.JSONDecodeError):
        position = end
        while True:
            position = _behind_value(text, _behind_value(text, position, ":"), ",")
            end = position - 1
    return _with_escapes(text[start:end]) + "}"


def _behind_value(text: str, position: int, mark: str) -> int:
    """Where the mark ends that follows the next value."""
    end = _behind(_SPACE, text, _decode(_LENIENT, text, _behind(_SPACE, text, position)))
    if not text.startswith(mark, end):
        raise json.JSONDecodeError(f"Expecting {mark!r}", text, end)
    return end + len(mark)


def _decode(decoder: json.JSONDecoder, text: str, position: int) -> int:
    """Read one value; gives where it ends. Whatever is wrong with it is a JSONDecodeError."""
    try:
        return decoder.raw_decode(text, position)[1]
    except json.JSONDecodeError:
        raise
    except RecursionError:
        reason = "Nested too deeply"
    except ValueError as refusal:
        reason = str(refusal)
    raise json.JSONDecodeError(reason, text, position)


def _behind(pattern: re.Pattern[str], text: str, position: int) -> int:
    found = pattern.match(text, position)
    return found.end() if found else position


def _leads_into(before: str) -> bool:
    """Whether what follows a text is a part of something larger that is no JSON."""
    before = before.rstrip()
    is_key = before.endswith(":") and before[:-1].rstrip().endswith(('"', "'"))
    return is_key or before.endswith(",") or not _is_whole(before)


def _goes_on(behind: str) -> bool:
    """Whether a text belongs to the value before it."""
    return behind.lstrip().startswith((",", ":")) or not _is_whole(behind)


def _is_whole(text: str) -> bool:
    """Whether nothing is open at either end: no bracket outside of quotes, and no quote."""
    # The quote opens a string that swallows the mark, or closes one that was open.
    outside = _STRINGS.sub("", f'{text}\n"\0')
    is_balanced = all(outside.count(left) == outside.count(right) for left, right in ("{}", "[]"))
    return is_balanced and not outside.endswith("\0")


def _with_escapes(text: str) -> str:
    """The text with raw control characters in strings escaped; between strings they are space."""
    return _RAW_STRINGS.sub(lambda part: part["kept"] or part[0].translate(_ESCAPES), text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise ValueError(f"The key {key[:80]!r} twice in one object")
        fields[key] = value
    return fields


def _no_number(word: str) -> Any:
    raise ValueError(f"{word}, which is no number in JSON,")


_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_number)
_LENIENT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_number, strict=False)
_ANYTHING: TypeAdapter[Any] = TypeAdapter(Any)
