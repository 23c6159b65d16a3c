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
    """Characters to learn from at most; -1 means all."""
    doc_cap: Annotated[int, at_least(1, besides=-1)] = 10_000
    """Characters of one document at most, so that no long one dominates; -1 means all."""
    vocab_size: int = 65_536
    """Tokens, the nine special ones included."""
    fold_all_caps: bool = False
    """Read users' messages and words in capitals as lower case; for small vocabularies."""
    add_prefix_space: bool = False
    """Begin messages with a space, so that a first word has the tokens it has elsewhere."""
    fresh: bool = False
    """Train again what has been trained; the earlier tokenizer is moved to replaced/."""


if __name__ == "__main__":
    run_command(Options)  # before the slow imports

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from nanochat import dataset, paths, report
from nanochat.errors import UserError
from nanochat.tokenizer import (
    FILE_NAME,
    STYLE,
    RustBPETokenizer,
    check_vocab_size,
    get_tokenizer,
)  # fmt: skip

logger = logging.getLogger(__name__)

SECTION = "tok_train"


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv)
    check_vocab_size(options.vocab_size)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with paths.locked(paths.tokenizer_dir()):  # a second start waits, and finds it trained
        train(options)


def train(options: Options) -> None:
    source = dataset.current_source()
    settings = {"source": source, **asdict(options), "fresh": False}
    text = dataset.text_digest(source)
    if not options.fresh and _is_trained(settings, text):
        return
    start = time.perf_counter()
    num_characters = 0

    def counted_texts() -> Iterator[str]:
        nonlocal num_characters
        for document in dataset.iter_texts("train", "", options.max_chars, options.doc_cap):
            num_characters += len(document)
            yield document

    tokenizer = RustBPETokenizer.train_from_iterator(counted_texts(), options.vocab_size)
    for name in STYLE:
        setattr(tokenizer, name, getattr(options, name))
    seconds = time.perf_counter() - start
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
    _keep_replaced(tokenizer)
    # With the section, which `report reset` removes: the tokenizer says by itself what it is of.
    tokenizer.save(paths.tokenizer_dir(), training={"text": text, "section": section})
    logger.info(
        "%d tokens from %s characters in %.1f s (%.1f million/s): %s",
        tokenizer.get_vocab_size(), f"{num_characters:,}", seconds,
        num_characters / seconds / 1e6, paths.tokenizer_dir(),
    )  # fmt: skip
    if tokenizer.get_vocab_size() < options.vocab_size:
        logger.info("the text has no more pairs to merge: fewer tokens than --vocab_size")
    report.write_section(SECTION, section)


def _is_trained(settings: dict[str, Any], text: str) -> bool:
    """True, which is logged, if there is a tokenizer of these settings.

    False if there is none, or a damaged one. Raises UserError if there is another one.
    """
    try:
        tokenizer = get_tokenizer()
    except UserError:
        return False
    path = paths.tokenizer_dir() / FILE_NAME
    training = json.loads(path.read_text(encoding="utf-8")).get("training", {})
    reported = report.read_section(SECTION) or {}
    is_reported = reported.get("metrics", {}).get("sha256") == tokenizer.content_hash
    section = training.get("section", reported if is_reported else {})
    saved = dict.fromkeys(STYLE, False) | section.get("settings", {})  # options of later versions
    names = settings.keys() - {"fresh"}
    differing = sorted(name for name in names if saved.get(name) != settings[name])
    if differing:
        facts = [f"{n}: saved {saved.get(n, 'unknown')}, now {settings[n]}" for n in differing]
        raise UserError(
            f"{path.parent} holds a tokenizer of other settings ({'; '.join(facts)}); use --fresh"
            " to move it to replaced/, or NANOCHAT_BASE_DIR=PATH for a second one beside it"
        )
    if not dataset.begins_with(settings["source"], training.get("text", text)):
        logger.warning("the text has changed since the tokenizer was trained; see --fresh")
    if not is_reported:
        report.write_section(SECTION, section)
    report.log_reuse(section)
    return True


def _keep_replaced(tokenizer: RustBPETokenizer) -> None:
    """Keep a copy of the tokenizer that is about to be replaced, also if it is damaged."""
    path = paths.tokenizer_dir() / FILE_NAME
    if not path.is_file():
        return
    try:
        is_same = get_tokenizer().content_hash == tokenizer.content_hash
    except UserError:
        is_same = False
    if not is_same:
        kept = paths.replaced_path(paths.tokenizer_dir()) / FILE_NAME
        paths.write_atomic(kept, path.read_bytes())
        logger.warning("moved the earlier tokenizer to %s", kept.parent)
