"""Memory bombs: small or malformed files whose content would fill the memory.

Each is read by the function that the commands use, in a process of its own whose peak is measured;
a limit on its address space keeps a bomb that works from taking the machine along.
"""

import gzip
import io
import json
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dev.faults.outcome import Group, Outcome, Setting
from nanochat.tokenizer import FORMAT, FORMAT_VERSION, SPECIAL_TOKENS, SPLIT_PATTERN, _digest

GIGABYTE = 1_000_000_000
SPACE_BYTES = 24 * GIGABYTE  # of addresses, of which torch and pyarrow reserve many
MAX_CPU_SECONDS = 100  # reading a gigabyte of text takes half a minute
MAX_SECONDS = 1200.0  # on a machine that does other things, too
# What reads each kind of file; prints one line when it is a UserError.
READERS = {
    "documents": "from nanochat.data.shards import Documents; [None for _ in Documents([path])]",
    "rows": "from nanochat.data.shards import read_rows; read_rows(path)",
    "import": (
        "from nanochat.data import text_files, text_import as t; import tempfile;"
        " t.write_corpus(t.read_corpus(text_files.find_files(path)), Path(tempfile.mkdtemp()))"
    ),
    "conversations": "from tasks.customjson import CustomJSON; CustomJSON(str(path))",
    "tokenizer": (
        "from nanochat.tokenizer import RustBPETokenizer as T;"
        " T.from_directory(path.parent).encode('ab')"
    ),
    "huggingface": "from nanochat.tokenizer import RustBPETokenizer as T; T.from_huggingface(path)",
    "tiktoken": "from nanochat.tokenizer import RustBPETokenizer as T; T.from_tiktoken(path)",
    "model": "from nanochat.checkpoint_manager.tensor_files import read; read(path)",
    "bundle": (
        "from nanochat.data.eval_bundle import unpack, read_definitions;"
        " unpack(path, path.parent / 'unpacked'); read_definitions(path.parent / 'unpacked')"
    ),
}
PROGRAM = """
import resource, sys
from pathlib import Path
from nanochat.errors import UserError
import nanochat.tokenizer, nanochat.data.text_import, nanochat.data.eval_bundle, tasks.customjson
path = Path(sys.argv[1])
def peak():  # ru_maxrss would start with that of the parent
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
before = peak()
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[3]),) * 2)
try:
    READ
    print("read")
except UserError as error:
    print("refused:", error)
print(1024 * (peak() - before))
"""


def _parquet(path: Path, texts: list[str], **options: Any) -> None:
    pq.write_table(pa.table({"text": texts}), path, compression="zstd", **options)


def _dictionary(path: Path, length: int, rows: int) -> None:
    values = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(rows, np.int32)), pa.array(["x" * length])
    )
    pq.write_table(pa.table({"text": values}), path, compression="zstd")


def _nested_dictionary(path: Path, length: int, count: int) -> None:
    """One row: a list that has the same text many times."""
    texts = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(count, np.int32)), pa.array(["x" * length])
    )
    lists = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), texts)
    pq.write_table(pa.table({"messages": lists}), path, compression="zstd", store_schema=False)


def _nulls(path: Path, count: int) -> None:
    table = pa.table({"text": pa.nulls(count, pa.string())})
    pq.write_table(table, path, compression="zstd", row_group_size=count)


def _gzip_of(path: Path, start: bytes, block: bytes, count: int, end: bytes = b"") -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(start)
        for _ in range(count):
            file.write(block)
        file.write(end)


def _zstd_of(path: Path, block: bytes, count: int) -> None:
    with pa.output_stream(path, compression="zstd") as file:
        for _ in range(count):
            file.write(block)


def _plain(path: Path, start: bytes, block: bytes, count: int, end: bytes = b"") -> None:
    with path.open("wb") as file:
        file.write(start)
        for _ in range(count):
            file.write(block)
        file.write(end)


def _zip(path: Path, names: list[str], size: int) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            with archive.open(name, "w", force_zip64=True) as file:
                for _ in range(size // 1_000_000):
                    file.write(b" " * 1_000_000)


def _compressed_model(path: Path, megabytes: int) -> None:
    """A file of weights that are all 0, compressed."""
    stream = io.BytesIO()
    torch.save({"weight": torch.zeros(17)}, stream)
    number = b"J" + struct.pack("<i", megabytes * 250_000)
    with (
        zipfile.ZipFile(stream) as small,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as large,
    ):
        for name in small.namelist():
            content = small.read(name)
            with large.open(name, "w", force_zip64=True) as file:
                if name.endswith("/data/0"):
                    for _ in range(megabytes):
                        file.write(bytes(1_000_000))
                else:  # the pickle has the number of values twice
                    file.write(content.replace(b"K\x11", number))


def _shared_model(path: Path) -> None:
    """A file with one storage of 1 MB and 100,000 tensors that are views of it."""
    weight = torch.zeros(250_000)
    torch.save({f"{number}": weight for number in range(100_000)}, path)


def _varint(number: int, size: int = 0) -> bytes:
    """A number as Thrift's compact protocol has it, in `size` bytes if these are more."""
    number *= 2  # zigzag
    parts = [number >> 7 * at & 127 for at in range(max(1, size, -(-number.bit_length() // 7)))]
    return bytes(part | 128 for part in parts[:-1]) + bytes(parts[-1:])


def _stated_page(path: Path, stated: int, **options: Any) -> None:
    """A parquet file whose page states another size after decompression, instead of a checksum."""
    _parquet(path, ["some words of text"] * 50, write_page_checksum=True, **options)
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    first = column.dictionary_page_offset or column.data_page_offset
    data = path.read_bytes()
    # The page's kind, its sizes and its checksum, each a byte that names the field and a number.
    fields = re.match(rb"\x15([\x80-\xff]*.)" * 4, data[first:], re.DOTALL)
    assert fields is not None
    kind, _, compressed, _ = fields.groups()
    room = fields.end() - len(kind) - len(compressed) - 3
    header = b"\x15" + kind + b"\x15" + _varint(stated, room) + b"\x15" + compressed
    after = data[first + fields.end()]  # how many fields are skipped, and the type of the next
    path.write_bytes(data[:first] + header + bytes([after + 16]) + data[first + fields.end() + 1 :])


def understate_size(path: Path) -> None:
    """Change the footer of a parquet file: its column has 9,000 bytes."""
    group, data = pq.ParquetFile(path).metadata.row_group(0), path.read_bytes()
    first = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer = data[first:]
    for number in {group.total_byte_size, group.column(0).total_uncompressed_size}:
        size = len(_varint(number))
        footer = footer.replace(_varint(number), _varint(9000, size))
    path.write_bytes(data[:first] + footer)


def _understated(path: Path) -> None:
    _parquet(path, ["a", "x" * 1_200_000_000], use_dictionary=False)
    understate_size(path)


def _doubling_tokenizer(path: Path) -> None:
    """Each merge joins the token before it with itself."""
    content: dict[str, Any] = {
        "pattern": SPLIT_PATTERN, "special_tokens": list(SPECIAL_TOKENS),
        "merges": [[0, 0], *([n, n] for n in range(256, 300))],
    }  # fmt: skip
    head = {"format": FORMAT, "version": FORMAT_VERSION, "sha256": _digest(content)}
    path.write_text(json.dumps(head | content))


X = b"x" * 1_000_000
# By name: the file's name, its reader, and what makes it.
BOMBS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "parquet, a text of 1.2 GB": (
        "a.parquet", "documents", lambda p: _parquet(p, ["a", "x" * 1_200_000_000])),
    "parquet, a text of 1.2 GB as rows": (
        "a.parquet", "rows", lambda p: _parquet(p, ["a", "x" * 1_200_000_000])),
    "parquet, a dictionary of 1 MB 10,000 times": (
        "a.parquet", "documents", lambda p: _dictionary(p, 1_000_000, 10_000)),
    "parquet, a dictionary as rows": (
        "a.parquet", "rows", lambda p: _dictionary(p, 1_000_000, 10_000)),
    "parquet, a dictionary imported": (
        "a.parquet", "import", lambda p: _dictionary(p, 1_000_000, 10_000)),
    "parquet, a dictionary as conversations": (
        "a.parquet", "conversations", lambda p: _dictionary(p, 1_000_000, 10_000)),
    "parquet, 20 million nulls as rows": ("a.parquet", "rows", lambda p: _nulls(p, 20_000_000)),
    "parquet, a list of 10,000 times 1 MB, as rows": (
        "a.parquet", "rows", lambda p: _nested_dictionary(p, 1_000_000, 10_000)),
    "parquet, a list of 3 million short texts, as conversations": (
        "a.parquet", "conversations", lambda p: _nested_dictionary(p, 1, 3_000_000)),
    "gz of 180 MB of short conversations": ("a.jsonl.gz", "conversations", lambda p: _gzip_of(
        p, b"", b'{"prompt":"a","output":"b"}\n' * 10_000, 640)),
    "jsonl, a line of 500 MB": (
        "a.jsonl", "import", lambda p: _plain(p, b'{"text": "', X, 500, b'"}\n')),
    "jsonl, a line of 500 MB of lists": (
        "a.jsonl", "import", lambda p: _plain(p, b'{"text": [', b"[]," * 100_000, 1_700, b"1]}")),
    "jsonl, a line of 90 MB of lists": (
        "a.jsonl", "import", lambda p: _plain(p, b'{"text": [', b"[]," * 100_000, 300, b"1]}")),
    "json, a value of 90 MB of lists": (
        "a.json", "import", lambda p: _plain(p, b"[[", b"[]," * 100_000, 300, b"1]]")),
    "jsonl, conversations of 90 MB of lists": (
        "a.jsonl", "conversations", lambda p: _plain(p, b"[", b"[]," * 100_000, 300, b"1]\n")),
    "json, nested 200 million deep": (
        "a.json", "import", lambda p: _plain(p, b"", b"[" * 10**6, 200)),
    "gz of 10 GB": ("a.txt.gz", "import", lambda p: _gzip_of(p, b"", X, 10_000)),
    "gz of 4 GB in a line of JSON": (
        "a.jsonl.gz", "import", lambda p: _gzip_of(p, b'{"text": "', X, 4_000)),
    "gz of 4 GB as conversations": (
        "a.jsonl.gz", "conversations", lambda p: _gzip_of(p, b"[", X, 4_000)),
    "zst of 20 GB": ("a.txt.zst", "import", lambda p: _zstd_of(p, X, 20_000)),
    "zst of 20 GB as conversations": (
        "a.jsonl.zst", "conversations", lambda p: _zstd_of(p, X, 20_000)),
    "tokenizer, doubling merges": ("tokenizer.json", "tokenizer", _doubling_tokenizer),
    "tokenizer of 300 MB": (
        "tokenizer.json", "tokenizer", lambda p: _plain(p, b"[", b"[]," * 10**5, 1_000)),
    "tokenizer of 38 MB of lists": (
        "tokenizer.json", "huggingface", lambda p: _plain(p, b"[", b"[]," * 10**5, 126, b"1]")),
    "ranks of 300 MB": ("ranks", "tiktoken", lambda p: _plain(p, b"", b"YQ== 1\n" * 10**5, 430)),
    "model of 3 GB, compressed": ("a.pt", "model", lambda p: _compressed_model(p, 3_000)),
    "model of 100 GB that share one storage": ("a.pt", "model", _shared_model),
    "parquet, 1.2 GB that the footer states as 9 KB": ("a.parquet", "documents", _understated),
    "parquet, 1.2 GB that the footer states as 9 KB, as rows": ("a.parquet", "rows", _understated),
    "parquet, 300 times a text of 40 MB": (
        "a.parquet", "documents", lambda p: _dictionary(p, 40_000_000, 300)),
    "parquet, 300 times a text of 40 MB, as rows": (
        "a.parquet", "rows", lambda p: _dictionary(p, 40_000_000, 300)),
    "parquet, a page that states 2 GB": (
        "a.parquet", "documents", lambda p: _stated_page(p, 2**31 - 1)),
    "parquet, a page that states 2 GB, as rows": (
        "a.parquet", "rows", lambda p: _stated_page(p, 2**31 - 1)),
    "parquet, a page that states -1 byte": (
        "a.parquet", "documents", lambda p: _stated_page(p, -1, use_dictionary=False)),
    "bundle of 6 GB": (
        "bundle.zip", "bundle", lambda p: _zip(p, ["e/core.yaml", "e/a"], 10**9 * 3)),
    "bundle with a list of tasks of 1 GB": (
        "bundle.zip", "bundle", lambda p: _zip(p, ["eval_bundle/core.yaml"], 10**9)),
}  # fmt: skip


def read_bomb(path: Path, reader: str) -> tuple[str, int]:
    """(what was printed, bytes of memory that reading took) of a process that reads a file."""
    program = PROGRAM.replace("READ", READERS[reader])
    limits = [str(SPACE_BYTES), str(MAX_CPU_SECONDS)]
    command = [sys.executable, "-c", program, str(path), *limits]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MAX_SECONDS)
    except subprocess.TimeoutExpired:
        return f"no end after {MAX_SECONDS:.0f} s", 0
    lines = done.stdout.splitlines()
    if done.returncode or len(lines) != 2:
        return f"exit code {done.returncode}: {done.stderr[-300:]}", 0
    return lines[0], int(lines[1])


def memory_bombs(folder: Path, names: list[str]) -> Outcome:
    """Read each bomb: no more than 1 GB above the size of its file, and one line or its content."""
    outcome = Outcome("a memory bomb", "over 1 GB above the file's size, a traceback or a hang")
    refused, most = 0, 0
    for name in names:
        file, reader, make = BOMBS[name]
        path = folder / file
        folder.mkdir(parents=True, exist_ok=True)
        make(path)
        size = path.stat().st_size
        message, num_bytes = read_bomb(path, reader)
        outcome.tried += 1
        refused += message.startswith("refused")
        most = max(most, num_bytes - size)
        is_clean = message == "read" or message.startswith("refused")
        outcome.expect(is_clean, f"{name}: {message}")
        is_named = message == "read" or str(folder) in message
        outcome.expect(is_named, f"{name}: no file is named: {message}")
        outcome.expect(num_bytes - size < GIGABYTE, f"{name}: {num_bytes / 1e9:.2f} GB")
        path.unlink(missing_ok=True)
    outcome.facts |= {"refused": refused, "most bytes above the file": most}
    return outcome


QUICK = ["parquet, a text of 1.2 GB", "gz of 4 GB in a line of JSON", "tokenizer of 300 MB"]


def groups(setting: Setting) -> dict[str, Group]:
    """The memory bombs, by group."""
    names = list(BOMBS)[: setting.count(len(BOMBS), 0)] or QUICK
    return {"memory": lambda: [memory_bombs(setting.folder / "memory", names)]}
