"""The user's files of text: which of a folder are read, and the documents in them."""

import io
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from nanochat import paths
from nanochat.data.json_rows import json_rows, open_text
from nanochat.data.shards import MAX_TEXT_BYTES, parquet_texts
from nanochat.errors import UserError, one_line

MAX_DOCUMENT_CHARACTERS = 10_000  # a longer .txt file is split between paragraphs
MANY_LINES = 100  # a file of so many without a blank one is a list; a poem or an article is shorter
READ_CHARACTERS = 1 << 20  # of a line at a time
COMPRESSIONS = ("", ".gz", ".zst")
KINDS = (".parquet", ".jsonl", ".ndjson", ".json", ".txt")
FORMATS = (".parquet", *(kind + end for kind in KINDS[1:] for end in COMPRESSIONS))
UNPACK = {
    ".xz": "xz -dk", ".bz2": "bzip2 -dk", ".lz4": "lz4 -d", ".zip": "unzip", ".7z": "7z x",
    ".tar": "tar -xf", ".tgz": "tar -xf", ".tar.gz": "tar -xf", ".tar.zst": "tar -xf",
}  # fmt: skip
# Splits of data sets on the hub, by the name of a file or folder: train-00000-of-00002, train/0.
# en/c4-validation.00000-of-00008. What precedes the word is the same for all splits.
SPLIT_NAME = re.compile(
    r"(?:(.*?)[-._ ])??(train|test|validation|valid|val|dev|eval)(?:[-._ \d].*)?", re.IGNORECASE
)
# The set of all first characters lets the engine skip the others: 6 times as fast.
SENTENCE_END = re.compile(
    r"""[.!?…。！？](?:(?<=[.!?…])["'”’»)\]]*\s+|(?<=[。！？])["”’」』）]*\s*)"""
)
CONTROL = re.compile("[\0-\x08\x0e-\x1a\x1c-\x1f]")  # but tab, line ends and escape
ESCAPED_BYTE = re.compile("[\udc80-\udcff]")  # invalid UTF-8, as the codec's surrogateescape has it
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
REPLACED = "texts with invalid characters, which are now U+FFFD"

Note = Callable[[str, str], None]
"""Called with a reason and a place for each text that is left out or changed."""


@dataclass(frozen=True)
class TextFile:
    """A file and how it is read; `inspect` finds out about encoding, lines and size."""

    path: Path
    kind: str  # one of KINDS
    split: Literal["", "train", "val"] = ""  # of a data set that is divided already
    encoding: str = ""
    is_list: bool = False  # each line is a document
    characters: int = 0

    def documents(self, max_characters: int, note: Note) -> Iterator[str]:
        """The texts that are not blank; longer ones are cut at paragraphs, lines, sentences."""
        if self.kind == ".txt":
            yield from self._text_documents(max_characters, note)
            return
        for where, text in self._rows(note):
            if text is None or not text or text.isspace():
                note("null texts" if text is None else "blank texts", where)
            elif len(text) > max_characters:
                note(f"texts cut at {max_characters:,} characters", where)
                lines = io.StringIO(text, newline="\n")
                yield from split_at_paragraphs(lines, max_characters)
            else:
                yield text

    def _rows(self, note: Note) -> Iterator[tuple[str, str | None]]:
        """(place, text) of each row; a text that is not Unicode gets U+FFFD."""
        if self.kind == ".parquet":
            texts = parquet_texts(self.path, lambda n: note(REPLACED, f"{self.path} row {n + 1}"))
            yield from ((f"{self.path} row {n}", text) for n, text in enumerate(texts, start=1))
            return
        for number, row in json_rows(self.path):
            where = f"{self.path}:{number}"
            text = _text_field(where, row)
            clean = None if text is None else replace_lone_surrogates(text)
            if clean != text:
                note(REPLACED, where)
            yield where, clean

    def _text_documents(self, max_characters: int, note: Note) -> Iterator[str]:
        with _open_text(self.path, self.encoding) as reader:
            lines = iter(lambda: reader.readline(READ_CHARACTERS), "")
            texts: Iterable[str]
            if self.is_list:
                parts = (part for line in lines for part in _cut_line(line, max_characters))
                texts = (part.removesuffix("\n") for part in parts if not part.isspace())
            else:
                texts = split_at_paragraphs(lines, max_characters)
            for text in texts:
                clean = text if text.isascii() else ESCAPED_BYTE.sub(REPLACEMENT, text)
                if clean != text:
                    note(REPLACED, str(self.path))
                yield clean


def _text_field(where: str, row: Any) -> str | None:
    """The text of a row, None if it is null."""
    if row is None or (isinstance(row, dict) and row.get("text", "") is None):
        return None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        keys = ", ".join(map(repr, list(row)[:8])) if isinstance(row, dict) else ""
        found = f"; its keys are {keys}" if keys else ""
        raise NoTextError(f'{where} is not an object with a "text" that is a string{found}')
    return str(row["text"])


class NoTextError(UserError):
    """A row of a JSON file has no text."""


class NotUtf8Error(UserError):
    """A text file is in another encoding."""


def replace_lone_surrogates(text: str) -> str:
    """The text with U+FFFD for each surrogate without its other half, which UTF-8 cannot encode."""
    try:
        text.encode()  # the common case, and much faster than UTF-16
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


# ---- which files


@dataclass(frozen=True)
class Found:
    """The files of a folder."""

    files: list[TextFile]
    skipped: dict[str, str]  # reason by path


def find_files(path: Path) -> Found:
    """The files of text in a folder, links followed, or the one file. UserError if forbidden.

    Hidden files and our own output are skipped, and of a data set on the hub what is not to be
    trained on.
    """
    skipped: dict[str, str] = {}
    try:
        files = sorted(_walk(path, skipped)) if path.is_dir() else [path]
        found = list(_text_files(files, skipped))
    except PermissionError as error:
        raise UserError(f"no permission to read {error.filename}; allow it, or copy it") from None
    return Found(_with_splits(found, path, skipped), skipped)


def _text_files(files: list[Path], skipped: dict[str, str]) -> Iterator[TextFile]:
    seen: dict[str, Path] = {}
    for file in files:
        real = os.path.realpath(file)
        if not file.exists():
            skipped[str(file)] = "a link to nothing"
        elif not file.is_file():
            skipped[str(file)] = "not a regular file"
        elif not (kind := text_format(file)):
            skipped[str(file)] = _unread_reason(file)
        elif real in seen:
            skipped[str(file)] = f"a link to a file that is read as {seen[real]}"
        else:
            seen[real] = file
            yield TextFile(file, next(k for k in KINDS if kind.startswith(k)))


def _walk(path: Path, skipped: dict[str, str]) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise error

    base, seen = paths.base_dir().resolve(), set[Path]()
    for name, folders, names in os.walk(path, onerror=fail, followlinks=True):
        folder = Path(name)
        real = folder.resolve()
        # A folder above the base directory must not import the shards written below it.
        is_ours = real.is_relative_to(base) and not path.resolve().is_relative_to(base)
        if is_ours or real in seen:
            skipped[name] = "the base directory" if is_ours else "a link to a folder that is read"
            folders.clear()
            continue
        seen.add(real)
        for hidden in [entry for entry in (*folders, *names) if entry.startswith(".")]:
            skipped[str(folder / hidden)] = "hidden"
        folders[:] = sorted(entry for entry in folders if not entry.startswith("."))
        yield from (folder / entry for entry in names if not entry.startswith("."))


def text_format(path: Path) -> str:
    """The suffix that says how a file is read; "" when it is no text file."""
    return next((suffix for suffix in FORMATS if path.name.lower().endswith(suffix)), "")


def _unread_reason(path: Path) -> str:
    for suffix, command in UNPACK.items():
        if path.name.lower().endswith(suffix):
            return f"packed; unpack it with {command}"
    return "of a format that is not read"


def _with_splits(files: list[TextFile], root: Path, skipped: dict[str, str]) -> list[TextFile]:
    """The files with the splits of a hub's data set, if their names say so, without its tests."""

    def splits_of(file: TextFile) -> list[tuple[str, str]]:
        """(what precedes the word, split) of the file's name and of those of its folders."""
        parts = file.path.relative_to(root).parts if root != file.path else ()
        matches = filter(None, map(SPLIT_NAME.fullmatch, reversed(parts)))
        return [(match[1] or "", match[2].lower()) for match in matches]

    splits = list(map(splits_of, files))
    divided = {prefix for names in splits for prefix, split in names if split == "train"}
    if not divided:  # the user's own names
        return files
    kept = []
    for file, names in zip(files, splits, strict=True):
        split = next((split for prefix, split in names if prefix in divided), "train")
        if split in ("test", "eval"):
            skipped[str(file.path)] = f"the split {split} of the data set, which is not trained on"
        else:
            is_val = split in ("validation", "valid", "val", "dev")
            kept.append(replace(file, split="val" if is_val else "train"))
    return kept


# ---- text files


@contextmanager
def _open_text(path: Path, encoding: str = "") -> Iterator[io.TextIOWrapper]:
    try:
        with open_text(path, encoding) as reader:
            yield reader
    except OSError as error:
        raise UserError(f"{path} is damaged: {one_line(error)}; restore it") from None


def inspect(file: TextFile, is_alone: bool, note: Note) -> TextFile:
    """The file with what was found by reading it once: encoding, lines, characters.

    is_alone: there is no other file. Raises UserError if it cannot be read: NotUtf8Error if it is
    in another encoding, NoTextError if its rows have no text.
    """
    if not file.path.stat().st_size:  # as parts that a failed job left
        return file
    if file.kind != ".txt":
        texts = file.documents(MAX_TEXT_BYTES, note)
        return replace(file, characters=sum(map(len, texts)))
    characters, num_lines, has_gap, is_gap = 0, 0, False, False
    broken = [0, 0]  # lines with characters beyond ASCII: valid, and invalid UTF-8
    first_broken = 0
    with _open_text(file.path) as reader:
        for number, line in enumerate(iter(lambda: reader.readline(READ_CHARACTERS), ""), start=1):
            if line.isspace():
                is_gap = num_lines > 0
                continue
            has_gap |= is_gap
            characters, num_lines = characters + len(line), num_lines + 1
            if not line.isascii():
                is_broken = ESCAPED_BYTE.search(line) is not None
                if is_broken and CONTROL.search(line):
                    raise UserError(f"{file.path} is not text (line {number}); leave it out")
                broken[is_broken] += 1
                first_broken = first_broken or number * is_broken
        encoding = reader.encoding
    if broken[1] > broken[0]:  # else single bytes are damaged
        raise NotUtf8Error(f"{file.path} is not UTF-8 (line {first_broken})")
    is_long = num_lines >= MANY_LINES or characters > MAX_DOCUMENT_CHARACTERS or is_alone
    is_list = is_long and num_lines > 1 and not has_gap
    return replace(file, encoding=encoding, is_list=is_list, characters=characters)


def split_at_paragraphs(lines: Iterable[str], max_characters: int) -> Iterator[str]:
    """Documents of complete paragraphs; longer paragraphs are cut at lines, sentences or spaces."""
    document: list[str] = []
    size = 0
    for is_blank, group in itertools.groupby(lines, str.isspace):
        for piece in () if is_blank else _cut_paragraph(group, max_characters):
            if document and size + len(piece) > max_characters:
                yield "\n\n".join(document)
                document, size = [], 0
            document.append(piece)
            size += len(piece)
    if document:
        yield "\n\n".join(document)


def _cut_paragraph(lines: Iterable[str], max_characters: int) -> Iterator[str]:
    """Lines, joined up to the limit."""
    parts: list[str] = []
    size = 0
    for line in lines:
        for part in _cut_line(line, max_characters):
            if parts and size + len(part.removesuffix("\n")) > max_characters:
                yield "".join(parts).removesuffix("\n")
                parts, size = [], 0
            parts.append(part)
            size += len(part)
    if not "".join(parts).isspace():
        yield "".join(parts).removesuffix("\n")


def _cut_line(line: str, max_characters: int) -> Iterator[str]:
    """The line, in parts if it is longer than the limit, each with the space after it."""
    start = 0
    while len(line) - start > max_characters:
        window = line[start : start + max_characters]
        # A sentence that ends early would leave a document of a few words.
        ends = [end for m in SENTENCE_END.finditer(window) if (end := m.end()) > max_characters / 4]
        cut = ends[-1] if ends else window.rfind(" ") + 1 or max_characters
        yield window[:cut]
        start += cut
    yield line[start:]
