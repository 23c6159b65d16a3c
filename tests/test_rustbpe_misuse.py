"""The Rust core under misuse: an exception, never a crash, a hang or a read out of bounds."""

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import rustbpe

SLOW_PATTERN = r"(?=a)\w+|\w+?(?=\W)|\s+|\w+|."
TEXTS = ["some words, numbers 123 and more words " * 500] * 20


class FakeArray:
    """Claims to be an Arrow array of strings with the given buffers."""

    type = "string"

    def __init__(self, buffers: list[Any], length: int, offset: int = 0) -> None:
        self._buffers, self._length, self.offset = buffers, length, offset

    def __len__(self) -> int:
        return self._length

    def buffers(self) -> list[Any]:
        return self._buffers


class Chunked:
    """Its chunks are itself."""

    @property
    def chunks(self) -> list["Chunked"]:
        return [self]


def offsets(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, dtype=np.int32)


def test_chunks_that_contain_themselves_are_refused() -> None:
    with pytest.raises(TypeError, match="got an item of"):
        rustbpe.Tokenizer().encode_to_arrays([Chunked()])


@pytest.mark.parametrize(
    ("array", "error"),
    [
        (FakeArray([None, offsets(0, 0, 3, 0)[::2], b"abc"], 1), TypeError),
        (FakeArray([None, offsets(0, 3), memoryview(b"a_b_c_")[::2]], 1), TypeError),
        (FakeArray([np.zeros(4, np.uint8)[::2], offsets(0, 3), b"abc"], 1), TypeError),
        (FakeArray([None, offsets(0, 3), b"ab"], 1), ValueError),
        (FakeArray([None, offsets(3, 0), b"abc"], 1), ValueError),
        (FakeArray([None, offsets(-1, 3), b"abc"], 1), ValueError),
        (FakeArray([None, offsets(0, 3), b"abc"], 2), ValueError),
        (FakeArray([None, offsets(0, 3), b"abc"], sys.maxsize), ValueError),
        (FakeArray([None, offsets(0, 3), b"abc"], 1, sys.maxsize), ValueError),
        (FakeArray([b"", offsets(0, 3), b"abc"], 1), ValueError),
        (FakeArray([None, offsets(0, 2), b"\xff\xfe"], 1), ValueError),
    ],
)  # fmt: skip
def test_a_false_array_is_an_exception(array: FakeArray, error: type[Exception]) -> None:
    with pytest.raises(error):
        rustbpe.Tokenizer().encode_batch([array], 2)


def test_bytes_that_another_thread_changes_give_ids_or_an_exception() -> None:
    text = "é " * 100_000  # takes long with the pattern: its end changes after it was checked
    data = bytearray(text, "utf-8")
    array = FakeArray([None, offsets(0, len(data)), data], 1)
    tokenizer, is_done = rustbpe.Tokenizer(pattern=SLOW_PATTERN), False
    all_ids: list[list[int]] = []

    def change() -> None:
        while not is_done:
            data[-3:-1] = b"\xff\xff"
            data[-3:-1] = "é".encode()

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(50):
            with contextlib.suppress(ValueError):
                all_ids += tokenizer.encode_batch([array])
    finally:
        is_done = True
        thread.join()
    for ids in all_ids:
        assert bytes(ids) == text.encode()  # the ids of the bytes that were checked


def test_ctrl_c_interrupts_encoding() -> None:
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    # Endless, and not of Python code, which would see the signal by itself.
    texts = itertools.repeat(TEXTS[0])
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        rustbpe.Tokenizer().encode_to_arrays(texts)
    timer.join()


THREADS = """
import ctypes, os, rustbpe, sys, threading, time
tokenizer = rustbpe.Tokenizer(pattern=sys.argv[1])
texts = ["some words, numbers 123 and more words " * int(sys.argv[2])] * 4
def encode():
    while True:
        tokenizer.encode_to_arrays(texts, 2)
for _ in range(3):
    threading.Thread(target=encode, daemon=True).start()
time.sleep(0.3)
"""
# Between the end of Python and that of the process, while threads still encode: one that then asks
# for the GIL crashes. A call of C, as no code of Python runs any more.
LATE = """
libc = ctypes.CDLL(None)
libc.__cxa_atexit(libc.usleep, 1_500_000, None)
"""
FORKS = """
for _ in range(15):
    child = os.fork()
    if child == 0:
        tokenizer.encode_to_arrays(texts, 2)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
os._exit(0)
"""


@pytest.mark.parametrize(("end", "words"), [(LATE, 10_000), (FORKS, 300)])
def test_a_process_exits_or_forks_while_threads_encode(end: str, words: int) -> None:
    command = [sys.executable, "-c", THREADS + end, SLOW_PATTERN, str(words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_random_calls_return_or_raise() -> None:
    rng = random.Random(0)
    values: list[Any] = [
        None, -1, 0, 1, 255, 256, 300, 2**31, 2**64, 0.5, "", "ab ab", "\ud800", "\U0001f600",
        b"ab", bytearray(b"ab"), [], ["ab"], ["a", None], [["a"]], [b"a"], {"a": 1}, object(),
        iter(["a b"]), r"\w+", "(", "(a+)+$", pa.array(["a", None, "b"]),
        pa.chunked_array([["a"], ["b"]]), Chunked(),
        pa.array([1, 2]), pa.array(["a"] * 9).slice(5), [bytes([i]) for i in range(256)], range(3),
        FakeArray([None, offsets(0, 9), b"abc"], 1), np.array(["a", "b"]), float("nan"), True,
    ]  # fmt: skip
    methods = (
        "encode", "encode_batch", "encode_to_arrays", "train_from_iterator", "get_merges",
        "get_mergeable_ranks", "get_pattern", "vocab_size", "__init__", "__class__",
    )  # fmt: skip
    tokenizer, num_returned = rustbpe.Tokenizer(), 0
    for _ in range(10_000):
        arguments = [rng.choice(values) for _ in range(rng.randrange(4))]
        try:
            attribute = getattr(tokenizer, rng.choice(methods))
            attribute(*arguments)
            num_returned += 1
        except Exception:
            pass  # any exception; a panic is a BaseException and fails the test
    assert num_returned > 500
    assert tokenizer.encode("ab") is not None
