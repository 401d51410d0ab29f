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
        known[method] = _declares_state(getattr(type(owner), method, None))
    return known[method]


def _declares_state(function: Any) -> bool:
    try:
        return "state" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        # Nothing that can be called, or written in C.
        return False
