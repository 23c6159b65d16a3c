"""The same vocabulary in other libraries and file formats: tiktoken and Hugging Face tokenizers."""

import base64
import http.client
import itertools
import json
import queue
import re
import threading
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiktoken
import tiktoken.load
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from nanochat.errors import UserError, one_line
from nanochat.runtime import hub_offline

Ranks = dict[bytes, int]  # id of each token that is not special
RESPONSE_TIMEOUT_SECONDS = 2.0  # until a server of published vocabularies answers
TRANSFER_TIMEOUT_SECONDS = 60.0  # until it has sent all of it, at least 60 KB/s
# The largest published file has 28 MB; the lists of JSON take up to 22 times their text in memory.
MAX_FILE_BYTES = 40_000_000
MAX_PATTERN_CHARACTERS = 4_096  # ten times the longest published one
MAX_TOKEN_BYTES = 65_536  # as in training
MAX_VOCABULARY_BYTES = 100_000_000  # 200,000 published tokens have 1.4 MB
OTHER = "a field is missing or of another type"

# The elements of a pattern in which regex engines differ: a class, an interval and whether it is
# possessive, an anchor, anything else.
_ELEMENT = re.compile(r"\\[pP]\{[^}]*\}|\\.|\[(?:\\.|[^\]\\])*\]|\{\d+(?:,\d*)?\}\+?|.", re.DOTALL)


def read_small(path: Path) -> bytes:
    """The content of a file. ValueError if it is too large for a vocabulary, or no regular file."""
    if not path.is_file():  # as a pipe, which would never end
        raise ValueError("it is not a file" if path.exists() else "it does not exist")
    with path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"it has more than {MAX_FILE_BYTES / 1e6:.0f} MB")
    return content


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. ValueError if it is anything else, or a key is repeated."""
    try:
        data = json.loads(read_small(path), object_pairs_hook=_without_repetition)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(data, dict):
        raise ValueError("it is not a JSON object")
    return data


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a key twice")
    return found


def expand_merges(byte_order: list[int], merges: list[list[int]]) -> list[bytes]:
    """The bytes of each token, by id. ValueError unless each merge is of two tokens before it."""
    if sorted(byte_order) != list(range(256)) or not all(type(byte) is int for byte in byte_order):
        raise ValueError('"bytes" is not a list of the numbers from 0 to 255')
    tokens = [bytes([byte]) for byte in byte_order]
    num_bytes, count = 256, 256
    for left, right in merges:
        if not (type(left) is type(right) is int and 0 <= left < count and 0 <= right < count):
            raise ValueError(f"merge {count - 256} is not of two tokens before it")
        # Before they are joined: each merge can double the length.
        length = len(tokens[left]) + len(tokens[right])
        num_bytes += length
        if length > MAX_TOKEN_BYTES or num_bytes > MAX_VOCABULARY_BYTES:
            raise ValueError(
                f"merge {count - 256} makes a token of {length:,} bytes, {num_bytes:,} with those"
                f" before it, over the limits of {MAX_TOKEN_BYTES:,} and {MAX_VOCABULARY_BYTES:,}"
            )
        tokens.append(tokens[left] + tokens[right])
        count += 1
    if len(set(tokens)) < count:
        raise ValueError("two merges make the same token, which is a repetition")
    return tokens


def reason_for(error: Exception) -> str:
    """The message of an error; that of a wrong type says nothing about the file."""
    return one_line(error)[:200] if isinstance(error, ValueError) else OTHER


# ---- tiktoken


def read_tiktoken(path: Path) -> Ranks:
    """The ranks of a rank file. Raises UserError on another kind of file."""
    ranks: Ranks = {}
    try:
        for number, line in enumerate(read_small(path).splitlines(), start=1):
            if not line:
                continue
            token, rank = line.split()
            if not rank.isdigit():
                raise ValueError(f"line {number} has no rank")
            if ranks.setdefault(base64.b64decode(token, validate=True), int(rank)) != int(rank):
                raise ValueError(f"line {number} repeats a token")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a rank file of tiktoken: {error}") from None
    return ranks


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
            with urllib.request.urlopen(url, timeout=RESPONSE_TIMEOUT_SECONDS) as response:
                answers.put(None)
                answers.put(response.read(MAX_FILE_BYTES))  # what is cut has another checksum
        except (OSError, http.client.HTTPException) as error:
            answers.put(error)

    # In a daemon thread: to resolve a host name, or to send a byte now and then, has no timeout.
    threading.Thread(target=request, daemon=True).start()
    try:
        answer = answers.get(timeout=RESPONSE_TIMEOUT_SECONDS)
        answer = answers.get(timeout=TRANSFER_TIMEOUT_SECONDS) if answer is None else answer
    except queue.Empty:
        raise TimeoutError(f"no answer within {RESPONSE_TIMEOUT_SECONDS:.0f} s") from None
    if isinstance(answer, Exception):
        raise OSError(str(answer)) from answer
    return bytes(answer)


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


@dataclass(frozen=True)
class HuggingFaceFile:
    """What a tokenizer.json of byte-level BPE says, without its special tokens."""

    ranks: Ranks
    pattern: str
    merges: set[tuple[int, int]]
    takes_whole_words: bool
    """A word that is a token is not merged."""

    def has_merges_of(self, trained: list[list[int]] | None) -> bool:
        """True if its merges give the ids that ours do: those that a trained vocabulary has, or
        (None) all pairs of tokens that make up a third."""
        if trained is not None:
            return self.merges.issuperset(map(tuple, trained))
        return self.takes_whole_words and all(
            (left, right) in self.merges
            for token in self.ranks
            for middle in range(1, len(token))
            if (left := self.ranks.get(token[:middle])) is not None
            and (right := self.ranks.get(token[middle:])) is not None
        )


def read_huggingface(path: Path) -> HuggingFaceFile:
    """Read a tokenizer.json. UserError unless it is byte-level BPE with one pattern, and valid."""
    try:
        data = read_object(path)
        ids = _vocabulary(data["model"]["vocab"], data.get("added_tokens") or [])
        byte_of = {letter: byte for byte, letter in enumerate(byte_letters())}
        ranks = {bytes(map(byte_of.__getitem__, name)): i for name, i in ids.items()}
        model = data["model"]
        settings = [model.get("continuing_subword_prefix"), model.get("end_of_word_suffix")]
        if model.get("type", "BPE") != "BPE" or model.get("dropout") or any(settings):
            raise ValueError("its model is not byte-level BPE")
        if data.get("normalizer") is not None:
            raise ValueError("its normalizer changes the text, which ours would not")
        pattern = _split_pattern(data["pre_tokenizer"])
        merges = _merges(model["merges"], ids)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not a tokenizer.json of byte-level BPE with one split pattern"
            f" ({reason_for(error)}); no other kind can be imported"
        ) from None
    ignores_merges = model.get("ignore_merges") is True
    return HuggingFaceFile(ranks, _from_oniguruma(pattern), merges, ignores_merges)


def _vocabulary(names: dict[str, int], added: list[dict[str, Any]]) -> dict[str, int]:
    """Ids of the tokens that are not added ones. Raises ValueError on a wrong type."""
    special = [token["content"] for token in added]
    if len(set(special)) < len(special):
        raise ValueError("an added token is repeated")
    found = {name: number for name, number in names.items() if name not in set(special)}
    if not all(type(number) is int for number in found.values()):
        raise ValueError("an id is not an integer")
    return found


def _split_pattern(pre_tokenizer: dict[str, Any]) -> str:
    """The pattern of the one step that splits; the other one maps bytes to letters."""
    # A single step stands alone, several are listed.
    splits = []
    for step in pre_tokenizer.get("pretokenizers", [pre_tokenizer]):
        if step["type"] == "Split":
            splits.append(step["pattern"]["Regex"])
            if step["behavior"] != "Isolated" or step.get("invert"):
                raise ValueError("its split drops or joins what the pattern matches")
        elif step["type"] != "ByteLevel" or step["add_prefix_space"] or step.get("use_regex", True):
            raise ValueError("a step before the model changes or splits the text")
    (pattern,) = splits
    if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN_CHARACTERS:
        raise ValueError(f"its pattern has more than {MAX_PATTERN_CHARACTERS:,} characters")
    return pattern


def _merges(merges: list[Any], ids: dict[str, int]) -> set[tuple[int, int]]:
    """Pairs of ids that are merged. ValueError unless they are in the order of what they make."""
    found, last = set(), -1
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        pair, token = (ids[left], ids[right]), ids[left + right]
        if token < last or pair in found:
            raise ValueError("its merges are not in the order of its ids, or repeated")
        found.add(pair)
        last = token
    return found


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
