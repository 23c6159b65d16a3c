"""Parquet shards and JSON lines: atomic writes, verified reads. The only module with pyarrow."""

import errno
import io
import json
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat import paths
from nanochat.errors import UserError

ROW_GROUP_ROWS = 1024  # as in fineweb-edu's shards
ROW_GROUP_CHARACTERS = 8_000_000  # keeps a row group of long texts small
BATCH_ROWS = 256  # read at a time; what the loader encodes at once
BUFFER_BYTES = 1 << 20  # without a buffer a row group is read at once, and may be 1 GB elsewhere
DAMAGE = (pa.ArrowException, UnicodeDecodeError, OSError)  # what pyarrow raises on damaged bytes


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


def open_parquet(path: Path) -> pq.ParquetFile:
    """A parquet file with a column `text`. Raises UserError if it is damaged or has none."""
    try:
        file = pq.ParquetFile(
            path, buffer_size=BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
        )
        schema = file.schema_arrow
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno == errno.ENOENT:
            raise UserError(f"{path} does not exist") from None
        raise UserError(f"{path} is damaged or not parquet; download it again") from None
    if "text" not in schema.names:
        names = ", ".join(schema.names)
        raise UserError(f'{path} has columns {names} but none named "text"; rename one')
    column_type = schema.field("text").type
    if pa.types.is_dictionary(column_type):
        column_type = column_type.value_type
    if not (pa.types.is_string(column_type) or pa.types.is_large_string(column_type)):
        raise UserError(f'{path}: the column "text" holds {column_type}, not strings; convert it')
    # Checksums cover the pages but not the footer: compare its two row counts.
    groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
    if sum(group.num_rows for group in groups) != file.metadata.num_rows:
        raise UserError(f"{path} is damaged: row counts differ; download it again")
    return file


def text_batches(path: Path, first: int = 0) -> Iterator[pa.Array]:
    """Texts from number `first` on, in small Arrow arrays. UserError at a damaged row group."""
    file = open_parquet(path)
    for group in range(file.metadata.num_row_groups):
        unread = file.metadata.row_group(group).num_rows
        if first >= unread:
            first -= unread
            continue
        try:
            # Not read_row_group: other programs write a row group of the size of the file.
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=["text"]):
                unread -= len(batch)
                yield batch.column(0).cast(pa.large_string())[first:]
                first = max(0, first - len(batch))
            if unread:  # no checksum covers the number of rows
                raise pa.ArrowInvalid(f"{unread} texts are missing")
        except DAMAGE as error:
            raise UserError(
                f"{path} is damaged in row group {group} ({_one_line(error)}); download it again,"
                " or remove it and run python -m nanochat.dataset again"
            ) from None


def parquet_texts(path: Path) -> Iterator[str]:
    """The texts of a shard, "" where null. Raises UserError if it is damaged."""
    for batch in text_batches(path):
        yield from (text or "" for text in batch.to_pylist())


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
            yield from parquet_texts(path)

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


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) of each non-blank line. Raises UserError naming file:line."""
    compression = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix.lower())
    number = 0
    try:
        # Unlike zlib, Arrow reads all frames of a file and detects a truncated one.
        with pa.input_stream(path, compression=compression) as stream:
            for number, line in enumerate(io.BufferedReader(stream), start=1):
                if line.strip():
                    yield number, json.loads(line)
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(
            f"{path}:{number}: {_one_line(error)}; each line must be one JSON value in UTF-8"
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a parquet or JSON lines file. Raises UserError if it is damaged."""
    if path.suffix == ".parquet":
        try:
            rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        except DAMAGE:
            raise UserError(f"{path} is damaged; remove it to download it again") from None
        return rows
    return [row for _, row in json_lines(path)]
