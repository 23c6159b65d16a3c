"""Train the tokenizer on the text of the current source.

python -m scripts.tok_train --max_chars=2000000000 --vocab_size=65536
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated

from nanochat import dataset, paths, report
from nanochat.configurator import at_least, parse, run
from nanochat.errors import UserError
from nanochat.tokenizer import RustBPETokenizer, get_tokenizer

logger = logging.getLogger(__name__)

SECTION = "tok_train"


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


def main(argv: list[str] | None = None) -> None:
    """Train and save, or say that it is done."""
    options = parse(Options, argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = {"source": dataset.current_source(), **asdict(options), "fresh": False}
    done = report.read_section(SECTION) or {}
    is_done = done.get("settings") == settings
    if is_done and not options.fresh and _current_hash() == done["metrics"]["sha256"]:
        logger.info("the tokenizer is trained already: %s", paths.tokenizer_dir())
        return
    began = time.perf_counter()
    texts = dataset.iter_texts("train", max_chars=options.max_chars, doc_cap=options.doc_cap)
    counted = _Counted(texts)
    tokenizer = RustBPETokenizer.train_from_iterator(counted, options.vocab_size)
    seconds = time.perf_counter() - began
    tokenizer.save(paths.tokenizer_dir())
    logger.info(
        "%d tokens from %s characters in %.1f s (%.1f million a second): %s",
        tokenizer.get_vocab_size(), f"{counted.characters:,}", seconds,
        counted.characters / seconds / 1e6, paths.tokenizer_dir(),
    )  # fmt: skip
    if tokenizer.get_vocab_size() < options.vocab_size:
        logger.info("the text has no more pairs to merge: fewer tokens than were asked for")
    metrics = {
        "characters": counted.characters,
        "vocabulary": tokenizer.get_vocab_size(),
        "sha256": tokenizer.content_hash,
    }
    report.write_section(
        SECTION,
        {
            "title": "Tokenizer",
            "order": -2,
            "settings": settings,
            "metrics": metrics,
            "seconds": seconds,
        },
    )


def _current_hash() -> str:
    """Of the tokenizer that is there; "" when there is none that can be read."""
    try:
        return get_tokenizer().content_hash
    except UserError:
        return ""


class _Counted:
    """An iterator of texts that knows how many characters went through."""

    def __init__(self, texts: Iterator[str]) -> None:
        self.texts, self.characters = texts, 0

    def __iter__(self) -> "_Counted":
        return self

    def __next__(self) -> str:
        text = next(self.texts)
        self.characters += len(text)
        return text


if __name__ == "__main__":
    run(main)
