"""Byte-pair encoding by its definition: the reference implementation of the Rust crate.

All pairs are counted again for every merge. Split patterns run on the package `regex`.
"""

from collections import Counter
from collections.abc import Iterable

import regex

Word = tuple[int, ...]
Pair = tuple[int, int]

OUR_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
GPT4_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def split(text: str, pattern: str = OUR_PATTERN) -> list[str]:
    """The words of a text, which merges never cross."""
    return [match.group() for match in regex.finditer(pattern, text)]


def learn_merges(texts: Iterable[str], vocab_size: int, pattern: str = OUR_PATTERN) -> list[Pair]:
    """The pairs that become the tokens 256, 257, ... until there are `vocab_size` tokens.

    The most frequent pair is next; of equally frequent ones that with the smallest left id, then
    the smallest right id.
    """
    counts = Counter(word for text in texts for word in split(text, pattern))
    words = {tuple(word.encode()): count for word, count in counts.items()}
    merges: list[Pair] = []
    while 256 + len(merges) < vocab_size:
        pairs: Counter[Pair] = Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:], strict=False):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        token = 256 + len(merges)
        merges.append(best)
        words = {merged(word, best, token): count for word, count in words.items()}
    return merges


def merged(word: Word, pair: Pair, token: int) -> Word:
    """A word with each occurrence of a pair replaced by a token, from the left."""
    new: list[int] = []
    for symbol in word:
        if new and new[-1] == pair[0] and symbol == pair[1]:
            new[-1] = token
        else:
            new.append(symbol)
    return tuple(new)


def tokens_of(merges: list[Pair]) -> list[bytes]:
    """The bytes of every token: the 256 single bytes, then one token per merge."""
    tokens = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return tokens


def encode(merges: list[Pair], text: str, pattern: str = OUR_PATTERN) -> list[int]:
    """Ids of a text: in each word the merges are applied in the order of learning."""
    ids: list[int] = []
    for piece in split(text, pattern):
        word: Word = tuple(piece.encode())
        for number, pair in enumerate(merges):
            word = merged(word, pair, 256 + number)
        ids += word
    return ids
