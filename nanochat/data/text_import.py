"""Anybody's own text: the files of a folder, of several kinds, as one stream of texts."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nanochat import paths
from nanochat.data.shards import json_lines, parquet_texts
from nanochat.errors import UserError

MAX_DOCUMENT_CHARACTERS = 10_000  # a longer text file is cut at ends of paragraphs


def text_files(path: Path) -> list[Path]:
    """The files of text in a folder, or the one file; not hidden ones, nor what we made."""
    if path.is_file():
        return [path] if kind_of(path) else []
    base = paths.base_dir().resolve()

    def is_meant(file: Path) -> bool:
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        return not hidden and (path.is_relative_to(base) or not file.is_relative_to(base))

    found = [file for file in path.rglob("*") if kind_of(file) and file.is_file()]
    return sorted(filter(is_meant, found))


def kind_of(path: Path) -> str:
    """The ending that says how a file is read; "" for files that are not text."""
    kinds = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt")
    return next((kind for kind in kinds if path.name.lower().endswith(kind)), "")


def texts_of(files: list[Path]) -> Iterator[str]:
    """All texts that are not empty; half a surrogate pair, which is no text, becomes U+FFFD."""
    for file in files:
        if kind_of(file) == ".parquet":
            texts = parquet_texts(file)
        elif kind_of(file) == ".txt":
            texts = _parts_of_text(file, files)
        else:
            texts = (_text_field(file, number, row) for number, row in json_lines(file))
        for text in texts:
            if text and not text.isspace():
                yield _without_half_pairs(text)


def _text_field(file: Path, number: int, row: Any) -> str:
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise UserError(f'{file}:{number} is not an object with a "text" that is a string')
    return str(row["text"])


def _without_half_pairs(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _parts_of_text(file: Path, files: list[Path]) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8-sig") as lines:
            yield from cut_at_paragraphs(lines, MAX_DOCUMENT_CHARACTERS)
    except UnicodeDecodeError:
        rest = files[files.index(file) + 1 :]
        more = sum(kind_of(other) == ".txt" and not _is_utf8(other) for other in rest)
        also = f" (nor are {more} more)" if more else ""
        raise UserError(
            f"{file} is not UTF-8{also}; convert it, as in iconv -f LATIN1 -t UTF-8 OLD > NEW"
        ) from None


def _is_utf8(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as lines:
            return all(True for _ in lines)
    except UnicodeDecodeError:
        return False


def cut_at_paragraphs(lines: Iterable[str], max_characters: int) -> Iterator[str]:
    """Parts of a text, each a run of whole paragraphs of about `max_characters` at most."""
    part: list[str] = []
    size = 0
    for paragraph in _paragraphs(lines):
        if part and size + len(paragraph) > max_characters:
            yield "\n\n".join(part)
            part, size = [], 0
        part.append(paragraph)
        size += len(paragraph)
    if part:
        yield "\n\n".join(part)


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Runs of lines between blank ones."""
    paragraph: list[str] = []
    for line in lines:
        if line.isspace():
            if paragraph:
                yield "".join(paragraph).removesuffix("\n")
            paragraph = []
        else:
            paragraph.append(line)
    if paragraph:
        yield "".join(paragraph).removesuffix("\n")
