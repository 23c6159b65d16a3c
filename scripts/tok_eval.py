"""How well the tokenizer compresses, by kind of text, compared with other vocabularies.

python -m scripts.tok_eval
python -m scripts.tok_eval --show "Hello, world! It's 1234."     a text split into tokens
"""

from dataclasses import dataclass
from typing import Annotated

from nanochat.configurator import at_least, parse, run_command


@dataclass(frozen=True)
class Options:
    """How well the tokenizer compresses, by kind of text, compared with other vocabularies."""

    max_chars: Annotated[int, at_least(1)] = 4_000_000
    """Characters of training and of validation text to measure."""
    show: str | None = None
    """A text: it is printed as colored tokens with their ids, and nothing is measured."""
    fresh: bool = False
    """Measure again what has been measured."""


if __name__ == "__main__":
    run_command(Options)  # before the slow imports

import logging
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.text import Text

from nanochat import dataset, report
from nanochat.data.tokenizer_formats import published_encoding
from nanochat.errors import UserError
from nanochat.tokenizer import (
    HuggingFaceTokenizer,
    RustBPETokenizer,
    TiktokenTokenizer,
    get_tokenizer,
)

logger = logging.getLogger(__name__)

SECTION = "tok_eval"
SAMPLES_FILE = Path(__file__).with_name("tok_eval_samples.toml")
BACKENDS = {"tiktoken": TiktokenTokenizer, "Hugging Face tokenizers": HuggingFaceTokenizer}
PUBLISHED = {"GPT-2": "r50k_base", "GPT-4": "cl100k_base"}
COLORS = ("cyan", "green", "yellow", "magenta", "bright_blue")
VISIBLE = str.maketrans({" ": "·", "\n": "⏎", "\r": "␍", "\t": "⇥"})
MAX_MEAN_WORD = 20  # characters; above it the script writes no spaces between words

Encoders = dict[str, Callable[[str], list[int]]]


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tokenizer = get_tokenizer()
    if options.show is not None:
        show(tokenizer, options.show)
        return
    settings = {
        "source": dataset.current_source(),
        "tokenizer": tokenizer.content_hash,
        "max_chars": options.max_chars,
    }
    if report.already_measured(SECTION, settings, options.fresh):
        return
    start = time.perf_counter()
    texts = {
        "training text": list(dataset.iter_texts("train", max_chars=options.max_chars)),
        "validation text": list(dataset.iter_texts("val", max_chars=options.max_chars)),
        **{kind: [text] for kind, text in samples().items()},
    }
    others, missing = _published_encoders()
    notes = [*_compare_backends(tokenizer, texts), *missing]
    rows = _table(tokenizer, others, texts)
    for line in [*notes, *(f"{row[0]:16}" + "".join(f"{c:>18}" for c in row[1:]) for row in rows)]:
        logger.info("%s", line)
    section = {
        "title": "Tokenizer, compared",
        "order": -1,  # after tok_train, before all stages
        "settings": settings,
        "notes": ["Bytes per token (higher is better), and what tokens consist of.", *notes],
        "rows": rows,
        "seconds": time.perf_counter() - start,
    }
    report.write_section(SECTION, section)


def samples() -> dict[str, str]:
    """Short texts by kind: news, code, mathematics, languages, emoji."""
    return tomllib.loads(SAMPLES_FILE.read_text(encoding="utf-8"))


# ---- measuring


def _compare_backends(tokenizer: RustBPETokenizer, texts: dict[str, list[str]]) -> list[str]:
    flat = [text for group in texts.values() for text in group]
    ours = tokenizer.encode(flat)
    notes = []
    for name, backend in BACKENDS.items():
        theirs = backend(tokenizer.ranks, tokenizer.pattern).encode(flat)
        differing = sum(a != b for a, b in zip(ours, theirs, strict=True))
        result = f"OTHER ids on {differing:,} of" if differing else "equal ids on all"
        notes.append(f"{name} gives {result} {len(flat):,} texts.")
    return notes


def _published_encoders() -> tuple[Encoders, list[str]]:
    """Encoders of the published vocabularies, and a line that names those not available."""
    found: Encoders = {}
    missing, reason = [], ""
    for name, file in PUBLISHED.items():
        try:
            found[name] = published_encoding(file).encode_ordinary
        except UserError as error:
            missing.append(name)
            reason = str(error)  # one is enough: without a network they all have the same
    names = " and ".join(missing)
    return found, [f"Not compared with the vocabularies of {names}: {reason}."] if missing else []


def _table(
    tokenizer: RustBPETokenizer, others: Encoders, texts: dict[str, list[str]]
) -> list[list[str]]:
    head = ["text", "bytes", "bytes/token", "tokens/word", "single bytes"]
    rows = [head + [f"bytes/token {name}" for name in others]]
    sizes = tokenizer.token_bytes()
    for kind, group in texts.items():
        ids = [token for text in tokenizer.encode(group) for token in text]
        num_bytes = sum(len(text.encode("utf-8", "replace")) for text in group)
        if not ids:
            raise UserError(f"the {kind} is empty; add some with python -m nanochat.dataset")
        # Tokens of one byte: in a script that the vocabulary has not learned nearly all are.
        single = sum(sizes[token] == 1 for token in ids) / len(ids)
        row = [kind, f"{num_bytes:,}", f"{num_bytes / len(ids):.2f}", _fertility(group, len(ids)),
               f"{100 * single:.1f} %"]  # fmt: skip
        for encode in others.values():
            row.append(f"{num_bytes / sum(len(encode(text)) for text in group):.2f}")
        rows.append(row)
    return rows


def _fertility(texts: list[str], num_tokens: int) -> str:
    """Tokens per word; "-" for scripts that write no spaces between words."""
    num_words = sum(len(text.split()) for text in texts)
    if sum(map(len, texts)) > MAX_MEAN_WORD * num_words:
        return "-"
    return f"{num_tokens / num_words:.2f}"


# ---- showing


def show(tokenizer: RustBPETokenizer, text: str) -> None:
    shown = Text()
    ids = tokenizer.encode(text)
    for number, token in enumerate(ids):
        # A token may end inside a character: its bytes are shown as \xNN.
        content = tokenizer.decode_bytes([token]).decode("utf-8", errors="backslashreplace")
        color = COLORS[number % len(COLORS)]
        shown.append(content.translate(VISIBLE), style=f"black on {color}")
        shown.append(f"({token}) ", style="dim")
    num_bytes = len(tokenizer.decode_bytes(ids))
    console = Console(soft_wrap=True, highlight=False)
    console.print(shown)
    console.print(
        f"{len(ids)} tokens, {num_bytes} bytes, {num_bytes / max(1, len(ids)):.2f} bytes/token"
    )
