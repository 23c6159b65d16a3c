"""How much memory the pages of a parquet file take, which a damaged or hostile footer understates.

pyarrow decompresses a page to the size in its header, repeats a dictionary's text in every row, and
makes a billion nulls or empty lists of a few bytes, all without a limit. So the headers are read
first, in the format of Thrift's compact protocol.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from nanochat.errors import UserError

MAX_PAGE_BYTES = 200_000_000  # others write 1 MB, or a row group; pyarrow holds up to three copies
HEADER_BYTES = 512  # of a page, nearly always; with statistics up to MAX_HEADER_BYTES
MAX_HEADER_BYTES = 1 << 20
MAX_FOOTER_BYTES = 3_000_000  # or a hundredth of the file; pyarrow may take 240 times as much
MAX_NESTING = 16


@dataclass(frozen=True)
class PageSizes:
    """Sizes in bytes after decompression."""

    total: int  # of all pages
    num_values: int  # in all pages, with nulls and empty lists
    largest_value: int  # of the page with the longest values: its average
    largest_dictionary: int


def check_footer(path: Path) -> None:
    """Raises UserError if the footer is so large that pyarrow must not open the file."""
    with path.open("rb") as file:
        end = file.seek(0, 2)
        file.seek(max(0, end - 8))
        size = int.from_bytes(file.read(4), "little")
    limit = max(MAX_FOOTER_BYTES, end // 100)
    if limit < size <= end:
        raise UserError(
            f"{path} has a footer of {size / 1e6:.1f} MB, over the limit of {limit / 1e6:.1f} MB;"
            " write it again with larger row groups, or leave it out"
        )


def page_sizes(path: Path, column: str = "") -> PageSizes:
    """Sizes of the pages of a column, or (by default) of all columns.

    Raises UserError if a page is far larger than the file, ValueError if the file is damaged.
    """
    total, total_values, largest_value, largest_dictionary = 0, 0, 1, 0
    with path.open("rb") as file:
        unread = file.seek(0, 2)
        limit = max(MAX_PAGE_BYTES, unread)
        for size, num_values, stored in _pages(file, column):
            if size > limit:
                raise UserError(
                    f"{path} has a page of {size / 1e6:,.0f} MB, over the limit of"
                    f" {limit / 1e6:,.0f} MB; write it again with smaller pages, or leave it out"
                )
            unread -= stored
            if unread < 0:  # or a small file could have them read for hours
                raise ValueError("its pages overlap")
            total, total_values = total + size, total_values + num_values
            if num_values:
                largest_value = max(largest_value, size // num_values)
            else:
                largest_dictionary = max(largest_dictionary, size)
    return PageSizes(total, total_values, largest_value, largest_dictionary)


def _column_chunks(file: BinaryIO, column: str) -> Iterator[dict[int, Any]]:
    """The descriptions of the column chunks in the footer, by the numbers of their fields."""
    end = file.seek(-8, 2)
    size = int.from_bytes(file.read(4), "little")
    if not 0 < size <= end:
        raise ValueError("no footer")
    file.seek(end - size)
    footer, _ = _struct(file.read(size), 0)
    for group in footer[4]:
        for chunk in group[1]:
            if not column or chunk[3][3] == [column.encode()]:
                yield chunk[3]


def _pages(file: BinaryIO, column: str) -> Iterator[tuple[int, int, int]]:
    """(size, number of values, bytes in the file) of each page; no values in a dictionary."""
    try:
        for chunk in _column_chunks(file, column):
            yield from _pages_of(file, chunk)
    except (LookupError, TypeError, AttributeError, OverflowError, OSError) as error:
        raise ValueError("a malformed description of its pages") from error


def _pages_of(file: BinaryIO, chunk: dict[int, Any]) -> Iterator[tuple[int, int, int]]:
    at, seen = min(chunk[9], chunk.get(11) or chunk[9]), 0
    while seen < chunk[5]:
        file.seek(at)
        header, length = _page_header(file)
        data = header.get(5) or header.get(8) or {}  # of a data page, of either version
        num_values = data.get(1, 0)
        if header[2] < 0 or header[3] < 0 or num_values < 0:
            raise ValueError("a page of a negative size")
        yield header[2], num_values, length + header[3]
        seen += num_values
        at += length + header[3]


def _page_header(file: BinaryIO) -> tuple[dict[int, Any], int]:
    """The header of the page at the file's position, and its length."""
    data = file.read(HEADER_BYTES)
    try:
        return _struct(data, 0)
    except IndexError:
        return _struct(data + file.read(MAX_HEADER_BYTES), 0)


# ---- Thrift's compact protocol


def _struct(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """The values of a struct by the numbers of their fields, and its end."""
    fields: dict[int, Any] = {}
    number = 0
    if depth > MAX_NESTING:
        raise ValueError("nested too deeply")
    while head := data[at]:
        if step := head >> 4:
            number, at = number + step, at + 1
        else:
            number, at = _number(data, at + 1)
        if head & 15 <= 2:
            fields[number] = head & 15 == 1
        else:
            fields[number], at = _value(data, at, head & 15, depth)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (4, 5, 6):
        return _number(data, at)
    if kind == 8:
        size, at = _varint(data, at)
        if at + size > len(data):
            raise IndexError
        return data[at : at + size], at + size
    if kind == 12:
        return _struct(data, at, depth + 1)
    if kind in (9, 10):
        return _list(data, at, depth)
    size = {1: 1, 2: 1, 3: 1, 7: 8}[kind]  # truth values in a list, a byte, a double
    return data[at : at + size], at + size


def _list(data: bytes, at: int, depth: int) -> tuple[list[Any], int]:
    head = data[at]
    size, at = (head >> 4, at + 1) if head >> 4 < 15 else _varint(data, at + 1)
    if size > len(data) - at:  # each value has a byte
        raise IndexError
    values = []
    for _ in range(size):
        value, at = _value(data, at, head & 15, depth)
        values.append(value)
    return values, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while (byte := data[at]) & 128:
        number, shift, at = number | (byte & 127) << shift, shift + 7, at + 1
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
    return number | byte << shift, at + 1


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A signed number, whose lowest bit is its sign."""
    number, at = _varint(data, at)
    return number >> 1 ^ -(number & 1), at
