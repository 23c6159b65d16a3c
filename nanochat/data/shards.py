"""Parquet shards and JSON lines: atomic writes, verified reads. The only module with pyarrow."""

import bisect
import errno
import io
import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, overload

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat import paths
from nanochat.errors import UserError

ROW_GROUP_ROWS = 1024  # as in fineweb-edu's shards
ROW_GROUP_CHARACTERS = 8_000_000  # keeps a row group of long texts small
MAX_ROW_GROUP_BYTES = 64_000_000  # a larger one is too slow to seek in
CACHED_BYTES = 256_000_000  # lanes drift apart and need more than one row group
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
        file = pq.ParquetFile(path, page_checksum_verification=True)
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


class Documents:
    """The texts of all shards by index, read one row group at a time. Not thread-safe."""

    def __init__(self, shards: list[Path]) -> None:
        """Raises UserError if there is no shard, no text, or a damaged shard."""
        if not shards:
            raise UserError("no shard to read; run python -m nanochat.dataset first")
        self.shards = shards
        self.groups: list[tuple[int, int]] = []  # (shard, row group)
        self.starts: list[int] = []  # index of the first document of each row group
        self.num_documents = 0
        for number, path in enumerate(shards):
            metadata = open_parquet(path).metadata
            for group in range(metadata.num_row_groups):
                self.groups.append((number, group))
                self.starts.append(self.num_documents)
                self.num_documents += metadata.row_group(group).num_rows
        if not self.num_documents:
            raise UserError(f"{', '.join(map(str, shards[:3]))}: no documents")
        self.cache: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self.cached_bytes = 0

    def __len__(self) -> int:
        return self.num_documents

    @overload
    def __getitem__(self, indices: int) -> str: ...

    @overload
    def __getitem__(self, indices: slice) -> Any: ...

    def __getitem__(self, indices: int | slice) -> Any:
        """A text. For a slice (of step 1): an Arrow array, in which missing texts are null."""
        if isinstance(indices, slice):
            first, end, _ = indices.indices(self.num_documents)
            return pa.chunked_array(self._pieces(first, end), pa.large_string())
        if not 0 <= indices < self.num_documents:
            raise IndexError(indices)
        group = self._group_of(indices)
        text = self._group(group)[indices - self.starts[group]].as_py()
        return "" if text is None else text

    def _group_of(self, index: int) -> int:
        return bisect.bisect_right(self.starts, index) - 1

    def _pieces(self, first: int, end: int) -> Iterator[pa.Array]:
        """Arrow arrays with the texts from `first` up to `end`."""
        while first < end:
            number = self._group_of(first)
            group = self._group(number)
            piece = group.slice(first - self.starts[number], end - first)
            yield from piece.chunks
            first += len(piece)

    def _group(self, number: int) -> pa.ChunkedArray:
        if number not in self.cache:
            shard, group = self.groups[number]
            self.cache[number] = self._read(self.shards[shard], group)
            self.cached_bytes += self.cache[number].nbytes
        self.cache.move_to_end(number)
        while self.cached_bytes > CACHED_BYTES and len(self.cache) > 1:
            _, oldest = self.cache.popitem(last=False)
            self.cached_bytes -= oldest.nbytes
        return self.cache[number]

    @staticmethod
    def _read(path: Path, group: int) -> pa.ChunkedArray:
        file = open_parquet(path)
        try:
            texts = file.read_row_group(group, columns=["text"]).column("text")
            if len(texts) != (rows := file.metadata.row_group(group).num_rows):
                raise pa.ArrowInvalid(f"{len(texts)} of {rows} texts")
            return texts.cast(pa.large_string())
        except DAMAGE as error:
            raise UserError(
                f"{path} is damaged in row group {group} ({_one_line(error)}); remove it and"
                " run python -m nanochat.dataset again"
            ) from None


def is_shard(path: Path) -> bool:
    """True if every row group of the parquet file is small enough for random access."""
    metadata = open_parquet(path).metadata
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    return all(group.total_byte_size <= MAX_ROW_GROUP_BYTES for group in groups)


def parquet_texts(file: Path) -> Iterator[str]:
    """The texts of a file, "" where null. Raises UserError if it is damaged."""
    parquet = open_parquet(file)
    missing = parquet.metadata.num_rows
    try:
        for batch in parquet.iter_batches(batch_size=ROW_GROUP_ROWS, columns=["text"]):
            missing -= len(batch)
            yield from (text or "" for text in batch.column(0).to_pylist())
        if missing:
            raise pa.ArrowInvalid(f"{missing} texts are missing")
    except DAMAGE as error:
        raise UserError(f"{file} is damaged ({_one_line(error)}); download it again") from None


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
