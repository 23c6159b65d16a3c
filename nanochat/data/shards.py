"""Parquet shards and compressed files: atomic writes, verified reads. The only user of pyarrow."""

import io
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nanochat import paths
from nanochat.data.parquet_pages import PageSizes, check_footer, page_sizes
from nanochat.errors import UserError, one_line

ROW_GROUP_ROWS = 1024  # as in fineweb-edu's shards
ROW_GROUP_CHARACTERS = 8_000_000  # keeps a row group of long texts small
BATCH_ROWS = 256  # read at a time; what the loader encodes at once
BATCH_BYTES = 64_000_000  # of texts in memory at a time, unless a single one is longer
BUFFER_BYTES = 1 << 20  # without a buffer a row group is read at once, and may be 1 GB elsewhere
MAX_TEXT_BYTES = 50_000_000  # of one text: dozens of books, up to 200 MB as Python stores it
READ_OPTIONS: dict[str, Any] = {
    "buffer_size": BUFFER_BYTES, "pre_buffer": False, "page_checksum_verification": True,
}  # fmt: skip
# Text compresses 3 to 10 times, logs up to 90 by gzip -9 and 270 by zstd -19, one letter 1,000
# times. What exceeds both limits would fill the disk.
MAX_EXPANSION = {"gzip": 200, "zstd": 500}
MAX_EXPANDED_BYTES = 1_000_000_000
# What may be in memory at once, as questions, conversations and lines. Short conversations that are
# not compressed take 10 times their size, long ones 3 times.
MAX_MEMORY_BYTES = 700_000_000
MEMORY_PER_BYTE = 12  # of the file, in addition
VALUE_BYTES = 200  # a dictionary with one key has 184
WIDE_BYTES = 4  # per byte of a text that is mostly ASCII but has an emoji
COMPRESSED = re.compile(rb"(?P<gzip>\x1f\x8b)|(?P<zstd>\(\xb5/\xfd|[P-_]\*M\x18)")  # how it starts
DAMAGE = (pa.ArrowException, UnicodeError, OSError)  # what pyarrow raises on damaged bytes


# ---- write


def write_shard(path: Path, texts: Iterable[str]) -> None:
    """Write a parquet shard: row groups of at most 1,024 texts, zstd, a checksum per page."""
    schema = pa.schema([("text", pa.string())])
    with paths.atomic_file(path) as file:
        options = {"compression": "zstd", "write_page_checksum": True}
        with pq.ParquetWriter(file, schema, **options) as writer:
            for group in group_texts(texts, ROW_GROUP_CHARACTERS, ROW_GROUP_ROWS):
                writer.write_table(pa.table({"text": group}, schema=schema))


def group_texts(
    texts: Iterable[str], max_characters: int, max_texts: int = -1
) -> Iterator[list[str]]:
    """Consecutive texts in lists; a list is closed once it reaches a limit (-1: no limit)."""
    group: list[str] = []
    characters = 0
    for text in texts:
        group.append(text)
        characters += len(text)
        if characters >= max_characters or len(group) == max_texts:
            yield group
            group, characters = [], 0
    if group:
        yield group


# ---- read parquet


def open_parquet(path: Path) -> pq.ParquetFile:
    """A parquet file with one column `text`. Raises UserError if it is damaged or has none."""
    try:
        check_footer(path)
        file = pq.ParquetFile(path, **READ_OPTIONS)
        schema = file.schema_arrow
    except DAMAGE as error:
        raise_unreadable(path, error)
        raise UserError(f"{path} is damaged or not parquet; restore or download it again") from None
    if "text" not in (names := schema.names):
        raise UserError(f'{path} has columns {", ".join(names)} but none named "text"; rename one')
    if schema.names.count("text") > 1:
        raise UserError(f'{path} has {schema.names.count("text")} columns named "text"; keep one')
    column_type = schema.field("text").type
    if pa.types.is_dictionary(column_type):
        column_type = column_type.value_type
    if not any(is_kind(column_type) for is_kind in STRING_TYPES):
        raise UserError(f'{path}: the column "text" holds {column_type}, not strings; convert it')
    # Checksums cover the pages but not the footer: compare its two row counts.
    if _group_starts(file)[-1] != file.metadata.num_rows:
        raise UserError(f"{path} is damaged: row counts differ; restore or download it again")
    return file


def text_bytes(path: Path) -> int:
    """Size of a shard's texts, as its footer states it: with a few bytes for each row."""
    metadata = open_parquet(path).metadata
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    return sum(c.total_uncompressed_size for c in columns if c.path_in_schema == "text")


STRING_TYPES = (
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary,
    pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_null,
)  # fmt: skip


def _group_starts(file: pq.ParquetFile) -> list[int]:
    """Number of the first row of each row group, and the number of rows."""
    groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
    return [0, *accumulate(group.num_rows for group in groups)]


def raise_unreadable(path: Path, error: BaseException) -> None:
    """Raises UserError if a file could not be opened, for a reason that says what to do."""
    if isinstance(error, UnicodeEncodeError):
        raise UserError(f"{path} has a name that is not UTF-8; rename it") from None
    if isinstance(error, FileNotFoundError):
        raise UserError(f"{path} does not exist") from None
    if isinstance(error, PermissionError):
        raise UserError(f"no permission to read {path}; allow it, as with chmod +r") from None


def _remedy(path: Path) -> str:
    if path.is_relative_to(paths.base_dir()):
        return "remove it and run python -m nanochat.dataset again"
    return "restore it, then run python -m nanochat.dataset --source PATH again"


def text_batches(
    path: Path,
    first: int = 0,
    on_replaced: Callable[[int], None] | None = None,
) -> Iterator[pa.Array]:
    """Texts from number `first` on, in small Arrow arrays of valid UTF-8, null where missing.

    on_replaced: called with the number of each text in which U+FFFD replaces invalid UTF-8.
    Raises UserError at a damaged row group and at a text beyond MAX_TEXT_BYTES.
    """
    file = open_parquet(path)
    starts = _group_starts(file)
    group = max(0, sum(start <= first for start in starts) - 1)
    if group >= file.metadata.num_row_groups:
        return
    sizes, row = _page_sizes(path, "text"), starts[group]
    if sizes.largest_value > MAX_TEXT_BYTES:
        raise too_long(f"{path}: a text")
    # All row groups at once: opening each costs milliseconds, and some files have one per row. Not
    # read_row_groups: other programs write a row group of the size of the file.
    batches = file.iter_batches(
        _rows_of(sizes),
        row_groups=range(group, file.metadata.num_row_groups),
        columns=["text"],
    )
    try:
        for batch in batches:
            for part in _bounded_slices(batch.column(0), path, row):
                yield _valid_text(part, row, on_replaced)[max(0, first - row) :]
                row += len(part)
        if row != starts[-1]:  # no checksum covers the number of rows
            raise pa.ArrowInvalid(f"{starts[-1] - row} texts are missing")
    except DAMAGE as error:
        group = sum(start <= row for start in starts) - 1
        raise UserError(
            f"{path} is damaged in row group {group} ({one_line(error)}); {_remedy(path)}"
        ) from None


def _page_sizes(path: Path, column: str = "") -> PageSizes:
    """`page_sizes`, with a UserError if the file is damaged."""
    try:
        return page_sizes(path, column)
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}); {_remedy(path)}") from None


def _rows_of(sizes: PageSizes) -> int:
    """Rows to read at a time, fewer where texts are long, or may be repeated from a dictionary."""
    largest = sizes.largest_value
    if sizes.largest_dictionary * BATCH_ROWS > MAX_EXPANDED_BYTES / 2:
        largest = max(largest, sizes.largest_dictionary)  # as if it were of a single text
    return max(1, min(BATCH_ROWS, BATCH_BYTES // largest))


def rows_at_a_time(path: Path) -> int:
    """How many rows can be read at a time, at most BATCH_ROWS: fewer where texts are long."""
    return _rows_of(_page_sizes(path, "text"))


def too_long(where: str) -> UserError:
    return UserError(f"{where} is longer than the limit of {MAX_TEXT_BYTES // 10**6} MB; divide it")


def _bounded_slices(array: pa.Array, path: Path, row: int) -> Iterator[pa.Array]:
    """Parts of an array whose texts have at most BATCH_BYTES, or one text each."""
    lengths = _lengths(array)
    first, size = 0, 0
    if (pc.sum(lengths).as_py() or 0) > BATCH_BYTES:
        for number, length in enumerate(lengths.fill_null(0).to_pylist()):
            if length > MAX_TEXT_BYTES:
                raise too_long(f"{path}: the text of row {row + number}")
            if number > first and size + length > BATCH_BYTES:
                yield array[first:number]
                first, size = number, 0
            size += length
    yield array[first:]


def _lengths(array: pa.Array) -> pa.Array:
    """Bytes of each text of an array, which may have a dictionary."""
    if pa.types.is_dictionary(array.type):
        return _lengths(array.dictionary).take(array.indices)
    return pc.binary_length(array.cast(pa.large_binary()))


def _valid_text(array: pa.Array, row: int, on_replaced: Callable[[int], None] | None) -> pa.Array:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    array = array.cast(pa.large_binary())
    try:
        return array.cast(pa.large_string())  # validates, without a copy
    except pa.ArrowInvalid:
        texts = []
        for number, value in enumerate(array.to_pylist(), start=row):
            text = None if value is None else value.decode("utf-8", "replace")
            if on_replaced is not None and text is not None and text.encode() != value:
                on_replaced(number)
            texts.append(text)
        return pa.array(texts, pa.large_string())


def parquet_texts(
    path: Path, on_replaced: Callable[[int], None] | None = None
) -> Iterator[str | None]:
    """The texts of a parquet file. Raises UserError as `text_batches`, and on too much text."""
    limit, num_bytes = max(MAX_EXPANDED_BYTES, MAX_EXPANSION["zstd"] * path.stat().st_size), 0
    for batch in text_batches(path, 0, on_replaced):
        if (num_bytes := num_bytes + batch.nbytes) > limit:
            raise _expands(path, limit, path.stat().st_size)
        yield from batch.to_pylist()


def _expands(path: Path | str, num_bytes: int, packed: int) -> UserError:
    return UserError(
        f"{path} expands to more than {num_bytes / 1e9:,.1f} GB from {packed / 1e6:,.1f} MB, over"
        f" {num_bytes // max(1, packed):,} times as much; this is no text, or the same text again"
        " and again: leave it out"
    )


class Documents:
    """The texts of all shards in order: iterate, or slice. Slices in order are read only once.

    Memory is bounded by one batch of texts. Not thread-safe.
    """

    def __init__(self, shards: list[Path]) -> None:
        """Raises UserError if there is no shard, no text, or a damaged shard."""
        if not shards:
            raise UserError("no shard to read; run python -m nanochat.dataset first")
        self.shards = shards
        sizes = [open_parquet(path).metadata.num_rows for path in shards]
        self.starts = [0, *accumulate(sizes)]  # index of each shard's first text, and their number
        if not len(self):
            raise UserError(f"{', '.join(map(str, shards[:3]))}: no documents")
        self.position = -1  # index of the next text of `rest` and `batches`; -1: to be opened
        self.rest = pa.array([], pa.large_string())
        self.batches: Iterator[pa.Array] = iter(())

    def __len__(self) -> int:
        return self.starts[-1]

    def __iter__(self) -> Iterator[str]:
        for path in self.shards:
            for batch in text_batches(path):
                yield from (text or "" for text in batch.to_pylist())

    def __getitem__(self, indices: slice) -> Any:
        """An Arrow array of texts, null where missing; the step of the slice is 1."""
        first, end, _ = indices.indices(len(self))
        if first != self.position:
            self.rest, self.batches = self.rest[:0], self._batches_from(first)
        self.position = -1  # open again after an error
        pieces, missing = [], end - first
        while missing > 0:
            self.rest = self.rest if len(self.rest) else next(self.batches)
            pieces.append(self.rest[:missing])
            self.rest = self.rest[missing:]
            missing -= len(pieces[-1])
        self.position = max(first, end)
        return pa.chunked_array(pieces, pa.large_string())

    def _batches_from(self, first: int) -> Iterator[pa.Array]:
        for path, start, end in zip(self.shards, self.starts, self.starts[1:], strict=False):
            if end > first:  # else not even opened
                yield from text_batches(path, max(0, first - start))


# ---- other files


class _Decompressed(io.RawIOBase):
    """Bytes of a file that may be compressed, as many as are plausible for what was read of it."""

    def __init__(self, file: io.BufferedReader, packing: str | None, limit: int) -> None:
        self.file, self.limit, self.count = file, limit, 0
        self.times = MAX_EXPANSION.get(packing or "", 1)
        # Unlike zlib, Arrow reads all frames of a file and detects a truncated one.
        self.stream = pa.input_stream(file, compression=packing)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.stream.read(len(buffer))
        self.count += len(data)
        packed = self.file.tell()  # so that a bomb is refused before it is read to its end
        if self.count > (self.limit or max(MAX_EXPANDED_BYTES, self.times * packed)):
            raise _expands(self.file.name, self.count, packed)
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def open_binary(path: Path, limit: int = 0) -> Iterator[io.BufferedReader]:
    """The content of a file, without gzip or zstd. UserError if forbidden, or beyond `limit` bytes.

    limit: 0 for what is plausible when it is read in parts. Other errors are OSError.
    """
    try:
        with path.open("rb") as file:
            # Not by its name: browsers unpack what they download and keep the name.
            match = COMPRESSED.match(file.peek(4))
            content = _Decompressed(file, match and match.lastgroup, limit)
            yield io.BufferedReader(content, BUFFER_BYTES)
    except OSError as error:
        raise_unreadable(path, error)
        if "too much memory" in str(error):  # of zstd
            raise UserError(
                f"{path} is compressed with a window above 128 MB; compress it again and import the"
                f" folder: zstd -d --long=31 -c {path} | zstd -o FOLDER/{path.name}"
            ) from None
        raise


def max_memory_bytes(path: Path) -> int:
    """Bytes that the content of a file may take when it is in memory at once."""
    return MAX_MEMORY_BYTES + MEMORY_PER_BYTE * path.stat().st_size


def require_memory(where: str, num_bytes: int, limit: int) -> None:
    """Raises UserError if something takes more bytes of memory than the limit."""
    if num_bytes > limit:
        raise UserError(f"{where} would take more than {limit / 1e9:,.1f} GB of memory; divide it")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a parquet file. Raises UserError if it is damaged or far larger in memory."""
    rows: list[dict[str, Any]] = []
    try:
        check_footer(path)
        metadata, limit = pq.read_metadata(path), max_memory_bytes(path)
        sizes = _page_sizes(path)
        used = VALUE_BYTES * sizes.num_values
        require_memory(str(path), used + WIDE_BYTES * sizes.total, limit)
        columns = map(metadata.schema.column, range(metadata.num_columns))
        # As dictionaries: else pyarrow repeats a text for each of a million items of a list.
        texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
        file = pq.ParquetFile(path, metadata=metadata, read_dictionary=texts, **READ_OPTIONS)
        groups = range(metadata.num_row_groups)  # each has dictionaries of its own
        for batch in chain.from_iterable(file.iter_batches(_rows_of(sizes), [n]) for n in groups):
            used += WIDE_BYTES * sum(map(_expanded_bytes, batch.columns))
            require_memory(str(path), used, limit)
            rows += batch.to_pylist()
        if len(rows) != metadata.num_rows:
            raise pa.ArrowInvalid("another number of rows")
    except DAMAGE as error:
        raise_unreadable(path, error)
        raise UserError(f"{path} is damaged; {_remedy(path)}") from None
    return rows


def _expanded_bytes(array: pa.Array) -> int:
    """Size of the values with each text as often as it occurs."""
    match array:
        case pa.DictionaryArray():
            return pc.sum(_lengths(array)).as_py() or 0
        case pa.MapArray():
            return _expanded_bytes(array.keys) + _expanded_bytes(array.items)
        case pa.StructArray():
            return sum(map(_expanded_bytes, array.flatten()))
        case pa.ListArray() | pa.LargeListArray() | pa.FixedSizeListArray():
            return _expanded_bytes(array.flatten())
    return int(array.nbytes)
