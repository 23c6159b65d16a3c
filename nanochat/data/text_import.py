"""The user's text as shards: divided into training and validation, and all that is left out named.

The files are read three times, so that no corpus has to fit in memory: to find out what they hold,
to divide it, and to write it.
"""

import hashlib
import logging
import random
import re
from dataclasses import dataclass, field
from pathlib import Path

from nanochat.data.shards import BATCH_ROWS, rows_at_a_time, write_shard
from nanochat.data.text_files import (
    MAX_DOCUMENT_CHARACTERS,
    Found,
    NoTextError,
    NotUtf8Error,
    TextFile,
    inspect,
)
from nanochat.errors import UserError

logger = logging.getLogger(__name__)

VAL_SHARE = 0.05  # of the characters
MAX_VAL_SHARE = 0.34  # of shards that are used in place, of which at least one validates
MIN_DOCUMENT_CHARACTERS = 200  # a document is not cut below, however little text there is
NUM_BUCKETS = 1 << 20  # of hashes
SHARD_CHARACTERS = 50_000_000  # in memory at once, to be shuffled
SHARD_NAME = re.compile(r"shard_\d{5}\.parquet")  # of the public sets; dev.repackage_data's, too
MAX_NAMES = 5  # of files or rows in a line of the summary


@dataclass
class Notes:
    """What was left out or changed: how often, and the first places, by reason."""

    counts: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, place: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        places = self.places.setdefault(reason, [])
        if len(places) < MAX_NAMES and place not in places:
            places.append(place)

    def lines(self) -> list[str]:
        """One line per reason."""
        return [
            f"{count:,} {reason}: {', '.join(self.places[reason])}"
            + (", ..." if count > len(self.places[reason]) else "")
            for reason, count in self.counts.items()
        ]


@dataclass(frozen=True)
class Corpus:
    """The files of a source after they have been read once."""

    files: list[TextFile]  # that have text
    notes: Notes

    def in_place(self) -> dict[str, list[TextFile]]:
        """By split, if the files are shards that can be read where they are; else {}.

        The last ones by name validate, as many as come closest to the share, unless the data set
        is divided already; only the last one if they are named as those of the public sets.
        """
        files = self.files
        if not all(file.kind == ".parquet" for file in files):
            return {}
        if any(rows_at_a_time(file.path) < BATCH_ROWS for file in files):
            return {}
        if {file.split for file in files} == {"train", "val"}:
            return {split: [f for f in files if f.split == split] for split in ("train", "val")}
        total, last, best = sum(file.characters for file in files), 0, 1.0
        number = 0
        is_public = all(SHARD_NAME.fullmatch(file.path.name) for file in files)
        candidates = files[-1:] if is_public and files[1:] else files[1:]
        for count, file in enumerate(reversed(candidates), start=1):
            last += file.characters
            if abs(last / total - VAL_SHARE) < abs(best - VAL_SHARE):
                best, number = last / total, count
        if not number or best > MAX_VAL_SHARE:
            return {}
        return {"train": files[:-number], "val": files[-number:]}

    def summary(self, characters: dict[str, int], notes: Notes) -> list[str]:
        """Lines: the size of each split, and what was left out or changed.

        notes: of writing, where the texts are noted again.
        """
        share = characters["val"] / sum(characters.values())
        sizes = (
            f"{characters['train']:,} characters to train on, {characters['val']:,} ({share:.1%})"
            " to validate"
        )
        counts, places = self.notes.counts | notes.counts, self.notes.places | notes.places
        return [sizes, *Notes(counts, places).lines()]


def read_corpus(found: Found) -> Corpus:
    """Read all files once. Raises UserError if one cannot be read."""
    notes, files, foreign = Notes(), [], []
    for path, reason in found.skipped.items():
        notes.add(f"not read, {reason}", path)
    for file in found.files:
        try:
            file = inspect(file, len(found.files) == 1, notes.add)
        except NotUtf8Error as error:
            foreign.append(str(error))  # all in one message: else one attempt per file
        except NoTextError as error:
            is_other = str(error).startswith(f"{file.path}:1 ")  # as the config file of a data set
            if file.kind != ".json" or len(found.files) == 1 or not is_other:
                raise
            notes.add("files not read, without text", str(error))
        else:
            if file.is_list:
                notes.add("files without a blank line: each line is a document", str(file.path))
            if file.characters:
                files.append(file)
            else:
                notes.add("files not read, empty", str(file.path))
    if foreign:
        others = f" (nor are {len(foreign) - 1} more)" if foreign[1:] else ""
        raise UserError(
            f"{foreign[0]}{others}; write a copy to another folder with iconv -f ENCODING -t UTF-8"
            " FILE > FOLDER/FILE, where ENCODING is LATIN1 for Western Europe, CP1251 for Cyrillic,"
            " GB18030 for Chinese, SHIFT_JIS for Japanese, and import that folder"
        )
    return Corpus(files, notes)


def write_corpus(
    corpus: Corpus, folder: Path
) -> tuple[dict[str, list[Path]], dict[str, int], Notes]:
    """Write the shards. Returns them and their characters by split, and what was left out."""
    notes = Notes()
    limits = _limits(corpus)
    has_splits = {file.split for file in corpus.files} == {"train", "val"}
    boundary = 0 if has_splits else _boundary(corpus, limits)
    batches: dict[str, list[str]] = {"train": [], "val": []}
    sizes = dict.fromkeys(batches, 0)
    paths: dict[str, list[Path]] = {"train": [], "val": []}
    totals = dict.fromkeys(batches, 0)

    def write(split: str) -> None:
        number, batch = len(paths[split]), batches[split]
        # Neighbors in a file are alike, and so would be the rows of a step.
        random.Random(number).shuffle(batch)
        paths[split].append(folder / f"{split}_{number:05d}.parquet")
        write_shard(paths[split][-1], batch)
        logger.info("wrote %s", paths[split][-1])
        totals[split] += sizes[split]
        batches[split], sizes[split] = [], 0

    for file in corpus.files:
        for text in file.documents(limits[file.kind == ".txt"], notes.add):
            by_content = "val" if _bucket(text) < boundary else "train"
            split = file.split if has_splits else by_content
            batches[split].append(text)
            sizes[split] += len(text)
            if sizes[split] >= SHARD_CHARACTERS:
                write(split)
    for split in batches:
        if batches[split]:
            write(split)
    return paths, totals, notes


def _limits(corpus: Corpus) -> tuple[int, int]:
    """Characters of a document from rows, and from a text file, at most.

    None exceeds the share that validates, so that documents can be divided in this ratio.
    """
    total = sum(file.characters for file in corpus.files)
    rows = max(MIN_DOCUMENT_CHARACTERS, int(total * VAL_SHARE))
    return rows, min(rows, MAX_DOCUMENT_CHARACTERS)


def _boundary(corpus: Corpus, limits: tuple[int, int]) -> int:
    """Texts in buckets below it have about VAL_SHARE of the characters, and never all of them."""
    characters = [0] * NUM_BUCKETS
    for file in corpus.files:
        for text in file.documents(limits[file.kind == ".txt"], lambda *_: None):
            characters[_bucket(text)] += len(text)
    total, below, best, boundary = sum(characters), 0, 2.0, 0
    for bucket, size in enumerate(characters):
        below += size
        if size and below < total and abs(below / total - VAL_SHARE) < best:
            best, boundary = abs(below / total - VAL_SHARE), bucket + 1
    return boundary


def _bucket(text: str) -> int:
    """By content: a text keeps its split however files are named or ordered."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % NUM_BUCKETS
