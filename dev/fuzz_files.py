"""Mutated files: tokenizers, parquet and JSON give what they hold, or a message of one line.

    python -m dev.fuzz_files --tokenizers 500 --texts 200

A tokenizer that is read must give a text back, a file of text all of its rows, and a message must
name the file.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanochat.data import json_rows, shards
from nanochat.errors import UserError
from nanochat.tokenizer import PROBE, RustBPETokenizer, _digest

LIMIT_SECONDS = 60.0  # of CPU, in all threads
TRAINING_TEXTS = ["the cat sat on the mat, the hat and 1234 more; théâtre 日本 🙂\n" * 20]
VALUES: list[Any] = [
    None, True, -1, 0, 0.5, 256, 10**9, 10**30, "", "a", "\ud800", "a" * 9999, [], {}, [[0, 0]],
    [[i, i] for i in range(300)], [0] * 256, {"a": 0}, "(a+)+$", r"\w+", float("inf"),
]  # fmt: skip


def mutated(data: Any, rng: random.Random) -> Any:
    """The JSON value with one part replaced, removed or repeated."""
    if isinstance(data, dict) and data and rng.random() < 0.85:
        name = rng.choice(list(data))
        return {**data, name: mutated(data[name], rng)}
    if isinstance(data, list) and data and rng.random() < 0.85:
        at, how = rng.randrange(len(data)), rng.randrange(3)
        item = [[mutated(data[at], rng)], [], [data[at]] * 2][how]
        return [*data[:at], *item, *data[at + 1 :]]
    return rng.choice(VALUES)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The bytes with a few of them changed, or cut."""
    raw = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    return bytes(raw[: rng.choice([len(raw), len(raw), rng.randrange(len(raw))])])


def tokenizer_trial(original: RustBPETokenizer, folder: Path, rng: random.Random) -> None:
    """Read a mutated tokenizer of one of the formats and use it."""
    path, kind = folder / "tokenizer.json", rng.randrange(4)
    if kind == 0:
        content = mutated(original._content(), rng)
        fields = content if isinstance(content, dict) else {"merges": content}
        head = {"format": "nanochat tokenizer", "version": 1, "sha256": _digest(fields)}
        path.write_text(json.dumps(head | fields))
        tokenizer = RustBPETokenizer.from_directory(folder)
    elif kind == 1:
        original.to_huggingface(path)
        path.write_text(json.dumps(mutated(json.loads(path.read_text()), rng)))
        tokenizer = RustBPETokenizer.from_huggingface(path)
    elif kind == 2:
        original.to_tiktoken(path)
        path.write_bytes(damaged(path.read_bytes(), rng))
        tokenizer = RustBPETokenizer.from_tiktoken(path)
    else:
        original.save(folder)
        path.write_bytes(damaged(path.read_bytes(), rng))
        tokenizer = RustBPETokenizer.from_directory(folder)
    assert tokenizer.decode(tokenizer.encode(PROBE)) == PROBE


def text_trial(texts: list[str], folder: Path, rng: random.Random) -> None:
    """Read a damaged shard or JSON file: all of its rows, or an error."""
    path = folder / rng.choice(["a.parquet", "a.jsonl", "a.json"])
    if path.suffix == ".parquet":
        shards.write_shard(path, texts)
        path.write_bytes(damaged(path.read_bytes(), rng))
        assert list(shards.Documents([path])) == texts, "other texts without an error"
    else:
        lines = "\n".join(json.dumps({"text": text}) for text in texts).encode()
        content = damaged(lines, rng)
        path.write_bytes(content)
        rows = [row for _, row in json_rows.json_rows(path)]
        if path.suffix == ".jsonl" and 0 not in content:  # else it may be UTF-16
            complete = content.decode("utf-8-sig", "surrogateescape").split("\n")
            assert rows == [json.loads(line) for line in complete if line.strip()], "other rows"


def fuzz(trial: Callable[[Path, random.Random], None], count: int, seed: int) -> list[str]:
    """What went wrong in so many trials."""
    faults = []
    for number in range(count):
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            try:
                trial(Path(folder), random.Random(seed + number))
            except UserError as error:
                if "\n" in str(error) or len(str(error)) > 2000:
                    faults.append(f"{number}: not one line: {str(error)[:200]!r}")
                if folder not in str(error):
                    faults.append(f"{number}: names no file: {str(error)[:200]!r}")
            except BaseException as error:
                faults.append(f"{number}: {type(error).__name__}: {str(error)[:200]}")
        if time.process_time() - began > LIMIT_SECONDS:
            faults.append(f"{number}: {time.process_time() - began:.0f} s")
    return faults


def tokenizer_faults(count: int, seed: int = 0) -> list[str]:
    """What went wrong with mutated tokenizers."""
    original = RustBPETokenizer.train_from_iterator(TRAINING_TEXTS, 300)
    return fuzz(lambda folder, rng: tokenizer_trial(original, folder, rng), count, seed)


def text_faults(count: int, seed: int = 0) -> list[str]:
    """What went wrong with damaged files of text."""
    texts = [f"{n} words of a text, é 日本 " * (n % 9) for n in range(300)]
    return fuzz(lambda folder, rng: text_trial(texts, folder, rng), count, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizers", type=int, default=500)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    of_tokenizers = tokenizer_faults(options.tokenizers, options.seed)
    of_texts = text_faults(options.texts, options.seed)
    print(f"{options.tokenizers} mutated tokenizers: {len(of_tokenizers)} faults")
    print(f"{options.texts} mutated files of text: {len(of_texts)} faults")
    for fault in (of_tokenizers + of_texts)[:20]:
        print(fault)
    sys.exit(bool(of_tokenizers or of_texts))


if __name__ == "__main__":
    main()
