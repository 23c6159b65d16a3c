"""Counting letters by hand and by the tool, and plain spelling.

The words come from a list: one of the machine's (Debian's wamerican), else those of the primer.
One in ten is held out, by a hash of it, and is never asked in training.
"""

import random
from functools import cache
from pathlib import Path

from nanochat.primer.question import Split, split_of
from nanochat.primer.words import WORDS
from tasks.common import Conversation, Task, final_text

WORD_LIST = Path("/usr/share/dict/words")
LETTERS = "abcdefghijklmnopqrstuvwxyz"

ASK_COUNT = (
    "How many {letter} are in {word}?",
    "How many {letter} are in the word {word}?",
    "Count the letter {letter} in {word}.",
    "How often does {letter} appear in {word}?",
    "how many {letter}s are there in {word}",
)


@cache
def word_list() -> tuple[str, ...]:
    """Lower-case words, in a fixed order."""
    if WORD_LIST.is_file():
        lines = WORD_LIST.read_text(encoding="utf-8", errors="replace").split()
        return tuple(sorted({w for w in lines if w.isascii() and w.isalpha() and w.islower()}))
    return WORDS


@cache
def words_of(split: Split) -> tuple[str, ...]:
    """The words of one side; no word is on both."""
    return tuple(word for word in word_list() if split_of(word) == split)


class _Words(Task):
    def __init__(self, split: Split, size: int = 1000) -> None:
        super().__init__()
        self.size, self.words = size, words_of(split)

    def num_examples(self) -> int:
        return self.size


class SpellingBee(_Words):
    """How many of a letter are in a word: spelled out by hand, then counted by the tool."""

    def get_example(self, index: int) -> Conversation:
        rng = random.Random(index)
        word = rng.choice(self.words)
        letter = rng.choice(word) if rng.random() < 0.9 else rng.choice(LETTERS)
        number = word.count(letter)
        by_hand, seen = "", 0
        for place, each in enumerate(word, start=1):
            seen += each == letter
            by_hand += f"{place}:{each}" + (f" hit! count={seen}\n" if each == letter else "\n")
        parts = [
            {"type": "text", "text": f"The word {word} letter by letter:\n{by_hand}By the tool:\n"},
            {"type": "python", "text": f"'{word}'.count('{letter}')"},
            {"type": "python_output", "text": str(number)},
            {"type": "text", "text": f"\n\nBoth ways give {number}.\n\n#### {number}"},
        ]
        question = rng.choice(ASK_COUNT).format(letter=letter, word=word)
        return {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": parts},
            ],
            "answer": str(number),
        }

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        found = final_text(completion).rsplit("####", 1)
        return len(found) == 2 and found[1].strip() == conversation["answer"]


class SimpleSpelling(_Words):
    """A word letter by letter."""

    def get_example(self, index: int) -> Conversation:
        word = random.Random(index).choice(self.words)
        spelled = f"{word}:{','.join(word)}"
        return {
            "messages": [
                {"role": "user", "content": f"Spell the word: {word}"},
                {"role": "assistant", "content": spelled},
            ],
            "answer": spelled,
        }

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return final_text(completion) == conversation["answer"]
