"""What can go wrong, and with which request?

A `Fault` is a name, an effect and a delay. The effects are data; the service carries them out.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self, get_args

from batch_llm.testing.gemini import errors
from batch_llm.testing.gemini.errors import ApiError
from batch_llm.testing.gemini.records import Operation, RecordedRequest, Reply

_OPERATIONS: Final[tuple[str, ...]] = get_args(Operation)
_PROXY_PAGE = (
    "<html>\n<head><title>{code} {reason}</title></head>\n<body>\n"
    "<center><h1>{code} {reason}</h1></center>\n<hr><center>nginx</center>\n</body>\n</html>\n"
)
_PROXY_REASONS = {502: "Bad Gateway", 503: "Service Temporarily Unavailable"}
_HARMFUL = {
    "category": "HARM_CATEGORY_DANGEROUS_CONTENT",
    "probability": "HIGH",
    "blocked": True,
}
_HARMLESS = {"category": "HARM_CATEGORY_DANGEROUS_CONTENT", "probability": "NEGLIGIBLE"}


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer with an error instead of serving the request."""

    error: Callable[[RecordedRequest], ApiError]


@dataclass(frozen=True, slots=True)
class LoseCache:
    """Take away the cache that the request names, then serve it."""

    expired: bool
    vertex: bool | None


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """Answer with this body instead of serving the request."""

    status: int
    body: bytes
    content_type: str = "application/json; charset=UTF-8"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Spoil:
    """Serve the request, but change what the model says."""

    change: Callable[[Reply], Reply]


@dataclass(frozen=True, slots=True)
class Cut:
    """Serve the request, then break the connection before or amid the answer."""

    mid_answer: bool


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong with one request.

    Made by the constructors below. Faults that refuse are answered before the request is
    looked at: they cost no quota, and latency does not apply to them.

    Attributes:
        name: Name of the constructor.
        effect: What happens; None for nothing but the delay.
        delay_seconds: How much later than otherwise the answer leaves.
    """

    name: str
    effect: Refuse | LoseCache | RawAnswer | Spoil | Cut | None
    delay_seconds: float = 0.0

    def after(self, seconds: float) -> Self:
        """The same fault, with its answer leaving ``seconds`` later."""
        return replace(self, delay_seconds=self.delay_seconds + seconds)

    @classmethod
    def rate_limit(
        cls,
        retry_delay_seconds: float | None = None,
        *,
        per_day: bool = False,
        bare: bool = False,
    ) -> Self:
        """429 RESOURCE_EXHAUSTED.

        Args:
            retry_delay_seconds: RetryInfo's hint; None: no RetryInfo.
            per_day: The daily quota is used up instead of the minute's.
            bare: Just the message, without any detail.

        Raises:
            ValueError: A bare error with a retry delay.
        """
        if bare:
            if retry_delay_seconds is not None:
                raise ValueError(
                    f"A bare rate limit carries no hint (got {retry_delay_seconds!r} seconds). "
                    "Leave out bare or the delay."
                )
            return cls("rate_limit", Refuse(lambda _: ApiError(429)))
        period = "Day" if per_day else "Minute"

        def error(request: RecordedRequest) -> ApiError:
            return errors.quota_exceeded(
                metric="generate_content_paid_tier_requests",
                quota_id=f"GenerateRequestsPer{period}PerProjectPerModel",
                limit=250,
                model=request.model or "gemini",
                retry_delay_seconds=retry_delay_seconds,
            )

        return cls("rate_limit", Refuse(error))

    @classmethod
    def status(cls, code: int, message: str | None = None) -> Self:
        """An error of this HTTP status with the API's body; by default in the API's words."""
        return cls("status", Refuse(lambda _: ApiError(code, message)))

    @classmethod
    def cache_expired(cls, *, vertex: bool | None = None) -> Self:
        """The cache that the request names expires at this moment.

        Args:
            vertex: Whose error is answered: Vertex AI's (400) or the Developer API's (403);
                None: that of the request's own style.
        """
        return cls("cache_expired", LoseCache(expired=True, vertex=vertex))

    @classmethod
    def cache_gone(cls, *, vertex: bool | None = None) -> Self:
        """The cache that the request names has been deleted at this moment.

        Args:
            vertex: Whose error is answered: Vertex AI's (404) or the Developer API's (403);
                None: that of the request's own style.
        """
        return cls("cache_gone", LoseCache(expired=False, vertex=vertex))

    @classmethod
    def slow(cls, seconds: float) -> Self:
        """The usual answer, ``seconds`` later than usual."""
        return cls("slow", None, delay_seconds=seconds)

    @classmethod
    def cut(cls, *, mid_answer: bool = False) -> Self:
        """The connection breaks after the work was done: before the answer or amid it."""
        return cls("cut", Cut(mid_answer))

    @classmethod
    def malformed_json(cls, *, in_text: bool = False) -> Self:
        """JSON that breaks off.

        Args:
            in_text: False: the 200 answer's own body is broken, so the SDK cannot read it.
                True: the body is fine and the model's text in it is broken JSON, although
                the model claims to have stopped.
        """
        if in_text:
            return cls("malformed_json", Spoil(lambda reply: replace(reply, text='{"title": "The')))
        return cls("malformed_json", RawAnswer(200, b'{"candidates": [{"content": {"parts": [{"te'))

    @classmethod
    def truncated(cls) -> Self:
        """Half of the text, finishReason MAX_TOKENS."""
        return cls("truncated", Spoil(_halved))

    @classmethod
    def blocked(
        cls,
        reason: str = "PROHIBITED_CONTENT",
        *,
        safety_ratings: Sequence[Mapping[str, Any]] | None = None,
    ) -> Self:
        """The prompt is refused: promptFeedback.blockReason and usage, no candidates.

        Args:
            reason: The blockReason.
            safety_ratings: The prompt's ratings in wire form; None: one, for SAFETY only.
        """
        if safety_ratings is None and reason == "SAFETY":
            safety_ratings = (_HARMFUL,)
        reply = Reply(block_reason=reason, safety_ratings=safety_ratings)
        return cls("blocked", Spoil(lambda _: reply))

    @classmethod
    def finish(
        cls, reason: str, *, safety_ratings: Sequence[Mapping[str, Any]] | None = None
    ) -> Self:
        """A candidate without content, with this finishReason.

        Args:
            reason: The finishReason.
            safety_ratings: The candidate's ratings in wire form; None: one, harmful for SAFETY.
        """
        if safety_ratings is None:
            safety_ratings = (_HARMFUL if reason == "SAFETY" else _HARMLESS,)
        reply = Reply(finish_reason=reason, safety_ratings=safety_ratings)
        return cls("finish", Spoil(lambda _: reply))

    @classmethod
    def html(cls, code: int = 502) -> Self:
        """A proxy's error page instead of the API's answer."""
        page = _PROXY_PAGE.format(code=code, reason=_PROXY_REASONS.get(code, "Error"))
        return cls("html", RawAnswer(code, page.encode(), "text/html"))

    @classmethod
    def raw(
        cls, body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Self:
        """These very bytes instead of the API's answer; the connection ends with them.

        Args:
            body: The body, well-formed or not.
            status: HTTP status.
            headers: Header fields beside the usual ones, or in the place of those of the same
                name: ``{"Content-Length": "9"}`` announces 9 bytes, whatever comes.
        """
        # Bytes that do not fit their head would else be taken for the next answer's.
        sent = {"Connection": "close", **(headers or {})}
        return cls("raw", RawAnswer(status, body, headers=sent))

    @classmethod
    def empty(cls) -> Self:
        """200 with ``{}``."""
        return cls("empty", RawAnswer(200, b"{}"))


class FaultPlan:
    """Which fault meets a request: the scripted one that is due, else what the function says."""

    def __init__(self, faults: Callable[[RecordedRequest], Fault | None] | None) -> None:
        self._faults = faults
        self._scripts: defaultdict[str, deque[Fault | None]] = defaultdict(deque)

    def script(self, faults: tuple[Fault | None, ...], operation: str) -> None:
        """Queue faults for the next requests of an operation; None lets one through.

        Raises:
            ValueError: There is no such operation.
        """
        if operation not in _OPERATIONS:
            raise ValueError(
                f"operation must be one of {', '.join(_OPERATIONS)} (got {operation!r})."
            )
        self._scripts[operation].extend(faults)

    def due(self, request: RecordedRequest) -> Fault | None:
        """The fault for this request, taken off the script if it stands there."""
        script = self._scripts.get(request.operation)
        if script:
            return script.popleft()
        return self._faults(request) if self._faults is not None else None


def _halved(reply: Reply) -> Reply:
    text = reply.text or ""
    return replace(reply, text=text[: len(text) // 2], finish_reason="MAX_TOKENS")
