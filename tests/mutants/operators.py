"""Small changes to a module's source, each of which a test should notice."""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
}
FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any"}
# What is in them is for a person or a type checker; no behaviour hangs on it.
REMARKS = ("_log.", "cast(", "TypeVar(")


@dataclass(frozen=True)
class Mutant:
    """A changed module.

    Attributes:
        name: The change and its place, without the line, so that it outlives other changes.
        line: Where the change is.
        tree: The whole module.
    """

    name: str
    line: int
    tree: ast.Module


def mutants(source: str) -> Iterator[Mutant]:
    """All mutants of a module, one change each."""
    seen = dict[str, int]()
    number = 0
    while (change := _Change(number)).apply_to(tree := ast.parse(source)):
        number += 1
        seen[change.name] = seen.get(change.name, 0) + 1
        count = f" #{seen[change.name]}" if seen[change.name] > 1 else ""
        yield Mutant(change.name + count, change.line, ast.fix_missing_locations(tree))


class _Change(ast.NodeTransformer):
    """Makes the one change with a given number."""

    def __init__(self, number: int) -> None:
        self._left = number
        self._place = list[str]()
        self.made = False
        self.name = ""
        self.line = 0

    def apply_to(self, tree: ast.Module) -> bool:
        self.visit(tree)
        return self.made

    def visit(self, node: ast.AST) -> ast.AST:
        if self.made or _is_remark(node):
            return node
        if not isinstance(node, ast.stmt | ast.ExceptHandler):
            return self._changed(node)
        before = _head(node)
        changed = self._changed(node)
        if self.made and not self.name:
            self.line = node.lineno
            place = ".".join(self._place) or "module"
            self.name = f"{place}: {before} -> {_head(changed)}"
        return changed

    def _changed(self, node: ast.AST) -> ast.AST:
        for changed in _changes(node):
            if not self._left:
                self.made = True
                return changed
            self._left -= 1
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            return self.generic_visit(node)
        self._place.append(node.name)
        self.generic_visit(node)
        self._place.pop()
        return node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for name, value in ast.iter_fields(node):
            if name in {"annotation", "returns", "decorator_list", "bases"}:
                continue
            if isinstance(value, list):
                parts = cast("list[object]", value)
                parts[:] = [
                    self.visit(part) if isinstance(part, ast.AST) else part for part in parts
                ]
            elif isinstance(value, ast.AST):
                setattr(node, name, self.visit(value))
        return node


def _head(statement: ast.AST) -> str:
    """The first line of a statement; of a try statement that has one, the end."""
    match statement:
        case ast.Try(finalbody=[last, *_]):
            return f"finally: {_head(last)}"
        case ast.ExceptHandler(type=ast.expr() as caught):
            return f"except {ast.unparse(caught)}:"
        case _:
            return ast.unparse(statement).partition("\n")[0]


def _is_remark(node: ast.AST) -> bool:
    match node:
        case ast.Expr(value=ast.Constant()) | ast.JoinedStr() | ast.Assert():
            return True
        case ast.Call(func=ast.Name(id=name)) if name.endswith("Error"):
            return True
        case ast.Call():
            return ast.unparse(node).startswith(REMARKS)
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Assign(targets=[ast.Name(id="__all__" | "__slots__")]):
            return True
        case ast.keyword(arg="strict") | ast.Subscript(value=ast.Name(id="Literal")):
            return True
        case _:
            return False


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    yield from _left_out(node)
    yield from _branched_otherwise(node)
    yield from _calculated_otherwise(node)
    yield from _other_values(node)


def _left_out(node: ast.AST) -> Iterator[ast.AST]:
    """Without a statement's effect."""
    match node:
        case ast.Expr() | ast.Delete() | ast.Raise() | ast.AugAssign():
            yield ast.Pass()
        case ast.Assign(targets=[target, *_]) | ast.AnnAssign(target=target, value=ast.expr()):
            # Without its first value a local name is no more than a NameError.
            if not isinstance(target, ast.Name | ast.Tuple):
                yield ast.Pass()
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            yield ast.Return(ast.Constant(None))
        case ast.ExceptHandler(type=ast.expr()):
            yield _with(node, type=ast.Tuple([], ast.Load()))
        case ast.Try(finalbody=[_, *_]):
            yield _with(node, finalbody=[ast.Pass()])
        case _:
            pass


def _branched_otherwise(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.If():
            yield _with(node, test=ast.Constant(True))
            yield _with(node, test=ast.Constant(False))
        case ast.While():
            yield _with(node, test=ast.Constant(False))
        case ast.IfExp(body=body, orelse=orelse):
            yield from (body, orelse)
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()
        case ast.BoolOp(op=operator, values=values):
            for index in range(len(values)):
                rest = [*values[:index], *values[index + 1 :]]
                yield ast.BoolOp(operator, rest) if len(rest) > 1 else rest[0]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand
        case _:
            pass


def _calculated_otherwise(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(ops=operators):
            for index, operator in enumerate(operators):
                other = COMPARISONS[type(operator)]()
                yield _with(node, ops=[*operators[:index], other, *operators[index + 1 :]])
        case ast.BinOp(op=operator) | ast.AugAssign(op=operator) if type(operator) in ARITHMETIC:
            yield _with(node, op=ARITHMETIC[type(operator)]())
        case ast.Call(func=ast.Name(id=name)) if name in FUNCTIONS:
            yield _with(node, func=ast.Name(FUNCTIONS[name], ast.Load()))
        case _:
            pass


def _other_values(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield ast.Constant(value + 1)
        case ast.Constant(value=str(value)):
            yield ast.Constant(f"{value} changed")
        case _:
            pass


def _with(node: ast.AST, **fields: object) -> ast.AST:
    """A copy with other fields."""
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed
