"""Optional dependencies: imported late, and missed with the command that installs them."""

import importlib
from types import ModuleType


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: Dotted name of the module to import.
        extra: The extra of ``batch-llm`` that installs it.

    Returns:
        The imported module.

    Raises:
        ImportError: The package is not installed; the message names the install command.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module!r} could not be imported ({error}). "
            f'Install it with: pip install "batch-llm[{extra}]"'
        ) from error
