"""What people bring as text: nothing is lost silently, and what is left out is named."""

import codecs
import gzip
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat import dataset
from nanochat.data import json_rows, shards, text_files
from nanochat.data.shards import Documents
from nanochat.data.text_files import split_at_paragraphs
from nanochat.dataset import iter_texts, make
from nanochat.errors import UserError

SENTENCES = [f"Sentence {n} says {n * n % 97} things about rain." for n in range(4000)]
TEXTS = [" ".join(SENTENCES[n : n + 5]) for n in range(0, 500, 5)]


def imported(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, list[str]], str]:
    """The texts of each split, and what the command printed."""
    capsys.readouterr()
    dataset.main(["--source", str(path)])
    source = dataset.current_source()
    return {s: list(iter_texts(s, source)) for s in dataset.SPLITS}, capsys.readouterr().out


def val_share(texts: dict[str, list[str]]) -> float:
    sizes = {split: sum(map(len, found)) for split, found in texts.items()}
    return sizes["val"] / sum(sizes.values())


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        make(str(path), 1)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_parquet(path: Path, texts: Any, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts}), path, **options)


def lines_of(texts: list[Any]) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def letters(texts: Any) -> Counter[str]:
    return Counter("".join(texts).replace("\n", "").replace(" ", ""))


# ---- the share that validates


@pytest.mark.parametrize(
    ("content", "joined"),
    [("lines", "\n"), ("one paragraph", " "), ("paragraphs", "\n\n"), ("no space", "")],
)
def test_about_a_twentieth_of_the_characters_validates_however_the_text_is_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, joined: str
) -> None:
    corpus = joined.join(SENTENCES)
    if content == "no space":
        corpus = corpus.replace(" ", "").replace(".", "")
    (tmp_path / "corpus.txt").write_text(corpus)
    (tmp_path / "note.txt").write_text("A short note.\n")
    texts, out = imported(tmp_path, capsys)
    assert 0.03 < val_share(texts) < 0.07
    assert letters([*texts["train"], *texts["val"]]) == letters([corpus, "A short note."])
    assert max(map(len, texts["train"])) <= text_files.MAX_DOCUMENT_CHARACTERS
    assert re.search(r"[\d,]+ characters to train on, [\d,]+ \([3-7]\.\d%\) to validate", out)


def test_rows_of_very_different_lengths_are_divided_by_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [" ".join(SENTENCES[:2000]), "Short.", *SENTENCES[2000:2040], " ".join(SENTENCES[2040:])]
    (tmp_path / "a.jsonl").write_text(lines_of(rows))
    texts, out = imported(tmp_path, capsys)
    assert 0.02 < val_share(texts) < 0.08
    assert letters([*texts["train"], *texts["val"]]) == letters(rows)
    assert "2 texts cut at" in out and "a.jsonl:1, " in out


def test_a_large_last_shard_does_not_become_the_validation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_parquet(tmp_path / "a.parquet", TEXTS[:3])
    write_parquet(tmp_path / "b.parquet", TEXTS[3:])
    texts, _ = imported(tmp_path, capsys)
    assert 0.03 < val_share(texts) < 0.07
    assert Counter(texts["train"] + texts["val"]) == Counter(TEXTS)


def test_long_paragraphs_are_cut_at_lines_sentences_and_spaces() -> None:
    lines = ["First line.\n", "Second line.\n", "\n", "Another paragraph.\n"]
    assert list(split_at_paragraphs(lines, 20)) == [
        "First line.",
        "Second line.",
        "Another paragraph.",
    ]
    assert list(split_at_paragraphs(["One is here. Two is there. Three\n"], 15)) == [
        "One is here. ",
        "Two is there. ",
        "Three",
    ]
    assert list(split_at_paragraphs(["word " * 4], 12)) == ["word word ", "word word "]
    assert list(split_at_paragraphs(["x" * 25], 10)) == ["x" * 10, "x" * 10, "x" * 5]
    assert list(split_at_paragraphs(["b\n", "\n", "c"], 10)) == ["b\n\nc"]
    assert list(split_at_paragraphs(["\n", " \n"], 10)) == []


# ---- one document per line


def test_lines_without_a_blank_one_are_documents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names.txt").write_text("".join(f"name{n:04}\n" for n in range(2000)))
    texts, out = imported(tmp_path, capsys)
    assert sorted(texts["train"] + texts["val"]) == [f"name{n:04}" for n in range(2000)]
    assert len(texts["val"]) == 100
    assert "without a blank line: each line is a document" in out and "names.txt" in out


def test_short_files_of_several_lines_stay_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    poems = ["\n".join(SENTENCES[n : n + 8]) for n in range(0, 800, 8)]
    for number, poem in enumerate(poems):
        (tmp_path / f"{number}.txt").write_text(poem + "\n")
    texts, _ = imported(tmp_path, capsys)
    assert sorted(texts["train"] + texts["val"]) == sorted(poems)


def test_too_little_text_leaves_nothing_behind(tmp_path: Path, base_dir: Path) -> None:
    (tmp_path / "a.txt").write_text("One line only.")
    assert "holds too little text" in refusal(tmp_path / "a.txt")
    assert not list((base_dir / "data").glob("[!.]*"))


# ---- formats


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.ndjson", "a.json.zst"])
@pytest.mark.parametrize("layout", ["lines", "list", "indented"])
def test_json_files_are_read_beside_other_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, layout: str
) -> None:
    rows = [{"text": text, "id": 7} for text in TEXTS]
    content = {
        "lines": "\n".join(map(json.dumps, rows)),
        "list": json.dumps(rows),
        "indented": "\n".join(json.dumps(row, indent=2) for row in rows),
    }[layout].encode()
    if name.endswith("ndjson") and layout != "lines":
        pytest.skip("has one value per line")
    packed = {".gz": gzip.compress, ".zst": lambda c: pa.compress(c, "zstd", asbytes=True)}
    (tmp_path / name).write_bytes(packed.get(Path(name).suffix, bytes)(content))
    (tmp_path / "LICENSE.txt").write_text("Permission is granted.")
    texts, _ = imported(tmp_path, capsys)
    found = Counter(texts["train"] + texts["val"])
    assert found == Counter([*TEXTS, "Permission is granted."])


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl.gz", bytes),  # unpacked by the browser
        ("a.jsonl", gzip.compress),
        ("a.jsonl.zst", gzip.compress),
        ("a.json", partial(pa.compress, codec="zstd", asbytes=True)),
    ],
)
def test_a_packed_file_is_recognized_by_its_content(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, pack: Any
) -> None:
    (tmp_path / name).write_bytes(pack(lines_of(TEXTS).encode()))
    texts, _ = imported(tmp_path, capsys)
    assert Counter(texts["train"] + texts["val"]) == Counter(TEXTS)


def test_values_that_lie_across_parts_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_rows, "READ_CHARACTERS", 7)
    rows = [{"text": text} for text in TEXTS[:20]]
    path = tmp_path / "a.json"
    for content in (json.dumps(rows), json.dumps(rows, indent=1), "\n".join(map(json.dumps, rows))):
        path.write_text(content)
        assert [row for _, row in json_rows.json_rows(path)] == rows


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"text": "a"}, {"text": "b"}', "item 3 is damaged"),
        ('[{"text": "a"},', "item 2 is damaged"),
        ('[{"text": "a"}, {"te', "item 2 is damaged"),
        ("[" * 100_000, "item 1 is damaged"),
        ('{"content": "a"}', "its keys are 'content'"),
        ("", "holds too little text"),
        ("[]", "holds too little text"),
    ],
)
def test_a_json_file_that_is_cut_or_has_no_text_is_one_line(
    tmp_path: Path, content: str, words: str
) -> None:
    (tmp_path / "a.json").write_text(content)
    assert words in refusal(tmp_path / "a.json")


def test_the_config_file_of_a_data_set_is_named_and_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text(lines_of(TEXTS))
    (tmp_path / "dataset_info.json").write_text('{"features": {}, "splits": []}')
    texts, out = imported(tmp_path, capsys)
    assert len(texts["train"] + texts["val"]) == len(TEXTS)
    assert "without text" in out and "dataset_info.json" in out and "'features'" in out


@pytest.mark.parametrize(
    "kind",
    [pa.string_view(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.binary()],
    ids=str,
)
def test_every_type_of_string_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: pa.DataType
) -> None:
    write_parquet(tmp_path / "a.parquet", pa.array([*TEXTS, None]).cast(kind), row_group_size=30)
    texts, out = imported(tmp_path, capsys)
    assert Counter(texts["train"] + texts["val"]) == Counter(TEXTS)
    assert f"1 null texts: {tmp_path}/a.parquet row {len(TEXTS) + 1}" in out


def test_a_null_line_is_skipped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text(lines_of([*TEXTS, None, "  "]) + "null\n")
    texts, out = imported(tmp_path, capsys)
    assert len(texts["train"] + texts["val"]) == len(TEXTS)
    assert "2 null texts" in out and "1 blank texts" in out and f"a.jsonl:{len(TEXTS) + 1}" in out


def test_what_is_not_read_is_named_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text(lines_of(TEXTS))
    (tmp_path / "b.jsonl.xz").write_bytes(b"x")
    (tmp_path / "c.csv").write_text("text\na")
    (tmp_path / "d.txt").write_text("")
    (tmp_path / "e.txt").symlink_to("nowhere")
    os.mkfifo(tmp_path / "f.txt")
    (tmp_path / ".git").mkdir()
    _, out = imported(tmp_path, capsys)
    for name, reason in {
        "b.jsonl.xz": "unpack it with xz -dk", "c.csv": "of a format", "d.txt": "empty",
        "e.txt": "a link to nothing", "f.txt": "not a regular file", ".git": "hidden",
    }.items():  # fmt: skip
        assert any(name in line and reason in line for line in out.splitlines()), (name, out)
    assert "xz -dk" in refusal(tmp_path / "b.jsonl.xz")


def test_a_compression_window_that_is_too_large_gets_advice_that_works(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=28)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(packer.compress(lines_of(TEXTS).encode()) + packer.flush())
    assert f"zstd -d --long=31 -c {path} | zstd -o FOLDER/a.jsonl.zst" in refusal(path)


def test_empty_parts_are_skipped_and_the_last_with_text_validates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        write_parquet(tmp_path / f"part-{number}.parquet", TEXTS[number * 30 :][:30])
    write_parquet(tmp_path / "part-3.parquet", pa.array([], pa.string()))
    (tmp_path / "part-0.parquet").rename(tmp_path / "part-00.parquet")
    (tmp_path / "part-0.parquet").touch()  # of a task that failed
    texts, out = imported(tmp_path, capsys)
    assert (texts["train"], texts["val"]) == (TEXTS[:60], TEXTS[60:90])
    assert "2 files not read, empty" in out
    assert "part-0.parquet" in out and "part-3.parquet" in out


def test_the_test_split_of_a_data_set_is_not_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"]
    for number, name in enumerate([*names, "validation-00000-of-00001"]):
        write_parquet(tmp_path / "data" / f"{name}.parquet", TEXTS[number * 20 :][:20])
    texts, out = imported(tmp_path, capsys)
    assert (texts["train"], texts["val"]) == (TEXTS[:40], TEXTS[60:80])
    assert "split test of the data set, which is not trained on" in out
    for name in ("train", "test", "validation"):
        (tmp_path / "lines" / name).mkdir(parents=True)
        (tmp_path / "lines" / name / "0.jsonl").write_text(lines_of([name + t for t in TEXTS]))
    texts, _ = imported(tmp_path / "lines", capsys)
    assert {t[:5] for t in texts["train"]} == {"train"}
    assert {t[:5] for t in texts["val"]} == {"valid"}


@pytest.mark.parametrize(
    "form", ["c4-{}.00000-of-00002.json", "en/wiki.{}.txt", "{}1.jsonl", "{}/my-dev-notes.jsonl"]
)
def test_splits_are_recognized_behind_the_name_of_the_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    for number, split in enumerate(("train", "test", "valid")):
        path = tmp_path / form.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = TEXTS[number * 30 :][:30]
        path.write_text("\n\n".join(texts) if path.suffix == ".txt" else lines_of(texts))
    found, out = imported(tmp_path, capsys)
    assert letters(found["train"]) == letters(TEXTS[:30])
    assert letters(found["val"]) == letters(TEXTS[60:90])
    assert "1 not read, the split test" in out


def test_a_word_for_a_split_in_names_of_other_files_is_ordinary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("the-train-to-rome", "blood-test", "test_of_time", "testament")):
        (tmp_path / f"{name}.jsonl").write_text(lines_of(TEXTS[number * 25 :][:25]))
    texts, _ = imported(tmp_path, capsys)
    assert Counter(texts["train"] + texts["val"]) == Counter(TEXTS)


def test_files_called_test_without_a_training_split_are_ordinary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test.jsonl").write_text(lines_of(TEXTS))
    texts, _ = imported(tmp_path, capsys)
    assert len(texts["train"] + texts["val"]) == len(TEXTS)


def test_row_groups_of_one_row_are_read(tmp_path: Path) -> None:
    write_parquet(tmp_path / "many.parquet", SENTENCES[:1500], row_group_size=1)
    documents = Documents([tmp_path / "many.parquet"])
    assert list(documents) == SENTENCES[:1500]
    assert documents[1400:1500].to_pylist() == SENTENCES[1400:1500]


def test_two_columns_of_one_name_are_one_line(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(TEXTS), pa.array(TEXTS)], names=["text", "text"])
    pq.write_table(table, tmp_path / "x.parquet")
    assert '2 columns named "text"' in refusal(tmp_path)


# ---- links and permissions


def test_links_are_followed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, other = tmp_path / "texts", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    (other / "a.jsonl").write_text(lines_of(TEXTS[:50]))
    (tmp_path / "blob").write_text(lines_of(TEXTS[50:]))
    (folder / "folder").symlink_to(other)
    (folder / "again").symlink_to(other)
    (folder / "loop").symlink_to(folder)
    (folder / "b.jsonl").symlink_to(tmp_path / "blob")
    texts, out = imported(folder, capsys)
    assert Counter(texts["train"] + texts["val"]) == Counter(TEXTS)
    assert "a link to a folder that is read" in out
    texts, _ = imported(folder / "b.jsonl", capsys)  # as in the cache of the hub
    assert Counter(texts["train"] + texts["val"]) == Counter(TEXTS[50:])
    assert dataset.current_source().startswith("b-")


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.parquet", "folder"])
def test_what_may_not_be_read_is_an_error(name: str) -> None:
    # Not in pytest's folder, which another run of it closes to other users.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        check_unreadable(Path(folder), name)


def check_unreadable(texts: Path, name: str) -> None:
    (texts / "b.jsonl").write_text(lines_of(TEXTS))
    if name == "folder":
        (texts / name).mkdir(mode=0)
    else:
        (texts / name).write_text("x")
        (texts / name).chmod(0)
    program = (
        "import os, sys; from nanochat.data import text_files, text_import;"
        "from pathlib import Path; from nanochat.errors import UserError\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "try: text_import.read_corpus(text_files.find_files(Path(sys.argv[1])))\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(texts)],
        capture_output=True, text=True, cwd=Path(__file__).parents[1],
        env={"NANOCHAT_BASE_DIR": "/nonexistent"},
    )  # fmt: skip
    assert done.stdout.startswith(f"no permission to read {texts / name}"), done.stderr[-500:]


# ---- encodings


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
@pytest.mark.parametrize(
    "encoding",
    ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"],
)
def test_utf_16_is_recognized_by_its_mark_and_by_nuls(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, encoding: str
) -> None:
    rows = [f"Grün {text} 日本 🦊" for text in TEXTS]
    content = "\n\n".join(rows) if name == "a.txt" else lines_of(rows)
    (tmp_path / name).write_bytes(content.encode(encoding))
    texts, _ = imported(tmp_path, capsys)
    assert letters([*texts["train"], *texts["val"]]) == letters(rows)


@pytest.mark.parametrize(
    "line",
    ["天地玄黃，宇宙洪荒。" * 3, "你好世界这是第一个测试。", "Привет мир, это проверка.",
     "Γειά σου Κόσμε", "שלום עולם", "नमस्ते दुनिया", "これはテストです。", "안녕 하세요"],
)  # fmt: skip
def test_text_in_utf_16_without_a_mark_is_recognized(line: str) -> None:
    text = f"{line}\n" * 20
    for encoding in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        assert json_rows.text_encoding(text.encode(encoding)) == encoding
    assert json_rows.text_encoding(text.encode()[:4095]) == "utf-8-sig"
    for zeros in (text.replace("\n", "\0"), "\0" * 4096):
        assert json_rows.text_encoding(zeros.encode()) == "utf-8-sig"
    assert json_rows.text_encoding(codecs.BOM_UTF32_LE + b"a\0\0\0") == "utf-32"


def invalid_strings(texts: list[bytes]) -> pa.Array:
    """A column of strings that are not UTF-8, as other programs write them."""
    binary = pa.array(texts, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(binary), binary.buffers())


def test_invalid_utf_8_in_parquet_is_replaced_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, shift in (("a", 0), ("b", 30), ("c", 60)):
        raw = [text.encode() for text in TEXTS[shift : shift + 30]]
        raw[7] += b" caf\xe9 au lait"
        write_parquet(tmp_path / f"{name}.parquet", invalid_strings(raw), row_group_size=9)
    texts, out = imported(tmp_path, capsys)  # in place
    assert texts["train"][7] == TEXTS[7] + " caf\N{REPLACEMENT CHARACTER} au lait"
    assert "3 texts with invalid characters" in out and f"{tmp_path}/a.parquet row 8" in out
    assert len(texts["train"] + texts["val"]) == 90


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_invalid_utf_8_in_json_is_replaced_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    content = lines_of([*TEXTS, "Ich mXchte."]).encode().replace(b"X", b"\xf6")
    (tmp_path / name).write_bytes(content + lines_of(TEXTS[:9]).encode())
    texts, out = imported(tmp_path, capsys)
    assert "Ich m\N{REPLACEMENT CHARACTER}chte." in texts["train"] + texts["val"]
    assert "1 texts with invalid characters" in out and f"{name}:{len(TEXTS) + 1}" in out


def test_a_damaged_character_in_a_text_file_is_replaced_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = "\n\n".join(f"Grün {text}" for text in TEXTS).encode()
    (tmp_path / "a.txt").write_bytes(content + b"\n\nIch m\xf6chte.")
    texts, out = imported(tmp_path, capsys)
    found = [*texts["train"], *texts["val"]]
    assert any(text.endswith("Ich m\N{REPLACEMENT CHARACTER}chte.") for text in found)
    assert "1 texts with invalid characters" in out


def test_text_in_another_encoding_gets_advice_that_works(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(("Привет мир.\n\n" * 20).encode("cp1251"))
    assert "CP1251 for Cyrillic" in refusal(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"%PDF-1.7 \x8f\x00\xd2\x05\n" * 30)
    assert "a.txt is not text (line 1)" in refusal(tmp_path)


def test_a_file_whose_name_is_not_utf_8_is_read_or_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"caf\xe9")  # as old programs unpack it
    (tmp_path / f"{name}.jsonl").write_text(lines_of(TEXTS))
    texts, _ = imported(tmp_path, capsys)
    assert Counter(texts["train"] + texts["val"]) == Counter(TEXTS)
    write_parquet(tmp_path / "a.parquet", TEXTS)
    (tmp_path / "a.parquet").rename(tmp_path / f"{name}.parquet")
    assert "has a name that is not UTF-8; rename it" in refusal(tmp_path)


def test_a_device_is_named_as_no_regular_file() -> None:
    assert "/dev/null is not a regular file" in refusal(Path("/dev/null"))


# ---- files that change


def test_a_changed_file_is_named_and_the_named_command_helps(tmp_path: Path) -> None:
    folder = tmp_path / "my texts"
    for number in range(3):
        write_parquet(folder / f"p{number}.parquet", TEXTS[number * 30 :][:30])
    source = make(str(folder), 1)
    digest = dataset.text_digest(source)
    for texts in (TEXTS[:29], [*TEXTS[:29], TEXTS[29].replace("rain", "snow")]):  # the same size
        write_parquet(folder / "p0.parquet", texts, compression="none", use_dictionary=False)
        with pytest.raises(UserError) as caught:
            dataset.shard_paths(source, "train")
        message = str(caught.value)
        assert f"{folder}/p0.parquet has changed since the import; run python -m" in message
        assert "remove" not in message and f"--source '{folder}' again" in message
        for again in (str(folder), source):  # by path or by name
            make(again, 1)
        assert list(iter_texts("train", source)) == [*texts, *TEXTS[30:60]]
        assert dataset.text_digest(source) != digest
        digest = dataset.text_digest(source)
    (folder / "p1.parquet").unlink()
    with pytest.raises(UserError, match=r"p1.parquet is missing; run python -m"):
        dataset.shard_paths(source, "train")


def test_a_failed_import_keeps_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(lines_of(TEXTS))
    source = make(str(path), 1)
    path.write_text(lines_of(TEXTS) + '{"text": ')
    assert f"a.jsonl:{len(TEXTS) + 1}" in refusal(path)
    path.write_text(lines_of(["one"]))
    assert "too little" in refusal(path)
    assert len(list(iter_texts("train", source))) + len(list(iter_texts("val", source))) == 100


def test_no_damage_message_advises_to_remove_a_file_of_the_user(
    tmp_path: Path, base_dir: Path
) -> None:
    for folder in (tmp_path, base_dir):
        path = folder / "a.parquet"
        write_parquet(path, TEXTS * 20, compression="none", use_dictionary=False)
        content = bytearray(path.read_bytes())
        content[len(content) // 2 : len(content) // 2 + 3000] = b"\xff" * 3000
        path.write_bytes(content)
        for read in (lambda p: list(shards.parquet_texts(p)), shards.read_rows):
            with pytest.raises(UserError, match="damaged") as caught:
                read(path)
            assert ("remove it" in str(caught.value)) == (folder == base_dir)


# ---- limits


def test_a_text_beyond_the_limit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (shards, json_rows):
        monkeypatch.setattr(module, "MAX_TEXT_BYTES", 10_000)
    monkeypatch.setattr(shards, "BATCH_BYTES", 5_000)
    (tmp_path / "a.jsonl").write_text(lines_of(["a", "b" * 20_000]))
    assert "a.jsonl:2: a line is longer than the limit of 0 MB" in refusal(tmp_path / "a.jsonl")
    (tmp_path / "a.json").write_text(json.dumps([{"text": "a"}, {"text": "b" * 2_000_000}]))
    assert "item 2 is longer" in refusal(tmp_path / "a.json")
    write_parquet(tmp_path / "a.parquet", ["a"] * 50 + ["b" * 20_000])
    assert "the text of row 50 is longer" in refusal(tmp_path / "a.parquet")
    write_parquet(tmp_path / "b.parquet", ["b" * 20_000])
    assert "longer than the limit" in refusal(tmp_path / "b.parquet")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.txt.gz"])
def test_what_expands_beyond_measure_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(shards, "MAX_EXPANDED_BYTES", 1_000_000)
    path = tmp_path / name
    if name == "a.parquet":
        table = pa.DictionaryArray.from_arrays(pa.array([0] * 3000), pa.array(["x" * 100_000]))
        write_parquet(path, table, compression="zstd")
    else:
        content = lines_of(["x" * 1000] * 20_000).encode()
        zstd = partial(pa.compress, codec="zstd", asbytes=True)
        pack = gzip.compress if name.endswith("gz") else zstd
        monkeypatch.setattr(shards, "MAX_EXPANSION", {"gzip": 100, "zstd": 100})
        path.write_bytes(pack(content))
    assert "expands to more than" in refusal(path)


def test_what_expands_beyond_measure_is_refused_before_it_is_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "MAX_EXPANDED_BYTES", 1_000_000)
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"x" * 10**6) * 600)  # 0.6 MB, in Arrow's parts of 64 KB
    assert "from 0.1 MB" in refusal(path)


def test_sentences_end_where_either_kind_of_mark_ends_them() -> None:
    either = r"""[.!?…]["'”’»)\]]*\s+|[。！？]["”’」』）]*\s*"""
    rng = random.Random(0)
    for _ in range(1000):
        text = "".join(rng.choices(""".!?…"'”’»)] 。！？「」』）ab\n\t""", k=40))
        ends = [match.end() for match in re.finditer(either, text)]
        assert [match.end() for match in text_files.SENTENCE_END.finditer(text)] == ends


@pytest.mark.parametrize("stores_schema", [True, False])
def test_a_dictionary_of_long_texts_is_read_in_small_parts(
    tmp_path: Path, stores_schema: bool
) -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 60), pa.array(["x" * 5 * 10**6, "y"]))
    path = tmp_path / "a.parquet"
    write_parquet(path, column, compression="zstd", store_schema=stores_schema)
    before, highest = pa.total_allocated_bytes(), 0
    lengths = []
    for text in shards.parquet_texts(path):
        lengths.append(len(text or ""))
        highest = max(highest, pa.total_allocated_bytes() - before)
    assert lengths == [5 * 10**6, 1] * 60
    assert highest < 3 * shards.BATCH_BYTES  # of 300 MB
