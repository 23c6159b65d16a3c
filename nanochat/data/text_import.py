"""Text files of the user, of several formats, as one stream of documents."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nanochat import paths
from nanochat.data.shards import json_lines, parquet_texts
from nanochat.errors import UserError

MAX_DOCUMENT_CHARACTERS = 10_000  # a longer .txt file is split between paragraphs
FORMATS = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt")


def text_files(path: Path) -> list[Path]:
    """The text files of a folder, or the one file; no hidden files and none of our own output."""
    if path.is_file():
        return [path] if text_format(path) else []
    base = paths.base_dir().resolve()

    def is_input(file: Path) -> bool:
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        # A folder above the base directory must not import the shards written below it.
        return not hidden and (path.is_relative_to(base) or not file.is_relative_to(base))

    files = [file for file in path.rglob("*") if text_format(file) and file.is_file()]
    return sorted(filter(is_input, files))


def text_format(path: Path) -> str:
    """The suffix that says how a file is read; "" when it is no text file."""
    return next((suffix for suffix in FORMATS if path.name.lower().endswith(suffix)), "")


def iter_file_texts(files: list[Path]) -> Iterator[str]:
    """All texts that are not blank; a lone surrogate becomes U+FFFD."""
    for file in files:
        if text_format(file) == ".parquet":
            texts = parquet_texts(file)
        elif text_format(file) == ".txt":
            texts = _split_text_file(file, files)
        else:
            texts = (_text_field(file, number, row) for number, row in json_lines(file))
        yield from (replace_lone_surrogates(text) for text in texts if text and not text.isspace())


def _text_field(file: Path, number: int, row: Any) -> str:
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise UserError(f'{file}:{number} is not an object with a "text" that is a string')
    return str(row["text"])


def replace_lone_surrogates(text: str) -> str:
    """The text with U+FFFD for each surrogate without its other half, which UTF-8 cannot encode."""
    try:
        text.encode()  # the common case, and much faster than UTF-16
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _split_text_file(file: Path, files: list[Path]) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8-sig") as lines:  # without a byte order mark
            yield from split_at_paragraphs(lines, MAX_DOCUMENT_CHARACTERS)
    except UnicodeDecodeError:
        # All in one message: converting file by file would take as many attempts.
        rest = files[files.index(file) + 1 :]
        others = sum(text_format(other) == ".txt" and not _is_utf8(other) for other in rest)
        also = f" (nor are {others} more)" if others else ""
        raise UserError(
            f"{file} is not UTF-8{also}; convert it, as in iconv -f LATIN1 -t UTF-8 OLD > NEW"
        ) from None


def _is_utf8(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as lines:
            return all(True for _ in lines)
    except UnicodeDecodeError:
        return False


def split_at_paragraphs(lines: Iterable[str], max_characters: int) -> Iterator[str]:
    """Documents of complete paragraphs; only a single paragraph may exceed `max_characters`."""
    document: list[str] = []
    size = 0
    for is_blank, group in itertools.groupby(lines, str.isspace):
        if is_blank:
            continue
        paragraph = "".join(group).removesuffix("\n")
        if document and size + len(paragraph) > max_characters:
            yield "\n\n".join(document)
            document, size = [], 0
        document.append(paragraph)
        size += len(paragraph)
    if document:
        yield "\n\n".join(document)
