"""Train the tokenizer on the text of the current source.

python -m scripts.tok_train --max_chars=2000000000 --vocab_size=65536
"""

from dataclasses import dataclass
from typing import Annotated

from nanochat.configurator import at_least, parse, run_command


@dataclass(frozen=True)
class Options:
    """Train the tokenizer on the text of the current source."""

    max_chars: Annotated[int, at_least(1, besides=-1)] = 2_000_000_000
    """Characters to learn from at most."""
    doc_cap: Annotated[int, at_least(1, besides=-1)] = 10_000
    """Characters of one document at most, so that no long one dominates; -1 means all."""
    vocab_size: int = 65_536
    """Tokens, the nine special ones included."""
    fresh: bool = False
    """Train again what has been trained."""


if __name__ == "__main__":
    run_command(Options)  # before the slow imports

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict

from nanochat import dataset, paths, report
from nanochat.errors import UserError
from nanochat.tokenizer import RustBPETokenizer, get_tokenizer

logger = logging.getLogger(__name__)

SECTION = "tok_train"


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = {"source": dataset.current_source(), **asdict(options), "fresh": False}
    try:  # the section alone does not suffice: the tokenizer may be missing, damaged or another one
        reported = report.read_section(SECTION) or {}
        is_stale = reported["metrics"]["sha256"] != get_tokenizer().content_hash
    except (UserError, KeyError):
        is_stale = True
    if report.already_measured(SECTION, settings, options.fresh or is_stale):
        return
    start = time.perf_counter()
    num_characters = 0

    def counted_texts() -> Iterator[str]:
        nonlocal num_characters
        for text in dataset.iter_texts("train", "", options.max_chars, options.doc_cap):
            num_characters += len(text)
            yield text

    tokenizer = RustBPETokenizer.train_from_iterator(counted_texts(), options.vocab_size)
    seconds = time.perf_counter() - start
    tokenizer.save(paths.tokenizer_dir())
    logger.info(
        "%d tokens from %s characters in %.1f s (%.1f million/s): %s",
        tokenizer.get_vocab_size(), f"{num_characters:,}", seconds,
        num_characters / seconds / 1e6, paths.tokenizer_dir(),
    )  # fmt: skip
    if tokenizer.get_vocab_size() < options.vocab_size:
        logger.info("the text has no more pairs to merge: fewer tokens than --vocab_size")
    section = {
        "title": "Tokenizer",
        "order": -2,  # before tok_eval and all stages
        "settings": settings,
        "metrics": {
            "characters": num_characters,
            "vocabulary": tokenizer.get_vocab_size(),
            "sha256": tokenizer.content_hash,
        },
        "seconds": seconds,
    }
    report.write_section(SECTION, section)
