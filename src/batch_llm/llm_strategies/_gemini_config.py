"""The config of one request: a copy of the user's own, with what a batch needs laid over it."""

import functools
import importlib.util
from collections.abc import Mapping
from types import ModuleType, NoneType
from typing import Any, cast

from pydantic import BaseModel

from batch_llm.core.extras import require

# The API refuses these beside cached_content: they live in the cache.
IN_CACHE = ("system_instruction", "tools", "tool_config")


def sdk_types() -> ModuleType | None:
    """``google.genai.types``; None without google-genai, where mocks still work."""
    try:
        return require("google.genai.types", extra="gemini")
    except ImportError:
        return None


class GeminiConfigs:
    """Makes the configs of a client's requests, out of what the installed SDK accepts.

    The SDK's own retries and continuations are switched off, since the engine retries and
    counts; automatic function calling too, unless a tool is a function. What the user set
    stays, and the user's object is left alone.
    """

    def __init__(self, client: Any) -> None:
        self._types = sdk_types()
        # A per-request option costs the SDK a fifth of its time: only where it changes something.
        self._no_retries: Any = _no_retries(self._types) if _may_retry(client) else None
        self._no_function_calling: Any = {"disable": True}
        self._defaults: dict[str, Any] = {}
        self._empty: Any = {}
        if self._types is not None:
            self._empty = self._types.GenerateContentConfig()
            self._no_function_calling = self._types.AutomaticFunctionCallingConfig(disable=True)
            if "automatic_continuation" in self._types.GenerateContentConfig.model_fields:
                self._defaults["automatic_continuation"] = False

    def for_request(self, config: Any, cache_name: str | None = None) -> Any:
        """The config of a generate request, with or without a cache."""
        config = self.as_model(config)
        changes = {
            name: value for name, value in self._defaults.items() if get_field(config, name) is None
        }
        if get_field(config, "automatic_function_calling") is None and not holds_functions(config):
            changes["automatic_function_calling"] = self._no_function_calling
        if self._no_retries is not None:
            changes["http_options"] = self._without_retries(get_field(config, "http_options"))
        if cache_name is not None:
            changes |= dict.fromkeys(IN_CACHE)
            changes["cached_content"] = cache_name
        if isinstance(config, dict):
            merged = cast("dict[str, Any]", config) | changes
            return {name: value for name, value in merged.items() if value is not None}
        copy = config.model_copy(update=changes)
        if self._types is not None and type(copy) is self._types.GenerateContentConfig:
            copy.__class__ = _quick_config(self._types)
        return copy

    def for_caches(self, type_name: str, **fields: Any) -> Any:
        """The config of a request about caches; None where there is nothing to say."""
        fields["http_options"] = self._no_retries
        given = {name: value for name, value in fields.items() if value is not None}
        make = getattr(self._types, type_name, dict)
        return make(**given) if given else None

    def as_model(self, config: Any) -> Any:
        """The user's config with its fields as attributes; without the SDK a dict stays one."""
        if config is None:
            return self._empty
        if self._types is not None and isinstance(config, Mapping):
            return self._types.GenerateContentConfig.model_validate(config)
        return config

    def _without_retries(self, options: Any) -> Any:
        if options is None:
            return self._no_retries
        if options.retry_options is not None:
            return options
        return options.model_copy(update={"retry_options": self._no_retries.retry_options})


def get_field(config: Any, name: str) -> Any:
    """A field of a config in any of its forms, None where it is not set."""
    if isinstance(config, Mapping):
        return cast("Mapping[str, Any]", config).get(name)
    return getattr(config, name, None)


def holds_functions(config: Any) -> bool:
    """Whether a tool is a Python function or an MCP session, which the SDK itself would call."""
    tools = get_field(config, "tools")
    if not isinstance(tools, list):
        return False
    return not all(isinstance(tool, dict | BaseModel) for tool in cast("list[Any]", tools))


def _contains_nothing(config: object, name: object) -> bool:
    return False


@functools.cache
def _quick_config(types: ModuleType) -> Any:
    """A GenerateContentConfig that the SDK reads in a third of the time.

    For each field the SDK asks whether the config contains its name. pydantic looks through
    all fields, and says no in any case: it goes over pairs of name and value. And it copies
    the config deeply, with all there is for each field, where nothing but what is set counts.
    """
    bases: Any = (types.GenerateContentConfig,)
    plain = (str, int, float, NoneType, types.AutomaticFunctionCallingConfig)

    def model_copy(
        self: Any, *, update: Mapping[str, Any] | None = None, deep: bool = False
    ) -> Any:
        fields: list[str] = list(self.model_fields_set)
        nested = any(not isinstance(getattr(self, name), plain) for name in fields)
        return bases[0].model_copy(self, update=update, deep=deep and nested)

    return type("QuickConfig", bases, {"__contains__": _contains_nothing, "model_copy": model_copy})


def _no_retries(types: Any) -> Any:
    """Options of one attempt, None where the SDK has none."""
    if "retry_options" not in getattr(getattr(types, "HttpOptions", None), "model_fields", ()):
        return None
    return types.HttpOptions(retry_options=types.HttpRetryOptions(attempts=1))


def _may_retry(client: Any) -> bool:
    """Whether the client would send a failed request again by itself.

    The SDK's does when it was told to, and on aiohttp unless it was told not to. Its public
    side shows neither; where nothing can be seen, it is taken to retry.
    """
    if not type(client).__module__.startswith("google.genai"):
        return False
    options = getattr(getattr(client, "_api_client", None), "_http_options", ...)
    retries = getattr(options, "retry_options", ...)
    if retries is None:
        return importlib.util.find_spec("aiohttp") is not None
    return getattr(retries, "attempts", ...) != 1
