import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    """Misbehaving hooks are logged by the thousand, and pytest would keep every record."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)
