"""The mutants of a small module, and that making them changes nothing else."""

import ast

import pytest

from tests.mutants.operators import mutants

LIMIT = '''
"""A module."""

__all__ = ["wait"]


def wait(seconds: float, most: float = 60.0) -> float:
    """A function."""
    if not 0 < seconds <= most:
        raise ValueError(f"{seconds} is not below {most + 1}")
    _log.debug("waiting for %s", "a while")
    return min(seconds, most)
'''


def test_each_mutant_changes_one_thing() -> None:
    before = "wait: if not 0 < seconds <= most:"
    assert [(mutant.line, mutant.name) for mutant in mutants(LIMIT)][1:] == [
        (9, f"{before} -> if True:"),
        (9, f"{before} -> if False:"),
        (9, f"{before} -> if 0 < seconds <= most:"),
        (9, f"{before} -> if not 0 <= seconds <= most:"),
        (9, f"{before} -> if not 0 < seconds < most:"),
        (9, f"{before} -> if not 1 < seconds <= most:"),
        (10, "wait: raise ValueError(f'{seconds} is not below {most + 1}') -> pass"),
        (11, "wait: _log.debug('waiting for %s', 'a while') -> pass"),
        (12, "wait: return min(seconds, most) -> return None"),
        (12, "wait: return min(seconds, most) -> return max(seconds, most)"),
    ]


@pytest.mark.parametrize(
    ("statement", "changed"),
    [
        ("a = b and c or d", ["a = d", "a = b and c", "a = c or d", "a = b or d"]),
        ("try:\n    a()\nfinally:\n    b()", ["finally: pass", "pass", "pass"]),
        ("try:\n    a()\nexcept E:\n    pass", ["pass", "except ():"]),
        ("self.a, b = c", []),
        ("self.a = True", ["pass", "self.a = False"]),
        ("a = b if c else d", ["a = b", "a = d"]),
        ("a += b ** 2", ["pass", "a -= b ** 2", "a += b * 2", "a += b ** 3"]),
        ("for a in b:\n    continue", ["break"]),
        ("while a is b:\n    break", ["while False:", "while a is not b:", "continue"]),
        ("del a[0]", ["pass", "del a[1]"]),
        ("if TYPE_CHECKING:\n    a = 1", []),
        ("a = any(b) + -1", ["a = any(b) - -1", "a = all(b) + -1", "a = any(b) + -2"]),
        ("def a(b=''): pass", ["def a(b=' changed'):"]),
        ("a = zip(b, strict=True)", []),
        ("A = Literal['b']", []),
    ],
)
def test_kinds_of_changes(statement: str, changed: list[str]) -> None:
    assert [mutant.name.partition(" -> ")[2] for mutant in mutants(statement)] == changed


def test_no_two_mutants_have_one_name() -> None:
    names = [mutant.name for mutant in mutants("a = 1\na = 1")]
    assert names == ["module: a = 1 -> a = 2", "module: a = 1 -> a = 2 #2"]


def test_a_mutant_is_the_whole_module_with_its_lines() -> None:
    first = next(mutants(LIMIT))
    assert ast.unparse(first.tree) == ast.unparse(ast.parse(LIMIT.replace("60.0", "61.0")))
    compile(first.tree, "limit.py", "exec")
