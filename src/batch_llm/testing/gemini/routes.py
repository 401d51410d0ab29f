"""What does this method and path ask for?"""

import re
from dataclasses import dataclass
from functools import lru_cache

from batch_llm.testing.gemini.records import Operation

_VERTEX_VERSION = "v1beta1"
_DEFAULT_VERTEX_PARENT = "projects/emulator/locations/global"
_PATH = re.compile(
    r"/(?P<version>v1|v1beta|v1alpha|v1beta1)"
    r"/(?:(?P<parent>projects/[^/]+/locations/[^/]+)/)?"
    r"(?:(?P<publisher>publishers/google/)?models/(?P<model>[^/:]+):(?P<method>\w+)"
    r"|cachedContents(?:/(?P<cache>[^/:]+))?)"
)
_MODEL_METHODS: dict[str, Operation] = {
    "generateContent": "generate",
    "countTokens": "count_tokens",
}
_COLLECTION_METHODS: dict[str, Operation] = {"POST": "cache_create", "GET": "cache_list"}
_CACHE_METHODS: dict[str, Operation] = {
    "GET": "cache_get",
    "PATCH": "cache_update",
    "DELETE": "cache_delete",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a request goes.

    Attributes:
        operation: What it asks for.
        version: API version of its path.
        vertex: Whether it has the style of Vertex AI.
        parent: Resource that caches belong to; empty for the Developer API.
        model: Last segment of the model's name, None if the path has none.
        method: The API's own name of a model's method, None if the path has none.
        cache: Full name of the cache in the path, None if it has none.
    """

    operation: Operation
    version: str = ""
    vertex: bool = False
    parent: str = ""
    model: str | None = None
    method: str | None = None
    cache: str | None = None

    def full_model(self, model: str) -> str:
        """Full name of a model, as requests and caches of this style spell it."""
        name = model.rpartition("/")[2]
        if self.vertex:
            return f"{self.parent}/publishers/google/models/{name}"
        return f"models/{name}"

    def full_cache(self, name: str) -> str:
        """Full name of a cache, given with or without what stands before its id."""
        prefix = f"{self.parent}/" if self.vertex else ""
        return f"{prefix}cachedContents/{name.rpartition('/')[2]}"


@lru_cache(maxsize=512)
def find(method: str, path: str) -> Route:
    """The route of a request; operation ``other`` when the emulator does not serve it."""
    match = _PATH.fullmatch(path)
    if match is None:
        return Route(operation="other")
    version, parent, cache = match["version"], match["parent"], match["cache"]
    vertex = bool(parent or match["publisher"]) or version == _VERTEX_VERSION
    parent = (parent or _DEFAULT_VERTEX_PARENT) if vertex else ""
    return Route(
        operation=_operation(method, match["method"], cache),
        version=version,
        vertex=vertex,
        parent=parent,
        model=match["model"],
        method=match["method"],
        cache="/".join(filter(None, (parent, "cachedContents", cache))) if cache else None,
    )


def _operation(method: str, model_method: str | None, cache: str | None) -> Operation:
    if model_method is not None:
        return _MODEL_METHODS.get(model_method, "other") if method == "POST" else "other"
    return (_COLLECTION_METHODS if cache is None else _CACHE_METHODS).get(method, "other")
