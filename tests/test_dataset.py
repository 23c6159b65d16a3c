import gzip
import hashlib
import io
import itertools
import json
import logging
import random
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat import dataset, paths, primer
from nanochat.data import download as download_module
from nanochat.data import hub_files, text_import
from nanochat.data.shards import Documents
from nanochat.dataset import iter_texts, make, shard_paths
from nanochat.errors import UserError
from nanochat.primer.world import LETTERS
from tests.hub import FIRST_COMMIT, Hub, running_hub

TEXTS = [
    f"Document {number} is about the number {number * 7}. Grün, 日本語, 🦊."
    for number in range(300)
]


@pytest.fixture(autouse=True)
def small_primer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "PRIMER_SHARD_DOCUMENTS", 50)
    monkeypatch.setattr(dataset, "PRIMER_VAL_DOCUMENTS", 20)


def split_texts(source: str) -> dict[str, list[str]]:
    return {"train": list(iter_texts("train", source)), "val": list(iter_texts("val", source))}


def all_texts(source: str) -> Counter[str]:
    return Counter(text for texts in split_texts(source).values() for text in texts)


def write_parquet(path: Path, texts: Any, name: str = "text", **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: texts}), path, **options)


def as_lines(texts: list[str], name: str = "text") -> bytes:
    return "".join(json.dumps({name: text}) + "\n" for text in texts).encode()


# ---- the built-in synthetic world


def test_primer_shards_hold_the_generated_documents_in_order() -> None:
    assert make("primer", 2) == "primer"
    texts = split_texts("primer")
    assert texts["train"] == [primer.document(dataset.PRIMER_SEED, i, "train") for i in range(100)]
    assert texts["val"] == [primer.document(dataset.PRIMER_SEED, i, "val") for i in range(20)]
    assert dataset.current_source() == "primer"


def test_making_a_source_again_writes_nothing(base_dir: Path) -> None:
    def stamps() -> dict[str, int]:
        return {p.name: p.stat().st_mtime_ns for p in (base_dir / "data/primer").glob("*.parquet")}

    make("primer", 2)
    before = stamps()
    make("primer", 2)
    assert stamps() == before


def test_shards_of_an_older_primer_are_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    make("primer", 1)
    older = split_texts("primer")["train"]
    monkeypatch.setattr(dataset, "PRIMER_SEED", 77)
    make("primer", 1)
    assert split_texts("primer")["train"] == older
    monkeypatch.setattr(primer, "fingerprint", lambda: "another")
    make("primer", 1)
    assert split_texts("primer")["train"] != older


def test_the_number_of_shards_in_use_is_the_one_requested_last() -> None:
    lengths = []
    for num_shards in (1, 3, 2):
        make("primer", num_shards)
        lengths.append(len(Documents(shard_paths("primer", "train"))))
    assert lengths == [50, 150, 100]


def test_a_truncated_shard_is_detected_before_it_is_read_and_written_again() -> None:
    make("primer", 2)
    right = split_texts("primer")
    path = shard_paths("primer", "train")[1]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"{path.name}.*remove.*nanochat.dataset"):
        shard_paths("primer", "train")
    make("primer", 2)
    assert split_texts("primer") == right


@pytest.mark.parametrize("text", ["", "null", '{"train": 3}', '{"train": [{}], "val": []}'])
def test_a_damaged_manifest_is_rebuilt_by_the_command_that_the_error_names(
    base_dir: Path, text: str
) -> None:
    make("primer", 1)
    before = split_texts("primer")
    (base_dir / "data/primer/manifest.json").write_text(text)
    with pytest.raises(UserError, match="dataset --source primer first"):
        shard_paths("primer", "train")
    make("primer", 1)
    assert split_texts("primer") == before


def test_a_shard_with_a_flipped_bit_is_written_again_by_the_next_make() -> None:
    make("primer", 1)
    right = split_texts("primer")
    path = shard_paths("primer", "train")[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 16
    path.write_bytes(content)
    make("primer", 1)
    assert split_texts("primer") == right


# ---- the hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with six shards of fineweb-edu, number 5 the last."""
    small = ("someone/texts", 6)
    monkeypatch.setattr(dataset, "HUB_SOURCES", {"fineweb-edu": small, "climbmix": small})
    with running_hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", f"{running.url}/")
        for number in range(6):
            raw = io.BytesIO()
            texts = [f"{number}/{row}: {text}" for row, text in enumerate(TEXTS[:20])]
            pq.write_table(pa.table({"text": texts}), raw)
            name = f"/datasets/someone/texts/resolve/main/shard_{number:05d}.parquet"
            running.files[name] = raw.getvalue()
        yield running


@pytest.mark.parametrize("source", ["fineweb-edu", "climbmix"])
def test_the_validation_shard_is_the_same_for_any_number_of_shards(hub: Hub, source: str) -> None:
    for num_shards in (1, 5, 2):
        make(source, num_shards)
        texts = split_texts(source)
        assert {text[0] for text in texts["val"]} == {"5"}
        assert {text[0] for text in texts["train"]} == {str(n) for n in range(num_shards)}
    assert len(hub.requests) == 6


def test_after_one_download_everything_works_offline(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("fineweb-edu", 2)
    num_requests = len(hub.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", "not an address")
    make("fineweb-edu", 2)
    assert len(all_texts("fineweb-edu")) == 60
    with pytest.raises(UserError, match=r"shard_00002.*HF_HUB_OFFLINE.*--source primer"):
        make("fineweb-edu", 3)
    assert len(hub.requests) == num_requests


def test_a_failed_download_leaves_the_current_source_unchanged(hub: Hub) -> None:
    make("primer", 1)
    del hub.files["/datasets/someone/texts/resolve/main/shard_00001.parquet"]
    with pytest.raises(UserError, match="404"):
        make("fineweb-edu", 2)
    assert dataset.current_source() == "primer"
    make("fineweb-edu", 1)
    assert len(hub.requests) == 2


def test_a_truncated_shard_is_downloaded_again(hub: Hub) -> None:
    make("fineweb-edu", 1)
    right = all_texts("fineweb-edu")
    path = shard_paths("fineweb-edu", "train")[0]
    path.write_bytes(path.read_bytes()[:100])
    make("fineweb-edu", 1)
    assert all_texts("fineweb-edu") == right


def test_prefetched_task_files_are_downloaded_once_and_used_offline(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    pq.write_table(pa.table({"question": ["Why?"]}), raw)
    hub.files = {
        f"/datasets/{repo}/resolve/main/{path}": raw.getvalue()
        for files in hub_files.TASK_FILES.values()
        for repo, path in files
    }
    words = sorted(map("".join, itertools.product(LETTERS, repeat=4)))
    hub.files["/mirror/words_alpha.txt"] = "\r\n".join([*words, "Zzzzz", "no1"]).encode()
    hub.files["/mirror/eval_bundle.zip"] = zipped_bundle()
    monkeypatch.setenv("NANOCHAT_MIRROR", f"{hub.url}/mirror/")
    hub_files.prefetch("all")
    assert sorted(hub.requests) == sorted(hub.files)  # each once, though stages share files
    hub_files.prefetch("mid,sft,rl,eval")
    assert len(hub.requests) == len(hub.files)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for files in hub_files.TASK_FILES.values():
        for repo, path in files:
            assert hub_files.task_rows([(repo, path)]) == [{"question": "Why?"}]
    assert hub_files.word_list() == (*words, "zzzzz")
    assert hub_files.word_list_digest() == digest_of([*words, "zzzzz"])
    assert (hub_files.fetch_bundle() / "core.yaml").is_file()
    assert "missing" not in "\n".join(dataset.listing())


def zipped_bundle() -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("eval_bundle/core.yaml", "icl_tasks: []")
    return raw.getvalue()


def digest_of(words: list[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def test_a_short_list_of_words_is_refused(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files["/words_alpha.txt"] = b"a\r\nfew\r\nwords"
    monkeypatch.setenv("NANOCHAT_MIRROR", hub.url)
    with pytest.raises(UserError, match="3 words, less than 300,000"):
        hub_files.word_list()


def test_all_shards_are_of_the_commit_of_the_first_download(hub: Hub, base_dir: Path) -> None:
    make("fineweb-edu", 1)
    before = dict(hub.files)
    for name, content in before.items():  # the repository moves on, its history stays
        hub.files[name.replace("/main/", f"/{FIRST_COMMIT}/")] = content
        hub.files[name] = b"other"
    hub.commits["someone/texts"] = "1" * 40
    make("fineweb-edu", 3)
    assert {text[0] for text in split_texts("fineweb-edu")["train"]} == {"0", "1", "2"}
    assert json.loads((base_dir / "hub_revisions.json").read_text()) == {"someone/texts": "0" * 40}
    manifest = json.loads((base_dir / "data/fineweb-edu/manifest.json").read_text())
    assert manifest["revision"] == FIRST_COMMIT


def test_a_burst_of_busy_answers_costs_no_second_download(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "FIRST_WAIT_SECONDS", 0.01)
    hub.retry_after = "0"
    hub.metadata_faults = ["429", "500", "429", "503"]
    hub.faults = ["429", "500", "429"]
    make("fineweb-edu", 4)
    assert Counter(hub.requests).most_common(1)[0][1] <= 4
    assert len(hub.requests) == 5 + 3  # each file, and what was refused
    assert {text[0] for text in split_texts("fineweb-edu")["train"]} == {"0", "1", "2", "3"}


def test_the_list_names_what_is_here(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    make("fineweb-edu", 2)
    dataset.main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:6] == ["*", "fineweb-edu", "2", "of", "5", "training"]
    assert any(line.split()[:2] == ["rl", "0"] for line in lines)
    assert hub.requests == [name for name in hub.requests if "shard" in name]


def test_huggingface_hub_itself_finds_its_way_on_the_loopback_hub(hub: Hub, tmp_path: Path) -> None:
    """The server that these tests use answers what the real client asks."""
    api = huggingface_hub.HfApi(endpoint=hub.url)
    names = [f"shard_{number:05d}.parquet" for number in range(6)]
    assert sorted(api.list_repo_files("someone/texts", repo_type="dataset")) == names
    assert api.dataset_info("someone/texts").sha == FIRST_COMMIT
    sizes = {f.path: f.size for f in api.list_repo_tree("someone/texts", repo_type="dataset")}
    path = huggingface_hub.hf_hub_download(
        "someone/texts", names[0], repo_type="dataset", cache_dir=tmp_path, endpoint=hub.url
    )
    content = hub.files[f"/datasets/someone/texts/resolve/main/{names[0]}"]
    assert Path(path).read_bytes() == content and sizes[names[0]] == len(content)


def test_a_missing_task_file_names_its_prefetch_when_offline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="--prefetch eval"):
        hub_files.task_rows(hub_files.TASK_FILES["eval"][:1])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-n", "0"], "-n 0"),
        (["-n", "6"], "-n 6 is not between 1 and 5"),
        (["--prefetch=stf"], "--prefetch=stf is not one of mid, eval, sft, rl, all"),
        (["-w", "0"], "num_workers=0 must be between 1 and 64"),
        (["--source=fineweb"], "did you mean fineweb-edu"),
        (["--source=primer", "-n", "-1"], "-n -1"),
        (["--source="], "--source"),
    ],
)
def test_invalid_options_are_refused_before_any_download(
    hub: Hub, base_dir: Path, argv: list[str], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        dataset.main(argv)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert hub.requests == []
    assert not list(base_dir.rglob("*.parquet"))


def test_prefetch_alone_leaves_the_current_source_unchanged(hub: Hub) -> None:
    make("primer", 1)
    hub.files = {
        f"/datasets/{repo}/resolve/main/{path}": b"x" for repo, path in hub_files.TASK_FILES["rl"]
    }
    dataset.main(["-n", "0", "--prefetch=rl"])
    assert sorted(hub.requests) == sorted(hub.files)
    assert dataset.current_source() == "primer"


# ---- importing the user's text


def compressed(suffix: str, content: bytes) -> bytes:
    if suffix == "gz":
        return gzip.compress(content)
    return pa.compress(content, codec="zstd", asbytes=True) if suffix == "zst" else content


@pytest.mark.parametrize("name", ["a.jsonl", "A.JSONL", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_every_document_of_a_file_is_imported(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        write_parquet(path, TEXTS, row_group_size=70)
    else:
        path.write_bytes(compressed(name.rpartition(".")[2], as_lines(TEXTS)))
    source = make(str(path), 1)
    assert all_texts(source) == Counter(TEXTS)
    assert dataset.current_source() == source


def test_text_files_are_split_at_paragraphs_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_import, "MAX_DOCUMENT_CHARACTERS", 500)
    paragraphs = [
        f"Paragraph {number}.\nIts second line." * (1 + number % 5) for number in range(400)
    ]
    (tmp_path / "book.txt").write_text("\n \n\n".join(paragraphs) + "\n\n\n", encoding="utf-8-sig")
    texts = all_texts(make(str(tmp_path), 1))
    assert max(map(len, texts)) <= 600
    assert Counter(part for text in texts for part in text.split("\n\n")) == Counter(paragraphs)


def test_a_folder_of_mixed_formats_and_depths_is_imported_completely(tmp_path: Path) -> None:
    write_parquet(tmp_path / "b" / "a.parquet", TEXTS[:100])
    (tmp_path / "c.jsonl").write_bytes(as_lines(TEXTS[100:150]))
    (tmp_path / "b" / "d.jsonl.zst").write_bytes(compressed("zst", as_lines(TEXTS[150:250])))
    for number, text in enumerate(TEXTS[250:]):
        (tmp_path / "b" / f"{number}.TXT").write_text(text, encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / ".hidden.txt").write_text("not to be imported")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.txt").write_text("not to be imported")
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "lost.txt").symlink_to(tmp_path / "nowhere")
    assert all_texts(make(str(tmp_path), 1)) == Counter(TEXTS)


def test_parquet_shards_are_used_in_place_and_the_last_by_name_validates(
    tmp_path: Path, base_dir: Path
) -> None:
    for number in (2, 0, 1):
        write_parquet(tmp_path / f"s{number}.parquet", [f"{number} {text}" for text in TEXTS[:10]])
    texts = split_texts(make(str(tmp_path), 1))
    assert [text[0] for text in texts["train"]] == ["0"] * 10 + ["1"] * 10
    assert {text[0] for text in texts["val"]} == {"2"}
    assert not list(base_dir.rglob("*.parquet"))


def test_unchanged_text_is_imported_once_and_changed_text_again(
    tmp_path: Path, base_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "a.jsonl"
    path.write_bytes(as_lines(TEXTS))
    source = make(str(path), 1)
    stamps = {p: p.stat().st_mtime_ns for p in base_dir.rglob("*.parquet")}
    caplog.clear()
    assert make(str(path), 1) == source
    assert "imported already" in caplog.text
    assert {p: p.stat().st_mtime_ns for p in base_dir.rglob("*.parquet")} == stamps
    path.write_bytes(as_lines([*TEXTS, "And one more."]))
    assert all_texts(make(str(path), 1)) == Counter([*TEXTS, "And one more."])


@pytest.mark.parametrize("damage", ["removed", "cut", "changed"])
def test_an_import_with_a_missing_or_damaged_shard_is_repeated(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(as_lines(TEXTS))
    source = make(str(path), 1)
    shard = shard_paths(source, "train")[0]
    content = bytearray(shard.read_bytes())
    shard.unlink()
    if damage != "removed":
        content[len(content) // 2] ^= 1
        shard.write_bytes(content[:-7] if damage == "cut" else content)
    assert all_texts(make(str(path), 1)) == Counter(TEXTS)


def test_an_import_can_be_used_by_name_after_its_files_are_gone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(as_lines(TEXTS))
    source = make(str(path), 1)
    make("primer", 1)
    path.unlink()
    assert make(source, 1) == source == dataset.current_source()
    assert all_texts(source) == Counter(TEXTS)


def test_a_base_directory_can_be_moved(
    tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("primer", 1)
    right = split_texts("primer")
    base_dir.rename(tmp_path / "moved")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "moved"))
    assert split_texts("primer") == right


@pytest.mark.parametrize("num_documents", [2, 3, 20])
def test_two_different_documents_are_enough(tmp_path: Path, num_documents: int) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_lines(TEXTS[:num_documents]))
    texts = split_texts(make(str(tmp_path), 1))
    assert texts["train"] and texts["val"]
    assert Counter(texts["train"] + texts["val"]) == Counter(TEXTS[:num_documents])


def test_the_split_depends_on_content_only_and_no_text_is_in_both(tmp_path: Path) -> None:
    for name, texts in {"a": TEXTS * 2, "b": TEXTS[::-1]}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jsonl").write_bytes(as_lines(texts))
    first, second = (
        split_texts(make(str(tmp_path / "a"), 1)),
        split_texts(make(str(tmp_path / "b"), 1)),
    )
    assert set(first["val"]) == set(second["val"])
    assert not set(first["val"]) & set(first["train"])
    assert 0.01 < len(second["val"]) / len(TEXTS) < 0.12


def test_imported_documents_are_shuffled_reproducibly(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_lines(TEXTS))
    order = [TEXTS.index(text) for text in split_texts(make(str(tmp_path), 1))["train"]]
    assert order != sorted(order)
    assert order == [TEXTS.index(text) for text in split_texts(make(str(tmp_path), 1))["train"]]


def test_several_shards_are_written_and_read_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_import, "SHARD_CHARACTERS", 2000)
    (tmp_path / "a.jsonl").write_bytes(as_lines(TEXTS))
    source = make(str(tmp_path), 1)
    assert len(shard_paths(source, "train")) > 5
    assert all_texts(source) == Counter(TEXTS)


def test_a_compressed_file_of_several_frames_is_read_completely(tmp_path: Path) -> None:
    halves = as_lines(TEXTS[:150]), as_lines(TEXTS[150:])
    for kind in ("gz", "zst"):
        path = tmp_path / f"a.jsonl.{kind}"
        path.write_bytes(b"".join(compressed(kind, half) for half in halves))
        assert all_texts(make(str(path), 1)) == Counter(TEXTS)


@pytest.mark.parametrize("kind", ["gz", "zst"])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.99])
def test_a_truncated_compressed_file_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    noise = random.Random(2)
    texts = [noise.randbytes(300).hex() for _ in range(300)]
    whole = compressed(kind, as_lines(texts))
    path = tmp_path / f"a.jsonl.{kind}"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=rf"a\.jsonl\.{kind}:\d+: ") as caught:
        make(str(path), 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n\n{"text": 3}\n', 'a.jsonl:3 is not an object with a "text"'),
        (b'{"text": "a"}\n["b"]\n', "a.jsonl:2 is not an object"),
        (b'{"content": "a"}\n', 'a.jsonl:1 is not an object with a "text"'),
        (b'{"text": "a"}\n{"text": \n', "a.jsonl:2: "),
        (b'{"text": "a"}\n{\xe9}\n', "a.jsonl:2: "),
        (b"", "holds too little text"),
        (b'{"text": "only one"}\n', "holds too little text"),
        (b'{"text": "same"}\n{"text": "same"}\n', "holds too little text"),
        (b'{"text": ""}\n{"text": " "}\n', "holds too little text"),
        (b"[" * 100_000 + b"\n", "a.jsonl:1: "),
    ],
)
def test_invalid_lines_are_refused_with_file_and_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    make("primer", 1)
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError) as caught:
        make(str(tmp_path), 1)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert dataset.current_source() == "primer"


def test_blank_documents_are_not_imported(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_lines(["", *TEXTS, " \n", ""]))
    assert all_texts(make(str(tmp_path), 1)) == Counter(TEXTS)


def test_a_byte_order_mark_and_crlf_are_accepted(tmp_path: Path) -> None:
    lines = as_lines(TEXTS).replace(b"\n", b"\r\n")
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines)
    assert all_texts(make(str(tmp_path), 1)) == Counter(TEXTS)


def test_text_that_is_not_utf_8_is_refused_with_the_command_to_convert_it(tmp_path: Path) -> None:
    for number, text in enumerate(TEXTS[:50]):
        (tmp_path / f"{number:02d}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "10.txt").write_bytes("Ein grüner Fuchs".encode("latin-1"))
    (tmp_path / "20.txt").write_bytes("Noch ein grüner Fuchs".encode("latin-1"))
    with pytest.raises(UserError, match=r"10\.txt.*not UTF-8.*1 more.*iconv") as caught:
        make(str(tmp_path), 1)
    assert "\n" not in str(caught.value)


def test_a_lone_surrogate_becomes_the_replacement_character(tmp_path: Path) -> None:
    lines = as_lines(TEXTS) + b'{"text": "broken \\ud83d emoji"}\n'
    (tmp_path / "a.jsonl").write_bytes(lines)
    texts = all_texts(make(str(tmp_path), 1))
    assert texts == Counter([*TEXTS, "broken \N{REPLACEMENT CHARACTER} emoji"])


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("content", ["a", "b"], 'none named "text"'),
        ("text", [1, 2], "int64"),
        ("text", [["a"], ["b"]], "list"),
    ],
)
def test_parquet_without_a_string_column_text_is_refused(
    tmp_path: Path, column: str, values: list[Any], message: str
) -> None:
    write_parquet(tmp_path / "a.parquet", values, column)
    with pytest.raises(UserError) as caught:
        make(str(tmp_path), 1)
    assert message in str(caught.value) and "a.parquet" in str(caught.value)


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_every_type_of_string_column_is_read_and_null_is_skipped(
    tmp_path: Path, kind: pa.DataType
) -> None:
    write_parquet(tmp_path / "a.parquet", pa.array([*TEXTS, None]).cast(kind))
    assert all_texts(make(str(tmp_path), 1)) == Counter(TEXTS)


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", TEXTS)
    whole = (tmp_path / "a.parquet").read_bytes()
    for content in (whole[:-50], b"PAR1", whole[: len(whole) // 2]):
        (tmp_path / "b.parquet").write_bytes(content)
        with pytest.raises(UserError, match=r"b\.parquet is damaged"):
            make(str(tmp_path), 1)


@pytest.mark.parametrize("name", ["nothing here", "."])
def test_a_folder_without_text_lists_the_supported_formats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make("primer", 1)
    (tmp_path / "nothing here").mkdir()
    monkeypatch.chdir(tmp_path / "nothing here")
    path = str(tmp_path / name) if name != "." else name
    with pytest.raises(UserError, match=r"holds no \.parquet, \.jsonl"):
        make(path, 1)


def test_the_current_folder_can_be_a_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("primer", 1)
    (tmp_path / "my texts").mkdir()
    (tmp_path / "my texts" / "a.jsonl").write_bytes(as_lines(TEXTS))
    monkeypatch.chdir(tmp_path / "my texts")
    assert all_texts(make(".", 1)) == Counter(TEXTS)


def test_a_folder_above_the_base_directory_does_not_import_its_shards(
    tmp_path: Path, base_dir: Path
) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_lines(TEXTS))
    assert base_dir.is_relative_to(tmp_path)
    for _ in range(2):
        make("primer", 1)
        assert all_texts(make(str(tmp_path), 1)) == Counter(TEXTS)
    assert make(str(base_dir / "data" / "primer"), 1).startswith("primer-")


def test_without_a_source_the_command_that_makes_one_is_named() -> None:
    with pytest.raises(UserError, match=r"nanochat\.dataset.*primer"):
        dataset.current_source()
    with pytest.raises(UserError, match=r"no text of source primer.*--source primer"):
        shard_paths("primer", "train")


# ---- reading


def test_texts_are_cut_at_doc_cap_and_max_chars() -> None:
    make("primer", 1)
    whole = list(iter_texts("train"))
    assert [len(text) for text in iter_texts("train", doc_cap=5)] == [5] * len(whole)
    some = list(iter_texts("train", max_chars=1000))
    assert sum(map(len, some)) == 1000 and "".join(whole).startswith("".join(some))
    assert list(iter_texts("train", max_chars=10**9)) == whole
    for max_chars, doc_cap in ((0, -1), (-1, 0), (-7, -1)):
        with pytest.raises(UserError, match="or -1 for all"):
            iter_texts("train", max_chars=max_chars, doc_cap=doc_cap)


def test_the_command_prints_the_number_of_documents_and_sets_the_current_source(
    capsys: pytest.CaptureFixture[str],
) -> None:
    dataset.main(["--source=primer", "-n", "2"])
    assert "100 documents to train on, 20 to validate" in capsys.readouterr().out
    assert paths.data_dir(dataset.current_source()).is_dir()
