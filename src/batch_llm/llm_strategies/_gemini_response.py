"""What a Gemini answer cost, whether it is one, and what it says of itself."""

import enum
from dataclasses import dataclass, field
from typing import Any, Generic, cast

from batch_llm.base import TokenUsage, TOutput
from batch_llm.llm_strategies._usage import count
from batch_llm.strategies.errors import (
    EmptyResponseError,
    ResponseBlockedError,
    ResponseError,
    ResponseTruncatedError,
)

_BLOCKED = frozenset(
    {
        "SAFETY",
        "RECITATION",
        "LANGUAGE",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "SPII",
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION",
        "MODEL_ARMOR",
        "ESCALATION",
        "PUP_LIMITED_DISABLED",
    }
)
_TRUNCATED = frozenset({"MAX_TOKENS", "CONTINUATION"})
_UNUSABLE = _BLOCKED | _TRUNCATED

_REMEDIES = {
    "SAFETY": "reword the prompt or set safety_settings in the config",
    "RECITATION": "ask for an answer in the model's own words, or raise the temperature",
    "LANGUAGE": "ask for an answer in a language that the model supports",
}
_NO_REMEDY = "reword the prompt or leave the item out"


@dataclass(frozen=True)
class GeminiResponse(Generic[TOutput]):
    """An output, and the response that it was made from.

    Attributes:
        output: What the response parser made.
        safety_ratings: Probability by category in the API's words, such as
            ``{"HARM_CATEGORY_HARASSMENT": "NEGLIGIBLE"}``; None where the answer was not rated.
        finish_reason: Why the model stopped, such as ``"STOP"``; None where it is not told.
        token_usage: Tokens of this call; those of all attempts are the result's.
        raw_response: The SDK's response.
        model_version: The model that answered, such as ``"gemini-2.5-flash"``; None where it
            is not told.
    """

    output: TOutput
    safety_ratings: dict[str, str] | None = None
    finish_reason: str | None = None
    token_usage: TokenUsage = field(default_factory=TokenUsage)
    raw_response: Any = field(default=None, repr=False)
    model_version: str | None = None


def usage_of(response: Any) -> TokenUsage:
    """Tokens of an answer as they are billed; what is not reported counts 0."""
    usage = getattr(response, "usage_metadata", None)

    def tokens(name: str) -> int:
        return count(getattr(usage, name, None))

    used: TokenUsage = {
        "input_tokens": tokens("prompt_token_count") + tokens("tool_use_prompt_token_count"),
        "output_tokens": tokens("candidates_token_count") + tokens("thoughts_token_count"),
        "cached_input_tokens": tokens("cached_content_token_count"),
    }
    used["total_tokens"] = (
        tokens("total_token_count") or used["input_tokens"] + used["output_tokens"]
    )
    return used


def answer_in(response: Any, usage: TokenUsage) -> Any:
    """The first candidate that is an answer, refusing a response that holds none.

    Only real values count, so that a mock's attributes refuse nothing.

    Returns:
        The candidate; None where there are only a mock's.

    Raises:
        ResponseBlockedError: The prompt was blocked or the answer withheld.
        ResponseTruncatedError: The answer ended at the token limit.
        EmptyResponseError: There is no candidate, or one without content.
    """
    candidates = getattr(response, "candidates", ...)
    if candidates is None or candidates == []:
        raise _refusal_of_prompt(response, usage)
    if not isinstance(candidates, list) or not candidates:
        return None
    for candidate in cast("list[Any]", candidates):
        if _is_answer(candidate):
            return candidate
    raise _refusal(candidates[0], usage)


def metadata_of(response: Any, candidate: Any) -> dict[str, Any]:
    """What the API says of an answer, as far as it does: the fields of a `GeminiResponse`."""
    metadata: dict[str, Any] = {}
    if ratings := _safety_ratings(candidate):
        metadata["safety_ratings"] = ratings
    if reason := _word(getattr(candidate, "finish_reason", None)):
        metadata["finish_reason"] = reason
    if version := _word(getattr(response, "model_version", None)):
        metadata["model_version"] = version
    return metadata


def _word(value: object) -> str:
    """The API's word in an enum or str, empty for anything else."""
    if isinstance(value, enum.Enum):
        value = value.value
    return value if isinstance(value, str) else ""


def _safety_ratings(rated: Any) -> dict[str, str] | None:
    """Probability by category of a candidate, or of the feedback on a prompt."""
    ratings = getattr(rated, "safety_ratings", None)
    if not isinstance(ratings, list):
        return None
    found = {
        _word(getattr(rating, "category", None)): _word(getattr(rating, "probability", None))
        for rating in cast("list[Any]", ratings)
    }
    return {category: word for category, word in found.items() if category and word} or None


def _refusal_of_prompt(response: Any, usage: TokenUsage) -> ResponseError:
    feedback = getattr(response, "prompt_feedback", None)
    reason = _word(getattr(feedback, "block_reason", None))
    if not reason:
        return EmptyResponseError("the answer holds no candidate; try again", usage=usage)
    return ResponseBlockedError(
        f"the prompt was blocked ({reason}); {_REMEDIES.get(reason, _NO_REMEDY)}",
        reason=reason,
        usage=usage,
        safety_ratings=_safety_ratings(feedback),
    )


def _is_answer(candidate: Any) -> bool:
    if _word(getattr(candidate, "finish_reason", None)) in _UNUSABLE:
        return False
    content = getattr(candidate, "content", ...)
    parts = getattr(content, "parts", ...)
    return content is not None and parts is not None and parts != []


def _refusal(candidate: Any, usage: TokenUsage) -> ResponseError:
    reason = _word(getattr(candidate, "finish_reason", None))
    kind: type[ResponseError]
    if reason in _BLOCKED:
        kind = ResponseBlockedError
        message = f"the answer was withheld ({reason}); {_REMEDIES.get(reason, _NO_REMEDY)}"
    elif reason in _TRUNCATED:
        kind = ResponseTruncatedError
        message = (
            f"the answer ended at the token limit ({reason}) after "
            f"{usage.get('output_tokens', 0)} output tokens, thinking included; raise "
            "max_output_tokens, lower the thinking budget or ask for less"
        )
    else:
        kind = EmptyResponseError
        message = (
            f"the answer's candidate has no content (finish reason {reason or 'none'}); try again"
        )
    return kind(message, reason=reason, usage=usage, safety_ratings=_safety_ratings(candidate))
