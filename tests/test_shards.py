import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.data import shards
from nanochat.data.shards import Documents, write_shard
from nanochat.dataloader import EncodedTexts
from nanochat.errors import UserError
from nanochat.tokenizer import RustBPETokenizer

TEXTS = [
    f"Document {number} is about the number {number * 7}. Grün, 日本語, 🦊."
    for number in range(300)
]


def write_parquet(path: Path, texts: Any, **options: Any) -> None:
    pq.write_table(pa.table({"text": texts}), path, **options)


def test_documents_are_numbered_through_all_shards(tmp_path: Path) -> None:
    bounds = [0, 1, 1, 150, 300]
    files = [tmp_path / f"{i}.parquet" for i in range(4)]
    for path, first, last in zip(files, bounds, bounds[1:], strict=False):
        write_parquet(path, pa.array(TEXTS[first:last], pa.string()), row_group_size=64)
    documents = Documents(files)
    indices = list(range(300))
    random.Random(3).shuffle(indices)
    assert len(documents) == 300
    assert [documents[i] for i in indices] == [TEXTS[i] for i in indices]
    for index in (-1, 300):
        with pytest.raises(IndexError):
            documents[index]
    for first, end in ((0, 300), (10, 10), (63, 66), (149, 400), (290, None)):
        assert documents[first:end].to_pylist() == TEXTS[first:end]


def test_no_shard_and_no_document_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shard"):
        Documents([])
    write_parquet(tmp_path / "a.parquet", pa.array([], pa.string()))
    with pytest.raises(UserError, match="no documents"):
        Documents([tmp_path / "a.parquet"])


def test_a_null_text_is_an_empty_document(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", ["a", None, "b"])
    documents = Documents([tmp_path / "a.parquet"])
    assert [documents[i] for i in range(3)] == ["a", "", "b"]
    tokenizer = RustBPETokenizer({bytes([byte]): byte for byte in range(256)})
    source = EncodedTexts(documents, tokenizer)
    assert [bytes(list(source.tokens(i))) for i in range(3)] == [b"a", b"", b"b"]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
)
def test_every_string_type_of_a_column_is_read(tmp_path: Path, kind: Any) -> None:
    write_parquet(tmp_path / "a.parquet", pa.array(["a", "b", "a"]).cast(kind))
    documents = Documents([tmp_path / "a.parquet"])
    assert [documents[i] for i in range(3)] == documents[:].to_pylist() == ["a", "b", "a"]


def test_every_flipped_bit_is_detected_or_leaves_the_text_unchanged(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.parquet"
    texts = TEXTS[:20]
    write_shard(path, texts)
    original = path.read_bytes()
    footer = len(original) - 8 - int.from_bytes(original[-8:-4], "little")  # its first byte
    pages = random.Random(4).sample(range(8 * footer), 150)
    num_silent, messages = 0, set()
    for bit in (*pages, *range(8 * footer, 8 * len(original))):
        content = bytearray(original)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        try:
            documents = Documents([path])
            num_silent += documents[:].to_pylist() != texts
            num_silent += list(shards.parquet_texts(path)) != texts
        except UserError as error:
            messages.add(str(error))
    assert num_silent == 0
    assert messages and all("a.parquet" in m and "\n" not in m for m in messages)


def test_row_groups_are_bounded_in_rows_and_in_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "ROW_GROUP_CHARACTERS", 6000)
    texts = ["x" * 3000, "y" * 3000, "z" * 20_000, *["abc"] * 2000]
    write_shard(tmp_path / "a.parquet", texts)
    metadata = pq.ParquetFile(tmp_path / "a.parquet").metadata
    rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert rows == [2, 1, 1024, 976]
    documents = Documents([tmp_path / "a.parquet"])
    assert [documents[i] for i in range(len(documents))] == texts


def counted_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    read: list[int] = []
    original = Documents._read

    def counting(path: Path, group: int) -> Any:
        read.append(group)
        return original(path, group)

    monkeypatch.setattr(Documents, "_read", staticmethod(counting))
    return read


def test_row_groups_are_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "a.parquet", TEXTS, row_group_size=10)
    read = counted_reads(monkeypatch)
    documents = Documents([tmp_path / "a.parquet"])
    for start in range(30):
        for index in range(start, 300, 30):
            documents[index]
    assert sorted(read) == list(range(30))


def test_cached_row_groups_are_bounded_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "a.parquet", TEXTS, row_group_size=10)
    monkeypatch.setattr(shards, "CACHED_BYTES", 2000)
    documents = Documents([tmp_path / "a.parquet"])
    assert [documents[i] for i in range(300)] == TEXTS
    assert 1 <= len(documents.cache) < 5 and documents.cached_bytes <= 2000
    assert documents.cached_bytes == sum(column.nbytes for column in documents.cache.values())


def test_memory_is_bounded_on_a_shard_larger_than_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "CACHED_BYTES", 1_000_000)
    noise = random.Random(5)
    write_shard(tmp_path / "a.parquet", (noise.randbytes(1000).hex() for _ in range(10_000)))
    documents = Documents([tmp_path / "a.parquet"])
    before = pa.total_allocated_bytes()
    highest = 0
    for index in range(0, 10_000, 50):
        documents[index]
        highest = max(highest, pa.total_allocated_bytes() - before)
    assert highest < 8_000_000  # of 20 MB of text


def test_rows_of_json_lines_and_parquet_are_equal(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:3])
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    write_parquet(tmp_path / "a.parquet", TEXTS[:3])
    assert shards.read_rows(tmp_path / "a.jsonl") == shards.read_rows(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="damaged"):
        shards.read_rows(tmp_path / "a.parquet")
