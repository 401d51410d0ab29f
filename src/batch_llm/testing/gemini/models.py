"""Which models are there, and what may each of them do?"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from batch_llm.testing.gemini import errors

_GENERATION = re.compile(r"gemini-(\d+)")
_FIRST_GENERATION_WITHOUT_CACHES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRules:
    """What one model allows.

    Attributes:
        explicit_caching: Whether caches can be created for it.
        min_cache_tokens: Smallest cache in tokens; None: the emulator's own number.
    """

    explicit_caching: bool = True
    min_cache_tokens: int | None = None


class Models:
    """The models served: those with rules of their own, and all named ``gemini-…``.

    From the fourth generation on a model has no explicit caching, unless its rules say so.
    """

    def __init__(self, rules: Mapping[str, ModelRules] | None) -> None:
        self._rules = dict(rules or {})

    def rules(self, model: str, *, version: str, method: str) -> ModelRules:
        """Rules of a model that exists.

        Args:
            model: Last segment of the model's name.
            version: API version of the request, for the error.
            method: API method of the request, for the error.

        Raises:
            ApiError: There is no such model (404).
        """
        rules = self._rules.get(model)
        if rules is not None:
            return rules
        if not model.startswith("gemini-"):
            raise errors.model_not_found(model, version=version, method=method)
        generation = _GENERATION.match(model)
        caching = not generation or int(generation[1]) < _FIRST_GENERATION_WITHOUT_CACHES
        return ModelRules(explicit_caching=caching)
