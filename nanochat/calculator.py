"""Arithmetic on a syntax tree: nothing is executed, and every input ends in microseconds.

evaluate("347 + 588")               -> "935"
evaluate("'strawberry'.count('r')") -> "3"
evaluate("open('x')")               -> None
"""

import ast
import math
import operator
import re
from collections.abc import Callable

MAX_CHARACTERS = 200  # which also bounds the depth of an expression
MAX_BITS = 256  # of every intermediate integer, about 77 digits
MAX_RESULT_CHARACTERS = 64
DIGITS = 12  # significant digits of a printed fraction: 0.1 + 0.2 is 0.3

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
# No letters but the exponent's e: neither names nor calls get as far as the parser.
ARITHMETIC = re.compile(r"[0-9eE.,_+\-*/%() ]+")
COUNT = re.compile(
    r"""(?P<q>['"])(?P<text>[^'"\\\n]*)(?P=q)\.count\((?P<r>['"])(?P<part>[^'"\\\n]*)(?P=r)\)"""
)
# A number with thousands commas: groups of three digits, and none after the point or the exponent.
THOUSANDS = re.compile(r"(?<![\w.,])(?<![eE][+-])\d{1,3}(?:,\d{3})+(?![\w,])")


def evaluate(expression: str) -> str | None:
    """The value of an expression as text, or None when it is not allowed or has no value.

    Allowed: integers and decimals with + - * / // % ** and parentheses, thousands commas; or
    'text'.count('part'). Never raises, in any thread.
    """
    expression = expression.strip()
    if len(expression) > MAX_CHARACTERS:
        return None
    if call := COUNT.fullmatch(expression):
        return str(call["text"].count(call["part"]))
    if not ARITHMETIC.fullmatch(expression):
        return None
    try:
        plain = THOUSANDS.sub(lambda number: number[0].replace(",", ""), expression)
        value = _format(_evaluate(ast.parse(plain, mode="eval").body))
        return value if len(value) <= MAX_RESULT_CHARACTERS else None
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def _evaluate(node: ast.expr) -> Number:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):  # no bool, no complex
        return _bounded(node.value)
    if isinstance(node, ast.UnaryOp) and type(node.op) in UNARY:
        return UNARY[type(node.op)](_evaluate(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        left, right = _evaluate(node.left), _evaluate(node.right)
        # Before the power is computed: 9**9**9 has 370 million digits. At least 2, so that no base
        # takes an exponent above MAX_BITS.
        if isinstance(node.op, ast.Pow) and math.log2(max(2, abs(left))) * abs(right) > MAX_BITS:
            raise ValueError
        return _bounded(BINARY[type(node.op)](left, right))
    raise ValueError


def _bounded(value: object) -> Number:
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, int) and value.bit_length() <= MAX_BITS:
        return value
    raise ValueError  # too large, infinite, or complex as (-8) ** 0.5


def _format(value: Number) -> str:
    if isinstance(value, float):
        # From 1e15 on, digits would claim more precision than a float has.
        if value.is_integer() and abs(value) < 1e15:
            return str(int(value))
        return f"{value:.{DIGITS}g}"
    return str(value)
