"""How people type: case, marks, misspellings, contractions, and words around a question.

Each operator of NOISE takes a question as it is written with care and returns it as somebody might
type it, or unchanged where it does not apply. Words in `exact` are never misspelled: what has to be
copied or spelled must be in the question.
"""

import re
from collections.abc import Callable, Collection
from random import Random

Operator = Callable[[Random, str, Collection[str]], str]

MIN_LETTERS = 4  # of a word that is misspelled: "fo" for "fox" could be anything


def lower_case(rng: Random, text: str, exact: Collection[str]) -> str:
    return text.lower()


def capitals(rng: Random, text: str, exact: Collection[str]) -> str:
    return text.upper()


def no_marks(rng: Random, text: str, exact: Collection[str]) -> str:
    """Without the mark at the end, commas and apostrophes of contractions."""
    text = re.sub(r"(?<=[a-zA-Z]),(?= )", "", text)
    return re.sub(r"(?<=[a-z])'(?=[a-z]+\b)", "", text).rstrip(" ?.!")


def other_marks(rng: Random, text: str, exact: Collection[str]) -> str:
    """Another mark at the end, or two of them."""
    return text.rstrip(" ?.!") + rng.choice(("!", ".", "?", " ?", " !", "??", "!!", "?!", ".."))


def swapped_letters(rng: Random, text: str, exact: Collection[str]) -> str:
    """Two neighboring letters of one word exchanged: "whree"."""

    def swap(word: str) -> str:
        places = [i for i in range(len(word) - 1) if word[i].lower() != word[i + 1].lower()]
        i = rng.choice(places)
        first, second = word[i + 1], word[i]
        if i == 0 and word[0].isupper():  # "Mia" -> "Ima"
            first, second = first.upper(), second.lower()
        return word[:i] + first + second + word[i + 2 :]

    return _misspell(rng, text, exact, swap)


def missing_letter(rng: Random, text: str, exact: Collection[str]) -> str:
    """A word without one of its letters, but with its first one: "wher"."""

    def leave_out(word: str) -> str:
        i = rng.randrange(1, len(word))
        return word[:i] + word[i + 1 :]

    return _misspell(rng, text, exact, leave_out)


def doubled_letter(rng: Random, text: str, exact: Collection[str]) -> str:
    """A letter typed twice: "wheere"."""

    def double(word: str) -> str:
        i = rng.randrange(len(word))
        return word[: i + 1] + word[i].lower() + word[i + 1 :]

    return _misspell(rng, text, exact, double)


# None of them is its neighbor on the keyboard, which is kept for tests.
_CONFUSED_VOWELS = {"a": "eo", "e": "ai", "i": "ea", "o": "au", "u": "oa"}


def confused_vowel(rng: Random, text: str, exact: Collection[str]) -> str:
    """A vowel in place of another one: "whare"; its first letter stays."""

    def confuse(word: str) -> str:
        places = [i for i in range(1, len(word)) if word[i].lower() in _CONFUSED_VOWELS]
        if not places:
            return word
        i = rng.choice(places)
        return word[:i] + rng.choice(_CONFUSED_VOWELS[word[i].lower()]) + word[i + 1 :]

    return _misspell(rng, text, exact, confuse)


# The key to the right; at the end of a row, the one to the left.
_NEIGHBORS = {
    key: neighbor
    for row in ("qwertyuiopo", "asdfghjklk", "zxcvbnmn")
    for key, neighbor in zip(row[:-1], row[1:], strict=True)
}


def neighboring_key(rng: Random, text: str, exact: Collection[str]) -> str:
    """A letter replaced by its neighbor on the keyboard; no operator of training does that."""

    def slip(word: str) -> str:
        i = rng.randrange(1, len(word))
        return word[:i] + _NEIGHBORS[word[i].lower()] + word[i + 1 :]

    return _misspell(rng, text, exact, slip)


def _misspell(rng: Random, text: str, exact: Collection[str], change: Callable[[str], str]) -> str:
    """The text with one of its words changed, if a word is long enough and not exact."""
    kept = {word.lower() for phrase in exact for word in re.findall(r"[A-Za-z]+", phrase)}
    places = [
        match
        for match in re.finditer(r"(?<![\w'-])[A-Za-z]+(?![\w-])", text)
        if len(match[0]) >= MIN_LETTERS and match[0].lower() not in kept
    ]
    if not places:
        return text
    match = rng.choice(places)
    return text[: match.start()] + change(match[0]) + text[match.end() :]


_BEFORE = (
    "hi, ", "hello, ", "hey, ", "hi! ", "ok, ", "okay, ", "so, ", "um, ", "well, ",
    "hey nanochat, ",
    "hi there, ", "please, ", "good morning, ", "good evening. ", "quick question: ", "hmm, ",
    "oh, ",
    "excuse me, ", "sorry, ", "i have a question. ", "one more question: ", "now, ", "ok so ",
    "uh ",
    "can you help me? ", "listen, ", "hello nanochat! ", "question: ", "just asking: ", "tell me, ",
    "say, ", "i was wondering, ", "and now: ", "dear nanochat, ", "pls ", "please ",
)  # fmt: skip
_AFTER = (
    " please", ", please", " thanks", " thx", ", thank you", " pls", " then", " by the way",
    ", do you know", " exactly", ", my friend", " again", " now", ", nanochat",
)  # fmt: skip
UNSEEN_BEFORE = (
    "yo ", "good day to you! ", "right, ", "erm, ", "hello hello, ", "help me out here: ",
    "sorry to bother you, but ", "i am curious: ", "my next question is this: ", "alright then, ",
)  # fmt: skip
UNSEEN_AFTER = (" ty", ", cheers", " if you can", ", many thanks", " plz", ", buddy", " today")


def fillers(rng: Random, text: str, exact: Collection[str]) -> str:
    """A greeting or a courtesy before the question, behind it, or both."""
    return _surround(rng, text, _BEFORE, _AFTER)


def unseen_fillers(rng: Random, text: str, exact: Collection[str]) -> str:
    """The same with words that training never has around a question."""
    return _surround(rng, text, UNSEEN_BEFORE, UNSEEN_AFTER)


def _surround(rng: Random, text: str, before: tuple[str, ...], after: tuple[str, ...]) -> str:
    place = rng.choice(("before", "before", "after", "both"))
    if place != "after":
        head = rng.choice(before)
        is_name = re.match(r"[A-Z][a-z]+('s)? (?!is\b|are\b)", text) is None
        first = (
            text[0].lower() if is_name and not head.rstrip().endswith(("!", "?", ".")) else text[0]
        )
        text = head[0].upper() + head[1:] + first + text[1:]
    if place != "before":
        end = text[-1] if text[-1] in "?.!" else ""
        text = text.removesuffix(end) + rng.choice(after) + end
    return text


_CONTRACTIONS = (
    (r"\b([Ww]hat|[Ww]here|[Ww]ho|[Hh]ow) is\b", r"\1's"), (r"\b([Ww]hat|[Ww]here|[Ww]ho) are\b",
    r"\1're"),
    (r"\bI am\b", "I'm"), (r"\bI would\b", "I'd"),
    (r"\b([Dd]o|[Dd]oes|[Dd]id|[Ii]s|[Cc]ould) not\b", r"\1n't"),
    (r"\b[Yy]ou\b", "u"), (r"\b[Aa]re\b", "r"), (r"\b([Ww])ant to\b", r"\1anna"),
    (r"\bmy name is\b", "my name's"), (r"\b([Pp])lease\b", r"\1ls"),
)  # fmt: skip


def contractions(rng: Random, text: str, exact: Collection[str]) -> str:
    """What's for what is, and the like."""
    usable = [pair for pair in _CONTRACTIONS if re.search(pair[0], text)]
    return re.sub(*rng.choice(usable), text, count=1) if usable else text


def repeated_marks(rng: Random, text: str, exact: Collection[str]) -> str:
    """Three or four marks at the end; training never has them."""
    return text.rstrip(" ?.!") + rng.choice(("???", "??!!", "!!!", "...", " ???", "?!?"))


NOISE: dict[str, Operator] = {
    "lower case": lower_case, "capitals": capitals, "no marks": no_marks,
    "swapped letters": swapped_letters, "missing letter": missing_letter,
    "doubled letter": doubled_letter, "confused vowel": confused_vowel, "fillers": fillers,
    "contractions": contractions,
}  # fmt: skip
UNSEEN_NOISE: dict[str, Operator] = {
    "neighboring key": neighboring_key, "unseen fillers": unseen_fillers,
    "repeated marks": repeated_marks,
}  # fmt: skip
_MISSPELLINGS = (swapped_letters, missing_letter, doubled_letter, confused_vowel)

# Of the questions of training, set by trial (dev/LOG.md). None is in capitals: the tokenizer of
# this world folds them (--fold_all_caps).
MISSPELLED_SHARE, FILLER_SHARE, CONTRACTED_SHARE, OTHER_MARKS_SHARE = 0.45, 0.15, 0.15, 0.6
LOWER_SHARE = 0.5


def misspelled(rng: Random, text: str, exact: Collection[str]) -> str:
    """The text with one word misspelled as in training; `neighboring_key` is kept for tests."""
    return rng.choice(_MISSPELLINGS)(rng, text, exact)


def in_their_letters(answer: str, asked: str, names: Collection[str]) -> str:
    """The answer with each of these names in lower case that the user has typed only so.

    A name of no list of the world is copied: in the letters of the question, it is the same tokens.
    """
    typed = set(re.findall(r"\w+", asked))
    copied = {name for name in names if name not in typed and name.lower() in typed}
    return re.sub(r"\w+", lambda word: word[0].lower() if word[0] in copied else word[0], answer)


def as_people_type(rng: Random, text: str, exact: Collection[str], share: float) -> str:
    """The text, in `share` of all cases with several operators of NOISE."""
    if rng.random() >= share:
        return text
    if rng.random() < FILLER_SHARE:
        text = fillers(rng, text, exact)
    if rng.random() < CONTRACTED_SHARE:
        text = contractions(rng, text, exact)
    if rng.random() < OTHER_MARKS_SHARE:
        text = rng.choice((no_marks, no_marks, other_marks))(rng, text, exact)
    if rng.random() < MISSPELLED_SHARE:
        text = misspelled(rng, text, exact)
    return text.lower() if rng.random() < LOWER_SHARE else text
