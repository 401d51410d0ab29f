"""What is refused at the door: got, must, do."""

import inspect
import logging
from collections.abc import Awaitable, Coroutine
from typing import Any, cast, get_origin

from batch_llm.base import LLMWorkItem
from batch_llm.strategies.errors import StrategyContractError

_log = logging.getLogger(__name__)


def check_item(item: object) -> None:
    """Refuse what cannot be processed, before anything is spent on it.

    Raises:
        TypeError: It is no LLMWorkItem, or its prompt is None.
    """
    if not isinstance(item, LLMWorkItem):
        raise TypeError(
            f"add_work got a {type(item).__name__}; it must be an LLMWorkItem: "
            "add_work(LLMWorkItem(item_id=..., strategy=..., prompt=...))"
        )
    if vars(item)["prompt"] is None:
        raise TypeError(
            f"item {item.item_id!r}: prompt must be a text, or what the strategy takes for one "
            "(got None); render the prompt before you add the item, or leave it out for ''"
        )


def check_name(name: object) -> None:
    """Refuse a name that no item could sensibly be given.

    Raises:
        ValueError: It is no str, or blank.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(
            f"the name of a strategy must be a non-blank string (got {name!r}); "
            'pass a text such as "enrichment"'
        )


def check_strategy(strategy: object) -> None:
    """Refuse what is no strategy.

    Raises:
        StrategyContractError: It is a class, has no ``execute``, or ``execute`` is not async.
    """
    if strategy is None or isinstance(strategy, type):
        got = "None" if strategy is None else f"the class {strategy.__name__}"
        raise StrategyContractError(
            f"strategy must be an instance of an LLMCallStrategy (got {got}); "
            "create one and share it between items"
        )
    execute = getattr(strategy, "execute", None)
    name = type(strategy).__name__
    if not callable(execute):
        raise StrategyContractError(
            f"strategy must have an async execute(prompt, attempt, timeout) (got a {name} "
            "without one); subclass LLMCallStrategy"
        )
    if _is_plainly_sync(execute):
        raise StrategyContractError(
            f"{name}.execute must be async (got a plain function); define it with 'async def', "
            "and call blocking code with 'await asyncio.to_thread(...)'"
        )


def warn_of_few_connections(strategy: object, max_workers: int) -> bool:
    """Say so where a strategy cannot have as many calls in flight as there are workers."""
    most = getattr(strategy, "max_concurrency", None)
    if not isinstance(most, int) or most >= max_workers:
        return False
    _log.warning(
        "%s can have %d calls in flight at once, fewer than max_workers=%d; for Gemini, build "
        "its client with gemini_client(max_connections=%d)",
        type(strategy).__name__,
        most,
        max_workers,
        max_workers,
    )
    return True


def _is_plainly_sync(execute: Any) -> bool:
    """Whether it is a Python function that neither is async nor promises an awaitable."""
    if not inspect.isroutine(execute) or inspect.isbuiltin(execute):
        return False
    function = inspect.unwrap(execute)
    if inspect.iscoroutinefunction(function) or function.__name__ != "execute":
        # Under another name it is a wrapper, which may well give an awaitable.
        return False
    try:
        returns = getattr(function, "__annotations__", {}).get("return")
    except Exception:
        # Annotations may be evaluated only now, and name what is there for type checkers only.
        return False
    if isinstance(returns, str):
        return not returns.startswith(("Awaitable", "Coroutine"))
    return (get_origin(returns) or returns) not in (Awaitable, Coroutine)


def check_collaborator(name: str, value: object, *methods: str) -> None:
    """Refuse what has none of the methods that are looked for.

    Raises:
        TypeError: It is a class instead of an instance, or has none of the methods.
    """
    if isinstance(value, type):
        raise TypeError(
            f"{name} must be an instance (got the class {value.__name__}); pass {value.__name__}()"
        )
    if not any(callable(getattr(value, method, None)) for method in methods):
        raise TypeError(
            f"{name} must have {'() or '.join(methods)}() (got a {type(value).__name__} without); "
            "pass an object that has it"
        )


def check_callback(name: str, value: object) -> None:
    """Refuse a callback that cannot be called.

    Raises:
        TypeError: It is neither None nor callable.
    """
    if value is not None and not callable(value):
        raise TypeError(
            f"{name} must be callable or None (got a {type(value).__name__}); pass a function"
        )


def check_list(name: str, value: object, *methods: str) -> None:
    """Refuse what is no list of collaborators.

    Raises:
        TypeError: It is no list or tuple, or one of its members is no collaborator.
    """
    if not isinstance(value, list | tuple):
        raise TypeError(
            f"{name} must be a list (got a {type(value).__name__}); put it into brackets"
        )
    for member in cast("list[object]", value):
        check_collaborator(f"each of {name}", member, *methods)
