"""The same vocabulary in other libraries and file formats: tiktoken and Hugging Face tokenizers."""

import itertools
import json
import queue
import re
import threading
import urllib.request
from pathlib import Path
from typing import Any

import tiktoken
import tiktoken.load
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from nanochat.errors import UserError
from nanochat.runtime import hub_offline

Ranks = dict[bytes, int]  # id of each token that is not special
RESPONSE_TIMEOUT_SECONDS = 2.0  # until a server of published vocabularies answers

# The elements of a pattern in which regex engines differ: a class, an interval and whether it is
# possessive, an anchor, anything else.
_ELEMENT = re.compile(r"\\[pP]\{[^}]*\}|\\.|\[(?:\\.|[^\]\\])*\]|\{\d+(?:,\d*)?\}\+?|.", re.DOTALL)


# ---- tiktoken


def tiktoken_encoding(ranks: Ranks, pattern: str, special: dict[str, int]) -> tiktoken.Encoding:
    """A `tiktoken.Encoding` with the same ids."""
    return tiktoken.Encoding(
        "nanochat", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
    )


def published_encoding(name: str) -> tiktoken.Encoding:
    """A vocabulary of tiktoken, cached or downloaded. Raises UserError when it is not available."""
    original = tiktoken.load.read_file
    tiktoken.load.read_file = _read_url  # type: ignore[assignment]  # the original has no timeout
    try:
        return tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name} is not in tiktoken's cache and cannot be downloaded now ({error})"
        ) from None
    finally:
        tiktoken.load.read_file = original


def _read_url(url: str) -> bytes:
    """The content of a URL. Raises OSError when offline or without an answer in time."""
    if hub_offline():
        raise OSError("HF_HUB_OFFLINE is set")
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def request() -> None:
        try:
            answers.put(urllib.request.urlopen(url, timeout=RESPONSE_TIMEOUT_SECONDS))
        except OSError as error:
            answers.put(error)

    # In a daemon thread, because resolving a host name has no timeout.
    threading.Thread(target=request, daemon=True).start()
    try:
        response = answers.get(timeout=RESPONSE_TIMEOUT_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer within {RESPONSE_TIMEOUT_SECONDS:.0f} s") from None
    if isinstance(response, OSError):
        raise response
    with response:
        return bytes(response.read())


# ---- Hugging Face tokenizers


def huggingface_backend(
    tokens: list[bytes], merges: list[list[int]], pattern: str
) -> tokenizers.Tokenizer:
    """A `tokenizers.Tokenizer` with the same ids, without special tokens."""
    letters = byte_letters()
    names = ["".join(letters[byte] for byte in token) for token in tokens]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={name: i for i, name in enumerate(names)},
            merges=[(names[left], names[right]) for left, right in merges],
        )
    )
    regex = tokenizers.Regex(_to_oniguruma(pattern))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(regex, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),  # split already
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def read_huggingface(path: Path) -> tuple[Ranks, str]:
    """(ranks, pattern) without special tokens. UserError unless byte-level BPE with one pattern."""
    byte_of = {letter: byte for byte, letter in enumerate(byte_letters())}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        added = {token["content"] for token in data.get("added_tokens") or ()}
        names = {k: v for k, v in data["model"]["vocab"].items() if k not in added}
        ranks = {bytes(byte_of[letter] for letter in name): i for name, i in names.items()}
        # A single step stands alone, several are listed.
        steps = data["pre_tokenizer"].get("pretokenizers", [data["pre_tokenizer"]])
        (pattern,) = (step["pattern"]["Regex"] for step in steps if step["type"] == "Split")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path} is not a tokenizer.json of byte-level BPE with one split pattern"
        ) from None
    return ranks, _from_oniguruma(pattern)


def byte_letters() -> list[str]:
    """The printable character for each byte in byte-level vocabularies, as GPT-2 defined it.

    Printable Latin-1 stands for itself, the other bytes for U+0100 and up, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    substitutes = map(chr, itertools.count(0x100))
    return [chr(byte) if byte in printable else next(substitutes) for byte in range(256)]


def _to_oniguruma(pattern: str) -> str:
    r"""A pattern for Oniguruma, the engine of `tokenizers`, that matches the same text.

    There $ is the end of a line (\z of the text), and {1,3}+ repeats instead of being possessive.
    """
    parts: list[str] = []
    for element in _ELEMENT.findall(pattern):
        if element.startswith("{") and element.endswith("+"):
            parts.append(f"(?>{parts.pop()}{element[:-1]})")  # an atomic group is possessive
        else:
            parts.append({"$": r"\z", "^": r"\A"}.get(element, element))
    return "".join(parts)


def _from_oniguruma(pattern: str) -> str:
    parts: list[str] = []
    # Atomic groups around an interval first; the zero byte marks where they end.
    marked = re.sub(r"\(\?>([^()]*?\{\d+(?:,\d*)?\})\)", r"\1" "\0", pattern)
    for element in _ELEMENT.findall(marked):
        if element == "\0":
            parts.append("+")
        elif element.startswith("{") and element.endswith("+"):
            parts.append(f"(?:{parts.pop()}{element[:-1]})+")
        else:
            anchors = {r"\z": "$", r"\A": "^", "$": "(?m:$)", "^": "(?m:^)"}
            parts.append(anchors.get(element, element))
    return "".join(parts)
