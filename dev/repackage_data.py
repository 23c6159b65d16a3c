"""Turn text of any size into shuffled shards, which nanochat.dataset reads where they are.

    python -m dev.repackage_data --source=my_texts --out=/data/shards
    python -m dev.repackage_data --source=HuggingFaceFW/fineweb-edu --files='sample/10BT/*' \
        --out=/data/shards
    python -m nanochat.dataset --source=/data/shards

The source is a file, a folder of what nanochat.dataset reads, or a data set on the hub. Documents
are shuffled in two passes: each is appended to one of many files at random; then one such file
after the other is read, shuffled and written. Neither pass has more than --memory in memory. On
the disk this takes up to twice the size of the result, and a data set on the hub its own size.

The shards are shard_00000.parquet and so on; the last one is for validation and has up to 5 % of
the text. Which documents these are depends on their content alone, so that none is also trained on.
The same files and the same seed give the same shards. The folder appears when it is complete.
"""

import fnmatch
import gzip
import hashlib
import itertools
import logging
import math
import random
import re
import shutil
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

from nanochat import paths
from nanochat.configurator import at_least, parse, run_command
from nanochat.data.download import HubFile, download, list_files
from nanochat.data.shards import MAX_TEXT_BYTES, write_shard
from nanochat.data.text_files import MAX_DOCUMENT_CHARACTERS, find_files, text_format
from nanochat.data.text_import import VAL_SHARE, Corpus, Notes, read_corpus
from nanochat.errors import UserError, named_failures
from nanochat.runtime import hub_endpoint

logger = logging.getLogger(__name__)

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
BYTES_PER_CHARACTER = 4  # in UTF-8, at most
LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Options:
    """Turn text of any size into shuffled shards."""

    source: str = ""
    """A file or folder of text, or a data set on the hub, OWNER/NAME."""
    out: str = ""
    """Folder to make. It must not exist."""
    files: str = "*"
    """Files of a data set on the hub: a pattern of their paths, as in sample/10BT/*."""
    revision: str = "main"
    """Branch or commit of a data set on the hub."""
    seed: int = 42
    """Another one gives another order."""
    shard_characters: Annotated[int, at_least(1000)] = 250_000_000
    """Size of a shard; 250 million characters are about 100 MB."""
    memory: Annotated[int, at_least(1)] = 1000
    """MB of text in memory at a time."""


class Buckets:
    """Files to which documents are appended, by number; gzip, each document after its length."""

    def __init__(self, folder: Path, characters: int, memory: int) -> None:
        """For so many characters, so that the documents of a bucket take up to `memory` bytes."""
        # Half of it on average: how many a bucket gets is random.
        self.count = math.ceil(2 * BYTES_PER_CHARACTER * max(1, characters) / memory)
        self.folder, self.memory = folder, memory
        self.pending: dict[int, list[bytes]] = {}
        self.pending_bytes = 0
        self.num_documents, self.num_characters = 0, 0
        folder.mkdir(parents=True)

    def add(self, text: str, rng: random.Random) -> None:
        """Append a document to a random bucket."""
        content = text.encode()
        if self.pending_bytes + len(content) > self.memory:
            self.write_pending()
        self.pending.setdefault(rng.randrange(self.count), []).append(content)
        self.pending_bytes += len(content)
        self.num_documents += 1
        self.num_characters += len(text)

    def write_pending(self) -> None:
        """Write what is in memory."""
        for number, contents in self.pending.items():
            joined = b"".join(LENGTH.pack(len(content)) + content for content in contents)
            with self._path(number).open("ab") as file:
                file.write(gzip.compress(joined, compresslevel=1))
        self.pending, self.pending_bytes = {}, 0

    def read(self, number: int) -> list[bytes]:
        """The documents of a bucket."""
        contents = []
        if self._path(number).exists():  # else no document is in it
            with gzip.open(self._path(number)) as file:
                while length := file.read(LENGTH.size):
                    contents.append(file.read(*LENGTH.unpack(length)))
        return contents

    def shuffled(self, seed: int) -> Iterator[str]:
        """All documents in random order; one bucket is in memory at a time."""
        self.write_pending()
        for number in range(self.count):
            contents = self.read(number)
            random.Random(f"{seed} {number}").shuffle(contents)
            while contents:
                yield contents.pop().decode()

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.gz"


def main(argv: list[str] | None = None) -> None:
    """Make the folder and print what is in it."""
    options = parse(Options, argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not options.source or not options.out:
        raise UserError("--source=PATH or OWNER/NAME and --out=FOLDER are required; see --help")
    for line in repackage(options):
        print(line)


def repackage(options: Options) -> list[str]:
    """Make the folder. Returns lines about it. Raises UserError."""
    out = Path(options.out).expanduser().absolute()
    partial, downloads = (out.with_name(out.name + end) for end in (".partial", ".downloads"))
    with named_failures(out), paths.locked(out, "wait for its end", wait_seconds=0):
        if out.exists():
            raise UserError(f"{out} exists; remove it, or choose another --out")
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        source = Path(options.source).expanduser()
        if not source.exists():
            source = download_data_set(options, downloads)
        lines = write_folder(read_source(source), partial, options, options.memory * 1_000_000)
        partial.rename(out)
        shutil.rmtree(downloads, ignore_errors=True)
    return [*lines, f"python -m nanochat.dataset --source={out} uses them"]


def download_data_set(options: Options, folder: Path) -> Path:
    """Download the files of a data set on the hub that hold text; returns the folder."""
    repo = options.source
    if not REPOSITORY.fullmatch(repo):
        raise UserError(f"--source={repo} does not exist, and is no name on the hub, OWNER/NAME")
    commit, names = list_files(repo, options.revision, hub_endpoint())
    chosen = [
        name
        for name in names
        if fnmatch.fnmatchcase(name, options.files)
        and text_format(Path(name))
        and ".." not in PurePosixPath(name).parts
    ]
    if not chosen:
        found = f"among its {len(names)} files, as {', '.join(names[:3])}" if names else "in it"
        raise UserError(f"--files={options.files} matches no file of text of {repo} {found}")
    logger.info("%s at commit %s: %d files", repo, commit, len(chosen))
    folder = folder / commit
    download([HubFile(repo, name, folder / name, commit) for name in chosen], hub_endpoint())
    return folder


def read_source(source: Path) -> Corpus:
    """The files of a source, read once. Raises UserError when there is no text."""
    corpus = read_corpus(find_files(source))
    if not corpus.files:
        reasons = corpus.notes.lines()
        raise UserError("; ".join([f"{source} holds no text", *reasons]))
    return corpus


def write_folder(corpus: Corpus, folder: Path, options: Options, memory: int) -> list[str]:
    """Write the shards of a corpus with `memory` bytes of text at a time. Returns lines of it."""
    total = sum(file.characters for file in corpus.files)
    share = min(VAL_SHARE, options.shard_characters / total)
    has_splits = {file.split for file in corpus.files} == {"train", "val"}
    # Half each: what is to validate waits in memory while a bucket to train on is read.
    train, val = (Buckets(folder / name, total, memory // 2) for name in ("train", "val"))
    rng, notes = random.Random(options.seed), Notes()
    for file in corpus.files:
        logger.info("reading %s", file.path)
        # Rows are documents; only text files are cut into some.
        limit = MAX_DOCUMENT_CHARACTERS if file.kind == ".txt" else MAX_TEXT_BYTES
        for text in file.documents(limit, notes.add):
            is_val = file.split == "val" if has_splits else unit_hash(text) < share
            (val if is_val else train).add(text, rng)
    if not (train.num_documents and val.num_documents):
        raise UserError(
            f"{train.num_documents + val.num_documents} documents are too few to be divided here;"
            " use them as they are: python -m nanochat.dataset --source=PATH"
        )
    sizes = {"train": train.num_characters, "val": val.num_characters}
    num_shards = max(1, round(sizes["train"] / options.shard_characters))
    number = 0
    for texts in divided(train.shuffled(options.seed), sizes["train"] / num_shards):
        write_shard(folder / f"shard_{number:05d}.parquet", texts)
        logger.info("wrote shard %d of %d", number + 1, num_shards + 1)
        number += 1
    write_shard(folder / f"shard_{number:05d}.parquet", val.shuffled(options.seed))
    for buckets in (train, val):
        shutil.rmtree(buckets.folder)
    return [
        f"{train.num_documents:,} documents in shards 0 to {number - 1} to train on,"
        f" {val.num_documents:,} in shard {number} to validate",
        *corpus.summary(sizes, notes),
    ]


def unit_hash(text: str) -> float:
    """A number in [0, 1) by the content."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def divided(texts: Iterable[str], characters: float) -> Iterator[Iterator[str]]:
    """Consecutive parts of at least so many characters; each must be read before the next."""
    rest = iter(texts)
    for first in rest:
        yield _until(itertools.chain([first], rest), characters)


def _until(texts: Iterator[str], characters: float) -> Iterator[str]:
    count = 0
    for text in texts:
        yield text
        count += len(text)
        if count >= characters:
            return


if __name__ == "__main__":
    run_command(Options)
