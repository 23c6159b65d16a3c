"""Text larger than memory becomes shuffled shards, without a document more or less."""

import gzip
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dev import repackage_data
from dev.repackage_data import Buckets, Options, repackage
from nanochat import dataset
from nanochat.data.shards import Documents
from nanochat.errors import UserError
from tests.hub import running_hub
from tests.processes import ROOT

WORDS = random.Random(0)
TEXTS = [f"{n}: " + " ".join(WORDS.choices(["sun", "møon", "日本", "a"], k=30)) for n in range(900)]


def lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """300 documents each in parquet, JSON lines with gzip, and a text file with zstd."""
    folder = tmp_path / "texts"
    folder.mkdir()
    pq.write_table(pa.table({"text": TEXTS[:300]}), folder / "a.parquet")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines(TEXTS[300:600])))
    listed = "\n".join(TEXTS[600:]).encode()
    (folder / "c.txt.zst").write_bytes(pa.compress(listed, "zstd", asbytes=True))
    return folder


def made(source: Path | str, out: Path, **options: Any) -> list[Path]:
    """The shards, by name."""
    repackage(Options(source=str(source), out=str(out), shard_characters=20_000, **options))
    return sorted(out.iterdir())


def texts_of(shards: list[Path]) -> list[str]:
    return list(Documents(shards))


def test_every_document_is_in_one_shard_and_the_last_one_validates(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--source={source}", f"--out={tmp_path / 'out'}", "--shard_characters=20000"]
    repackage_data.main(arguments)
    shards = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in shards] == [f"shard_{n:05d}.parquet" for n in range(len(shards))]
    *train, val = [texts_of([path]) for path in shards]
    assert Counter(text for texts in [*train, val] for text in texts) == Counter(TEXTS)
    sizes = [sum(map(len, texts)) for texts in train]
    assert len(sizes) > 3 and max(sizes) < 1.1 * min(sizes)
    assert 0.02 < sum(map(len, val)) / sum(map(len, TEXTS)) < 0.08
    printed = capsys.readouterr().out
    num_train = sum(map(len, train))
    assert f"{num_train:,} documents in shards 0 to {len(train) - 1} to train on" in printed
    assert f"{len(val)} in shard {len(train)} to validate" in printed
    # Each shard has documents of each file.
    kinds = [Counter(int(text.partition(":")[0]) // 300 for text in texts) for texts in train]
    assert all(len(kind) == 3 and min(kind.values()) > 0.2 * len(texts)
               for kind, texts in zip(kinds, train, strict=True))  # fmt: skip


def test_training_reads_the_shards_where_they_are_and_validates_on_the_last_alone(
    source: Path, tmp_path: Path
) -> None:
    repackage(Options(source=str(source), out=str(tmp_path / "out"), shard_characters=2500))
    shards = sorted((tmp_path / "out").iterdir())
    assert len(shards) > 30  # so that the last two are closer to 5 % of the text
    name = dataset.make(str(tmp_path / "out"), 1)
    assert dataset.shard_paths(name, "train") == shards[:-1]
    assert dataset.shard_paths(name, "val") == shards[-1:]


def test_a_seed_gives_the_same_shards_and_another_one_another_order(
    source: Path, tmp_path: Path
) -> None:
    one, same, other = (
        made(source, tmp_path / name, seed=seed) for name, seed in [("a", 1), ("b", 1), ("c", 2)]
    )
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in same]
    assert texts_of(one[:-1]) != texts_of(other[:-1])
    # What validates does not depend on the seed.
    assert Counter(texts_of(one[-1:])) == Counter(texts_of(other[-1:]))


def test_the_order_is_a_uniform_permutation(tmp_path: Path) -> None:
    """Of three documents in four buckets each of the six orders is as frequent as the others."""
    found: Counter[str] = Counter()
    for seed in range(300):
        buckets = Buckets(tmp_path / str(seed), 3, memory=8)
        assert buckets.count == 3
        rng = random.Random(seed)
        for text in "abc":
            buckets.add(text, rng)
        found["".join(buckets.shuffled(seed))] += 1
    assert len(found) == 6 and min(found.values()) > 25


def test_memory_is_bounded_while_the_text_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, size = 500_000, 8_000_000
    path = tmp_path / "long.parquet"
    pq.write_table(pa.table({"text": [f"{n} {'x' * 1000}" for n in range(size // 1000)]}), path)
    waiting, in_buckets = dict[Path, int](), list[int]()  # bytes; the former by split
    most = 0
    add, read = Buckets.add, Buckets.read

    def measure(buckets: Buckets, in_bucket: int) -> None:
        nonlocal most
        pending = itertools.chain.from_iterable(buckets.pending.values())
        waiting[buckets.folder] = sum(map(len, pending))
        most = max(most, sum(waiting.values()) + in_bucket)

    def measured_add(self: Buckets, text: str, rng: random.Random) -> None:
        add(self, text, rng)
        measure(self, 0)

    def measured_read(self: Buckets, number: int) -> list[bytes]:
        contents = read(self, number)
        in_buckets.append(sum(map(len, contents)))
        measure(self, in_buckets[-1])
        return contents

    monkeypatch.setattr(Buckets, "add", measured_add)
    monkeypatch.setattr(Buckets, "read", measured_read)
    corpus = repackage_data.read_source(path)
    repackage_data.write_folder(corpus, tmp_path / "out", Options(), memory)
    assert 0.5 * memory < most <= memory
    assert sum(in_buckets) > size


def test_the_same_text_is_never_in_both_splits(tmp_path: Path) -> None:
    path = tmp_path / "repeated.jsonl"
    path.write_bytes(lines(TEXTS[:200] * 5))
    *train, val = made(path, tmp_path / "out")
    assert not set(texts_of(train)) & set(texts_of([val]))
    assert Counter(texts_of([*train, val])) == Counter(TEXTS[:200] * 5)


def test_a_data_set_of_the_hub_by_name_is_downloaded_at_one_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        start = "/datasets/someone/texts/resolve/main"
        hub.files = {
            f"{start}/README.md": b"# texts",
            f"{start}/data/train-0.jsonl": lines(TEXTS[:500]),
            f"{start}/data/train-1.jsonl.gz": gzip.compress(lines(TEXTS[500:])),
            f"{start}/other/texts.jsonl": lines(["not asked for"]),
        }
        hub.metadata_faults = ["500"]
        monkeypatch.setattr("nanochat.data.download.FIRST_WAIT_SECONDS", 0.01)
        shards = made("someone/texts", tmp_path / "out", files="data/*")
        with pytest.raises(UserError, match=r"no file of text .* among its 4 files, as README\.md"):
            made("someone/texts", tmp_path / "none", files="*.csv")
    assert Counter(texts_of(shards)) == Counter(TEXTS)
    assert not list(tmp_path.glob("out.*"))


def test_the_splits_of_a_data_set_are_kept(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(lines(TEXTS[:500]))
    (tmp_path / "validation.jsonl").write_bytes(lines(TEXTS[500:520]))
    *train, val = made(tmp_path, tmp_path / "out")
    assert Counter(texts_of(train)) == Counter(TEXTS[:500])
    assert Counter(texts_of([val])) == Counter(TEXTS[500:520])


@pytest.mark.parametrize(
    ("source", "content", "message"),
    [
        ("missing", "", r"--source=missing does not exist, and is no name on the hub"),
        ("{folder}", "", "holds no text"),
        ("{folder}", '{"text": "one"}', "1 documents are too few to be divided here"),
        ("{folder}", '{"content": "one"}', 'no "text"|not an object with a "text"'),
    ],
)
def test_what_cannot_be_repackaged_is_one_line(
    tmp_path: Path, source: str, content: str, message: str
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    if content:
        (folder / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        made(source.format(folder=folder), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_exists_is_not_overwritten(source: Path, tmp_path: Path) -> None:
    shards = made(source, tmp_path / "out")
    before = [path.read_bytes() for path in shards]
    with pytest.raises(UserError, match="exists; remove it, or choose another --out"):
        made(source, tmp_path / "out", seed=2)
    assert [path.read_bytes() for path in shards] == before


@pytest.fixture
def killed(source: Path, tmp_path: Path) -> Path:
    """The folder of a process that was killed while it wrote the second shard."""
    program = (
        "import os, signal, sys; from dev import repackage_data as r; write = r.write_shard\n"
        "def write_one(path, texts):\n"
        "    if path.name == 'shard_00001.parquet': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    write(path, texts)\n"
        "r.write_shard = write_one\n"
        "r.main(sys.argv[1:])\n"
    )
    out = tmp_path / "killed"
    options = [f"--source={source}", f"--out={out}", "--shard_characters=20000"]
    command = [sys.executable, "-c", program, *options]
    process = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    return out


def test_after_a_kill_the_folder_does_not_exist_and_the_next_start_makes_it(
    killed: Path, source: Path, tmp_path: Path
) -> None:
    assert not killed.exists() and list(killed.with_name("killed.partial").iterdir())
    again, straight = made(source, killed), made(source, tmp_path / "straight")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in straight]
    assert not killed.with_name("killed.partial").exists()
