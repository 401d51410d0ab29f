"""What is read from an exception of any HTTP client."""

import pytest

from batch_llm.strategies import _http


class Silent(Exception):  # noqa: N818
    """Has no text to tell."""

    def __str__(self) -> str:
        raise RuntimeError


def test_the_text_of_an_exception_is_empty_where_it_cannot_tell_it() -> None:
    assert _http.text_of(KeyError("row")) == "'row'"
    assert _http.text_of(Silent()) == ""


class Carrying(Exception):  # noqa: N818
    """Carries what may be a status, behind what may be another one."""

    def __init__(self, code: object, status: int) -> None:
        self.code = code
        self.status = status


@pytest.mark.parametrize(
    ("code", "status"), [(99, 429), (100, 100), (599, 599), (600, 429), ("503", 429), (None, 429)]
)
def test_a_status_has_three_digits_and_begins_with_one_to_five(code: object, status: int) -> None:
    assert _http.status_of(Carrying(code, 429)) == status
