"""Small changes of syntax nodes: comparisons, conditions, constants, arithmetic, arguments of `replace`."""

import ast
from collections.abc import Iterator
from typing import Any, Final

_OPPOSITES: Final[dict[type[ast.AST], type[ast.AST]]] = {
    one: other
    for pair in (
        (ast.Lt, ast.LtE),
        (ast.Gt, ast.GtE),
        (ast.Eq, ast.NotEq),
        (ast.Is, ast.IsNot),
        (ast.In, ast.NotIn),
        (ast.And, ast.Or),
        (ast.Add, ast.Sub),
        (ast.Mult, ast.FloorDiv),
    )
    for one, other in (pair, pair[::-1])
}
_OTHER_CALLS: Final = {"max": "min", "min": "max", "any": "all", "all": "any"}


def changes(node: ast.AST, enums: dict[str, list[str]]) -> Iterator[tuple[ast.AST, str]]:
    """Yield parts of a node, each with an expression to replace it. `enums` are the members of each enum."""
    match node:
        case ast.While(test):
            yield test, "False"
        case ast.If(test) | ast.IfExp(test) | ast.comprehension(ifs=[test]):
            yield test, "True"
            yield test, "False"
        case ast.Compare() | ast.BoolOp() | ast.UnaryOp(ast.Not()) | ast.BinOp() | ast.Call():
            for changed in _operations(node):
                yield node, ast.unparse(changed)
        case ast.Constant(bool(value)):
            yield node, str(not value)
        case ast.Constant(int(value) | float(value)):
            yield node, str(value + 1)
        case ast.Attribute(ast.Name(enum), member) if member in enums.get(enum, ()):
            yield node, f"{enum}.{_next(enums[enum], member)}"


def _operations(node: ast.expr) -> Iterator[ast.expr]:
    match node:
        case ast.Compare(left, [operator], [right]) if type(operator) in _OPPOSITES:
            yield ast.Compare(left, [_opposite(operator)], [right])
        case ast.BinOp(left, operator, right) if type(operator) in _OPPOSITES:
            yield ast.BinOp(left, _opposite(operator), right)
        case ast.UnaryOp(ast.Not(), operand):
            yield operand
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(_opposite(operator), values)
            for operand in values:
                others = [value for value in values if value is not operand]
                yield ast.BoolOp(operator, others) if len(others) > 1 else others[0]
        case ast.Call(ast.Name(name), arguments, keywords) if name in _OTHER_CALLS:
            yield ast.Call(ast.Name(_OTHER_CALLS[name]), arguments, keywords)
        case ast.Call(function, arguments, keywords) if ast.unparse(function).endswith("replace"):
            for keyword in keywords:
                yield ast.Call(function, arguments, [other for other in keywords if other is not keyword])


def _opposite(operator: ast.AST) -> Any:
    return _OPPOSITES[type(operator)]()


def _next(members: list[str], member: str) -> str:
    return members[(members.index(member) + 1) % len(members)]
