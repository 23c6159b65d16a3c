"""Every text of the shared cases gives the stated result; other cases are tested with their parts.

Models and tokenizers of hostile/: test_faults_checkpoints.py, test_tokenizer.py; its request:
test_web_security.py; the page in a browser: test_web_page.py; calculator: test_calculator.py.
"""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from nanochat import dataset
from nanochat.data import shards
from nanochat.dataset import iter_texts
from nanochat.errors import UserError
from nanochat.web import markdown
from tasks.customjson import CustomJSON
from tests.shared_data import EVAL_DATA

ROOT = Path(__file__).parents[1]
CASES = EVAL_DATA.parents[1] / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases")


def read(name: str, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, list[str]], str]:
    """The texts of each split of a case, and what the command printed."""
    capsys.readouterr()
    dataset.main(["--source", str(CASES / name)])
    captured = capsys.readouterr()
    source = dataset.current_source()
    texts = {split: list(iter_texts(split, source)) for split in dataset.SPLITS}
    return texts, captured.out + captured.err


def every(texts: dict[str, list[str]]) -> list[str]:
    return [text for found in texts.values() for text in found]


def share(texts: dict[str, list[str]]) -> float:
    sizes = {split: sum(map(len, found)) for split, found in texts.items()}
    return sizes["val"] / sum(sizes.values())


def test_a_corpus_in_one_paragraph_is_divided(capsys: pytest.CaptureFixture[str]) -> None:
    texts, output = read("whole_corpus_becomes_validation", capsys)
    assert 0.03 < share(texts) < 0.08 and "characters" in output
    path = CASES / "whole_corpus_becomes_validation" / "corpus.txt"
    words = Counter(path.read_text().split())
    assert not words - Counter(" ".join(every(texts)).split())


def test_lines_are_documents(capsys: pytest.CaptureFixture[str]) -> None:
    texts, output = read("one_document_a_line", capsys)
    lines = (CASES / "one_document_a_line" / "names.txt").read_text().split("\n")
    assert sorted(every(texts)) == sorted(filter(None, lines)) and "line" in output


def test_compressed_json_is_read_beside_other_text(capsys: pytest.CaptureFixture[str]) -> None:
    texts, _ = read("json_gz_beside_a_licence", capsys)
    path = CASES / "json_gz_beside_a_licence" / "c4-train.00000-of-00001.json.gz"
    rows = [json.loads(line)["text"] for line in gzip.decompress(path.read_bytes()).splitlines()]
    joined = "\n".join(every(texts))
    assert rows and all(row.strip() in joined for row in rows)


def test_empty_parts_are_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    texts, output = read("spark_empty_last_part", capsys)
    parts = sorted((CASES / "spark_empty_last_part").glob("part-*"))
    rows = [text for part in parts for text in pq.read_table(part)["text"].to_pylist()]
    assert rows and texts["val"] and sorted(every(texts)) == sorted(rows)
    assert "1 files not read, empty" in output and parts[-1].name in output


def test_invalid_utf_8_is_replaced_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    texts, output = read("latin1_in_a_utf8_column", capsys)
    assert any("\ufffd" in text for text in every(texts)) and "a.parquet row 38" in output


def test_the_splits_of_a_hub_layout_are_not_trained_on(capsys: pytest.CaptureFixture[str]) -> None:
    texts, output = read("hub_layout_train_test_validation", capsys)
    assert "not trained on" in output and "test-00000-of-00001.parquet" in output
    folder = CASES / "hub_layout_train_test_validation"
    assert (
        texts["val"]
        == pq.read_table(folder / "validation-00000-of-00001.parquet")["text"].to_pylist()
    )


def test_a_null_line_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    texts, output = read("null_line", capsys)
    content = (CASES / "null_line" / "a.jsonl").read_text()
    rows = [json.loads(line)["text"] for line in content.splitlines()]
    assert sorted(every(texts)) == sorted(row for row in rows if row is not None)
    assert f"1 null texts: {CASES}/null_line/a.jsonl:{rows.index(None) + 1}" in output


def test_row_groups_of_one_row_are_not_opened_one_by_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []

    def open_counted(path: Path, **options: Any) -> pq.ParquetFile:
        opened.append(path)
        return pq.ParquetFile(path, **options)

    monkeypatch.setattr(shards, "pq", SimpleNamespace(**{**vars(pq), "ParquetFile": open_counted}))
    texts, _ = read("row_groups_of_one", capsys)
    files = list((CASES / "row_groups_of_one").iterdir())
    assert len(every(texts)) == sum(pq.ParquetFile(file).num_row_groups for file in files)
    assert len(files) < len(opened) < 10 * len(files)  # of 24 ms


def test_two_columns_of_one_name_are_one_line() -> None:
    with pytest.raises(UserError, match="column") as caught:
        dataset.make(str(CASES / "two_columns_of_one_name"), 1)
    assert "\n" not in str(caught.value)


def test_a_dictionary_beyond_the_limit_is_one_line(tmp_path: Path) -> None:
    shutil.copy(CASES / "hostile" / "dictionary_10GB.parquet", tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet") as caught:
        dataset.make(str(tmp_path), 1)
    assert "\n" not in str(caught.value)


def test_a_changed_file_of_the_user_is_never_advised_away(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "own"
    shutil.copytree(CASES / "own_shard_changed", folder)
    folder.chmod(0o755)
    shutil.copyfile(folder / "p0.parquet", folder / "p1.parquet")
    source = dataset.make(str(folder), 1)
    changed = folder / "p0.parquet"
    changed.unlink()
    shutil.copyfile(folder / "p2.parquet", changed)  # of the same size
    with pytest.raises(UserError, match=r"p0\.parquet has changed since the import") as caught:
        dataset.shard_paths(source, "train")
    assert "remove" not in str(caught.value) and "--source" in str(caught.value)


@pytest.mark.parametrize("name", ["identity", "openai", "sharegpt", "alpaca", "pretty"])
def test_conversations_of_every_format_are_read(name: str) -> None:
    [path] = (CASES / "identity_file").glob(f"{name}.*")
    assert len(CustomJSON(str(path))) >= 1


def test_a_table_and_formulas_become_html_as_they_are_meant() -> None:
    page = CASES / "page"
    html = markdown.to_html((page / "05-table-cells-broken-letter-by-letter.md").read_text())
    assert '<th align="center">colour' in html and '<td align="right">333</td>' in html
    html = markdown.to_html((page / "06-math-links-tasks.md").read_text())
    for formula in ("$a^2 + b^2 = c^2$", "\\(x = y\\)", "$$\\int_0^1 x^2\\,dx = \\frac{1}{3}$$"):
        assert f'<span class="formula">{formula}</span>' in html
    assert '<a href="https://example.com/bare-url"' in html and "<img" not in html


def test_chunks_that_contain_themselves_are_an_exception(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, CASES / "hostile" / "chunks_recursion.py"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr  # not ended by a signal
