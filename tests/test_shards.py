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
    assert len(documents) == 300 and list(documents) == TEXTS
    slices = [(0, 300), (10, 10), (63, 66), (66, 70), (70, 60), (60, 62), (149, 400), (300, 301)]
    slices += [(index, index + 1) for index in random.Random(3).sample(range(300), 300)]
    for first, end in slices:
        assert documents[first:end].to_pylist() == TEXTS[first:end]


def test_slices_in_order_open_each_shard_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / f"{i}.parquet" for i in range(3)]
    for number, path in enumerate(files):
        write_parquet(path, TEXTS[100 * number : 100 * (number + 1)], row_group_size=30)
    documents = Documents(files)
    opened = []
    text_batches = shards.text_batches

    def recorded(path: Path, first: int = 0) -> Any:
        opened.append((path, first))
        return text_batches(path, first)

    monkeypatch.setattr(shards, "text_batches", recorded)
    found = [
        text for first in range(110, 300, 7) for text in documents[first : first + 7].to_pylist()
    ]
    assert found == TEXTS[110:]
    assert opened == [(files[1], 10), (files[2], 0)]


def test_a_shard_is_read_again_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, TEXTS)
    documents = Documents([path])
    content = path.read_bytes()
    path.write_bytes(b"damaged")
    for _ in range(2):
        with pytest.raises(UserError, match="damaged"):
            documents[0:1]
    path.write_bytes(content)
    assert documents[0:1].to_pylist() == TEXTS[:1]


def test_no_shard_and_no_document_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shard"):
        Documents([])
    write_parquet(tmp_path / "a.parquet", pa.array([], pa.string()))
    with pytest.raises(UserError, match="no documents"):
        Documents([tmp_path / "a.parquet"])


def test_a_null_text_is_an_empty_document(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", ["a", None, "b"])
    documents = Documents([tmp_path / "a.parquet"])
    assert list(documents) == ["a", "", "b"] and documents[:].to_pylist() == ["a", None, "b"]
    tokenizer = RustBPETokenizer({bytes([byte]): byte for byte in range(256)})
    ids, ends = EncodedTexts(documents, tokenizer).encode(3)
    assert bytes(ids.tolist()) == b"ab" and ends.tolist() == [1, 1, 2]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
)
def test_every_string_type_of_a_column_is_read(tmp_path: Path, kind: Any) -> None:
    write_parquet(tmp_path / "a.parquet", pa.array(["a", "b", "a"]).cast(kind))
    documents = Documents([tmp_path / "a.parquet"])
    assert list(documents) == documents[:].to_pylist() == ["a", "b", "a"]


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
    assert list(Documents([tmp_path / "a.parquet"])) == texts


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_memory_is_bounded_on_a_shard_with_one_large_row_group(
    tmp_path: Path, compression: str
) -> None:
    noise = random.Random(5)
    texts = [noise.randbytes(1000).hex() for _ in range(10_000)]
    write_parquet(tmp_path / "a.parquet", texts, compression=compression, row_group_size=10_000)
    documents = Documents([tmp_path / "a.parquet"])
    before = pa.total_allocated_bytes()
    highest = 0
    for index in range(0, 10_000, 50):
        documents[index : index + 50]
        highest = max(highest, pa.total_allocated_bytes() - before)
    assert highest < 6_000_000  # of 20 MB of text


def test_rows_of_a_parquet_file_are_read_and_damage_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", TEXTS[:3])
    assert shards.read_rows(tmp_path / "a.parquet") == [{"text": text} for text in TEXTS[:3]]
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="damaged"):
        shards.read_rows(tmp_path / "a.parquet")
