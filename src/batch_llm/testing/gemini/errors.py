"""What does the API say when it refuses? One function per refusal, with the API's own words."""

import math
from collections.abc import Sequence
from typing import Any

STATUS_NAMES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    413: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}

_MESSAGES = {
    400: "Request contains an invalid argument.",
    429: "Resource has been exhausted (e.g. check quota).",
    500: "An internal error has occurred. Please retry.",
    503: "The model is overloaded. Please try again later.",
    504: "Deadline expired before operation could complete.",
}
_TYPES = "type.googleapis.com/google.rpc."


class ApiError(Exception):
    """A refusal: an HTTP status and a google.rpc.Status body."""

    def __init__(
        self, code: int, message: str | None = None, *, details: Sequence[dict[str, Any]] = ()
    ) -> None:
        self.code = code
        self.message: str = message or _MESSAGES.get(code, f"The service answered {code}.")
        self.details: tuple[dict[str, Any], ...] = tuple(details)
        super().__init__(self.message)

    def to_wire(self) -> dict[str, Any]:
        """The body as the API sends it."""
        error: dict[str, Any] = {
            "code": self.code,
            "message": self.message,
            "status": STATUS_NAMES.get(self.code, "UNKNOWN"),
        }
        if self.details:
            error["details"] = list(self.details)
        return {"error": error}


def invalid_argument(message: str, *, field: str | None = None) -> ApiError:
    """400; with ``field`` a BadRequest detail says what is wrong where."""
    if field is None:
        return ApiError(400, message)
    violation = {"field": field, "description": message}
    detail = {"@type": _TYPES + "BadRequest", "fieldViolations": [violation]}
    return ApiError(400, message, details=[detail])


def invalid_json(reason: str) -> ApiError:
    """400 for a body that is no JSON object."""
    message = f"Invalid JSON payload received. {reason}"
    detail = {"@type": _TYPES + "BadRequest", "fieldViolations": [{"description": message}]}
    return ApiError(400, message, details=[detail])


def no_credentials(*, vertex: bool) -> ApiError:
    """Neither an API key nor an access token came with the request."""
    if vertex:
        return ApiError(
            401,
            "Request is missing required authentication credential. Expected OAuth 2 access "
            "token, login cookie or other valid authentication credential.",
            details=[_error_info("CREDENTIALS_MISSING")],
        )
    return ApiError(
        403,
        "Method doesn't allow unregistered callers (callers without established identity). "
        "Please use API Key or other form of API consumer identity to call this API.",
    )


def model_not_found(model: str, *, version: str, method: str) -> ApiError:
    """404: the model does not exist, or not for this method."""
    return ApiError(
        404,
        f"models/{model} is not found for API version {version}, or is not supported for "
        f"{method}. Call ListModels to see the list of available models and their supported "
        "methods.",
    )


def cache_not_found(name: str, *, vertex: bool) -> ApiError:
    """The cache was deleted or never existed; the Developer API calls that forbidden."""
    if vertex:
        return ApiError(404, f"Not found: cached content metadata for {_cache_id(name)}.")
    return ApiError(403, "CachedContent not found (or permission denied)")


def cache_expired(name: str, *, vertex: bool) -> ApiError:
    """The cache's time is over; the Developer API tells it from no other absence."""
    if vertex:
        return ApiError(400, f"Cache content {_cache_id(name)} is expired.")
    return cache_not_found(name, vertex=False)


def cache_with_own_settings() -> ApiError:
    """A request repeats what belongs into its cache."""
    return ApiError(
        400,
        "CachedContent can not be used with GenerateContent request setting "
        "system_instruction, tools or tool_config.",
    )


def cache_of_other_model(requested: str, cached: str) -> ApiError:
    """A cache serves only the model it was made for."""
    return ApiError(
        400,
        f"Model used by GenerateContent request ({requested}) and CachedContent ({cached}) "
        "has to be the same.",
    )


def cache_too_small(tokens: int, minimum: int) -> ApiError:
    """A cache is below its model's minimum."""
    return ApiError(
        400,
        f"Cached content is too small. total_token_count={tokens}, min_total_token_count={minimum}",
    )


def cache_storage_denied(model: str, tokens: int) -> ApiError:
    """The free tier stores no caches at all, and never will."""
    return ApiError(
        429,
        "TotalCachedContentStorageTokensPerModelFreeTier limit exceeded for model "
        f"{model}: limit=0, requested={tokens}",
    )


def quota_exceeded(
    *, metric: str, quota_id: str, limit: float, model: str, retry_delay_seconds: float | None
) -> ApiError:
    """429 with QuotaFailure, Help and, if a delay is known, RetryInfo."""
    message = (
        "You exceeded your current quota, please check your plan and billing details.\n"
        f"* Quota exceeded for metric: generativelanguage.googleapis.com/{metric}, "
        f"limit: {limit:g}, model: {model}"
    )
    violation = {
        "quotaMetric": f"generativelanguage.googleapis.com/{metric}",
        "quotaId": quota_id,
        "quotaDimensions": {"location": "global", "model": model},
        "quotaValue": f"{limit:g}",
    }
    link = {
        "description": "Learn more about Gemini API quotas",
        "url": "https://ai.google.dev/gemini-api/docs/rate-limits",
    }
    details: list[dict[str, Any]] = [
        {"@type": _TYPES + "QuotaFailure", "violations": [violation]},
        {"@type": _TYPES + "Help", "links": [link]},
    ]
    if retry_delay_seconds is not None:
        delay = _duration(retry_delay_seconds)
        message += f"\nPlease retry in {delay}."
        details.append({"@type": _TYPES + "RetryInfo", "retryDelay": delay})
    return ApiError(429, message, details=details)


def _duration(seconds: float) -> str:
    """A protobuf duration, rounded up so that who waits that long is never early."""
    rounded = math.ceil(round(seconds * 1e4, 3)) / 1e4
    return f"{rounded:.4f}".rstrip("0").rstrip(".") + "s"


def _error_info(reason: str) -> dict[str, Any]:
    return {
        "@type": _TYPES + "ErrorInfo",
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": {"service": "aiplatform.googleapis.com"},
    }


def _cache_id(name: str) -> str:
    return name.rpartition("/")[2]
