"""Names that are imported when they are first asked for."""

import json

import pytest

from batch_llm.core.late import late_names

find, names = late_names("json", {"JSONDecodeError": "decoder", "JSONEncoder": "encoder"})


def test_a_name_comes_from_its_home() -> None:
    assert find("JSONDecodeError") is json.JSONDecodeError


def test_a_home_can_be_asked_for_itself() -> None:
    assert find("encoder") is json.encoder


def test_any_other_name_is_none_of_the_package() -> None:
    with pytest.raises(AttributeError, match=r"^module 'json' has no attribute 'scanner'$"):
        find("scanner")


def test_the_names_are_those_of_now_and_later() -> None:
    assert names() == sorted({*dir(json), "JSONDecodeError", "JSONEncoder", "decoder", "encoder"})
