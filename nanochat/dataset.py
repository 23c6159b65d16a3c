"""Named sources of text, kept as parquet shards with one string column `text`.

    python -m nanochat.dataset -n 8                      fineweb-edu, by download
    python -m nanochat.dataset --source primer -n 4      the built-in world, no network needed
    python -m nanochat.dataset --source my_texts/        .parquet, .jsonl(.gz|.zst) or .txt
    python -m nanochat.dataset -n 0 --prefetch sft,eval  files of later stages, no text

The source that was made last is the one that later stages use.
"""

import difflib
import hashlib
import json
import logging
import math
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from nanochat import paths, primer
from nanochat.configurator import parse, run, short
from nanochat.data.download import download
from nanochat.data.shards import Documents, group_texts, open_parquet, write_shard
from nanochat.data.text_import import kind_of, text_files, texts_of
from nanochat.errors import UserError
from nanochat.runtime import hub_endpoint, hub_offline

logger = logging.getLogger(__name__)

Split = Literal["train", "val"]

PRIMER_SEED = 1
PRIMER_SHARD_DOCUMENTS = 16_384
PRIMER_VAL_DOCUMENTS = 4_096
PATH_SHARD_CHARACTERS = 50_000_000
VAL_SHARE = 0.05


@dataclass(frozen=True)
class HubSource:
    """Shards of a data set on the hub; the last one is for validation."""

    repo: str
    num_files: int
    revision: str = "main"

    def file_name(self, number: int) -> str:
        """Name of a shard."""
        return f"shard_{number:05d}.parquet"

    @property
    def val_name(self) -> str:
        """The shard that is never trained on, however many are there."""
        return self.file_name(self.num_files - 1)


HUB_SOURCES = {
    "fineweb-edu": HubSource("karpathy/fineweb-edu-100b-shuffle", 1823),
    "climbmix": HubSource("karpathy/climbmix-400b-shuffle", 6543),  # research only
}

TASK_FILES: dict[str, list[tuple[str, str]]] = {
    "mid": [
        *(
            ("HuggingFaceTB/smol-smoltalk", f"data/train-0000{i}-of-00004.parquet")
            for i in range(4)
        ),
        ("HuggingFaceTB/smol-smoltalk", "data/test-00000-of-00001.parquet"),
        ("cais/mmlu", "all/auxiliary_train-00000-of-00001.parquet"),
        ("openai/gsm8k", "main/train-00000-of-00001.parquet"),
        ("openai/gsm8k", "main/test-00000-of-00001.parquet"),
    ],
    "eval": [
        *(
            ("allenai/ai2_arc", f"ARC-{level}/{split}-00000-of-00001.parquet")
            for level in ("Easy", "Challenge")
            for split in ("train", "test")
        ),
        ("cais/mmlu", "all/test-00000-of-00001.parquet"),
        ("openai/openai_humaneval", "openai_humaneval/test-00000-of-00001.parquet"),
    ],
}
TASK_FILES["sft"] = TASK_FILES["mid"] + TASK_FILES["eval"]
TASK_FILES["rl"] = TASK_FILES["mid"][-2:]


# ---- which source


def source_name(source: str) -> str:
    """The folder name of a source: its own name, or one made from a path."""
    names = [*HUB_SOURCES, "primer"]
    if source in names or _is_made(source):
        return source
    path = Path(source).expanduser()
    if not source or not path.exists():
        near = difflib.get_close_matches(source, names, n=1, cutoff=0.4)
        remedy = f"did you mean {near[0]}?" if near else f"use {', '.join(names)} or a PATH"
        raise UserError(f"--source={source} is neither a known source nor a path; {remedy}")
    resolved = path.resolve()
    digest = hashlib.sha256(bytes(resolved)).hexdigest()[:8]
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", resolved.stem)[:64]
    return f"{stem}-{digest}"


def _is_made(name: str) -> bool:
    """True for the name (not the path) of a source that was made before."""
    return name == Path(name).name and _manifest(name) is not None


def current_source() -> str:
    """The source that was made last. Raises UserError when there is none."""
    try:
        chosen = json.loads(_chosen_path().read_text(encoding="utf-8"))
        return str(chosen["source"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"no text in {paths.base_dir() / 'data'}; run python -m nanochat.dataset first"
            " (--source primer needs no network)"
        ) from None


def _chosen_path() -> Path:
    return paths.base_dir() / "data" / "source.json"


# ---- making shards


def make(source: str, num_shards: int) -> str:
    """Bring or write the shards of a source, note it as the current one; returns its name.

    Raises UserError on a source that is unknown or empty, and when the disk is full.
    """
    name = source_name(source)
    shards = _Shards(name)
    if name in HUB_SOURCES:
        manifest = _fetch_hub(HUB_SOURCES[name], num_shards, shards)
    elif name == "primer":
        manifest = _write_primer(num_shards, shards)
    elif _is_made(source):
        manifest = shards.manifest
    else:
        manifest = _import_path(Path(source).expanduser().resolve(), shards)
    for split in ("train", "val"):
        if not sum(facts["rows"] for facts in manifest[split]):
            raise UserError(f"source {source} has no document for its split {split}; add some text")
    paths.write_atomic(shards.folder / "manifest.json", json.dumps(manifest, indent=1))
    paths.write_atomic(_chosen_path(), json.dumps({"source": name}))
    return name


class _Shards:
    """The shards of a source and what its last manifest notes of them."""

    def __init__(self, name: str) -> None:
        self.folder = paths.data_dir(name)
        self.manifest = _manifest(name) or {}
        noted = [*self.manifest.get("train", []), *self.manifest.get("val", [])]
        self.noted: dict[Path, dict[str, Any]] = {
            self.folder / facts["path"]: facts for facts in noted
        }

    def is_whole(self, path: Path) -> bool:
        """True when a shard is there and is what was noted of it, if anything was."""
        if not path.is_file():
            return False
        noted = self.noted.get(path)
        return noted is None or _is_stamped(path, noted) or _sha256(path) == noted["sha256"]

    def facts(self, path: Path) -> dict[str, Any]:
        """What the manifest is to say of a shard, measured unless it was noted before.

        Raises UserError when it is damaged.
        """
        noted = self.noted.get(path)
        if noted is not None and _is_stamped(path, noted):
            return noted
        size, mtime = _stamp(path)
        is_own = path.is_relative_to(self.folder)  # by name then: the folder may be moved
        return {
            "path": path.name if is_own else str(path),
            "rows": open_parquet(path).metadata.num_rows,
            "bytes": size,
            "mtime_ns": mtime,
            "sha256": _sha256(path),
        }


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _is_stamped(path: Path, facts: dict[str, Any]) -> bool:
    return _stamp(path) == (facts["bytes"], facts["mtime_ns"])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch_hub(source: HubSource, num_shards: int, shards: _Shards) -> dict[str, Any]:
    if not 1 <= num_shards < source.num_files:
        raise UserError(f"-n {num_shards} is not between 1 and {source.num_files - 1}")
    train = [shards.folder / source.file_name(number) for number in range(num_shards)]
    val = shards.folder / source.val_name
    for path in [val, *train]:
        if path.is_file() and not shards.is_whole(path):
            logger.warning("%s is not what it was: it is brought again", path)
            path.unlink()
        _bring(f"datasets/{source.repo}/resolve/{source.revision}/{path.name}", path)
    return {"train": [shards.facts(path) for path in train], "val": [shards.facts(val)]}


def _bring(url_path: str, path: Path) -> None:
    if path.is_file():
        return
    if hub_offline():
        raise UserError(
            f"{path} is not there and HF_HUB_OFFLINE forbids to download it; unset it once, or"
            " use --source primer"
        )
    logger.info("downloading %s", url_path)
    download(f"{hub_endpoint()}/{url_path}", path)


def _write_primer(num_shards: int, shards: _Shards) -> dict[str, Any]:
    if num_shards < 1:
        raise UserError(f"-n {num_shards} is below 1; use 1 or more")
    val = shards.folder / "val_00000.parquet"
    wanted: dict[Path, tuple[Split, range]] = {val: ("val", range(PRIMER_VAL_DOCUMENTS))}
    for number in range(num_shards):
        first = number * PRIMER_SHARD_DOCUMENTS
        indices = range(first, first + PRIMER_SHARD_DOCUMENTS)
        wanted[shards.folder / f"train_{number:05d}.parquet"] = ("train", indices)
    world = primer.fingerprint()
    is_of_this_world = shards.manifest.get("world") == world
    for path, (split, indices) in wanted.items():
        if not is_of_this_world or not shards.is_whole(path):
            write_shard(path, (primer.document(PRIMER_SEED, i, split) for i in indices))
            logger.info("wrote %s", path)
    train = [shards.facts(path) for path in wanted if path != val]
    return {"train": train, "val": [shards.facts(val)], "world": world}


# ---- anybody's own text


def _import_path(path: Path, shards: _Shards) -> dict[str, Any]:
    files = text_files(path)
    if not files:
        raise UserError(
            f"{path} holds no .parquet, .jsonl, .jsonl.gz, .jsonl.zst or .txt file; put text there"
        )
    if len(files) > 1 and all(kind_of(file) == ".parquet" for file in files):
        # Used where they are, the last by name for validation.
        facts = [shards.facts(file) for file in files]
        return {"train": facts[:-1], "val": facts[-1:]}
    stamps = [[str(file), *_stamp(file)] for file in files]
    is_same = shards.manifest.get("files") == stamps
    if is_same and all(map(shards.is_whole, shards.noted)):
        logger.info("%s is imported already and has not changed", path)
        return shards.manifest
    return {**_write_imported(path, files, shards), "files": stamps}


def _write_imported(path: Path, files: list[Path], shards: _Shards) -> dict[str, Any]:
    limit, num_documents = _val_limit(texts_of(files))
    written: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    for split in ("train", "val"):
        texts = (t for t in texts_of(files) if (_place(t) < limit) == (split == "val"))
        for number, some in enumerate(group_texts(texts, PATH_SHARD_CHARACTERS)):
            # Neighbours in a file are alike, and so would be the rows of a step.
            random.Random(number).shuffle(some)
            shard = shards.folder / f"{split}_{number:05d}.parquet"
            write_shard(shard, some)
            logger.info("wrote %s", shard)
            written[split].append(shards.facts(shard))
    if not written["train"] or not written["val"]:
        raise UserError(
            f"{path} holds too little text: {num_documents} documents that are not empty; at"
            " least two different ones are needed, to train and to validate"
        )
    return written


def _val_limit(texts: Iterable[str]) -> tuple[float, int]:
    """The limit below which a text's place is for validation, and how many texts there are.

    That is a share of all, or else the one that is placed lowest.
    """
    lowest, num_documents = 1.0, 0
    for text in texts:
        lowest = min(lowest, _place(text))
        num_documents += 1
    return max(VAL_SHARE, math.nextafter(lowest, 2.0)), num_documents


def _place(text: str) -> float:
    """A number from 0 to 1 made of a text: the same however files are named or ordered."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


# ---- reading


def _read_manifest(name: str) -> dict[str, Any]:
    manifest = _manifest(name)
    if manifest is None:
        raise UserError(
            f"no text of source {name}; run python -m nanochat.dataset --source {name} first"
        )
    return manifest


def _manifest(name: str) -> dict[str, Any] | None:
    """What was noted of a source's shards; None when there is nothing that can be believed."""
    try:
        manifest = json.loads((paths.data_dir(name) / "manifest.json").read_text(encoding="utf-8"))
        noted = [facts for split in ("train", "val") for facts in manifest[split]]
        is_good = all(facts.keys() >= {"path", "bytes", "rows", "sha256"} for facts in noted)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if is_good else None


def shard_paths(source: str, split: Split) -> list[Path]:
    """Shards of a split, in order. Raises UserError when one is missing or was cut short."""
    found = []
    name = source_name(source)
    for facts in _read_manifest(name)[split]:
        path = paths.data_dir(name) / facts["path"]
        if not path.is_file() or path.stat().st_size != facts["bytes"]:
            raise UserError(
                f"{path} is missing or has another size than the {facts['bytes']} bytes noted;"
                f" remove it and run python -m nanochat.dataset --source {source} again"
            )
        found.append(path)
    return found


def iter_texts(
    split: Split, source: str = "", max_chars: int = -1, doc_cap: int = -1
) -> Iterator[str]:
    """Texts of a source (empty: the current one), each cut at `doc_cap`, `max_chars` in all.

    -1 means all. Raises UserError on other numbers below 1.
    """
    for name, value in (("max_chars", max_chars), ("doc_cap", doc_cap)):
        if value < 1 and value != -1:
            raise UserError(f"--{name}={value} leaves no text; use 1 or more, or -1 for all")
    return _cut_texts(Documents(shard_paths(source or current_source(), split)), max_chars, doc_cap)


def _cut_texts(documents: Documents, max_chars: int, doc_cap: int) -> Iterator[str]:
    left = max_chars
    for text in documents:
        text = text[:doc_cap] if doc_cap > 0 else text
        if max_chars > 0:
            if left <= 0:
                return
            text = text[:left]
            left -= len(text)
        yield text


# ---- files of tasks


def task_file(repo: str, path: str, revision: str = "main") -> Path:
    """A file of a data set on the hub, downloaded once. Raises UserError when it cannot be had."""
    local = paths.task_dir() / repo / path
    try:
        _bring(f"datasets/{repo}/resolve/{revision}/{path}", local)
    except UserError as error:
        stages = [name for name, files in TASK_FILES.items() if (repo, path) in files]
        remedy = f"; where there is a network, --prefetch {stages[0]} brings it" if stages else ""
        raise UserError(f"{error}{remedy}") from None
    return local


def prefetch(names: str) -> None:
    """Bring the files of the stages named, separated by commas."""
    for stage in _stages(names):
        for repo, path in TASK_FILES[stage]:
            task_file(repo, path)


def _stages(names: str) -> list[str]:
    stages = [name.strip() for name in names.split(",") if name.strip()]
    for name in stages:
        if name not in TASK_FILES:
            raise UserError(f"--prefetch={name} is not one of {', '.join(TASK_FILES)}")
    return stages


@dataclass(frozen=True)
class Options:
    """Bring or write the text that a model is trained on."""

    num_shards: Annotated[int, short("-n")] = 8
    """Training shards of a named source; about 100 MB each on the hub, 1 MB of the primer. 0 with
    --prefetch brings only that and leaves the text in use as it is."""
    source: str = "fineweb-edu"
    """fineweb-edu, climbmix, primer, or a PATH with .parquet, .jsonl(.gz|.zst) or .txt files."""
    prefetch: str = ""
    """Files of later stages to bring as well: mid, sft, rl, eval; separated by commas."""


def main(argv: list[str] | None = None) -> None:
    """Make the source current."""
    options = parse(Options, argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    only_prefetch = bool(_stages(options.prefetch)) and options.num_shards == 0
    if not only_prefetch:
        _make_and_say(options)
    prefetch(options.prefetch)


def _make_and_say(options: Options) -> None:
    name = make(options.source, options.num_shards)
    documents = {split: len(Documents(shard_paths(name, split))) for split in ("train", "val")}
    print(
        f"{name}: {documents['train']:,} documents to train on, {documents['val']:,} to validate,"
        f" in {paths.data_dir(name)}"
    )


if __name__ == "__main__":
    run(main)
