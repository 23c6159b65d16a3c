"""Word problems of one to five steps: the model writes an expression, the calculator its value."""

from collections.abc import Callable
from random import Random

from nanochat.primer.names import COUNTED, person_name
from nanochat.primer.numbers import compute
from nanochat.primer.question import Question, Split
from nanochat.primer.world import ITEMS, capitalized, plural, words

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


_UP_TO_60 = (2, 60)
_ONE_STEP = (
    Problem(
        "{name} has {a} {items} and {gets} {b} more. How many {items} does {name} have now?",
        "I have {a} {items} and get {b} more. How many {items} do I have?",
        "I had {a} {items}, then I found {b}. How many {items} do I have now?",
        "There are {a} {items} on the table and {b} in the box. How many {items} are there?",
        "{name} has {a} {items}, {friend} has {b}. How many {items} do they have together?",
        "If I buy {a} {items} today and {b} tomorrow, how many will I have?",
        expression="{a} + {b}",
        answer="That makes {r} {items}.",
        ranges={"a": _UP_TO_60, "b": _UP_TO_60},
    ),
    Problem(
        "{name} has {a} {items} and {gives} {b}. How many {items} are left?",
        "I have {a} {items} and lose {b} of them. How many do I have left?",
        "{name} had {a} {items}. {She} {gave} {b} of them. How many does {she} have left?",
        "There were {a} {items} in a box. {friend} took {b}. How many are left?",
        "Of {a} {items}, {b} are gone. How many {items} remain?",
        "How many {items} are left if I have {a} and sell {b}?",
        expression="{a} - {b}",
        answer="There are {r} {items} left.",
        ranges={"a": (3, 99), "b": lambda a: (1, a - 1)},
    ),
    Problem(
        "There are {a} {items} in a box. How many {items} are in {b} boxes?",
        "{name} buys {b} bags with {a} {items} each. How many {items} does {she} have?",
        "{b} children have {a} {items} each. How many {items} is that?",
        "I eat {a} {items} a day. How many {items} do I eat in {b} days?",
        "{name} makes {a} {items} every day. How many does {she} make in {b} days?",
        "A bus has {a} seats. How many seats do {b} buses have?",
        expression="{a} * {b}",
        answer="That makes {r}.",
        ranges={"a": (2, 30), "b": (2, 20)},
    ),
    Problem(
        "One {item} costs {a} coins. How much do {b} {items} cost?",
        "{name} buys {b} {items} for {a} coins each. How many coins does {she} pay?",
        "If a {item} is {a} coins, how much are {b} of them?",
        expression="{a} * {b}",
        answer="They cost {r} coins.",
        ranges={"a": (2, 30), "b": (2, 20)},
    ),
    Problem(
        "{b} children share {a} {items}. How many does each of them get?",
        "There are {a} {items} for {b} children. How many {items} does each child get?",
        "{name} puts {a} {items} into {b} boxes, the same number in each. How many are in one box?",
        "Divide {a} {items} equally among {b} friends. How many does each friend get?",
        expression="{a} / {b}",
        answer="Each gets {r}.",
        ranges={"b": (2, 12), "r": (2, 20), "a": lambda b, r: b * r},
    ),
)
_GETS = words("gets finds buys wins makes receives collects")
_GIVES = (
    "gives away",
    "loses",
    "sells",
    "eats",
    "breaks",
    "gives {friend}",
    "drops",
    "throws away",
)
_GAVE = ("gave away", "lost", "sold", "ate", "broke", "gave {friend}", "used")

# The numbers of each shape are small, and such that every step gives a positive integer.
_TWO_STEPS = (
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


# One event of a long problem; {n} is a number.
_EVENTS = {
    "+": ("finds {n} more", "gets {n} from {friend}", "buys {n} more", "wins {n}",
    "picks up {n} more"),
    "-": ("gives {n} to {friend}", "loses {n}", "sells {n}", "breaks {n}", "leaves {n} at home"),
}  # fmt: skip


def long_problem(rng: Random, split: Split, unseen: bool = False) -> Question:
    """Three to five events in a row, each of which changes a number of things."""
    start = rng.randint(20, 99)
    expression, total, events = str(start), start, []
    for _ in range(rng.randint(3, 5)):
        sign = rng.choice("+-") if total > 15 else "+"
        number = rng.randint(2, 12)
        total += number if sign == "+" else -number
        expression += f" {sign} {number}"
        events.append(rng.choice(_EVENTS[sign]).replace("{n}", str(number)))
    name, she = person_name(rng, split)
    friend = _other_name(rng, split, name)
    items = plural(rng.choice((*ITEMS, *COUNTED)))
    sentences, rest = [], events
    while rest:  # one or two events in a sentence
        length = min(rng.randint(1, 2), len(rest))
        sentences.append(f"{capitalized(she)} {' and '.join(rest[:length])}.")
        rest = rest[length:]
    question = rng.choice((
        f"How many {items} does {name} have now?", f"How many {items} does {she} have in the end?",
        "How many are there now?", f"How many {items} does {name} have?",
    ))  # fmt: skip
    text = f"{name} has {start} {items}. {' '.join(sentences)} {question}".format(friend=friend)
    return _solved(
        text, expression, f"{name} has {{r}} {items}.", f"long problem|{expression}", (name, friend)
    )


def _other_name(rng: Random, split: Split, name: str) -> str:
    while (other := person_name(rng, split)[0]) == name:
        pass
    return other


def word_problem(rng: Random, split: Split, unseen: bool = False) -> Question:
    """A problem of one or two steps."""
    problems = rng.choice((_ONE_STEP, _TWO_STEPS))
    problem = rng.choice(problems)
    wording = rng.choice(problem.wordings)
    numbers = problem.draw_numbers(rng)
    # Without names and things: who has the marbles does not make a new problem.
    values = sorted(item for item in numbers.items() if item[0] != "r")
    name, she = person_name(rng, split)
    friend, item = _other_name(rng, split, name), rng.choice((*ITEMS, *COUNTED))
    expression = problem.expression.format(**numbers)
    fields = {
        **numbers, "r": "{r}", "name": name, "friend": friend, "she": she, "item": item,
        "She": she.capitalize(), "items": plural(item), "gets": rng.choice(_GETS),
        "gives": rng.choice(_GIVES).format(friend=friend),
        "gave": rng.choice(_GAVE).format(friend=friend),
    }  # fmt: skip
    opening = rng.choice(("", "", "", "", "", "Here is a problem. ", "Please help me. ", "Hi! "))
    return _solved(
        opening + wording.format(**fields), expression, problem.answer.format(**fields),
        # A sum that is held out is not in a problem either.
        f"sum|{expression}" if problems is _ONE_STEP else f"problem|{wording}|{values}",
        (name, friend, plural(item)),
    )  # fmt: skip


def _solved(
    text: str, expression: str, answer: str, identity: str, exact: tuple[str, ...]
) -> Question:
    result = compute(expression)
    return Question(
        text=text, answer=answer.replace("{r}", result), key=result, identity=identity,
        expression=expression, kind="number", exact=exact,
    )  # fmt: skip
