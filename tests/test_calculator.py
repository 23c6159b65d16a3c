import threading
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dev import fuzz_calculator
from nanochat import calculator
from nanochat.calculator import evaluate


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("347 + 588", "935"),
        ("  2+2 ", "4"),
        ("-3 - -4", "1"),
        ("2 * (3 + 4)", "14"),
        ("7 // 2", "3"),
        ("-7 // 2", "-4"),
        ("-7 % 3", "2"),
        ("2 ** 10", "1024"),
        ("2 ** -1", "0.5"),
        ("10 / 2", "5"),
        ("1 / 4", "0.25"),
        ("-0.0", "0"),
        ("1,234 + 1,000,000", "1001234"),
        ("1_000 * 2", "2000"),
        ("1,000.5", "1000.5"),
        ("(12,345,678) - 1,000", "12344678"),
        ("-1,000*2,000.25", "-2000250"),
        (".5 + 1.", "1.5"),
        ("1e3", "1000"),
        ("'a,b,c'.count(',')", "2"),
        ("'directory'.count('r')", "2"),
        ('"strawberry".count("r")', "3"),
        ("'it' .count('t')", None),
        ("'aaa'.count('aa')", "1"),
        ("'abc'.count('')", "4"),
        ("''.count('a')", "0"),
        ("'naïve café'.count('é')", "1"),
    ],
)
def test_allowed_expressions_have_their_value(expression: str, value: str | None) -> None:
    assert evaluate(expression) == value


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("0.1 + 0.2", "0.3"),
        ("3 * 1.1", "3.3"),
        ("19.99 * 3", "59.97"),
        ("0.7 + 0.1", "0.8"),
        ("4.35 * 100", "435"),
        ("1.1 + 2.2", "3.3"),
        ("100 * 1.15", "115"),
        ("10 / 3", "3.33333333333"),
        ("2 ** 0.5", "1.41421356237"),
    ],
)
def test_fractions_are_rounded_to_twelve_digits(expression: str, value: str) -> None:
    assert evaluate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        # too much work or too large
        "9**9**9", "9**9**9**9", "(-9)**9**9", "2**100000", "10**10**10", "1e308*10", "1e999",
        "2**256*2**256", f"{'9' * 90}*{'9' * 90}", "9" * 199, "1e300**2", "1" * 5000,
        "'a'*10**10", "'a'*9", "'%9999999999d' % 1", "'%s' % 1", "'a'.zfill(10**10)",
        "'a'.ljust(99999999999)", "'a'.count('a')*10**9",
        "(" * 10_000 + "1" + ")" * 10_000, "(" * 90 + "1" + ")" * 90 + "+" * 90,
        "-" * 200 + "1", "+" * 10_000, "1" + "+1" * 5000, "~" * 150 + "1", "1<<100000", "1<<1",
        # no value
        "1/0", "1//0", "1%0", "0**-1", "0.0**-1", "(-8)**0.5", "1e308-1e999", "",
        " ", "()", "1,2", "1,", "(1,2)", "[1]", "{1}", "1 if 1 else 2", "1 2", "1 +", "*1", "**1",
        "1.5,000", "0.123,456", "1e0,005", "1e-0,005", "1234,567", "1,2345", "1,23", "1,000,00",
        "1,000,", ",000",
        "1,000_000", "1_000,000", "1,000e2", "1,000.5,000", "1,,000", "1, 000", "1 ,000",
        "007", "1__0", "0x10", "0b1", "1j", "1e", ".", "...", "1..2", "%", "1 (2)", "(1)(2)",
        # names, attributes, code
        "x", "e", "E", "eE", "e()", "True", "None", "abs(1)", "open('x')", "__import__('os')",
        "().__class__", "(1).real", "1 .real", "1..real", "1.0.hex()", "lambda: 1", "lambda:1",
        "f'{1}'", "f'{open(1)}'.count('a')", "b'a'.count(b'a')", "r'a'.count('a')",
        "[x for x in (1,)]", "(x:=1)", "1;2", "1\n2", "1#", "import os", "'a' 'b'.count('a')",
        "'a'.upper()", "'a'.count", "'a'.count('a').real", "'a'.count('a', 1)",
        "'\\x61'.count('a')", "'a\n'.count('a')", "'a'.__class__.count('a')", "'a'['a'.count('a')]",
        "str.count('a','a')", "'a'.count(x)", "'a'.index('a')", "not 1", "1 and 2", "1 < 2",
        "1 == 1", "1 & 3", "1 | 3", "1 ^ 3", "~1", "1 @ 2", "$5", "5%*2", "2^3", "3×4", "6÷2",
        "１+１", "٣+٤", "1²", "½", "1\u00a0+1x", "\x00", "1\x00", "\ud800", "'\ud800'.count",
    ],
)  # fmt: skip
def test_other_expressions_have_no_value(expression: str) -> None:
    assert evaluate(expression) is None


@pytest.mark.parametrize(
    "expression", ["10**60", "2**211", "1**256", "(-2)**201", "2**200 - 2**200", "2.0**256"]
)
def test_large_numbers_within_the_bound_have_a_value(expression: str) -> None:
    value = evaluate(expression)
    assert value is not None
    assert float(value) == pytest.approx(float(eval(expression)), rel=1e-11)


def test_a_value_has_at_most_64_characters() -> None:
    assert evaluate("10**63") == "1" + "0" * 63
    assert evaluate("10**64") is None and evaluate("-10**63") is None
    assert evaluate("10**70 // 10**10") == "1" + "0" * 60


def test_integers_are_exact_at_any_allowed_size() -> None:
    assert evaluate("12345678901234567890 * 98765432109876543210") == str(
        12345678901234567890 * 98765432109876543210
    )


@settings(max_examples=400)
@given(st.text(max_size=300))
def test_any_text_evaluates_to_text_or_none(text: str) -> None:
    value = evaluate(text)
    assert value is None or isinstance(value, str)


@settings(max_examples=600)
@given(st.text("0123456789eE.,_+-*/%() '\"acount", max_size=calculator.MAX_CHARACTERS + 5))
def test_any_text_of_the_alphabet_evaluates_to_text_or_none(text: str) -> None:
    value = evaluate(text)
    assert value is None or len(value) <= calculator.MAX_RESULT_CHARACTERS


numbers = st.one_of(
    st.integers(0, 10**6).map(str),
    st.decimals(0, 1000, places=2, allow_nan=False).map(str),
)
expressions = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner).map(" ".join),
        inner.map("({})".format),
        inner.map("-{}".format),
    ),
    max_leaves=8,
)


@settings(max_examples=300)
@given(expressions)
def test_arithmetic_has_the_value_of_python(expression: str) -> None:
    try:
        expected = eval(expression, {"__builtins__": {}})
    except ZeroDivisionError:
        assert evaluate(expression) is None
        return
    value = evaluate(expression)
    if len(expression) > calculator.MAX_CHARACTERS:
        assert value is None
    elif isinstance(expected, int) and len(str(expected)) <= calculator.MAX_RESULT_CHARACTERS:
        assert value == str(expected)
    else:
        assert value is not None
        assert float(Fraction(value)) == pytest.approx(expected, rel=1e-11, abs=1e-300)


@given(st.text("abc ,", max_size=20), st.text("abc ,", max_size=2))
def test_counting_agrees_with_python(text: str, part: str) -> None:
    assert evaluate(f"'{text}'.count('{part}')") == str(text.count(part))


def test_random_strings_cause_no_exception_and_take_milliseconds() -> None:
    num_values, _, faults = fuzz_calculator.fuzz(seed=1, count=10_000)
    assert faults == []
    assert num_values > 500


def test_the_longest_sum_has_a_value() -> None:
    terms = calculator.MAX_CHARACTERS // 2
    assert evaluate("+".join("1" * terms)) == str(terms)


def test_it_works_in_any_thread() -> None:
    values: list[str | None] = []
    thread = threading.Thread(target=lambda: values.append(evaluate("6 * 7")))
    thread.start()
    thread.join()
    assert values == ["42"]


def test_long_and_foreign_expressions_are_rejected_before_parsing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr(calculator.ast, "parse", never)
    assert evaluate("1+" * calculator.MAX_CHARACTERS + "1") is None
    assert evaluate("x+1") is None
    assert evaluate("'x'.count('x')") == "1"


def test_intermediate_integers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def watched(function: object) -> object:
        def call(*numbers: object) -> object:
            seen.extend(n.bit_length() for n in numbers if isinstance(n, int))
            result = function(*numbers)  # type: ignore[operator]
            seen.append(result.bit_length() if isinstance(result, int) else 0)
            return result

        return call

    binary = {kind: watched(function) for kind, function in calculator.BINARY.items()}
    monkeypatch.setattr(calculator, "BINARY", binary)
    for expression in ("9**9**9", "(2**255)*(2**255)", "(2**250)**9", "((10**77)**2)**2", "7**91"):
        evaluate(expression)
    assert 200 < max(seen) <= 2 * calculator.MAX_BITS
