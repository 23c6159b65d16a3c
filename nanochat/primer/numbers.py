"""Sums through the calculator: numerals and words, negative and decimal results, several steps."""

from collections.abc import Callable
from random import Random

from nanochat.calculator import evaluate
from nanochat.primer.phrasing import Paraphrases, as_typed
from nanochat.primer.question import Question, Split, split_of
from nanochat.primer.world import capitalized, words

MAX_OPERAND = 9999  # of four digits: far too many sums to be memorized

SUMS = Paraphrases.table("""
+: {a} + {b} | {a}+{b} | {a} + {b} | {a} plus {b} | add {a} and {b} | how much is {a} + {b}
+: what do you get if you add {b} to {a} | how much is {a} plus {b} | what does {a} + {b} make
+: {a} + {b} = | calculate {a} + {b} | work out {a} plus {b} | compute {a}+{b} | add {b} to {a}
+: what is {a} + {b} | what is {a} plus {b} | what is {a}+{b} | {a} and {b} is | {a} and {b} make
+ clause: what {a} + {b} is | how much {a} plus {b} is | what {a} plus {b} makes
+ noun: the sum of {a} and {b} | the total of {a} and {b} | {a} + {b} | {a} plus {b} | {a}+{b}
+ unseen: {a} plus {b} equals what | if I have {a} and get {b}, what is the total
-: {a} - {b} | {a}-{b} | {a} - {b} | {a} minus {b} | subtract {b} from {a} | how much is {a} - {b}
-: take {b} away from {a} | what is left if you take {b} from {a} | how much is {a} minus {b}
-: {a} - {b} = | calculate {a} - {b} | work out {a} minus {b} | {a} take away {b} | {a} less {b}
-: what is {a} - {b} | what is {a} minus {b} | what is {a}-{b} | take {b} from {a}
- clause: what {a} - {b} is | how much {a} minus {b} is
- noun: the difference of {a} and {b} | {a} - {b} | {a} minus {b} | {a}-{b}
- unseen: {a} minus {b} equals what | reduce {a} by {b}
*: {a} * {b} | {a}*{b} | {a} * {b} | {a} times {b} | multiply {a} by {b} | how much is {a} * {b}
*: {a} x {b} | what is {a} x {b} | how much is {a} times {b} | multiply {a} and {b} | {a}x{b}
*: {a} * {b} = | calculate {a} * {b} | work out {a} times {b} | {a} multiplied by {b}
*: what is {a} * {b} | what is {a} times {b} | what is {a}*{b} | calculate {a} times {b}
* clause: what {a} * {b} is | how much {a} times {b} is
* noun: the product of {a} and {b} | {a} * {b} | {a} times {b} | {a}*{b}
* unseen: {a} times {b} equals what | how many are {a} rows of {b}
/: {a} / {b} | {a}/{b} | {a} / {b} | {a} divided by {b} | divide {a} by {b} | how much is {a} / {b}
/: share {a} among {b} | how many times does {b} go into {a} | how much is {a} divided by {b}
/: {a} / {b} = | calculate {a} divided by {b} | work out {a} / {b} | {a} : {b} | {a} over {b}
/: what is {a} / {b} | what is {a} divided by {b} | what is {a}/{b}
/ clause: what {a} / {b} is | how much {a} divided by {b} is
/ noun: the quotient of {a} and {b} | {a} / {b} | {a} divided by {b} | {a}/{b}
/ unseen: {a} divided by {b} equals what | split {a} evenly into {b}
""")  # fmt: skip
SPOKEN_SIGN = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
_FORMULA = Paraphrases.table("""
any: {e} | {e} | {e} | what is {e} | calculate {e} | how much is {e} | compute {e} | work out {e}
any: {e} = | solve {e} | please calculate {e} | {e} is what | and {e} | {e} equals
any: what does {e} make
any clause: what {e} is | how much {e} is
any noun: the result of {e} | {e} | the value of {e} | the answer to {e}
any unseen: {e} equals what | evaluate {e} | the outcome of {e} is
""")["any"]
_ONES = words("""
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen
""")  # fmt: skip
_TENS = words("_ _ twenty thirty forty fifty sixty seventy eighty ninety")


def in_words(number: int, joint: str = " ") -> str:
    """A number below ten thousand in words; joint: between tens and ones, " " or "-"."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        return _TENS[number // 10] + (f"{joint}{_ONES[number % 10]}" if number % 10 else "")
    size, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    rest = number % size
    middle = " and " if rest and rest < 100 else " " if rest else ""
    return (
        f"{in_words(number // size, joint)} {name}{middle}{in_words(rest, joint) if rest else ''}"
    )


def _integer(rng: Random) -> int:
    """One to four digits; uniform numbers would all be long."""
    digits = rng.choice((1, 1, 2, 2, 2, 3, 3, 4))
    return rng.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)


def _said(rng: Random) -> str:
    """A number that people say in words: seldom one of many words."""
    limits = (12, 20, 100, 100, 100, 1000)
    number = rng.randint(0, rng.choice(limits))
    return str(number if number <= 100 or rng.random() < 0.4 else number // 100 * 100)


def _decimal(rng: Random) -> str:
    places = rng.choice((1, 1, 2))
    return f"{rng.randint(1, 99 * 10**places) / 10**places:.{places}f}"


def operands(rng: Random, sign: str) -> tuple[str, str]:
    """Two numbers as they are written."""
    if rng.random() < 0.12:
        return _decimal(rng), str(rng.randint(1, 20)) if rng.random() < 0.5 else _decimal(rng)
    a, b = _integer(rng), _integer(rng)
    if sign == "-" and rng.random() < 0.6:  # the others: negative results too
        a, b = max(a, b), min(a, b)
    if sign == "/":
        b = rng.randint(2, 99) if rng.random() < 0.5 else rng.randint(2, 12)
        if rng.random() < 0.75:  # a multiple of the divisor, so that the answer has no fraction
            a = (
                b * rng.randint(1, MAX_OPERAND // b)
                if rng.random() < 0.5
                else b * rng.randint(1, 20)
            )
    if rng.random() < 0.04:
        return f"-{a}", str(b)
    return str(a), str(b)


def compute(expression: str) -> str:
    """The calculator's output; every expression made here is one that it accepts."""
    result = evaluate(expression)
    assert result is not None, expression
    return result


def sum_question(rng: Random, split: Split, unseen: bool = False) -> Question:
    """A calculation as a formula or in words; answered through the calculator."""
    kind = rng.random()
    if kind < 0.27:
        return _several_steps(rng, unseen)
    if kind < 0.33 and not unseen:
        return _of_one_number(rng)
    sign = rng.choice("+++--**/")
    a, b = operands(rng, sign)
    core = SUMS[sign].pick(rng, split, unseen=unseen)
    if kind < 0.6 and a.isdigit() and b.isdigit() and sign != "/":
        a, b = _said(rng), _said(rng)
    if kind < 0.6 and a.isdigit() and b.isdigit():  # words for the numbers, or for one of them
        core = core.replace("x", "times") if sign == "*" and "{a}x" in core else core
        spoken = [_spoken(rng, number) for number in (a, b)]
        if any(sign in core for sign in "+-*/:") and rng.random() < 0.8:
            core = (
                rng.choice(("what is {a} %s {b}", "how much is {a} %s {b}", "{a} %s {b}"))
                % SPOKEN_SIGN[sign]
            )
        text = core.format(a=spoken[0], b=spoken[1])
    else:
        text = core.format(a=a, b=b)
    return calculation(_typed_formula(rng, text, core), f"{a} {sign} {b}", unseen)


def _spoken(rng: Random, number: str) -> str:
    if rng.random() < 0.15:
        return number
    return in_words(int(number), rng.choice((" ", " ", "-")))


def _typed_formula(rng: Random, text: str, core: str) -> str:
    if core[0] != "{":
        return as_typed(rng, text)
    # A bare formula: no greeting, and a question mark only sometimes.
    return (text if text[0].isdigit() else capitalized(text)) + rng.choice(("", "", "?", " ?"))


def calculation(text: str, expression: str, unseen: bool = False, answer: str = "") -> Question:
    """A question for the value of an expression, which the answer copies from the calculator."""
    result = compute(expression)
    identity = f"sum|{expression}"  # without the phrasing: a held-out sum is new in every form
    return Question(
        text=text, answer=(answer or f"{expression} is {{r}}.").replace("{r}", result), key=result,
        identity=identity, expression=expression, kind="number",
        # A known sum in an unseen phrasing is no test question here.
        unseen_wording=unseen and split_of(identity) == "test",
    )  # fmt: skip


_STEPS: tuple[tuple[str, Callable[[str, str, str], str]], ...] = (
    ("{a} + {b} + {c}", lambda a, b, c: f"{a} plus {b} plus {c}"),
    ("{a} + {b} + {c}", lambda a, b, c: f"add {a}, {b} and {c}"),
    ("{a} + {b} + {c}", lambda a, b, c: f"the sum of {a}, {b} and {c}"),
    ("{a} + {b} - {c}", lambda a, b, c: f"{a} plus {b} minus {c}"),
    ("{a} - {b} + {c}", lambda a, b, c: f"{a} minus {b} plus {c}"),
    ("{a} - {b} - {c}", lambda a, b, c: f"{a} minus {b} minus {c}"),
    ("{a} * {b} + {c}", lambda a, b, c: f"{a} times {b} plus {c}"),
    ("{a} * {b} - {c}", lambda a, b, c: f"{a} times {b} minus {c}"),
    ("{a} + {b} * {c}", lambda a, b, c: f"{a} plus {b} times {c}"),
    ("{a} * {b} * {c}", lambda a, b, c: f"{a} times {b} times {c}"),
    ("({a} + {b}) * {c}", lambda a, b, c: f"add {a} and {b}, then multiply by {c}"),
    ("({a} - {b}) * {c}", lambda a, b, c: f"subtract {b} from {a}, then multiply by {c}"),
    ("{a} * ({b} + {c})", lambda a, b, c: f"{a} times the sum of {b} and {c}"),
    ("{a} * ({b} - {c})", lambda a, b, c: f"{a} times the difference of {b} and {c}"),
    ("({a} + {b}) / {c}", lambda a, b, c: f"add {a} and {b}, then divide by {c}"),
    ("{a} - ({b} + {c})", lambda a, b, c: f"{a} minus the sum of {b} and {c}"),
)  # fmt: skip


def _several_steps(rng: Random, unseen: bool) -> Question:
    template, spoken = rng.choice(_STEPS)
    limit = rng.choice((9, 20, 99, 999))
    a, b, c = (str(rng.randint(1, limit)) for _ in range(3))
    if "/" in template:
        c = str(rng.choice((2, 4, 5)))
    expression = template.format(a=a, b=b, c=c)
    if rng.random() < 0.3 and not unseen:
        numbers = [_spoken(rng, n) if int(n) < 100 and rng.random() < 0.5 else n for n in (a, b, c)]
        core = spoken(*numbers)
        if not core.startswith(("add", "subtract")):
            core = rng.choice(("what is {e}", "how much is {e}", "{e}", "tell me {e}")).format(
                e=core
            )
        return calculation(as_typed(rng, core), expression)
    core = _FORMULA.pick(rng, "train", unseen=unseen)
    written = expression
    style = rng.random()
    if style < 0.3:
        written = expression.replace(" ", "")
    elif style < 0.4:
        written = expression.replace("*", "x")
    return calculation(_typed_formula(rng, core.format(e=written), core), expression, unseen)


_OF_ONE = (
    ("half of {a}", "{a} / 2"), ("{a} halved", "{a} / 2"), ("double {a}", "2 * {a}"),
    ("twice {a}", "2 * {a}"), ("{a} doubled", "2 * {a}"), ("{a} squared", "{a} * {a}"),
    ("the square of {a}", "{a} * {a}"), ("a third of {a}", "{a} / 3"), ("three times {a}",
    "3 * {a}"),
    ("a quarter of {a}", "{a} / 4"), ("triple {a}", "3 * {a}"), ("10% of {a}", "{a} * 10 / 100"),
    ("50 percent of {a}", "{a} * 50 / 100"), ("20 % of {a}", "{a} * 20 / 100"),
    ("a tenth of {a}", "{a} / 10"), ("the double of {a}", "2 * {a}"), ("half {a}", "{a} / 2"),
)  # fmt: skip


def _of_one_number(rng: Random) -> Question:
    """Half of it, its double, its square."""
    spoken, template = rng.choice(_OF_ONE)
    number = rng.choice(
        (rng.randint(1, 20), rng.randint(1, 100), rng.randint(1, 50) * 12, rng.randint(1, 999))
    )
    shown = in_words(number) if number < 100 and rng.random() < 0.3 else str(number)
    frame = rng.choice(("what is {e}", "{e}", "how much is {e}", "tell me {e}", "calculate {e}"))
    text = as_typed(rng, frame.format(e=spoken.format(a=shown)))
    return calculation(text, template.format(a=number))
