"""What a Gemini answer cost, and whether it is one."""

import enum
from typing import Any, cast

from batch_llm.base import TokenUsage
from batch_llm.llm_strategies._usage import count
from batch_llm.strategies.errors import (
    EmptyResponseError,
    ResponseBlockedError,
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


def check_answer(response: Any, usage: TokenUsage) -> None:
    """Refuse an answer that holds none.

    Only real values count, so that a mock's attributes refuse nothing.

    Raises:
        ResponseBlockedError: The prompt was blocked or the answer withheld.
        ResponseTruncatedError: The answer ended at the token limit.
        EmptyResponseError: There is no candidate, or one without content.
    """
    candidates = getattr(response, "candidates", ...)
    if candidates is None or candidates == []:
        _refuse_without_candidate(response, usage)
    if not isinstance(candidates, list) or not candidates:
        return
    if not any(_is_answer(candidate) for candidate in cast("list[Any]", candidates)):
        _refuse_candidate(candidates[0], usage)


def _word(value: object) -> str:
    """The API's word in an enum or str, empty for anything else."""
    if isinstance(value, enum.Enum):
        value = value.value
    return value if isinstance(value, str) else ""


def _refuse_without_candidate(response: Any, usage: TokenUsage) -> None:
    reason = _word(getattr(getattr(response, "prompt_feedback", None), "block_reason", None))
    if reason:
        raise ResponseBlockedError(
            f"the prompt was blocked ({reason}); {_REMEDIES.get(reason, _NO_REMEDY)}",
            reason=reason,
            usage=usage,
        )
    raise EmptyResponseError("the answer holds no candidate; try again", usage=usage)


def _is_answer(candidate: Any) -> bool:
    if _word(getattr(candidate, "finish_reason", None)) in _UNUSABLE:
        return False
    content = getattr(candidate, "content", ...)
    parts = getattr(content, "parts", ...)
    return content is not None and parts is not None and parts != []


def _refuse_candidate(candidate: Any, usage: TokenUsage) -> None:
    reason = _word(getattr(candidate, "finish_reason", None))
    if reason in _BLOCKED:
        raise ResponseBlockedError(
            f"the answer was withheld ({reason}); {_REMEDIES.get(reason, _NO_REMEDY)}",
            reason=reason,
            usage=usage,
        )
    if reason in _TRUNCATED:
        raise ResponseTruncatedError(
            f"the answer ended at the token limit ({reason}) after "
            f"{usage.get('output_tokens', 0)} output tokens, thinking included; raise "
            "max_output_tokens, lower the thinking budget or ask for less",
            reason=reason,
            usage=usage,
        )
    raise EmptyResponseError(
        f"the answer's candidate has no content (finish reason {reason or 'none'}); try again",
        reason=reason,
        usage=usage,
    )
