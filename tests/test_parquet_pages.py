from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dev.faults.memory import understate_size
from nanochat.data import parquet_pages, shards
from nanochat.data.parquet_pages import page_sizes
from nanochat.errors import UserError

TEXTS = [f"text {number} " * (number % 50) for number in range(3000)]


@pytest.mark.parametrize(
    "options",
    [
        {}, {"use_dictionary": False}, {"data_page_version": "2.0"}, {"data_page_size": 2_000},
        {"row_group_size": 700, "compression": "none"}, {"write_page_checksum": True},
        {"write_statistics": False}, {"write_page_index": True, "compression": "gzip"},
    ],
)  # fmt: skip
def test_sizes_are_those_that_the_footer_states(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [*TEXTS, None], "n": range(3001)}), path, **options)
    metadata = pq.ParquetFile(path).metadata
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    num_pages = 2 * len(TEXTS)
    stated = sum(group.total_byte_size for group in groups)  # headers included
    assert stated - 200 * num_pages < page_sizes(path).total < stated
    assert 0 < page_sizes(path, "text").total < page_sizes(path).total
    assert page_sizes(path, "none").total == 0


def test_the_largest_page_decides(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = ["short"] * 5_000 + ["x" * 3_000_000] * 3
    pq.write_table(pa.table({"text": texts}), path, use_dictionary=False, data_page_size=10_000,
                   write_batch_size=1)  # fmt: skip
    assert page_sizes(path).largest_value > 2_999_999
    pq.write_table(pa.table({"text": texts}), path)
    assert page_sizes(path).largest_dictionary > 3_000_000


def test_a_page_larger_than_its_footer_states_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_pages, "MAX_PAGE_BYTES", 500_000)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x" * 1_000_000]}), path, use_dictionary=False)
    understate_size(path)
    assert pq.ParquetFile(path).metadata.row_group(0).total_byte_size == 9000
    for read in (lambda: list(shards.Documents([path])), lambda: shards.read_rows(path)):
        with pytest.raises(UserError, match=r"a\.parquet has a page of 1 MB, over the limit"):
            read()


def test_many_values_of_few_bytes_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": pa.nulls(4_000_000, pa.string())})
    pq.write_table(table, path, row_group_size=4_000_000)
    assert page_sizes(path).num_values == 4_000_000
    with pytest.raises(UserError, match=r"would take more than 0\.7 GB of memory"):
        shards.read_rows(path)


@pytest.mark.parametrize("stores_schema", [True, False])
def test_a_text_that_a_list_repeats_is_refused_unread(tmp_path: Path, stores_schema: bool) -> None:
    path = tmp_path / "a.parquet"
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 2000), pa.array(["x" * 1_000_000]))
    lists = pa.ListArray.from_arrays(pa.array([0, 2000], pa.int32()), texts)
    pq.write_table(pa.table({"messages": lists}), path, store_schema=stores_schema)
    with pytest.raises(UserError, match="would take more than"):
        shards.read_rows(path)


def test_rows_of_any_type_are_those_of_pyarrow(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    long = "x" * 3000
    rows = [
        {"messages": [{"role": "user", "content": f"{n} {long}"}, None], "n": n, "bytes": b"\xff",
         "lists": [["x", None], [], None], "halves": [0.5], "null": None}
        for n in range(600)
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows)
    maps = pa.array([[("a", "b"), ("c", None)]] * 600, pa.map_(pa.string(), pa.string()))
    table = table.append_column("map", maps)
    for options in ({}, {"row_group_size": 100}, {"store_schema": False}):
        pq.write_table(table, path, **options)
        assert shards.read_rows(path) == pq.read_table(path).to_pylist()


def test_a_large_footer_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=10)
    assert len(shards.Documents([path])) == len(TEXTS)
    monkeypatch.setattr(parquet_pages, "MAX_FOOTER_BYTES", 10_000)
    for read in (lambda: shards.Documents([path]), lambda: shards.read_rows(path)):
        with pytest.raises(UserError, match=r"a\.parquet has a footer of 0\.\d MB, over the limit"):
            read()


def test_pages_that_are_named_many_times_are_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": TEXTS}), path)
    chunks = parquet_pages._column_chunks
    monkeypatch.setattr(parquet_pages, "_column_chunks", lambda *a: [*chunks(*a)] * 1000)
    with pytest.raises(UserError, match="its pages overlap"):
        shards.read_rows(path)


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": TEXTS[:20]}), path)
    data = path.read_bytes()
    for place in range(4, len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
        try:
            page_sizes(path)
        except (ValueError, UserError):
            continue
