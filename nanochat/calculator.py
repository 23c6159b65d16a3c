"""Closed arithmetic on a syntax tree: nothing is executed, every input ends in microseconds.

evaluate("347 + 588")               -> "935"
evaluate("'strawberry'.count('r')") -> "3"
evaluate("open('x')")               -> None
"""

import ast
import math
import operator
import re
from collections.abc import Callable

MAX_CHARACTERS = 200  # which also bounds how deep an expression nests
MAX_BITS = 256  # of any whole number on the way, about 77 digits
DIGITS = 12  # significant digits of a fraction that are shown: 0.1 + 0.2 is 0.3

Number = int | float

BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
UNARY: dict[type[ast.unaryop], Callable[[Number], Number]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
ARITHMETIC = re.compile(r"[0-9eE.,_+\-*/%() ]+")
COUNT = re.compile(
    r"""(?P<q>['"])(?P<text>[^'"\\\n]*)(?P=q)\.count\((?P<r>['"])(?P<part>[^'"\\\n]*)(?P=r)\)"""
)
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


class _Refused(Exception):
    """The expression is outside of what is allowed."""


def evaluate(expression: str) -> str | None:
    """The value of an expression as text, or None when it is not allowed or has no value.

    Allowed: whole numbers and decimals with + - * / // % ** and parentheses, thousands commas;
    or 'text'.count('part'). Never raises, in any thread.
    """
    expression = expression.strip()
    if len(expression) > MAX_CHARACTERS:
        return None
    if call := COUNT.fullmatch(expression):
        return str(call["text"].count(call["part"]))
    if not ARITHMETIC.fullmatch(expression):
        return None
    try:
        tree = ast.parse(THOUSANDS.sub("", expression), mode="eval")
        return _shown(_value(tree.body))
    except (_Refused, SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Number:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(node.value)
    if isinstance(node, ast.UnaryOp) and type(node.op) in UNARY:
        return UNARY[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow):
            _refuse_large_power(left, right)
        return _bounded(BINARY[type(node.op)](left, right))
    raise _Refused


def _refuse_large_power(base: Number, exponent: Number) -> None:
    if abs(exponent) > MAX_BITS:
        raise _Refused
    if abs(base) > 1 and math.log2(abs(base)) * abs(exponent) > MAX_BITS:
        raise _Refused


def _bounded(value: object) -> Number:
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, int) and value.bit_length() <= MAX_BITS:
        return value
    raise _Refused  # too large, infinite, complex


def _shown(value: Number) -> str:
    if isinstance(value, float):
        if value.is_integer() and abs(value) < 1e15:
            return str(int(value))
        return f"{value:.{DIGITS}g}"
    return str(value)
