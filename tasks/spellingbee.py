"""Counting letters step by step and with the tool, and spelling.

The words are those of a list of English, the same on every machine, which `nanochat.dataset
--prefetch=mid` brings. One word in ten is held out for the test split, by a hash of the word.
"""

import random
from collections import Counter
from functools import cache
from string import ascii_lowercase

from nanochat.data import hub_files
from nanochat.primer.question import Split, split_of
from tasks.common import Conversation, Task, final_number, one_turn

# As people type them: with and without capitals and marks, and in other languages.
QUESTIONS = (
    "How many {letter} are in {word}?",
    "How many {letter} are in the word {word}?",
    "How many {letter}s does {word} have?",
    "How many {letter}s does {word} contain?",
    "How many times do you see {letter} in {word}?",
    "How many times does {letter} appear in {word}?",
    "How many times is {letter} used in the word {word}?",
    "How many of the letters in {word} are {letter}?",
    "How many letters {letter} would I need to write {word}?",
    "how many {letter}s are there in {word}",
    "how many {letter} in {word}",
    "how many times does {letter} come up in {word}",
    "how often is there a {letter} in {word}",
    "How often does {letter} appear in {word}?",
    "How often do you find {letter} in {word}?",
    "How frequently does the letter {letter} occur in {word}?",
    "What is the number of {letter}s in {word}?",
    "What is the count of {letter} in {word}?",
    "what's the number of {letter} in the word {word}",
    "What number of times does {word} contain {letter}?",
    "Count the letter {letter} in {word}.",
    "Count every {letter} in {word}.",
    "Count the occurrences of {letter} in {word}.",
    "Count how often {letter} appears in {word}.",
    "count {letter} in {word}",
    "count all the {letter}s in {word} please",
    "Please count the {letter}s in {word}.",
    "Please tell me how many {letter}s are in {word}.",
    "Please find the number of {letter}s in the word {word}.",
    "Tell me the number of times {letter} occurs in {word}.",
    "Tell me how many {letter} there are in {word}.",
    "Can you count the {letter}s in {word}?",
    "Can you tell me how many {letter} {word} has?",
    "Could you count the letter {letter} in {word} for me?",
    "Could you check how many times {word} has {letter}?",
    "Do you know how many {letter}s are in {word}?",
    "Do you know how often {letter} is in {word}?",
    "I want to know how many {letter}s {word} has.",
    "I need the number of {letter}s in {word}.",
    "I am counting the {letter}s in {word}. How many are there?",
    "If I write {word}, how many times do I write {letter}?",
    "If you spell {word}, how many {letter}s do you need?",
    "Look at the word {word}. How many {letter}s do you see?",
    "Take the word {word}: how many {letter} are in it?",
    "In the word {word}, how many {letter}s are there?",
    "In {word}, how often does the letter {letter} occur?",
    "{word}: how many {letter}?",
    "the word {word} has how many {letter}s",
    "¿Cuántas veces aparece la letra {letter} en {word}?",
    "Combien de fois la lettre {letter} se trouve-t-elle dans {word} ?",
    "Wie oft kommt der Buchstabe {letter} in {word} vor?",
    "Quante volte compare la lettera {letter} in {word}?",
)
QUOTES = ("{}", "{}", "{}", "'{}'", '"{}"')  # most people use none
ABSENT_SHARE = 0.1  # of the questions are about a letter that is likely not in the word


@cache
def words_of(split: Split) -> tuple[str, ...]:
    """The words of a split; the splits share no word. Raises UserError without the list."""
    return tuple(word for word in hub_files.word_list() if split_of(word) == split)


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
        question = rng.choice(QUESTIONS).format(
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
