"""Who asked for the state of an item."""

import inspect
from typing import Any
from weakref import WeakKeyDictionary

_known: WeakKeyDictionary[type, dict[str, bool]] = WeakKeyDictionary()


def takes_state(owner: object, method: str) -> bool:
    """Whether a method of the caller's has a parameter ``state``, by its signature.

    Looked up once per class; a method that an instance has of its own counts for that one.
    """
    own: Any = getattr(owner, "__dict__", {}).get(method)
    if own is not None:
        return _declares_state(own)
    known = _known.setdefault(type(owner), {})
    if method not in known:
        function = getattr(type(owner), method, None)
        if function is None:
            # A proxy, which looks its methods up elsewhere.
            return _declares_state(_looked_up(owner, method))
        known[method] = _declares_state(function)
    return known[method]


def _looked_up(owner: object, method: str) -> Any:
    try:
        return getattr(owner, method, None)
    except Exception:
        # Whoever calls it will be told.
        return None


def _declares_state(function: Any) -> bool:
    try:
        parameters = inspect.signature(function, follow_wrapped=False).parameters
        if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            # A decorator's, which passes on whatever the decorated function has.
            parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        # Nothing that can be called, or written in C.
        return False
    state = parameters.get("state")
    return state is not None and state.kind is not state.POSITIONAL_ONLY
