"""Named text sources, stored as parquet shards with one string column `text`.

    python -m nanochat.dataset -n 8                      fineweb-edu, downloaded
    python -m nanochat.dataset --source primer -n 4      the built-in synthetic world, offline
    python -m nanochat.dataset --source my_texts/        .parquet, .jsonl, .json or .txt
    python -m nanochat.dataset -n 0 --prefetch all       files of later stages, no text
    python -m nanochat.dataset --list                    what there is, and what can be downloaded

Later stages use the most recently prepared source.
"""

from dataclasses import dataclass
from typing import Annotated

from nanochat.configurator import Short, between, parse, run_command


@dataclass(frozen=True)
class Options:
    """Download or write the text that a model is trained on."""

    num_shards: Annotated[int, Short("-n")] = 8
    """Training shards of a named source; about 100 MB each on the hub, 1 MB of the primer. 0 with
    --prefetch downloads only that and leaves the current source as it is."""
    source: str = "fineweb-edu"
    """fineweb-edu, climbmix, primer, or a PATH with .parquet, .jsonl, .ndjson, .json or .txt
    files, as they are or with .gz or .zst."""
    prefetch: str = ""
    """Files of later stages to download as well: mid, sft, rl, eval, separated by commas, or all:
    data sets, list of words, bundle of CORE."""
    num_workers: Annotated[int, Short("-w"), between(1, 64)] = 8
    """Files downloaded at a time."""
    list: bool = False
    """Print the sources and the files of later stages, and which of them are here; nothing else."""


if __name__ == "__main__":
    run_command(Options)  # before the slow imports

import difflib
import hashlib
import json
import logging
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from nanochat import paths, primer
from nanochat.data.download import HubFile, sha256
from nanochat.data.hub_files import describe_files, fetch, prefetch, revisions, stage_names
from nanochat.data.manifest import (
    SPLITS,
    Manifest,
    ShardFolder,
    Split,
    load_manifest,
    size_and_time,
)
from nanochat.data.shards import Documents, text_bytes, write_shard
from nanochat.data.text_files import find_files
from nanochat.data.text_import import read_corpus, write_corpus
from nanochat.errors import UserError

logger = logging.getLogger(__name__)

PRIMER_SEED = 1
PRIMER_SHARD_DOCUMENTS = 16_384
PRIMER_VAL_DOCUMENTS = 4_096  # 0.7 million characters

HUB_SOURCES = {  # repository and number of shards, of which the last is for validation
    "fineweb-edu": ("karpathy/fineweb-edu-100b-shuffle", 1823),
    "climbmix": ("karpathy/climbmix-400b-shuffle", 6543),  # non-commercial license
}


# ---- which source


def source_name(source: str) -> str:
    """The folder name of a source: its own name, or one derived from a path."""
    names = [*HUB_SOURCES, "primer"]
    if source in names or _has_manifest(source):
        return source
    path = Path(source).expanduser()
    if not source or not _exists(path):
        close = difflib.get_close_matches(source, names, n=1, cutoff=0.4)
        remedy = f"did you mean {close[0]}?" if close else f"use {', '.join(names)} or a PATH"
        raise UserError(f"--source={source} is neither a known source nor a path; {remedy}")
    resolved = path.resolve()
    # Two folders of the same name get two sources.
    digest = hashlib.sha256(bytes(resolved)).hexdigest()[:8]
    # A file of the hub's cache is a link to a name without meaning.
    stem = (resolved if path.is_dir() else path).stem
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", stem)[:64]
    return f"{stem}-{digest}"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError as error:
        raise UserError(f"no permission to read {error.filename}; allow it, or copy it") from None


def _has_manifest(name: str) -> bool:
    return name == Path(name).name and load_manifest(name) is not None


def current_source() -> str:
    """The most recently prepared source. Raises UserError when there is none."""
    try:
        return str(json.loads(_current_path().read_text(encoding="utf-8"))["source"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"no text in {paths.base_dir() / 'data'}; run python -m nanochat.dataset first"
            " (--source primer needs no network)"
        ) from None


def _current_path() -> Path:
    return paths.base_dir() / "data" / "source.json"


# ---- making shards


def make(source: str, num_shards: int, num_parallel: int = 8) -> str:
    """Make a source's shards and make it current. Raises UserError if it is unknown or empty."""
    name = source_name(source)
    with paths.locked(paths.data_dir(name)):  # a second import of it waits, and finds it done
        return _make(name, source, num_shards, num_parallel)


def _make(name: str, source: str, num_shards: int, num_parallel: int) -> str:
    shards = ShardFolder(name)
    if name in HUB_SOURCES:
        manifest = _download_shards(*HUB_SOURCES[name], num_shards, shards, num_parallel)
    elif name == "primer":
        manifest = _write_primer(num_shards, shards)
    else:
        by_name = shards.manifest.get("origin", "") if _has_manifest(source) else source
        path = Path(by_name).expanduser().absolute()  # links are not resolved
        # By name, the files it was imported from may be gone.
        is_gone = _has_manifest(source) and not (by_name and path.exists())
        manifest = shards.manifest if is_gone else _import_path(path, shards)
    for split in SPLITS:
        if not sum(shard["rows"] for shard in manifest[split]):
            raise _too_little(source, split)
    # Last, so that a failed download leaves the source in use as it was.
    paths.write_atomic(shards.folder / "manifest.json", json.dumps(manifest, indent=1))
    paths.write_atomic(_current_path(), json.dumps({"source": name}))
    if "files" in manifest:
        shards.remove_others(manifest)
    return name


def _download_shards(
    repo: str, num_files: int, num_shards: int, shards: ShardFolder, num_parallel: int
) -> Manifest:
    if not 1 <= num_shards < num_files:
        raise UserError(f"-n {num_shards} is not between 1 and {num_files - 1}")
    # The validation shard is pinned by name: it is never trained on, whatever else is present.
    numbers = [num_files - 1, *range(num_shards)]
    found = [shards.folder / f"shard_{number:05d}.parquet" for number in numbers]
    for path in found:
        if path.is_file() and not shards.is_intact(path):
            logger.warning("%s: checksum mismatch, downloading again", path)
            path.unlink()
    fetch([HubFile(repo, path.name, path) for path in found], num_parallel)
    val, *train = [shards.describe(path) for path in found]
    return {"train": train, "val": [val], "revision": revisions().get(repo, "")}


def _write_primer(num_shards: int, shards: ShardFolder) -> Manifest:
    if num_shards < 1:
        raise UserError(f"-n {num_shards} is below 1; use 1 or more")
    sizes: list[tuple[Split, int, int]] = [("val", 0, PRIMER_VAL_DOCUMENTS)]
    sizes += [("train", number, PRIMER_SHARD_DOCUMENTS) for number in range(num_shards)]
    manifest: Manifest = {"train": [], "val": [], "world": primer.fingerprint()}
    # Shards that another version of the generator wrote are intact but hold other text.
    is_same_world = shards.manifest.get("world") == manifest["world"]
    for split, number, size in sizes:
        path = shards.folder / f"{split}_{number:05d}.parquet"
        if not is_same_world or not shards.is_intact(path):
            indices = range(number * size, (number + 1) * size)
            write_shard(path, (primer.document(PRIMER_SEED, i, split) for i in indices))
            logger.info("wrote %s", path)
        manifest[split].append(shards.describe(path))
    return manifest


# ---- importing the user's text


def _import_path(path: Path, shards: ShardFolder) -> Manifest:
    found = find_files(path)
    if not found.files:
        skipped = [f"{name} is {reason}" for name, reason in found.skipped.items()][:3]
        raise UserError(
            f"{path} holds no .parquet, .jsonl, .ndjson, .json or .txt file, with or without .gz or"
            f" .zst; put text there{''.join(f'; {line}' for line in skipped)}"
        )
    stamps = [[str(file.path), *size_and_time(file.path)] for file in found.files]
    is_same = shards.manifest.get("files") == stamps and "summary" in shards.manifest
    if is_same and all(map(shards.is_intact, shards.recorded)):
        logger.info("%s is imported already and has not changed", path)
        return shards.manifest
    corpus = read_corpus(found)
    manifest: Manifest = {"origin": str(path), "files": stamps}
    if in_place := corpus.in_place():
        manifest |= {s: [shards.describe(f.path) for f in files] for s, files in in_place.items()}
        characters = {s: sum(f.characters for f in files) for s, files in in_place.items()}
        return {**manifest, "summary": corpus.summary(characters, corpus.notes)}
    # In a folder of its own, so that the earlier import stays until this one is complete.
    stamp = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:8]
    try:
        written, characters, notes = write_corpus(corpus, shards.folder / stamp)
        for split in SPLITS:
            if not written[split]:
                raise _too_little(path, split)
            manifest[split] = [shards.describe(shard) for shard in written[split]]
    except BaseException:
        shutil.rmtree(shards.folder / stamp, ignore_errors=True)
        with suppress(OSError):  # there is an earlier import
            shards.folder.rmdir()
        raise
    return {**manifest, "summary": corpus.summary(characters, notes)}


def _too_little(source: str | Path, split: Split) -> UserError:
    return UserError(
        f"{source} holds too little text for its split {split}: at least two different documents"
        " that are not blank are needed, one to train and one to validate; blank lines separate the"
        " documents of a .txt file, or each line is one"
    )


# ---- reading


def shard_paths(source: str, split: Split) -> list[Path]:
    """Shards of a split, in order. Raises UserError when one is missing or truncated."""
    name = source_name(source)
    manifest = load_manifest(name)
    if manifest is None:
        raise UserError(
            f"no text of source {name}; run python -m nanochat.dataset --source {name} first"
        )
    found = []
    for shard in manifest[split]:
        path = paths.data_dir(name) / shard["path"]
        is_ours = path.is_relative_to(paths.base_dir())
        # Of ours only the size: pages have checksums, which are verified as they are read.
        is_same = path.is_file() and path.stat().st_size == shard["bytes"]
        if is_same and not is_ours and path.stat().st_mtime_ns != shard["mtime_ns"]:
            is_same = sha256(path) == shard["sha256"]
        if not is_same:
            state, remedy = "is missing", "run"
            if path.is_file() and is_ours:
                state, remedy = (
                    f"is not of the recorded {shard['bytes']} bytes",
                    "remove it and run",
                )
            elif path.is_file():
                state = "has changed since the import"
            origin = shlex.quote(manifest.get("origin", source))
            raise UserError(
                f"{path} {state}; {remedy} python -m nanochat.dataset --source {origin} again"
            )
        found.append(path)
    return found


def text_digest(source: str) -> str:
    """16 hexadecimal digits that change when the text does. Raises UserError as `shard_paths`."""
    return _digests(source)[-1]


def begins_with(source: str, digest: str) -> bool:
    """True if the text with this digest is this one, or was it before shards were added."""
    return digest in _digests(source)


def _digests(source: str) -> list[str]:
    """The digests of the first one, two ... and all of the shards."""
    manifest = load_manifest(source_name(source)) if shard_paths(source, "train") else None
    assert manifest is not None
    train, val = ([shard["sha256"] for shard in manifest[split]] for split in SPLITS)
    contents = [json.dumps([train[: n + 1], val]) for n in range(len(train))]
    return [hashlib.sha256(content.encode()).hexdigest()[:16] for content in contents]


def train_bytes(source: str) -> int:
    """Size of the text to train on, nearly. Raises UserError as `shard_paths`."""
    return sum(map(text_bytes, shard_paths(source, "train")))


def open_documents(source: str, split: Split) -> Documents:
    """All texts of a split, read when they are accessed. Raises UserError as `shard_paths`."""
    return Documents(shard_paths(source, split))


def iter_texts(
    split: Split, source: str = "", max_chars: int = -1, doc_cap: int = -1
) -> Iterator[str]:
    """Texts of a source (empty: the current one), each cut at `doc_cap`, `max_chars` in all.

    -1 means all. Raises UserError on other numbers below 1.
    """
    for name, value in (("max_chars", max_chars), ("doc_cap", doc_cap)):
        if value < 1 and value != -1:
            raise UserError(f"--{name}={value} leaves no text; use 1 or more, or -1 for all")
    return _cut_texts(open_documents(source or current_source(), split), max_chars, doc_cap)


def _cut_texts(documents: Documents, max_chars: int, doc_cap: int) -> Iterator[str]:
    remaining = max_chars
    for document in documents:
        text = document[: doc_cap if doc_cap > 0 else None]
        if max_chars > 0:
            if remaining <= 0:
                return
            text = text[:remaining]
            remaining -= len(text)
        yield text


# ---- the command


def listing() -> list[str]:
    """Lines about the sources and the files of later stages: what is here."""
    try:
        current = current_source()
    except UserError:
        current = ""
    folders = (paths.base_dir() / "data").glob("*/manifest.json")
    names = dict.fromkeys([*HUB_SOURCES, "primer", *sorted(path.parent.name for path in folders)])
    lines = []
    for name in names:
        shards = (load_manifest(name) or {"train": []})["train"]
        size = sum(shard["bytes"] for shard in shards) / 1e9
        of = f" of {HUB_SOURCES[name][1] - 1:,}" if name in HUB_SOURCES else ""
        mark = "*" if name == current else " "
        lines.append(f"{mark} {name:<24} {len(shards):6,}{of} training shards, {size:.2f} GB")
    return [*lines, "* is the current source. Files of later stages:", *describe_files()]


def main(argv: list[str] | None = None) -> None:
    """Make the source current, prefetch files, or both."""
    options = parse(Options, argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.list:
        print("\n".join(listing()))
        return
    # Names are checked first: a typo must not cost the download of the text.
    if not stage_names(options.prefetch) or options.num_shards != 0:
        name = make(options.source, options.num_shards, options.num_workers)
        train, val = (len(open_documents(name, split)) for split in SPLITS)
        print(
            f"{name}: {train:,} documents to train on, {val:,} to validate, in"
            f" {paths.data_dir(name)}"
        )
        for line in (load_manifest(name) or {}).get("summary", []):
            print(f"  {line}")
    prefetch(options.prefetch, options.num_workers)
