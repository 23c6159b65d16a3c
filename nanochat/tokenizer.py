"""Byte-pair encoding by our Rust core, which tiktoken or Hugging Face tokenizers can stand in for.

The vocabulary is 256 bytes, the merges in their order, then nine special tokens. All backends are
built from the same ranks and give the same ids. Text never becomes a special token.
"""

import base64
import codecs
import hashlib
import json
import queue
import re
import threading
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import tiktoken
import tiktoken.load
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

import rustbpe
from nanochat import paths
from nanochat.errors import UserError
from nanochat.runtime import hub_offline

SPLIT_PATTERN: str = rustbpe.DEFAULT_PATTERN
SPECIAL_TOKENS = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
FILE_NAME = "tokenizer.json"
FORMAT = "nanochat tokenizer"
FORMAT_VERSION = 1
MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
MAX_VOCAB_SIZE = 2**32 - 1
PATIENCE_SECONDS = 2.0  # for the first answer when a published vocabulary is asked for


Progress = Callable[[str, int, int], object]


class RustBPETokenizer:
    """Text to ids and back, trained and encoded by rustbpe."""

    def __init__(self, ranks: dict[bytes, int], pattern: str = SPLIT_PATTERN) -> None:
        """ranks: id of each token that is not special, by its bytes.

        Raises UserError when they are no vocabulary: a byte or a number is missing.
        """
        self.ranks, self.pattern = ranks, pattern
        self._special = {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)}
        self._bytes = sorted(ranks, key=lambda token: ranks[token])
        self._pieces = [*self._bytes, *(name.encode() for name in SPECIAL_TOKENS)]
        if sorted(ranks.values()) != list(range(len(ranks))):
            raise UserError(f"the {len(ranks)} ranks are not the numbers from 0 on; give all")
        try:
            self._core = rustbpe.Tokenizer(self._bytes, pattern)
        except ValueError as error:
            raise UserError(str(error)) from None
        self._build()

    def _build(self) -> None:
        """Make the encoder of another backend."""

    @classmethod
    def train_from_iterator(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        pattern: str = SPLIT_PATTERN,
        num_threads: int = 0,
        progress: Progress | None = None,
    ) -> Self:
        """Learn merges until there are `vocab_size` tokens, the nine special ones included.

        There are fewer when the texts have no pair left to merge. Merges do not depend on
        `num_threads` (0: one for each core). `progress(what, done, total)` is called now and then.
        Raises UserError on a vocabulary below 265 or beyond 32 bits, on no text and on a bad
        pattern.
        """
        if vocab_size < MIN_VOCAB_SIZE:
            raise UserError(
                f"--vocab_size={vocab_size} is below {MIN_VOCAB_SIZE} (256 bytes and"
                f" {len(SPECIAL_TOKENS)} special tokens); use {MIN_VOCAB_SIZE} or more"
            )
        if vocab_size > MAX_VOCAB_SIZE:
            raise UserError(
                f"--vocab_size={vocab_size} is above {MAX_VOCAB_SIZE}; use that or less, for an id"
                " has 32 bits"
            )
        trainer = rustbpe.Tokenizer()
        try:
            trainer.train_from_iterator(
                texts,
                vocab_size - len(SPECIAL_TOKENS),
                pattern=pattern,
                num_threads=num_threads,
                progress=progress,
            )
        except ValueError as error:
            raise UserError(str(error)) from None
        return cls(dict(trainer.get_mergeable_ranks()), pattern)

    # ---- the file

    def save(self, directory: Path) -> None:
        """Write tokenizer.json: readable, versioned, checksummed, whole or absent."""
        content = self._content()
        whole = {"format": FORMAT, "version": FORMAT_VERSION, "sha256": _digest(content), **content}
        paths.write_atomic(directory / FILE_NAME, json.dumps(whole, indent=0, ensure_ascii=True))

    @classmethod
    def from_directory(cls, directory: Path) -> Self:
        """Read tokenizer.json. Raises UserError when it is missing, foreign or damaged."""
        path = directory / FILE_NAME
        if not path.is_file():
            raise UserError(f"no tokenizer in {directory}; run python -m scripts.tok_train first")
        remedy = "train it again with python -m scripts.tok_train --fresh"
        try:
            whole = json.loads(path.read_text(encoding="utf-8"))
            content = {name: whole[name] for name in ("pattern", "special_tokens", "merges")}
            content |= {name: whole[name] for name in ("bytes",) if name in whole}
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"{path} is not a tokenizer of ours; {remedy}") from None
        if whole.get("format") != FORMAT or whole.get("version") != FORMAT_VERSION:
            raise UserError(f"{path} has another format or version; {remedy}")
        if whole.get("sha256") != _digest(content):
            raise UserError(f"{path} is damaged (its checksum differs); {remedy}")
        ranks = _ranks_of_merges(content["merges"], content.get("bytes", range(256)))
        return cls(ranks, content["pattern"])

    def _content(self) -> dict[str, Any]:
        """What the file holds; "bytes" only where their ids are not their values."""
        content: dict[str, Any] = {
            "pattern": self.pattern,
            "special_tokens": list(SPECIAL_TOKENS),
            "merges": _merges(self._core),
        }
        order = [token[0] for token in self._bytes[:256]]
        return content if order == list(range(256)) else {**content, "bytes": order}

    @property
    def content_hash(self) -> str:
        """sha256 of pattern, special tokens and merges: equal when the ids are."""
        return _digest(self._content())

    # ---- other projects' files

    @classmethod
    def from_tiktoken(cls, path: Path, pattern: str = SPLIT_PATTERN) -> Self:
        """From a rank file of tiktoken, which knows no pattern. Raises UserError on any other."""
        try:
            lines = [line.split() for line in path.read_bytes().splitlines() if line]
            ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is not a rank file of tiktoken: {error}") from None
        return cls(ranks, pattern)

    def to_tiktoken(self, path: Path) -> None:
        """Write a rank file of tiktoken: base64 of each token's bytes and its id."""
        lines = (f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(self._bytes))
        paths.write_atomic(path, "".join(lines))

    @classmethod
    def from_huggingface(cls, path: Path) -> Self:
        """From a tokenizer.json of Hugging Face: byte-level BPE with one split pattern.

        Its special tokens are left out, ours take their place. Raises UserError on another kind.
        """
        bytes_of = {letter: byte for byte, letter in enumerate(byte_letters())}
        try:
            whole = json.loads(path.read_text(encoding="utf-8"))
            added = {token["content"] for token in whole.get("added_tokens") or ()}
            names = {k: v for k, v in whole["model"]["vocab"].items() if k not in added}
            ranks = {bytes(bytes_of[letter] for letter in name): i for name, i in names.items()}
            steps = whole["pre_tokenizer"].get("pretokenizers", [whole["pre_tokenizer"]])
            (pattern,) = (step["pattern"]["Regex"] for step in steps if step["type"] == "Split")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{path} is not a tokenizer.json of byte-level BPE with one split pattern"
            ) from None
        return cls(ranks, _pattern_of_huggingface(pattern))

    def to_huggingface(self, path: Path) -> None:
        """Write a tokenizer.json of Hugging Face, special tokens included."""
        backend = huggingface_backend(self.ranks, self.pattern)
        backend.add_special_tokens(list(SPECIAL_TOKENS))
        paths.write_atomic(path, backend.to_str(pretty=True))

    # ---- text to ids

    @overload
    def encode(
        self, text: str, prepend: int | str | None = None, append: int | str | None = None,
        num_threads: int = 8,
    ) -> list[int]: ...  # fmt: skip

    @overload
    def encode(
        self, text: list[str], prepend: int | str | None = None, append: int | str | None = None,
        num_threads: int = 8,
    ) -> list[list[int]]: ...  # fmt: skip

    def encode(
        self,
        text: str | list[str],
        prepend: int | str | None = None,
        append: int | str | None = None,
        num_threads: int = 8,
    ) -> list[int] | list[list[int]]:
        """Ids of a text, or of each text of a list; `prepend` and `append` are special tokens.

        What looks like a special token in the text stays text. A lone surrogate, which is no
        text, is encoded as U+FFFD.
        """
        before, after = self._special_ids(prepend), self._special_ids(append)
        if isinstance(text, str):
            return before + self._encode_batch([text], 1)[0] + after
        return [before + ids + after for ids in self._encode_batch(text, num_threads)]

    def _encode_batch(self, texts: list[str], num_threads: int) -> list[list[int]]:
        if len(texts) == 1:
            return [self._core.encode(texts[0])]
        return self._core.encode_batch(texts, num_threads)

    def encode_to_array(
        self, texts: Sequence[str], num_threads: int = 8
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """(N,) ids of all texts, one after another, and (len(texts),) int64 where each text ends.

        Ids are uint16, or uint32 in a vocabulary of more than 65,536. An Arrow array of strings
        will do for `texts` and is not copied. By rustbpe, whatever the backend.
        """
        return self._core.encode_to_arrays(texts, num_threads)

    def _special_ids(self, token: int | str | None) -> list[int]:
        if token is None:
            return []
        return [token if isinstance(token, int) else self.encode_special(token)]

    def encode_special(self, name: str) -> int:
        """The id of a special token. Raises KeyError when there is none of that name."""
        return self._special[name]

    # ---- ids to text

    def decode(self, ids: list[int]) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: list[int]) -> bytes:
        """Bytes of ids; special tokens give their names."""
        return b"".join([self._pieces[token] for token in ids])

    def stream_decoder(self) -> "StreamDecoder":
        """Decodes token by token."""
        return StreamDecoder(self)

    def id_to_token(self, token: int) -> str:
        """One token as text."""
        return self.decode([token])

    # ---- the vocabulary

    def get_vocab_size(self) -> int:
        """Number of ids, special tokens included: what a model's embedding must have."""
        return len(self.ranks) + len(self._special)

    def get_special_tokens(self) -> set[str]:
        """Names of the special tokens."""
        return set(self._special)

    def get_bos_token_id(self) -> int:
        """The token that every document and every row begins with."""
        return self._special["<|bos|>"]

    def token_bytes(self) -> list[int]:
        """UTF-8 bytes of each id, 0 for special tokens: their sum over a text is its length."""
        return [len(token) for token in self._bytes] + [0] * len(self._special)


class StreamDecoder:
    """Ids to text as they come: a character is held back until its last byte is there."""

    def __init__(self, tokenizer: RustBPETokenizer) -> None:
        self.tokenizer = tokenizer
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, ids: list[int]) -> str:
        """Text of whole characters that these ids complete."""
        return self.decoder.decode(self.tokenizer.decode_bytes(ids))

    def finish(self) -> str:
        """What is left; bytes that are not UTF-8 become U+FFFD."""
        return self.decoder.decode(b"", final=True)


class TiktokenTokenizer(RustBPETokenizer):
    """The same tokenizer on the backend of tiktoken."""

    def _build(self) -> None:
        self._tiktoken = tiktoken.Encoding(
            "nanochat",
            pat_str=self.pattern,
            mergeable_ranks=self.ranks,
            special_tokens=self._special,
        )

    def _encode_batch(self, texts: list[str], num_threads: int) -> list[list[int]]:
        clean = [_without_lone_surrogates(text) for text in texts]
        return self._tiktoken.encode_ordinary_batch(clean, num_threads=num_threads)


class HuggingFaceTokenizer(RustBPETokenizer):
    """The same tokenizer on the backend of Hugging Face `tokenizers`."""

    def _build(self) -> None:
        self._tokenizer = huggingface_backend(self.ranks, self.pattern)

    def _encode_batch(self, texts: list[str], num_threads: int) -> list[list[int]]:
        clean = [_without_lone_surrogates(text) for text in texts]
        found = self._tokenizer.encode_batch(clean, add_special_tokens=False)
        return [encoding.ids for encoding in found]


# What a pattern consists of, as far as the engines differ: a class, an interval and whether it is
# possessive, an anchor, anything else.
_PIECE = re.compile(r"\\[pP]\{[^}]*\}|\\.|\[(?:\\.|[^\]\\])*\]|\{\d+(?:,\d*)?\}\+?|.", re.DOTALL)


def _pattern_for_huggingface(pattern: str) -> str:
    """A pattern for the engine of `tokenizers`, Oniguruma, with the words that it has in ours.

    There $ is the end of a line, and {1,3}+ repeats where ours does not give back.
    """
    pieces: list[str] = []
    for piece in _PIECE.findall(pattern):
        if piece.startswith("{") and piece.endswith("+"):
            pieces.append(f"(?>{pieces.pop()}{piece[:-1]})")
        else:
            pieces.append({"$": r"\z", "^": r"\A"}.get(piece, piece))
    return "".join(pieces)


def _pattern_of_huggingface(pattern: str) -> str:
    """The other way round. The zero byte marks an interval that gives nothing back."""
    pieces: list[str] = []
    marked = re.sub(r"\(\?>([^()]*?\{\d+(?:,\d*)?\})\)", r"\1" "\0", pattern)
    for piece in _PIECE.findall(marked):
        if piece == "\0":
            pieces.append("+")
        elif piece.startswith("{") and piece.endswith("+"):
            pieces.append(f"(?:{pieces.pop()}{piece[:-1]})+")
        else:
            anchors = {r"\z": "$", r"\A": "^", "$": "(?m:$)", "^": "(?m:^)"}
            pieces.append(anchors.get(piece, piece))
    return "".join(pieces)


def huggingface_backend(ranks: dict[bytes, int], pattern: str) -> tokenizers.Tokenizer:
    """A `tokenizers.Tokenizer` with the same ids, without special tokens."""
    order = sorted(ranks, key=lambda token: ranks[token])
    letters = byte_letters()
    names = ["".join(letters[byte] for byte in token) for token in order]
    pairs = _merges(rustbpe.Tokenizer(order, pattern))
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={name: i for i, name in enumerate(names)},
            merges=[(names[left], names[right]) for left, right in pairs],
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                tokenizers.Regex(_pattern_for_huggingface(pattern)), behavior="isolated"
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def byte_letters() -> list[str]:
    """The visible letter that stands for each byte in Hugging Face's byte-level vocabularies.

    Printable Latin-1 stands for itself, the other bytes for U+0100 and on, in order.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    stand_ins = {byte: chr(0x100 + number) for number, byte in enumerate(hidden)}
    return [stand_ins.get(byte, chr(byte)) for byte in range(256)]


def _merges(core: rustbpe.Tokenizer) -> list[list[int]]:
    """[left id, right id] of each token after the 256 bytes.

    Raises UserError when there is a token that no merge makes.
    """
    try:
        return [list(pair) for pair in core.get_merges()]
    except ValueError as error:
        raise UserError(f"{error}; such a vocabulary cannot be written as merges") from None


def _ranks_of_merges(merges: list[list[int]], order: Iterable[int]) -> dict[bytes, int]:
    tokens = [bytes([byte]) for byte in order]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return {token: i for i, token in enumerate(tokens)}


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _without_lone_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def published_encoding(name: str) -> tiktoken.Encoding:
    """A vocabulary that tiktoken knows, from its cache or by download: "cl100k_base", ...

    Raises UserError, soon and with the reason, when its file cannot be had.
    """
    patient = tiktoken.load.read_file
    # Its own download waits without end.
    tiktoken.load.read_file = _read_soon  # type: ignore[assignment]
    try:
        return tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name} is neither in tiktoken's cache nor to be downloaded now ({error})"
        ) from None
    finally:
        tiktoken.load.read_file = patient


def _read_soon(url: str) -> bytes:
    """A file of the network. Raises OSError when it is forbidden or nobody answers soon."""
    if hub_offline():
        raise OSError("HF_HUB_OFFLINE is set")
    answer: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answer.put(urllib.request.urlopen(url, timeout=PATIENCE_SECONDS))
        except OSError as error:
            answer.put(error)

    # In a thread, since looking up a name knows no time limit.
    threading.Thread(target=ask, daemon=True).start()
    try:
        response = answer.get(timeout=PATIENCE_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer within {PATIENCE_SECONDS:.0f} s") from None
    if isinstance(response, OSError):
        raise response
    with response:
        return bytes(response.read())


def get_tokenizer() -> RustBPETokenizer:
    """The tokenizer of this base directory. Raises UserError when it is not trained yet."""
    return RustBPETokenizer.from_directory(paths.tokenizer_dir())


def get_token_bytes(device: torch.device | str = "cpu") -> Tensor:
    """(V,) int32 UTF-8 bytes of each token of this base directory's tokenizer."""
    return torch.tensor(get_tokenizer().token_bytes(), dtype=torch.int32, device=device)
