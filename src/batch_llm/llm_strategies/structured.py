"""A model's text, turned into values of a type."""

import json
import string
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, cast, overload

from pydantic import TypeAdapter, ValidationError

from batch_llm.base import TOutput
from batch_llm.llm_strategies._structured import NoJsonError, find_json
from batch_llm.strategies.errors import EmptyResponseError, ResponseError, ResponseTruncatedError

# Nobody mends more of them, and listing millions takes minutes.
_MOST_PROBLEMS = 1_000
# What a message tells: pydantic's reasons may quote an input.
_MOST_FIELDS = 5
_LONGEST_NAME = 80
_LONGEST_REASON = 200

_BLANK = string.whitespace + "\ufeff"


class StructuredOutputError(json.JSONDecodeError, ResponseError):
    """The answer is no JSON, or not what was asked for; another attempt may bring it.

    It is a ``JSONDecodeError`` too, so whoever retries after one retries after this. Its
    message says what is wrong without quoting the answer.

    Attributes:
        text: The model's answer, whole.
        failing_fields: What is wrong with which field, by its path such as
            ``"authors.0.name"``; the path of the whole answer is ``""``. Empty where nothing
            could be read.
        valid: The top-level fields of the answer that pass, as they came, by their names in
            JSON. Of a truncated answer, those that it had finished with a comma.
        truncated: Whether the answer ends in the middle of its JSON.
    """

    def __init__(  # noqa: PLR0913 (the first three are those of a JSONDecodeError)
        self,
        message: str,
        text: str = "",
        position: int = 0,
        *,
        failing_fields: Mapping[str, str] | None = None,
        valid: Mapping[str, Any] | None = None,
        truncated: bool = False,
    ) -> None:
        # By name, since the parents take different arguments; the second makes the text that is
        # shown the message alone: a line and a column say nothing about a field.
        json.JSONDecodeError.__init__(self, message, text, position)
        ResponseError.__init__(self, message)
        self.text = text
        self.failing_fields: dict[str, str] = dict(failing_fields or {})
        self.valid: dict[str, Any] = dict(valid or {})
        self.truncated = truncated

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.msg, self.doc, self.pos), self.__dict__


class TruncatedOutputError(StructuredOutputError, ResponseTruncatedError):
    """The answer ends in the middle of its JSON, most likely at the token limit.

    Like every ``ResponseTruncatedError`` it is not retried: the same prompt would be cut off
    again, at the full price. Where a Gemini response says that the model stopped by itself, a
    plain ``StructuredOutputError`` is raised instead.
    """


@overload
def parse_json(output_type: type[TOutput]) -> Callable[[Any], TOutput]: ...
@overload
def parse_json(output_type: TypeAdapter[TOutput]) -> Callable[[Any], TOutput]: ...
@overload
def parse_json(output_type: Any) -> Callable[[Any], Any]: ...
def parse_json(output_type: Any) -> Callable[[Any], Any]:
    """Make a ``response_parser`` that takes the answer for JSON, and validates it.

    A byte order mark, a code fence and prose around one object or array are passed over, and
    so are a comma behind a last element and raw line breaks in strings. Anything that would be
    a guess is an error instead: several values, missing brackets or quotes, a key that stands
    twice, NaN.

    Args:
        output_type: A pydantic model, any type that a pydantic ``TypeAdapter`` takes, or such
            an adapter, which also tells a type checker what ``A | B`` stands for.

    Returns:
        A function of a response with a ``text``, such as Gemini's, or of the text itself. It
        raises ``StructuredOutputError`` for an answer that does not fit,
        ``TruncatedOutputError`` for one that was cut off, and ``EmptyResponseError`` for none.

    Raises:
        pydantic.PydanticSchemaGenerationError: Pydantic does not know the type.
    """
    is_adapter = isinstance(output_type, TypeAdapter)
    adapter = cast("TypeAdapter[Any]", output_type if is_adapter else TypeAdapter(output_type))

    def parse(response: Any) -> Any:
        text = _text_of(response)
        try:
            found = find_json(text)
        except NoJsonError as flaw:
            raise _unreadable(flaw, text, adapter, stopped=_stopped_by_itself(response)) from None
        try:
            return adapter.validate_json(found)
        except ValidationError as error:
            raise _misfit(error, text, found) from error

    return parse


def _text_of(response: Any) -> str:
    text: object = response if isinstance(response, str) else getattr(response, "text", ...)
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise TypeError(
            "parse_json takes a text, or a response whose .text is one (got "
            f"{type(response).__name__}); hand it the answer's text"
        )
    if not text.strip(_BLANK):
        raise EmptyResponseError("the answer holds no text; try again")
    return text


def _stopped_by_itself(response: Any) -> bool:
    """Whether a response of Gemini's says that no limit ended it."""
    candidates = getattr(response, "candidates", None)
    return isinstance(candidates, list) and any(
        getattr(candidate, "finish_reason", None) == "STOP"
        for candidate in cast("list[object]", candidates)
    )


def _unreadable(
    flaw: NoJsonError, text: str, adapter: TypeAdapter[Any], *, stopped: bool
) -> StructuredOutputError:
    if not flaw.truncated:
        return StructuredOutputError(
            f"the answer of {len(text):,} characters is no JSON: {flaw}; ask for JSON alone",
            text,
            flaw.position,
        )
    kind = StructuredOutputError if stopped else TruncatedOutputError
    remedy = (
        "though the model was done; ask again"
        if stopped
        else "so likely at the token limit; raise it or ask for less"
    )
    failing_fields, valid = _judged(flaw.finished, adapter)
    return kind(
        f"the answer ends amid its JSON after {len(text):,} characters, {remedy}",
        text,
        flaw.position,
        failing_fields=failing_fields,
        valid=valid,
        truncated=True,
    )


def _judged(
    finished: str | None, adapter: TypeAdapter[Any]
) -> tuple[dict[str, str], dict[str, Any]]:
    """What fails, and what is valid, among the finished fields of a truncated answer."""
    if finished is None:
        return {}, {}
    try:
        adapter.validate_json(find_json(finished))
    except ValidationError as error:
        return _problems(error, finished)
    except Exception:
        # A key that stands twice, or a validator that needs a field which is not there.
        return {}, {}
    return {}, json.loads(finished)


def _misfit(error: ValidationError, text: str, found: str) -> StructuredOutputError:
    failing_fields, valid = _problems(error, found)
    told = "; ".join(
        f"{path[:_LONGEST_NAME] or 'the whole'}: {reason[:_LONGEST_REASON]}"
        for path, reason in islice(failing_fields.items(), _MOST_FIELDS)
    )
    more = len(failing_fields) - _MOST_FIELDS
    return StructuredOutputError(
        f"the answer does not fit {error.title[:_LONGEST_NAME]}: {told}"
        f"{f'; and {more:,} more' if more > 0 else ''}; ask again, or for these fields alone",
        text,
        failing_fields=failing_fields,
        valid=valid,
    )


def _problems(error: ValidationError, found: str) -> tuple[dict[str, str], dict[str, Any]]:
    """What fails by its path, and the top-level fields that nothing is wrong with."""
    count = error.error_count()
    if count > _MOST_PROBLEMS:
        return {"": f"{count:,} values are not what they must be"}, {}
    reasons: dict[str, str] = {}
    for problem in error.errors(include_url=False, include_context=False):
        path = ".".join(map(str, problem["loc"]))
        reason = problem["msg"]
        reasons[path] = f"{reasons[path]}; {reason}" if path in reasons else reason
    return reasons, {} if "" in reasons else _valid_fields(error, json.loads(found))


def _valid_fields(error: ValidationError, fields: object) -> dict[str, Any]:
    """The fields that no problem is about; none where a problem cannot be placed."""
    if not isinstance(fields, dict):
        return {}
    valid = cast("dict[int | str, Any]", fields).copy()
    for problem in error.errors(include_url=False, include_context=False):
        name, *inner = problem["loc"]
        # Not the name of a field, but that of a member of a union, say.
        if name not in fields and (inner or problem["type"] != "missing"):
            return {}
        valid.pop(name, None)
    return cast("dict[str, Any]", valid)
