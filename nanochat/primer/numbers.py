"""Sums through the calculator, and word problems of two steps."""

from collections.abc import Callable
from dataclasses import dataclass

from nanochat.calculator import evaluate
from nanochat.primer.question import Question, Rng, Split, dress, pick_wording, side
from nanochat.primer.world import BOYS, GIRLS, ITEMS

MAX_OPERAND = 9999

# One wording per line and operation; the sign form "{a}+{b}" stands among them.
SUMS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "+": (
        (
            "what is {a} + {b}", "what is {a}+{b}", "{a} + {b}", "{a}+{b}", "what is {a} plus {b}",
            "how much is {a} + {b}", "calculate {a} + {b}", "add {a} and {b}",
            "what is the sum of {a} and {b}", "what do you get if you add {b} to {a}",
            "how much is {a} and {b}", "{a} plus {b}", "work out {a} plus {b}", "what's {a} + {b}",
            "compute {a}+{b}", "{a} + {b} =", "what does {a} + {b} make",
        ),
        ("how much is {a} plus {b}", "work out {a} + {b}"),
        "{a} + {b}",
    ),
    "-": (
        (
            "what is {a} - {b}", "what is {a}-{b}", "{a} - {b}", "{a}-{b}", "what is {a} minus {b}",
            "how much is {a} - {b}", "calculate {a} - {b}", "take {b} away from {a}",
            "what is the difference of {a} and {b}", "what is left if you take {b} from {a}",
            "how much is {a} less {b}", "{a} minus {b}", "work out {a} minus {b}",
            "what's {a} - {b}", "subtract {b} from {a}", "{a} - {b} =",
        ),
        ("how much is {a} minus {b}", "work out {a} - {b}"),
        "{a} - {b}",
    ),
    "*": (
        (
            "what is {a} * {b}", "what is {a}*{b}", "{a} * {b}", "{a}*{b}", "what is {a} times {b}",
            "how much is {a} * {b}", "calculate {a} times {b}", "multiply {a} by {b}",
            "what is the product of {a} and {b}", "{a} x {b}", "{a} times {b}", "what is {a} x {b}",
            "work out {a} times {b}", "what's {a} * {b}", "multiply {a} and {b}", "{a} * {b} =",
        ),
        ("how much is {a} times {b}", "work out {a} * {b}"),
        "{a} * {b}",
    ),
    "/": (
        (
            "what is {a} / {b}", "what is {a}/{b}", "{a} / {b}", "{a}/{b}",
            "what is {a} divided by {b}", "how much is {a} / {b}", "calculate {a} divided by {b}",
            "divide {a} by {b}", "share {a} among {b}", "how many times does {b} go into {a}",
            "{a} divided by {b}", "work out {a} divided by {b}", "what's {a} / {b}", "{a} / {b} =",
        ),
        ("how much is {a} divided by {b}", "work out {a} / {b}"),
        "{a} / {b}",
    ),
}  # fmt: skip
WORD_OF = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}


def _operand(rng: Rng) -> int:
    """One to four digits, each length as often."""
    digits = rng.randint(1, 4)
    return rng.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)


def operands(rng: Rng, sign: str) -> tuple[int, int]:
    """Two numbers up to four digits that go with a sign; differences and quotients are whole."""
    a, b = _operand(rng), _operand(rng)
    if sign == "-":
        return max(a, b), min(a, b)
    if sign == "/":
        b = rng.randint(2, 99)
        return b * rng.randint(1, MAX_OPERAND // b), b
    return a, b


def compute(expression: str) -> str:
    """What the calculator gives for an expression that it accepts."""
    result = evaluate(expression)
    assert result is not None, expression
    return result


def sum_question(rng: Rng, split: Split) -> Question:
    """Two numbers and a sign, in one of many wordings; answered through the calculator."""
    sign = rng.choice("++--**/")
    a, b = operands(rng, sign)
    wordings, unseen, expression = SUMS[sign]
    core, is_unseen = pick_wording(rng, split, wordings, unseen)
    text = core.format(a=a, b=b)
    if core[0] == "{":
        text = text + rng.choice(("", "", "?", " ?"))
    else:
        text = dress(rng, text)
    said = expression.format(a=a, b=b)
    result = compute(said)
    answer = rng.choice((f"{said} is {result}.", f"{a} {WORD_OF[sign]} {b} is {result}."))
    return Question(
        text=text,
        answer=answer,
        key=result,
        identity=f"sum|{said}",
        expression=said,
        result=result,
        kind="number",
        unseen_wording=is_unseen and side(f"sum|{said}") == "test",
    )


@dataclass(frozen=True)
class Problem:
    """One shape of word problem: wordings, the expression, the answer's sentence."""

    wordings: tuple[str, ...]
    expression: str
    answer: str
    numbers: Callable[[Rng], dict[str, int]]


def _n(rng: Rng, low: int, high: int) -> int:
    return rng.randint(low, high)


def _gains_and_gives(rng: Rng) -> dict[str, int]:
    a, b = _n(rng, 5, 60), _n(rng, 5, 60)
    return {"a": a, "b": b, "c": _n(rng, 2, a + b - 1)}


def _loses_twice(rng: Rng) -> dict[str, int]:
    b, c = _n(rng, 2, 40), _n(rng, 2, 40)
    return {"a": b + c + _n(rng, 1, 50), "b": b, "c": c}


def _packs_and_more(rng: Rng) -> dict[str, int]:
    return {"a": _n(rng, 2, 12), "b": _n(rng, 2, 20), "c": _n(rng, 1, 40)}


def _packs_and_fewer(rng: Rng) -> dict[str, int]:
    a, b = _n(rng, 2, 12), _n(rng, 3, 20)
    return {"a": a, "b": b, "c": _n(rng, 1, a * b - 1)}


def _shared(rng: Rng) -> dict[str, int]:
    c, each = _n(rng, 2, 9), _n(rng, 2, 15)
    a = _n(rng, 1, c * each - 1)
    return {"a": a, "b": c * each - a, "c": c}


def _more_than(rng: Rng) -> dict[str, int]:
    return {"a": _n(rng, 3, 60), "b": _n(rng, 2, 40)}


def _change(rng: Rng) -> dict[str, int]:
    a, b = _n(rng, 2, 9), _n(rng, 2, 12)
    return {"a": a, "b": b, "c": a * b + _n(rng, 1, 60)}


def _pages(rng: Rng) -> dict[str, int]:
    a, b = _n(rng, 3, 25), _n(rng, 2, 9)
    return {"a": a, "b": b, "c": a * b + _n(rng, 5, 120)}


PROBLEMS = (
    Problem(
        (
            "{name} has {a} {items}. {She} finds {b} more and gives {c} to {friend}. How many"
            " {items} does {name} have now?",
            "{name} had {a} {items} and got {b} from {friend}. Then {she} lost {c}. How many"
            " {items} are left?",
            "There are {a} {items} in a box. {name} puts in {b} more, and {friend} takes out {c}."
            " How many {items} are in the box?",
        ),
        "{a} + {b} - {c}", "There are {r} {items}.", _gains_and_gives,
    ),
    Problem(
        (
            "{name} has {a} {items}. {She} gives {b} to {friend} and loses {c}. How many {items}"
            " does {name} have left?",
            "A shop has {a} {items}. In the morning it sells {b}, in the afternoon it sells {c}."
            " How many {items} are left?",
            "Out of {a} {items}, {name} takes {b} and {friend} takes {c}. How many {items} remain?",
        ),
        "{a} - {b} - {c}", "There are {r} {items} left.", _loses_twice,
    ),
    Problem(
        (
            "{name} buys {a} bags with {b} {items} each. {She} already had {c} {items}. How many"
            " {items} does {name} have now?",
            "There are {a} boxes with {b} {items} in each, and {c} more {items} on the table. How"
            " many {items} are there?",
            "{name} fills {a} jars with {b} {items} each, and {c} {items} are left over. How many"
            " {items} are there in all?",
        ),
        "{a} * {b} + {c}", "There are {r} {items}.", _packs_and_more,
    ),
    Problem(
        (
            "{name} has {a} bags with {b} {items} each. {She} gives {c} {items} away. How many"
            " {items} does {name} have left?",
            "There are {a} boxes with {b} {items} in each. {friend} takes {c} {items}. How many"
            " {items} are left?",
            "{a} children bring {b} {items} each, and {c} {items} get lost. How many {items}"
            " remain?",
        ),
        "{a} * {b} - {c}", "There are {r} {items} left.", _packs_and_fewer,
    ),
    Problem(
        (
            "{name} has {a} {items} and {friend} has {b}. They put them together and share them"
            " among {c} children. How many {items} does each child get?",
            "{a} red {items} and {b} blue {items} are packed into {c} bags, the same number in"
            " each. How many {items} are in one bag?",
        ),
        "({a} + {b}) / {c}", "Each gets {r} {items}.", _shared,
    ),
    Problem(
        (
            "{name} has {a} {items}. {friend} has {b} more than {name}. How many {items} do they"
            " have together?",
            "In the morning {name} finds {a} {items}, and in the afternoon {b} more than in the"
            " morning. How many {items} does {name} find in all?",
        ),
        "{a} + {a} + {b}", "There are {r} {items} in all.", _more_than,
    ),
    Problem(
        (
            "{name} buys {a} {items} for {b} coins each and pays with {c} coins. How many coins"
            " does {she} get back?",
            "One of the {items} costs {b} coins. {name} has {c} coins and buys {a} {items}. How"
            " many coins are left?",
        ),
        "{c} - {a} * {b}", "There are {r} coins left.", _change,
    ),
    Problem(
        (
            "A book has {c} pages. {name} reads {a} pages a day for {b} days. How many pages are"
            " left?",
            "The way is {c} miles long. {name} walks {a} miles a day for {b} days. How many miles"
            " are left?",
        ),
        "{c} - {a} * {b}", "There are {r} left.", _pages,
    ),
)  # fmt: skip


def word_problem(rng: Rng, split: Split) -> Question:
    """A problem of two steps; the model writes the expression, the calculator its value."""
    problem = rng.choice(PROBLEMS)
    wording = rng.choice(problem.wordings)
    numbers = problem.numbers(rng)
    girl, boy = (rng.choice(GIRLS), "she"), (rng.choice(BOYS), "he")
    (name, she), (friend, _) = (girl, boy) if rng.random() < 0.5 else (boy, girl)
    expression = problem.expression.format(**numbers)
    result = compute(expression)
    words = {
        **numbers, "r": result, "name": name, "friend": friend, "she": she,
        "She": she.capitalize(), "items": rng.choice(ITEMS)[1],
    }  # fmt: skip
    opening = rng.choice(("", "", "", "", "Here is a problem. ", "Please help me. ", "Hi! "))
    return Question(
        text=opening + wording.format(**words),
        answer=problem.answer.format(**words),
        key=result,
        identity=f"problem|{wording}|{sorted(numbers.items())}",
        expression=expression,
        result=result,
        kind="number",
    )
