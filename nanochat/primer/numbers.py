"""Sums through the calculator, and word problems of two steps."""

from collections.abc import Callable
from random import Random

from nanochat.calculator import evaluate
from nanochat.primer.question import Paraphrases, Question, Split, as_typed, split_of
from nanochat.primer.world import ITEMS, plural, two_children

MAX_OPERAND = 9999  # of four digits: far too many sums to be memorized

SUMS = Paraphrases.table("""
+: what is {a} + {b} | what is {a}+{b} | {a} + {b} | {a}+{b} | what is {a} plus {b}
+: how much is {a} + {b} | calculate {a} + {b} | add {a} and {b} | what is the sum of {a} and {b}
+: what do you get if you add {b} to {a} | how much is {a} and {b} | {a} plus {b}
+: work out {a} plus {b} | what's {a} + {b} | compute {a}+{b} | {a} + {b} =
+: what does {a} + {b} make
+ unseen: how much is {a} plus {b} | work out {a} + {b}
-: what is {a} - {b} | what is {a}-{b} | {a} - {b} | {a}-{b} | what is {a} minus {b}
-: how much is {a} - {b} | calculate {a} - {b} | take {b} away from {a}
-: what is the difference of {a} and {b} | what is left if you take {b} from {a}
-: how much is {a} less {b} | {a} minus {b} | work out {a} minus {b} | what's {a} - {b}
-: subtract {b} from {a} | {a} - {b} =
- unseen: how much is {a} minus {b} | work out {a} - {b}
*: what is {a} * {b} | what is {a}*{b} | {a} * {b} | {a}*{b} | what is {a} times {b}
*: how much is {a} * {b} | calculate {a} times {b} | multiply {a} by {b}
*: what is the product of {a} and {b} | {a} x {b} | {a} times {b} | what is {a} x {b}
*: work out {a} times {b} | what's {a} * {b} | multiply {a} and {b} | {a} * {b} =
* unseen: how much is {a} times {b} | work out {a} * {b}
/: what is {a} / {b} | what is {a}/{b} | {a} / {b} | {a}/{b} | what is {a} divided by {b}
/: how much is {a} / {b} | calculate {a} divided by {b} | divide {a} by {b} | share {a} among {b}
/: how many times does {b} go into {a} | {a} divided by {b} | work out {a} divided by {b}
/: what's {a} / {b} | {a} / {b} =
/ unseen: how much is {a} divided by {b} | work out {a} / {b}
""")  # fmt: skip
SPOKEN_SIGN = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}


def _operand(rng: Random) -> int:
    """One to four digits, each length equally often; uniform numbers would all be long."""
    digits = rng.randint(1, 4)
    return rng.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)


def operands(rng: Random, sign: str) -> tuple[int, int]:
    """Two numbers of up to four digits; differences are not negative, quotients are integers."""
    a, b = _operand(rng), _operand(rng)  # drawn for "/" too: the order of draws is the world's text
    if sign == "-":
        return max(a, b), min(a, b)
    if sign == "/":  # a multiple of the divisor, so that the answer has no fraction
        b = rng.randint(2, 99)
        return b * rng.randint(1, MAX_OPERAND // b), b
    return a, b


def compute(expression: str) -> str:
    """The calculator's output; every expression made here is one that it accepts."""
    result = evaluate(expression)
    assert result is not None, expression
    return result


def sum_question(rng: Random, split: Split) -> Question:
    """Two numbers and a sign, in one of many paraphrases; answered through the calculator."""
    sign = rng.choice("++--**/")  # division half as often as the others
    a, b = operands(rng, sign)
    core, is_unseen = SUMS[sign].pick(rng, split)
    text = core.format(a=a, b=b)
    if core[0] == "{":  # a bare formula: no greeting, and a question mark only sometimes
        text += rng.choice(("", "", "?", " ?"))
    else:
        text = as_typed(rng, text)
    expression = f"{a} {sign} {b}"
    result = compute(expression)
    identity = f"sum|{expression}"  # without the paraphrase: a held-out sum is new in every form
    return Question(
        text=text,
        answer=rng.choice((expression, f"{a} {SPOKEN_SIGN[sign]} {b}")) + f" is {result}.",
        key=result,
        identity=identity,
        expression=expression,
        kind="number",
        # A known sum in an unseen paraphrase is no test question here.
        unseen_wording=is_unseen and split_of(identity) == "test",
    )


# Names of numbers in the order of the draws, with inclusive bounds; or with a function of the
# numbers drawn before, whose value is the bounds or the number itself.
Ranges = dict[str, tuple[int, int] | Callable[..., tuple[int, int] | int]]


class Problem:
    """One shape of word problem, in several wordings; {r} in the answer is the result."""

    def __init__(self, *wordings: str, expression: str, answer: str, ranges: Ranges) -> None:
        self.wordings, self.expression, self.answer = wordings, expression, answer
        self.ranges = ranges

    def draw_numbers(self, rng: Random) -> dict[str, int]:
        """The numbers by name."""
        numbers: dict[str, int] = {}
        for name, limits in self.ranges.items():
            value = limits(**numbers) if callable(limits) else limits
            numbers[name] = value if isinstance(value, int) else rng.randint(*value)
        return numbers


# The numbers of each shape are small, and such that every step gives a positive integer.
PROBLEMS = (
    Problem(
        "{name} has {a} {items}. {She} finds {b} more and gives {c} to {friend}. How many {items}"
        " does {name} have now?",
        "{name} had {a} {items} and got {b} from {friend}. Then {she} lost {c}. How many {items}"
        " are left?",
        "There are {a} {items} in a box. {name} puts in {b} more, and {friend} takes out {c}. How"
        " many {items} are in the box?",
        expression="{a} + {b} - {c}", answer="There are {r} {items}.",
        ranges={"a": (5, 60), "b": (5, 60), "c": lambda a, b: (2, a + b - 1)},
    ),
    Problem(
        "{name} has {a} {items}. {She} gives {b} to {friend} and loses {c}. How many {items} does"
        " {name} have left?",
        "A shop has {a} {items}. In the morning it sells {b}, in the afternoon it sells {c}. How"
        " many {items} are left?",
        "Out of {a} {items}, {name} takes {b} and {friend} takes {c}. How many {items} remain?",
        expression="{a} - {b} - {c}", answer="There are {r} {items} left.",
        ranges={"b": (2, 40), "c": (2, 40), "a": lambda b, c: (b + c + 1, b + c + 50)},
    ),
    Problem(
        "{name} buys {a} bags with {b} {items} each. {She} already had {c} {items}. How many"
        " {items} does {name} have now?",
        "There are {a} boxes with {b} {items} in each, and {c} more {items} on the table. How many"
        " {items} are there?",
        "{name} fills {a} jars with {b} {items} each, and {c} {items} are left over. How many"
        " {items} are there in all?",
        expression="{a} * {b} + {c}", answer="There are {r} {items}.",
        ranges={"a": (2, 12), "b": (2, 20), "c": (1, 40)},
    ),
    Problem(
        "{name} has {a} bags with {b} {items} each. {She} gives {c} {items} away. How many {items}"
        " does {name} have left?",
        "There are {a} boxes with {b} {items} in each. {friend} takes {c} {items}. How many {items}"
        " are left?",
        "{a} children bring {b} {items} each, and {c} {items} get lost. How many {items} remain?",
        expression="{a} * {b} - {c}", answer="There are {r} {items} left.",
        ranges={"a": (2, 12), "b": (3, 20), "c": lambda a, b: (1, a * b - 1)},
    ),
    Problem(
        "{name} has {a} {items} and {friend} has {b}. They put them together and share them among"
        " {c} children. How many {items} does each child get?",
        "{a} red {items} and {b} blue {items} are packed into {c} bags, the same number in each."
        " How many {items} are in one bag?",
        expression="({a} + {b}) / {c}", answer="Each gets {r} {items}.",
        ranges={  # the result first: the quotient has to be an integer
            "c": (2, 9), "r": (2, 15), "a": lambda c, r: (1, c * r - 1),
            "b": lambda c, r, a: c * r - a,
        },
    ),
    Problem(
        "{name} has {a} {items}. {friend} has {b} more than {name}. How many {items} do they have"
        " together?",
        "In the morning {name} finds {a} {items}, and in the afternoon {b} more than in the"
        " morning. How many {items} does {name} find in all?",
        expression="{a} + {a} + {b}", answer="There are {r} {items} in all.",
        ranges={"a": (3, 60), "b": (2, 40)},
    ),
    Problem(
        "{name} buys {a} {items} for {b} coins each and pays with {c} coins. How many coins does"
        " {she} get back?",
        "One of the {items} costs {b} coins. {name} has {c} coins and buys {a} {items}. How many"
        " coins are left?",
        expression="{c} - {a} * {b}", answer="There are {r} coins left.",
        ranges={"a": (2, 9), "b": (2, 12), "c": lambda a, b: (a * b + 1, a * b + 60)},
    ),
    Problem(
        "A book has {c} pages. {name} reads {a} pages a day for {b} days. How many pages are left?",
        "The way is {c} miles long. {name} walks {a} miles a day for {b} days. How many miles are"
        " left?",
        expression="{c} - {a} * {b}", answer="There are {r} left.",
        ranges={"a": (3, 25), "b": (2, 9), "c": lambda a, b: (a * b + 5, a * b + 120)},
    ),
)  # fmt: skip


def word_problem(rng: Random, split: Split) -> Question:
    """A problem of two steps; the model writes the expression, the calculator its value."""
    problem = rng.choice(PROBLEMS)
    wording = rng.choice(problem.wordings)
    numbers = problem.draw_numbers(rng)
    # Without names and things: who has the marbles does not make a new problem.
    values = sorted(item for item in numbers.items() if item[0] != "r")
    (name, she, _), (friend, _, _) = two_children(rng)
    expression = problem.expression.format(**numbers)
    result = compute(expression)
    words = {
        **numbers, "r": result, "name": name, "friend": friend, "she": she,
        "She": she.capitalize(), "items": plural(rng.choice(ITEMS)),
    }  # fmt: skip
    opening = rng.choice(("", "", "", "", "Here is a problem. ", "Please help me. ", "Hi! "))
    return Question(
        text=opening + wording.format(**words),
        answer=problem.answer.format(**words),
        key=result,
        identity=f"problem|{wording}|{values}",
        expression=expression,
        kind="number",
    )
