"""Counting letters step by step and with the tool, and spelling.

The words are those of a list of English, the same on every machine, which `nanochat.dataset
--prefetch=mid` brings. One word in ten is held out for the test split, by a hash of the word.
"""

import random
from collections import Counter
from functools import cache
from pathlib import Path
from string import ascii_lowercase

from nanochat.data import hub_files
from nanochat.primer.question import Split, split_of
from tasks.common import Conversation, Task, final_number, one_turn

QUESTIONS_FILE = Path(__file__).with_name("spelling_questions.txt")  # 52, as people type them
QUOTES = ("{}", "{}", "{}", "'{}'", '"{}"')  # most people use none
ABSENT_SHARE = 0.1  # of the questions are about a letter that is likely not in the word


@cache
def words_of(split: Split) -> tuple[str, ...]:
    """The words of a split; the splits share no word. Raises UserError without the list."""
    return tuple(word for word in hub_files.word_list() if split_of(word) == split)


@cache
def questions() -> tuple[str, ...]:
    """Phrasings with {letter} and {word}: with and without marks, a few in other languages."""
    return tuple(QUESTIONS_FILE.read_text(encoding="utf-8").splitlines())


class _WordTask(Task):
    def __init__(self, split: Split, size: int = 1000) -> None:
        """Raises UserError when the list of words is missing and cannot be downloaded."""
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
        letter = chosen_letter(word, rng)
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
        quotes = rng.choice(QUOTES)
        question = rng.choice(questions()).format(
            letter=quotes.format(letter), word=rng.choice((quotes, "{}")).format(word)
        )
        return one_turn(question, parts, answer=str(answer))

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return final_number(completion) == conversation["answer"]


def chosen_letter(word: str, rng: random.Random) -> str:
    """The letter to count, more likely one that is repeated, whatever the number of others.

    A letter at a random place would make 1 the answer to three questions of five.
    """
    if rng.random() < ABSENT_SHARE:
        return rng.choice(ascii_lowercase)
    counts = Counter(word)
    distinct = sorted(set(counts.values()))
    [count] = rng.choices(distinct, weights=distinct)
    return rng.choice([letter for letter in sorted(counts) if counts[letter] == count])


class SimpleSpelling(_WordTask):
    """A word letter by letter."""

    def get_example(self, index: int) -> Conversation:
        word = random.Random(index).choice(self.words)
        spelling = f"{word}:{','.join(word)}"
        return one_turn(f"Spell the word: {word}", spelling, answer=spelling)
