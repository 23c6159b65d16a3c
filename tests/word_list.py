"""The list of words of the spelling tasks, in this base directory."""

from itertools import product
from string import ascii_lowercase

from nanochat.data import hub_files
from tests.shared_data import EVAL_DATA


def put_word_list() -> tuple[str, ...]:
    """Store the list as a download would, or without the real data one of made-up words."""
    file, real = hub_files.word_list_path(), EVAL_DATA / "words" / "words_alpha.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    if real.is_file():
        file.symlink_to(real)
    else:
        file.write_text("\n".join(map("".join, product(ascii_lowercase, repeat=4))))
    return hub_files.word_list()
