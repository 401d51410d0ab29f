"""Which JSON value fits a schema? Drawn from the generator given, so repeatable.

Understands what the SDK sends as responseSchema (types in capitals, ``nullable``, camel or
snake case) and JSON Schema with ``$ref``, ``anyOf``, ``allOf``, ``const``. Texts follow minimum
and maximum length and common formats, not ``pattern``.
"""

import math
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from batch_llm.testing.gemini import errors, words
from batch_llm.testing.gemini.shapes import is_list, is_object

Schema = dict[str, Any]

_SHALLOW = 3
_DEEPEST = 24
_SNAKE_CASE = {
    "additionalProperties": "additional_properties",
    "allOf": "all_of",
    "anyOf": "any_of",
    "exclusiveMaximum": "exclusive_maximum",
    "exclusiveMinimum": "exclusive_minimum",
    "maxItems": "max_items",
    "maxLength": "max_length",
    "minItems": "min_items",
    "minLength": "min_length",
    "multipleOf": "multiple_of",
    "oneOf": "one_of",
    "prefixItems": "prefix_items",
    "propertyOrdering": "property_ordering",
}
_EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
_RANGES: dict[str, tuple[float, float]] = {
    "year": (1850, 2020),
    "rating": (1, 5),
    "stars": (1, 5),
    "score": (0, 1),
    "confidence": (0, 1),
    "probability": (0, 1),
    "age": (8, 80),
    "pages": (80, 600),
}
_DEFAULT_RANGE = (1, 100)


def compose(schema: Schema, rng: random.Random, *, name: str = "") -> Any:
    """A value that fits a schema.

    Args:
        schema: The schema in wire form.
        rng: Where every choice comes from.
        name: What the value is for; texts are chosen to suit it.

    Raises:
        ApiError: A reference leads nowhere, or the schema demands endless nesting.
    """
    return _Composer(schema, rng).value(schema, name or str(schema.get("title", "")), 0)


def paragraph(rng: random.Random) -> str:
    """Two or three sentences for an answer without a schema."""
    return " ".join(words.sentence(rng) for _ in range(rng.randint(2, 3)))


class _Composer:
    """Walks one schema; beyond a shallow depth it takes the shortest way out."""

    def __init__(self, root: Schema, rng: random.Random) -> None:
        self._root = root
        self._rng = rng
        self._makers: dict[str, Callable[[Schema, str, int], Any]] = {
            "object": self._object,
            "array": self._array,
            "string": self._string,
            "integer": self._integer,
            "number": self._number,
            "boolean": self._boolean,
            "null": self._null,
        }

    def value(self, schema: Schema, name: str, depth: int) -> Any:
        if depth > _DEEPEST:
            raise errors.invalid_argument(
                f"The response schema nests deeper than {_DEEPEST} levels at {name!r}. "
                "Give the recursion an end: an optional or nullable property, or an array."
            )
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._rng.choice(schema["enum"])
        options = _get(schema, "anyOf") or _get(schema, "oneOf")
        if options:
            return self.value(self._option(options, depth), name, depth + 1)
        if depth > _SHALLOW and schema.get("nullable"):
            return None
        return self._makers[self._type(schema, depth)](schema, name, depth)

    def _resolved(self, schema: Schema) -> Schema:
        """The schema with its references followed and its allOf merged."""
        for _ in range(_DEEPEST):
            reference = schema.get("$ref") or schema.get("ref")
            if reference is None:
                break
            schema = self._target(reference)
        else:
            raise errors.invalid_argument(
                "A reference in the response schema leads back to itself. Let it end at a type."
            )
        parts: list[Schema] = _get(schema, "allOf") or []
        for part in map(self._resolved, parts):
            properties = {**schema.get("properties", {}), **part.get("properties", {})}
            required = [*schema.get("required", []), *part.get("required", [])]
            schema = {**schema, **part, "properties": properties, "required": required}
        return schema

    def _target(self, reference: str) -> Schema:
        target: Schema | None = self._root
        for step in filter(None, reference.removeprefix("#").split("/")):
            inner = target.get(step) if target is not None else None
            target = inner if is_object(inner) else None
        if target is None:
            raise errors.invalid_argument(
                f"The response schema refers to {reference!r}, which is not in it. "
                "Put it under $defs, or correct the reference."
            )
        return target

    def _option(self, options: list[Schema], depth: int) -> Schema:
        resolved = [self._resolved(option) for option in options]
        if depth > _SHALLOW:
            return min(resolved, key=_weight)
        present = [option for option in resolved if _type_names(option) != ["null"]]
        return self._rng.choice(present or resolved)

    def _type(self, schema: Schema, depth: int) -> str:
        names = _type_names(schema)
        if names == ["null"] or (depth > _SHALLOW and "null" in names):
            return "null"
        return next((name for name in names if name != "null" and name in self._makers), "string")

    def _object(self, schema: Schema, name: str, depth: int) -> dict[str, Any]:
        properties: dict[str, Schema] = schema.get("properties") or {}
        order: list[str] = _get(schema, "propertyOrdering") or list(properties)
        required: list[str] = schema.get("required") or []
        made = {
            key: self.value(properties[key], key, depth + 1)
            for key in order
            if key in properties and (depth <= _SHALLOW or key in required)
        }
        extra = _get(schema, "additionalProperties")
        if not properties and is_object(extra):
            for _ in range(2):
                key = words.suited("theme", self._rng)
                made[key] = self.value(extra, name, depth + 1)
        return made

    def _array(self, schema: Schema, name: str, depth: int) -> list[Any]:
        fixed: list[Schema] = _get(schema, "prefixItems") or []
        made = [self.value(item, name, depth + 1) for item in fixed]
        items: Schema | None = schema.get("items")
        if fixed and not items:
            return made
        least = int(_get(schema, "minItems") or 0)
        most = _get(schema, "maxItems")
        most = max(least, 3) if most is None else int(most)
        size = least if depth > _SHALLOW else self._rng.randint(min(max(least, 2), most), most)
        spare_tries = 4 * size
        while len(made) < size:
            item = self.value(items or {"type": "string"}, name, depth + 1)
            if item not in made or spare_tries <= 0:
                made.append(item)
            spare_tries -= 1
        return made

    def _string(self, schema: Schema, name: str, depth: int) -> str:
        write = _FORMATS.get(str(schema.get("format")))
        if write is not None:
            return write(self._rng)
        text = words.suited(name, self._rng)
        least, most = _get(schema, "minLength"), _get(schema, "maxLength")
        while least is not None and len(text) < int(least):
            text = f"{text} {words.sentence(self._rng)}"
        if most is not None and len(text) > int(most):
            text = _shortened(text, int(most), int(least or 0))
        return text

    def _boolean(self, schema: Schema, name: str, depth: int) -> bool:
        return self._rng.random() < 0.5

    def _null(self, schema: Schema, name: str, depth: int) -> None:
        return None

    def _integer(self, schema: Schema, name: str, depth: int) -> int:
        low, high = _bounds(schema, name, open_step=1)
        step = int(_get(schema, "multipleOf") or 1)
        first, last = math.ceil(low / step), math.floor(high / step)
        return self._rng.randint(first, max(first, last)) * step

    def _number(self, schema: Schema, name: str, depth: int) -> float:
        low, high = _bounds(schema, name, open_step=0.01)
        step = _get(schema, "multipleOf")
        if step:
            return self._rng.randint(math.ceil(low / step), math.floor(high / step)) * float(step)
        return min(high, max(low, round(self._rng.uniform(low, high), 2)))


def _get(schema: Schema, key: str) -> Any:
    """A keyword's value, spelled in camel case or, as some SDKs do, in snake case."""
    value = schema.get(key)
    return schema.get(_SNAKE_CASE[key]) if value is None else value


def _type_names(schema: Schema) -> list[str]:
    given = schema.get("type")
    if isinstance(given, str):
        return [given.lower()]
    if is_list(given):
        return [str(name).lower() for name in given]
    if schema.get("properties") or _get(schema, "additionalProperties"):
        return ["object"]
    return ["array"] if "items" in schema else []


def _weight(schema: Schema) -> int:
    """How much nesting an option brings."""
    names = _type_names(schema)
    if "null" in names:
        return 0
    return 2 if "object" in names else 1


def _bounds(schema: Schema, name: str, *, open_step: float) -> tuple[float, float]:
    """Least and greatest value; a bound that is missing comes from the name."""
    low: float | None = schema.get("minimum")
    high: float | None = schema.get("maximum")
    if (above := _get(schema, "exclusiveMinimum")) is not None:
        low = float(above) + open_step
    if (below := _get(schema, "exclusiveMaximum")) is not None:
        high = float(below) - open_step
    usual = next((_RANGES[word] for word in words.split_name(name) if word in _RANGES), None)
    usual_low, usual_high = usual or _DEFAULT_RANGE
    if low is None:
        low = usual_low if high is None else min(usual_low, high)
    if high is None:
        high = max(usual_high, low + 1)
    return low, max(low, high)


def _shortened(text: str, most: int, least: int) -> str:
    """The text cut to a length, between words if that leaves enough."""
    cut = text[:most]
    at_word = cut[: cut.rfind(" ")].rstrip(" ,.") if " " in cut else cut
    return at_word if len(at_word) >= max(least, 1) else cut


def _moment(rng: random.Random) -> datetime:
    return _EPOCH + timedelta(minutes=rng.randrange(5 * 365 * 24 * 60))


_FORMATS: dict[str, Callable[[random.Random], str]] = {
    "date": lambda rng: _moment(rng).date().isoformat(),
    "date-time": lambda rng: _moment(rng).isoformat(),
    "time": lambda rng: _moment(rng).time().isoformat(),
    "duration": lambda rng: f"PT{rng.randint(1, 12)}H",
    "email": lambda rng: f"reader{rng.randint(1, 999)}@example.com",
    "uri": lambda rng: f"https://example.com/books/{rng.randint(1, 999)}",
    "uuid": lambda rng: str(UUID(int=rng.getrandbits(128), version=4)),
}
