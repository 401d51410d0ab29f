"""What the emulator remembers of a request, and what it can be told to answer."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

from batch_llm.testing.gemini.shapes import is_object
from batch_llm.testing.gemini.tokens import last_user_text

Operation = Literal[
    "generate",
    "count_tokens",
    "cache_create",
    "cache_list",
    "cache_get",
    "cache_update",
    "cache_delete",
    "other",
]
"""What a request asks for; ``other`` is everything the emulator does not serve."""


@dataclass(slots=True, eq=False, kw_only=True)
class RecordedRequest:
    """One request as it arrived.

    Attributes:
        operation: What was asked for.
        method: HTTP method, upper case.
        path: Path of the URL, without the query.
        query: The query's parameters.
        headers: Header values by lower-case name.
        body: The JSON body; empty when there was none or it was no JSON object.
        model: Last segment of the model's name, None when the request names none.
        cached_content: Full name of the cache that the request uses or is about.
        vertex: Whether the request has the style of Vertex AI.
        arrived_at: Seconds on the event loop's clock.
        index: How many requests of the same operation came before.
        status: HTTP status once answered; None until then and when no complete answer left.
    """

    operation: Operation
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: dict[str, Any]
    model: str | None
    cached_content: str | None
    vertex: bool
    arrived_at: float
    index: int
    status: int | None = None
    _prompt: str | None = field(default=None, init=False, repr=False)

    @property
    def prompt(self) -> str:
        """Text of the last user content, its parts joined by newlines."""
        if self._prompt is None:
            self._prompt = last_user_text(self.body.get("contents"))
        return self._prompt

    @property
    def generation_config(self) -> dict[str, Any]:
        """The request's ``generationConfig``; empty when there is none."""
        config = self.body.get("generationConfig")
        return config if is_object(config) else {}


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model answers to one generate request.

    Attributes:
        text: The answer; None for a candidate without content.
        json: A JSON value to be sent as the answer's text, instead of ``text``.
        finish_reason: Why the model stopped.
        safety_ratings: Ratings in wire form of the candidate, or of a prompt that is refused.
        block_reason: Set when the prompt is refused: there is no candidate then.
        model_version: The model that answers; None: the model that was asked for.
        thoughts_tokens: Tokens spent on thinking; they count against maxOutputTokens.
        tool_use_prompt_tokens: Tokens of tool results given to the model.
        usage: Counts by wire name ("promptTokenCount") that replace the computed ones;
            None leaves a count out.
        status: HTTP status; anything but 200 is answered as the API's error of that status.
        message: The error's message, by default the API's own.

    Raises:
        ValueError: Both ``text`` and ``json`` are given.
    """

    text: str | None = None
    json: Any = None
    _: KW_ONLY
    finish_reason: str = "STOP"
    safety_ratings: Sequence[Mapping[str, Any]] | None = None
    block_reason: str | None = None
    model_version: str | None = None
    thoughts_tokens: int = 0
    tool_use_prompt_tokens: int = 0
    usage: Mapping[str, int | None] | None = None
    status: int = 200
    message: str | None = None

    def __post_init__(self) -> None:
        if self.text is not None and self.json is not None:
            raise ValueError(
                "Reply got both text and json; it must have one of them. Drop the other."
            )
