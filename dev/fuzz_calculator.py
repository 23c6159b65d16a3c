"""Fuzzing of the calculator: no string may raise, take long, or give a long or malformed value.

Values are compared with Python's, but for powers, which may not end there.

python -m dev.fuzz_calculator --count 1000000
"""

import argparse
import multiprocessing
import random
import re
import time

from nanochat import calculator

LIMIT_SECONDS = 0.005
PIECES = [
    *"0123456789", "9" * 20, "1" * 60, "1e308", "1e-308", "0.1", ".5", "1.", "1e", "e", "E", "_",
    "**", "*", "//", "/", "%", "+", "-", "(", ")", "((((", "))))", " ", ",", ",000", "1,000",
    "9**9", "'", '"', "'a'", ".count(", "'aaa'.count('a')", "\\", "\n", "\x00", "x", "import",
    "lambda", ":", "[", "]", "{", "}", "j", "0x", "0b", "=", "<", ">", "!", "~", "^", "&", "|", "@",
    "\ud800", "٣", "½", "é", "\u00a0", "if", "or", "__", "1_0", "1j", "#", ";", "\t", "\r",
    "f'{1}'", "None", "()",
]  # fmt: skip
VALUE = re.compile(r"-?\d+(\.\d+)?(e[+-]\d+)?")
# In the order of Python's grammar, with thousands commas before the point only.
NUMBER = re.compile(r"(\d{1,3}(?:,\d{3})+(?:\.\d*)?|[\d_]*\.?[\d_]*)((?:[eE][+-]?[\d_]+)?)")


def python_value(text: str) -> str | None:
    """The value of an expression that has one, by Python; None for a power or a count."""
    if "**" in text or "'" in text or '"' in text:
        return None
    plain = NUMBER.sub(lambda number: number[1].replace(",", "") + number[2], text.strip())
    try:
        value = eval(plain, {"__builtins__": {}})  # no letters but e
    except Exception as error:
        return repr(error)
    if type(value) not in (int, float):
        return repr(value)
    is_integer = isinstance(value, int) or (value.is_integer() and abs(value) < 1e15)
    return str(int(value)) if is_integer else f"{value:.{calculator.DIGITS}g}"


def random_string(rng: random.Random) -> str:
    """Pieces of expressions, characters of the calculator's alphabet, or any characters."""
    kind, length = rng.randrange(4), rng.choice([3, 8, 20, 60, 199])
    if kind == 0:
        return "".join(map(chr, rng.choices(range(0x300), k=length)))
    if kind == 1:
        return "".join(rng.choices("0123456789eE.,_+-*/%() ", k=length))
    # The pieces of an expression in turn, so that many of them have a value.
    if kind == 2:
        numbers = rng.choices(
            ["7", "12", "2.5", "1,000", "(3+4)", "-2", "9**9", "1e9"], k=length // 3
        )
        return "".join(n + rng.choice(["+", "-", "*", "/", "//", "%", "**"]) for n in numbers) + "3"
    return "".join(rng.choices(PIECES, k=length))


def timed(text: str) -> tuple[str | None, float]:
    """The value of a string and the CPU seconds that it took."""
    began = time.thread_time()
    value = calculator.evaluate(text)
    return value, time.thread_time() - began


def fuzz(seed: int, count: int) -> tuple[int, float, list[str]]:
    """How many strings have a value, CPU seconds of the slowest, and what went wrong."""
    rng, num_values, slowest, faults = random.Random(seed), 0, 0.0, []
    for _ in range(count):
        text = random_string(rng)
        try:
            value, seconds = timed(text)
        except BaseException as error:
            faults.append(f"{text!r}: {error!r}")
            continue
        if seconds > LIMIT_SECONDS:  # again: a garbage collection may have come between
            seconds = min(timed(text)[1] for _ in range(5))
        slowest = max(slowest, seconds)
        num_values += value is not None
        if seconds > LIMIT_SECONDS:
            faults.append(f"{text!r}: {seconds:.4f} s")
        if value is not None and not (
            VALUE.fullmatch(value) and len(value) <= calculator.MAX_RESULT_CHARACTERS
        ):
            faults.append(f"{text!r}: {value!r}")
        if value is not None and (expected := python_value(text)) not in (None, value):
            faults.append(f"{text!r}: {value!r}, but in Python {expected!r}")
    return num_values, slowest, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    share = -(-options.count // options.processes)
    seeds = [options.seed + index for index in range(options.processes)]
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        results = pool.starmap(fuzz, [(seed, share) for seed in seeds])
    num_values = sum(values for values, _, _ in results)
    faults = [fault for _, _, found in results for fault in found]
    slowest = 1000 * max(seconds for _, seconds, _ in results)
    print(f"{share * options.processes} strings, {num_values} with a value", end="; ")
    print(f"slowest {slowest:.2f} ms, {len(faults)} faults")
    print(*faults[:20], sep="\n")


if __name__ == "__main__":
    main()
