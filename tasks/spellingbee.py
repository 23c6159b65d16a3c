"""Counting letters step by step and with the tool, and spelling.

The words come from the machine's list (Debian's wamerican) or, without one, from the primer. One
word in ten is held out for the test split, by a hash of the word.
"""

import random
from functools import cache
from pathlib import Path

from nanochat.primer.question import Split, split_of
from nanochat.primer.words import WORDS
from nanochat.primer.world import LETTERS
from tasks.common import Conversation, Task, final_number, one_turn

WORD_LIST = Path("/usr/share/dict/words")

QUESTIONS = (
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
    """The words of a split; the splits share no word."""
    return tuple(word for word in word_list() if split_of(word) == split)


class _WordTask(Task):
    def __init__(self, split: Split, size: int = 1000) -> None:
        super().__init__()
        self.size, self.words = size, words_of(split)

    def num_examples(self) -> int:
        return self.size


class SpellingBee(_WordTask):
    """How often a letter occurs in a word: counted letter by letter, then with the tool.

    Judged by the number after `#### `, by the same rule as GSM8K.
    """

    def get_example(self, index: int) -> Conversation:
        rng = random.Random(index)
        word = rng.choice(self.words)
        # Mostly letters that occur: a uniform choice would make 0 the usual answer.
        letter = rng.choice(word) if rng.random() < 0.9 else rng.choice(LETTERS)
        answer = word.count(letter)
        steps, count = "", 0
        for position, character in enumerate(word, start=1):
            count += character == letter
            hit = f" hit! count={count}" if character == letter else ""
            steps += f"{position}:{character}{hit}\n"
        parts = [
            {"type": "text", "text": f"The word {word} letter by letter:\n{steps}By the tool:\n"},
            {"type": "python", "text": f"'{word}'.count('{letter}')"},
            {"type": "python_output", "text": str(answer)},
            {"type": "text", "text": f"\n\nBoth ways give {answer}.\n\n#### {answer}"},
        ]
        question = rng.choice(QUESTIONS).format(letter=letter, word=word)
        return one_turn(question, parts, answer=str(answer))

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return final_number(completion) == conversation["answer"]


class SimpleSpelling(_WordTask):
    """A word letter by letter."""

    def get_example(self, index: int) -> Conversation:
        word = random.Random(index).choice(self.words)
        spelling = f"{word}:{','.join(word)}"
        return one_turn(f"Spell the word: {word}", spelling, answer=spelling)
