"""JSON files as rows: one value per line, or one list; in UTF-8 or UTF-16, compressed or not."""

import codecs
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from nanochat.data.shards import (
    MAX_MEMORY_BYTES,
    MAX_TEXT_BYTES,
    VALUE_BYTES,
    WIDE_BYTES,
    max_memory_bytes,
    open_binary,
    raise_unreadable,
    require_memory,
    too_long,
)
from nanochat.errors import UserError, one_line

READ_CHARACTERS = 1 << 20  # at a time
NUL_SAMPLE_BYTES = 4096  # of a file's start, in which UTF-16 is recognized
MIN_WIDE_SPACES = 8  # of two bytes, in text that could be UTF-8 otherwise


def text_encoding(start: bytes) -> str:
    """The encoding of a text that starts with these bytes: UTF-8, or UTF-16 or UTF-32.

    Without a byte order mark it is recognized by NULs: of ASCII, spaces and line ends.
    """
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    start = start[:NUL_SAMPLE_BYTES]
    if 0 in start and (encoding := _encoding_with_nuls(start)):
        return encoding
    return "utf-8-sig"  # with a byte order mark or without


def _encoding_with_nuls(start: bytes) -> str:
    bytes_of = [start[n::4] for n in range(4)]
    for order, of_unit in (("le", bytes_of), ("be", bytes_of[::-1])):
        if all(of_unit) and any(of_unit[0]) and max(of_unit[2]) <= 0x10 and not any(of_unit[3]):
            return f"utf-32-{order}"  # Unicode ends at 0x10FFFF
    even, odd = start[::2], start[1::2]
    nuls_be, nuls_le = even.count(0), odd.count(0)
    spaces_be, spaces_le = (
        sum(low in b" \r\n" and not high for high, low in zip(*halves, strict=False))
        for halves in ((even, odd), (odd, even))
    )
    # Every second byte is NUL, or nearly.
    is_ascii = nuls_be + nuls_le > len(start) / 4 and not (nuls_be and nuls_le)
    # Cyrillic and some Chinese are valid UTF-8, too, and a Chinese number has a NUL on the other
    # side: spaces and line ends tell.
    min_spaces = MIN_WIDE_SPACES if _is_utf8(start) else 1
    if is_ascii or (max(spaces_be, spaces_le) >= min_spaces and not min(spaces_be, spaces_le)):
        return "utf-16-be" if (spaces_be, nuls_be) > (spaces_le, nuls_le) else "utf-16-le"
    return ""


def _is_utf8(start: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return True


@contextmanager
def open_text(path: Path, encoding: str = "") -> Iterator[io.TextIOWrapper]:
    """The characters of a file. Bytes that are not UTF-8 become lone surrogates."""
    with open_binary(path) as stream:
        encoding = encoding or text_encoding(stream.peek(NUL_SAMPLE_BYTES))
        errors = "surrogateescape" if "8" in encoding else "replace"
        yield io.TextIOWrapper(stream, encoding, errors)


def json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(number, value) of the rows of a .json, .jsonl or .ndjson file. Raises UserError."""
    is_json = ".json" in [suffix.lower() for suffix in path.suffixes[-2:]]
    return json_values(path) if is_json else json_lines(path)


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) of each non-blank line. Raises UserError naming file:line."""
    number = 0
    try:
        with open_text(path) as reader:
            lines = iter(lambda: reader.readline(MAX_TEXT_BYTES + 1), "")
            for number, line in enumerate(lines, start=1):
                if len(line) > MAX_TEXT_BYTES:
                    raise too_long(f"{path}:{number}: a line")
                check_json_values(line, f"{path}:{number}: a line")
                if line.strip():
                    yield number, json.loads(line)
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(
            f"{path}:{number}: {one_line(error)}; each line must be one JSON value in UTF-8"
        ) from None


def json_values(path: Path) -> Iterator[tuple[int, Any]]:
    """(number, value) of the items of a list, or of values in a row. UserError naming the number.

    Read in parts, so that a list need not fit in memory.
    """
    number, position, failure = 0, 0, ValueError("it holds no value")
    try:
        with open_text(path) as reader:
            text = reader.read(READ_CHARACTERS).lstrip()
            in_list = text.startswith("[")
            skipped, is_open = re.compile(r"[\s,\]]*" if in_list else r"\s*"), in_list
            text = text[in_list:]
            while True:
                space = cast(re.Match[str], skipped.match(text, position))
                position, is_open = space.end(), is_open and "]" not in space[0]
                value, end = None, 0
                try:
                    value, end = json.JSONDecoder().raw_decode(text, position)
                except ValueError as error:  # perhaps because the rest is not read yet
                    failure = error
                more = "" if 0 < end < len(text) else reader.read(max(READ_CHARACTERS, len(text)))
                if end and not more:
                    number, position = number + 1, end
                    yield number, value
                    continue
                text, position = text[position:] + more, 0
                if len(text) > MAX_TEXT_BYTES:
                    raise too_long(f"{path}: item {number + 1}")
                check_json_values(text, f"{path}: item {number + 1}")
                if not more and (text or is_open):
                    raise failure
                if not more:
                    return
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path}: item {number + 1} is damaged: {one_line(error)}") from None


# ---- all at once


def read_bytes(path: Path) -> bytes:
    """The content of a JSON file, decompressed. UserError if damaged, forbidden or too large."""
    try:
        limit = max_memory_bytes(path)
        with open_binary(path, limit // 2) as stream:
            content = stream.read()
    except OSError as error:
        raise_unreadable(path, error)  # of its size
        raise UserError(f"{path} is damaged: {one_line(error)}") from None
    check_json_values(content, str(path), limit)
    return content


def check_json_values(text: bytes | str, where: str, limit: int = MAX_MEMORY_BYTES) -> None:
    """Raises UserError if a JSON text takes more memory than the limit, in bytes, with its values.

    The text is in memory twice: as it is, and as its strings.
    """
    marks: list[Any] = [b",", b"[", b"{"] if isinstance(text, bytes) else [",", "[", "{"]
    if len(text) * (2 * WIDE_BYTES + VALUE_BYTES) > limit:  # else it cannot
        num_bytes = 2 * len(text) * (1 if text.isascii() else WIDE_BYTES)
        require_memory(where, num_bytes + VALUE_BYTES * sum(map(text.count, marks)), limit)
