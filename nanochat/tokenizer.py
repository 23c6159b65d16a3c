"""Byte-pair encoding: trained and encoded by rustbpe, or encoded by tiktoken or Hugging Face.

The vocabulary is 256 bytes, the merges in order, then nine special tokens. All backends are built
from the same ranks and give the same ids. Text never becomes a special token.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import tokenizers
import torch
from torch import Tensor

import rustbpe
from nanochat import paths
from nanochat.data import tokenizer_formats as formats
from nanochat.data.text_files import replace_lone_surrogates
from nanochat.errors import UserError

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
STYLE = ("fold_all_caps", "add_prefix_space")  # how messages are written
FILE_NAME = "tokenizer.json"
FORMAT = "nanochat tokenizer"
FORMAT_VERSION = 1
# A text with characters of each class, which a pattern must not leave out.
PROBE = "Aa é日\u0301🙂 12345 \t\n\n .,;'s_—\u00a0\x00\r\n x  "
MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
MAX_VOCAB_SIZE = 2**32 - 1  # an id has 32 bits


def check_vocab_size(vocab_size: int) -> None:
    """Raises UserError if no tokenizer can have this number of tokens."""
    if not MIN_VOCAB_SIZE <= vocab_size <= MAX_VOCAB_SIZE:
        raise UserError(
            f"--vocab_size={vocab_size} is not between {MIN_VOCAB_SIZE} (256 bytes and"
            f" {len(SPECIAL_TOKENS)} special tokens) and {MAX_VOCAB_SIZE} (an id has 32 bits)"
        )


class RustBPETokenizer:
    """Text to ids and back, trained and encoded by rustbpe.

    fold_all_caps, add_prefix_space: see `chat.MessageStyle`. A vocabulary of few thousand tokens
    has no words in capitals, which would be letters, nor each word with and without a space.
    """

    fold_all_caps, add_prefix_space = False, False

    def __init__(self, ranks: dict[bytes, int], pattern: str = SPLIT_PATTERN) -> None:
        """ranks: ids of tokens that are not special. UserError when a byte or an id is missing."""
        self.ranks, self.pattern = ranks, pattern
        # Special tokens follow the merges, so their ids depend on the size of the vocabulary.
        self._special = {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)}
        self._tokens = sorted(ranks, key=lambda token: ranks[token])
        self._decoded = [*self._tokens, *(name.encode() for name in SPECIAL_TOKENS)]
        if sorted(ranks.values()) != list(range(len(ranks))):
            raise UserError(f"the {len(ranks)} ranks are not the numbers from 0 on; give all")
        try:
            self._core = rustbpe.Tokenizer(self._tokens, pattern)
            is_complete = self.decode(self._core.encode(PROBE)) == PROBE
        except ValueError as error:
            raise UserError(str(error)) from None
        if not is_complete:
            raise UserError(f"the split pattern {pattern!r:.60} leaves out text; match all of it")

    @classmethod
    def train_from_iterator(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        pattern: str = SPLIT_PATTERN,
        num_threads: int = 0,
    ) -> Self:
        """Learn merges until there are `vocab_size` tokens, the nine special ones included.

        There are fewer when the texts have no pair left to merge. Merges do not depend on
        `num_threads` (0: one per core). Raises UserError on a vocabulary below 265 or beyond 32
        bits, on no text and on an invalid pattern.
        """
        check_vocab_size(vocab_size)
        trainer = rustbpe.Tokenizer()
        try:
            num_ranks = vocab_size - len(SPECIAL_TOKENS)
            trainer.train_from_iterator(texts, num_ranks, pattern=pattern, num_threads=num_threads)
        except ValueError as error:
            raise UserError(str(error)) from None
        return cls(dict(trainer.get_mergeable_ranks()), pattern)

    # ---- the file

    def save(self, directory: Path, **facts: Any) -> None:
        """Write tokenizer.json atomically: readable, versioned, with a checksum.

        facts: more to write, which does not change the tokenizer, as how it was trained.
        """
        content = self._content()
        header = {"format": FORMAT, "version": FORMAT_VERSION, "sha256": _digest(content), **facts}
        # A line per number, so that a diff shows which merges differ.
        paths.write_atomic(directory / FILE_NAME, json.dumps(header | content, indent=0))

    @classmethod
    def from_directory(cls, directory: Path) -> Self:
        """Read tokenizer.json. Raises UserError when it is missing, foreign or damaged."""
        path = directory / FILE_NAME
        if not path.is_file():
            raise UserError(f"no tokenizer in {directory}; run python -m scripts.tok_train first")
        remedy = "train it again with python -m scripts.tok_train --fresh"
        try:
            data = formats.read_object(path)
            content = {name: data[name] for name in ("pattern", "special_tokens", "merges")}
            content |= {name: data[name] for name in ("bytes", *STYLE) if name in data}
            if data.get("format") != FORMAT or data.get("version") != FORMAT_VERSION:
                raise UserError(f"{path} has another format or version; {remedy}")
            # Before the merges are used: a damaged one could name a token that does not exist.
            if data.get("sha256") != _digest(content):
                raise UserError(f"{path} is damaged (checksum mismatch); {remedy}")
            if content["special_tokens"] != list(SPECIAL_TOKENS):
                raise ValueError("its special tokens are others")
            tokens = formats.expand_merges(content.get("bytes", list(range(256))), data["merges"])
            if not (isinstance(content["pattern"], str) and _has_valid_facts(data)):
                raise TypeError
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = formats.reason_for(error)
            raise UserError(f"{path} is not a nanochat tokenizer ({reason}); {remedy}") from None
        ranks = {token: i for i, token in enumerate(tokens)}
        tokenizer = cls._of_file(path, ranks, data["pattern"], remedy)
        for name in STYLE:
            setattr(tokenizer, name, bool(content.get(name)))
        return tokenizer

    @classmethod
    def _of_file(
        cls, path: Path, ranks: dict[bytes, int], pattern: str, remedy: str = "restore it"
    ) -> Self:
        try:
            return cls(ranks, pattern)
        except UserError as error:
            raise UserError(f"{path}: {error}; {remedy}") from None

    def _content(self) -> dict[str, Any]:
        content: dict[str, Any] = {
            "pattern": self.pattern,
            "special_tokens": list(SPECIAL_TOKENS),
            "merges": self._merges(),
        }
        # Only what differs from the default, so that earlier tokenizers keep their hash.
        order = [token[0] for token in self._tokens[:256]]
        if order != list(range(256)):  # a published vocabulary
            content["bytes"] = order
        return content | {name: True for name in STYLE if getattr(self, name)}

    def _merges(self) -> list[list[int]]:
        """[left id, right id] of each token after the bytes. UserError if one has no such pair."""
        try:
            return [list(pair) for pair in self._core.get_merges()]
        except ValueError as error:
            raise UserError(f"{error}; such a vocabulary cannot be written as merges") from None

    @property
    def content_hash(self) -> str:
        """sha256 of pattern, special tokens and merges, by which checkpoints know a tokenizer."""
        return _digest(self._content())

    # ---- formats of other libraries

    @classmethod
    def from_tiktoken(cls, path: Path, pattern: str = SPLIT_PATTERN) -> Self:
        """From a rank file of tiktoken, which has no pattern. Raises UserError on another kind."""
        return cls._of_file(path, formats.read_tiktoken(path), pattern)

    def to_tiktoken(self, path: Path) -> None:
        """Write a rank file of tiktoken: base64 of each token's bytes and its id."""
        lines = (
            f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(self._tokens)
        )
        paths.write_atomic(path, "".join(lines))

    @classmethod
    def from_huggingface(cls, path: Path) -> Self:
        """From a Hugging Face tokenizer.json, with our special tokens. UserError on other kinds."""
        file = formats.read_huggingface(path)
        tokenizer = cls._of_file(path, file.ranks, file.pattern)
        try:
            trained = tokenizer._merges()
        except UserError:  # a token that is not a merge of others
            trained = None
        if not file.has_merges_of(trained):
            raise UserError(f"{path} has not all merges of its tokens; its ids would be others")
        return tokenizer

    def huggingface_backend(self) -> tokenizers.Tokenizer:
        """A `tokenizers.Tokenizer` with the same ids, without special tokens."""
        return formats.huggingface_backend(self._tokens, self._merges(), self.pattern)

    def to_huggingface(self, path: Path) -> None:
        """Write a tokenizer.json of Hugging Face, special tokens included."""
        backend = self.huggingface_backend()
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

        The name of a special token within the text stays text. A lone surrogate is encoded as
        U+FFFD.
        """
        before, after = self._special_id(prepend), self._special_id(append)
        if isinstance(text, str):
            return self._encode_batch([text], 1, before, after)[0]
        return self._encode_batch(text, num_threads, before, after)

    def _encode_batch(
        self, texts: list[str], num_threads: int, before: int | None, after: int | None
    ) -> list[list[int]]:
        try:
            if len(texts) == 1:  # without the cost of an iterator
                return [self._core.encode(texts[0], before, after)]
            return self._core.encode_batch(texts, num_threads, before, after)
        except ValueError as error:  # a pattern that is too slow for the text
            raise UserError(f"{error}; train or import a tokenizer with another pattern") from None

    def encode_to_array(
        self, texts: Sequence[str], num_threads: int = 8
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """(N,) ids of all texts, concatenated, and (len(texts),) int64 where each text ends.

        Ids are uint16, or uint32 in a vocabulary of more than 65,536. `texts` may be an Arrow
        array of strings, which is not copied. By rustbpe for all backends.
        """
        return self._core.encode_to_arrays(texts, num_threads)

    def _special_id(self, token: int | str | None) -> int | None:
        return self.encode_special(token) if isinstance(token, str) else token

    def encode_special(self, name: str) -> int:
        """The id of a special token. Raises KeyError when there is none of that name."""
        return self._special[name]

    # ---- ids to text

    def decode(self, ids: list[int]) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: list[int]) -> bytes:
        """Bytes of ids; special tokens become their names."""
        return b"".join([self._decoded[token] for token in ids])

    def id_to_token(self, token: int) -> str:
        """One token as text."""
        return self.decode([token])

    # ---- the vocabulary

    def get_vocab_size(self) -> int:
        """Number of ids, special tokens included: the rows of a model's embedding."""
        return len(self.ranks) + len(self._special)

    def get_special_tokens(self) -> set[str]:
        """Names of the special tokens."""
        return set(self._special)

    def get_bos_token_id(self) -> int:
        """The token that starts every document and every row."""
        return self._special["<|bos|>"]

    def token_bytes(self) -> list[int]:
        """UTF-8 bytes of each id, 0 for special tokens: their sum over a text is its length."""
        return [len(token) for token in self._tokens] + [0] * len(self._special)


class TiktokenTokenizer(RustBPETokenizer):
    """The same tokenizer, encoding with tiktoken."""

    def __init__(self, ranks: dict[bytes, int], pattern: str = SPLIT_PATTERN) -> None:
        super().__init__(ranks, pattern)
        self._backend = formats.tiktoken_encoding(ranks, pattern, self._special)

    def _encode_batch(
        self, texts: list[str], num_threads: int, before: int | None, after: int | None
    ) -> list[list[int]]:
        batch = self._backend.encode_ordinary_batch(texts, num_threads=num_threads)
        return [_surrounded(ids, before, after) for ids in batch]


class HuggingFaceTokenizer(RustBPETokenizer):
    """The same tokenizer, encoding with Hugging Face `tokenizers`."""

    def __init__(self, ranks: dict[bytes, int], pattern: str = SPLIT_PATTERN) -> None:
        super().__init__(ranks, pattern)
        self._backend = self.huggingface_backend()

    def _encode_batch(
        self, texts: list[str], num_threads: int, before: int | None, after: int | None
    ) -> list[list[int]]:
        clean = list(map(replace_lone_surrogates, texts))
        encodings = self._backend.encode_batch(clean, add_special_tokens=False)
        return [_surrounded(encoding.ids, before, after) for encoding in encodings]


def _surrounded(ids: list[int], before: int | None, after: int | None) -> list[int]:
    return [token for token in (before, *ids, after) if token is not None]


def _has_valid_facts(data: dict[str, Any]) -> bool:
    """True if what `tok_train` reads of an earlier run, beside the checksum, has its types."""
    if "training" not in data:
        return True
    section = data["training"]["section"]
    return isinstance(section["settings"], dict) and isinstance(section["title"], str)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def get_tokenizer() -> RustBPETokenizer:
    """The tokenizer of this base directory. Raises UserError when it is not trained yet."""
    return RustBPETokenizer.from_directory(paths.tokenizer_dir())


def get_token_bytes(device: torch.device | str = "cpu") -> Tensor:
    """(V,) int32 UTF-8 bytes of each token of this base directory's tokenizer."""
    return torch.tensor(get_tokenizer().token_bytes(), dtype=torch.int32, device=device)
