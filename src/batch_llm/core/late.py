"""Names that a package offers, but imports only when they are asked for."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def late_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Make the ``__getattr__`` and the ``__dir__`` of a package (PEP 562).

    A type checker would then take any name for one of the package's: keep the two from it
    with ``if not TYPE_CHECKING``, and import the late names for it instead.

    Args:
        package: The package's full name.
        homes: Each late name, and the submodule that it is imported from. The submodules
            can be had as attributes too.

    Returns:
        Both functions; the first raises AttributeError for any other name.
    """

    def find(name: str) -> object:
        if name in homes:
            return getattr(import_module(f"{package}.{homes[name]}"), name)
        if name in homes.values():
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes, *homes.values()})

    return find, names
