"""Named sources of text, kept as parquet shards with one string column `text`.

    python -m nanochat.dataset -n 8                      fineweb-edu, by download
    python -m nanochat.dataset --source primer -n 4      the built-in world, no network needed
    python -m nanochat.dataset --source my_texts/        .parquet, .jsonl(.gz|.zst) or .txt
    python -m nanochat.dataset -n 0 --prefetch sft,eval  files of later stages, no text

The source that was made last is the one that later stages use.
"""

import bisect
import difflib
import errno
import hashlib
import io
import json
import logging
import math
import random
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat import paths, primer, runtime
from nanochat.configurator import parse, run, short
from nanochat.download import download
from nanochat.errors import UserError

logger = logging.getLogger(__name__)

Split = Literal["train", "val"]

ROW_GROUP_ROWS = 1024
ROW_GROUP_CHARACTERS = 8_000_000  # so that a group of long texts is not large
MAX_ROW_GROUP_BYTES = 64_000_000  # shards of larger ones are cut anew: lanes hop between groups
CACHED_BYTES = 512_000_000  # of text; lanes drift apart, and each wants a row group of its own
NUM_READING_LOCKS = 64
PRIMER_SEED = 1
PRIMER_SHARD_DOCUMENTS = 16_384
PRIMER_VAL_DOCUMENTS = 4_096
PATH_SHARD_CHARACTERS = 50_000_000
MAX_DOCUMENT_CHARACTERS = 10_000  # a longer text file is cut at ends of paragraphs
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
    return name == Path(name).name and (paths.data_dir(name) / "manifest.json").is_file()


def current_source() -> str:
    """The source that was made last. Raises UserError when there is none."""
    try:
        chosen = json.loads(_chosen_path().read_text(encoding="utf-8"))
        return str(chosen["source"])
    except (OSError, ValueError, KeyError):
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
        manifest = _read_manifest(name)
    else:
        manifest = _import_path(Path(source).expanduser().resolve(), shards)
    for split in ("train", "val"):
        if not sum(facts["rows"] for facts in manifest[split]):
            raise UserError(f"source {source} has no document for its split {split}; add some text")
    paths.write_whole(shards.folder / "manifest.json", json.dumps(manifest, indent=1))
    paths.write_whole(_chosen_path(), json.dumps({"source": name}))
    return name


class _Shards:
    """The shards of a source and what its last manifest notes of them."""

    def __init__(self, name: str) -> None:
        self.folder = paths.data_dir(name)
        manifest = _read_manifest(name) if _is_made(name) else {}
        noted = [*manifest.get("train", []), *manifest.get("val", [])]
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
            "rows": _open(path).metadata.num_rows,
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
    if runtime.hub_offline():
        raise UserError(
            f"{path} is not there and HF_HUB_OFFLINE forbids to download it; unset it once, or"
            " use --source primer"
        )
    logger.info("downloading %s", url_path)
    download(f"{runtime.hub_endpoint()}/{url_path}", path)


def _write_primer(num_shards: int, shards: _Shards) -> dict[str, Any]:
    if num_shards < 1:
        raise UserError(f"-n {num_shards} is below 1; use 1 or more")
    val = shards.folder / "val_00000.parquet"
    wanted: dict[Path, tuple[Split, range]] = {val: ("val", range(PRIMER_VAL_DOCUMENTS))}
    for number in range(num_shards):
        first = number * PRIMER_SHARD_DOCUMENTS
        indices = range(first, first + PRIMER_SHARD_DOCUMENTS)
        wanted[shards.folder / f"train_{number:05d}.parquet"] = ("train", indices)
    for path, (split, indices) in wanted.items():
        if not shards.is_whole(path):
            write_shard(path, (primer.document(PRIMER_SEED, i, split) for i in indices))
            logger.info("wrote %s", path)
    train = [shards.facts(path) for path in wanted if path != val]
    return {"train": train, "val": [shards.facts(val)]}


def write_shard(path: Path, texts: Iterable[str]) -> None:
    """Write a parquet shard: row groups of 1,024 texts or fewer, zstd, pages with checksums."""
    schema = pa.schema([("text", pa.string())])
    with paths.whole_file(path) as file:
        options = {"compression": "zstd", "write_page_checksum": True}
        with pq.ParquetWriter(file, schema, **options) as writer:
            for group in _runs(texts, ROW_GROUP_CHARACTERS, ROW_GROUP_ROWS):
                writer.write_table(pa.table({"text": group}, schema=schema))


def _runs(texts: Iterable[str], max_characters: int, max_texts: int = -1) -> Iterator[list[str]]:
    """The texts in lists that end where a limit is reached."""
    run: list[str] = []
    characters = 0
    for text in texts:
        run.append(text)
        characters += len(text)
        if characters >= max_characters or len(run) == max_texts:
            yield run
            run, characters = [], 0
    if run:
        yield run


# ---- anybody's own text


def _import_path(path: Path, shards: _Shards) -> dict[str, Any]:
    files = _text_files(path)
    if not files:
        raise UserError(
            f"{path} holds no .parquet, .jsonl, .jsonl.gz, .jsonl.zst or .txt file; put text there"
        )
    if len(files) > 1 and all(_is_shard(file) for file in files):
        # Used where they are, the last by name for validation.
        facts = [shards.facts(file) for file in files]
        return {"train": facts[:-1], "val": facts[-1:]}
    stamps = [[str(file), *_stamp(file)] for file in files]
    if _is_made(shards.folder.name) and all(map(shards.is_whole, shards.noted)):
        manifest = _read_manifest(shards.folder.name)
        if manifest.get("files") == stamps:
            logger.info("%s is imported already and has not changed", path)
            return manifest
    return {**_write_imported(path, files, shards), "files": stamps}


def _write_imported(path: Path, files: list[Path], shards: _Shards) -> dict[str, Any]:
    limit, num_documents = _val_limit(_texts_of(files))
    written: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    for split in ("train", "val"):
        texts = (t for t in _texts_of(files) if (_place(t) < limit) == (split == "val"))
        for number, some in enumerate(_runs(texts, PATH_SHARD_CHARACTERS)):
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


def _text_files(path: Path) -> list[Path]:
    """The files of text in a folder, or the one file; not hidden ones, nor what we made."""
    if path.is_file():
        return [path] if _kind(path) else []
    base = paths.base_dir().resolve()

    def is_meant(file: Path) -> bool:
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        return not hidden and (path.is_relative_to(base) or not file.is_relative_to(base))

    found = [file for file in path.rglob("*") if _kind(file) and file.is_file()]
    return sorted(filter(is_meant, found))


def _kind(path: Path) -> str:
    kinds = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt")
    return next((kind for kind in kinds if path.name.lower().endswith(kind)), "")


def _is_shard(path: Path) -> bool:
    """True for parquet whose row groups are small enough for lanes to hop between them."""
    if _kind(path) != ".parquet":
        return False
    metadata = _open(path).metadata
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    return all(group.total_byte_size <= MAX_ROW_GROUP_BYTES for group in groups)


def _place(text: str) -> float:
    """A number from 0 to 1 made of a text: the same however files are named or ordered."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def _texts_of(files: list[Path]) -> Iterator[str]:
    """All texts that are not empty; half a surrogate pair, which is no text, becomes U+FFFD."""
    for file in files:
        if _kind(file) == ".parquet":
            texts = _parquet_texts(file)
        elif _kind(file) == ".txt":
            texts = _parts_of_text(file, files)
        else:
            texts = (_text_field(file, number, row) for number, row in _json_lines(file))
        for text in texts:
            if text and not text.isspace():
                yield _without_half_pairs(text)


def _parquet_texts(file: Path) -> Iterator[str]:
    try:
        for batch in _open(file).iter_batches(batch_size=ROW_GROUP_ROWS, columns=["text"]):
            yield from (text or "" for text in batch.column(0).to_pylist())
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file} is damaged ({_one_line(error)}); bring it again") from None


def _text_field(file: Path, number: int, row: Any) -> str:
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise UserError(f'{file}:{number} is not an object with a "text" that is a string')
    return str(row["text"])


def _without_half_pairs(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _parts_of_text(file: Path, files: list[Path]) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8-sig") as lines:
            yield from cut_at_paragraphs(lines, MAX_DOCUMENT_CHARACTERS)
    except UnicodeDecodeError:
        rest = files[files.index(file) + 1 :]
        more = sum(_kind(other) == ".txt" and not _is_utf8(other) for other in rest)
        also = f" (nor are {more} more)" if more else ""
        raise UserError(
            f"{file} is not UTF-8{also}; convert it, as in iconv -f LATIN1 -t UTF-8 OLD > NEW"
        ) from None


def _is_utf8(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as lines:
            return all(True for _ in lines)
    except UnicodeDecodeError:
        return False


def cut_at_paragraphs(lines: Iterable[str], max_characters: int) -> Iterator[str]:
    """Parts of a text, each a run of whole paragraphs of about `max_characters` at most."""
    part: list[str] = []
    size = 0
    for paragraph in _paragraphs(lines):
        if part and size + len(paragraph) > max_characters:
            yield "\n\n".join(part)
            part, size = [], 0
        part.append(paragraph)
        size += len(paragraph)
    if part:
        yield "\n\n".join(part)


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Runs of lines between blank ones."""
    paragraph: list[str] = []
    for line in lines:
        if line.isspace():
            if paragraph:
                yield "".join(paragraph).removesuffix("\n")
            paragraph = []
        else:
            paragraph.append(line)
    if paragraph:
        yield "".join(paragraph).removesuffix("\n")


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) of each line that is not blank. Raises UserError naming file:line."""
    compression = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix.lower())
    number = 0
    try:
        # Arrow reads all of a file of several frames, and finds one that was cut short.
        with pa.input_stream(path, compression=compression) as stream:
            for number, line in enumerate(io.BufferedReader(stream), start=1):
                if line.strip():
                    yield number, json.loads(line)
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(
            f"{path}:{number}: {_one_line(error)}; each line must be one JSON value in UTF-8"
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


# ---- reading


def _read_manifest(name: str) -> dict[str, Any]:
    try:
        manifest = json.loads((paths.data_dir(name) / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(
            f"no text of source {name}; run python -m nanochat.dataset --source {name} first"
        ) from None
    return dict(manifest)


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


def _open(path: Path) -> pq.ParquetFile:
    """A parquet file with text. Raises UserError when it is damaged or has no such column."""
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOENT:
            raise UserError(f"{path} is not there") from None
        raise UserError(f"{path} is damaged or not parquet; bring it again") from None
    schema = file.schema_arrow
    if "text" not in schema.names:
        names = ", ".join(schema.names)
        raise UserError(f'{path} has columns {names} and none named "text"; rename one')
    kind = schema.field("text").type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(f'{path}: the column "text" holds {kind} and not strings; convert it')
    return file


class Documents:
    """All texts of some shards by index, read a row group at a time; safe to share over threads."""

    def __init__(self, shards: list[Path]) -> None:
        """Raises UserError when there is no shard or no text, or when a shard is damaged."""
        if not shards:
            raise UserError("no shard to read; run python -m nanochat.dataset first")
        self.shards = shards
        self.groups: list[tuple[int, int]] = []  # (shard, row group)
        self.starts: list[int] = []
        self.num_documents = 0
        for number, path in enumerate(shards):
            metadata = _open(path).metadata
            for group in range(metadata.num_row_groups):
                self.groups.append((number, group))
                self.starts.append(self.num_documents)
                self.num_documents += metadata.row_group(group).num_rows
        if not self.num_documents:
            raise UserError(f"{', '.join(map(str, shards[:3]))}: not one document in there")
        self.cache: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self.cached_bytes = 0
        self.cache_lock = threading.Lock()
        self.reading_locks = [threading.Lock() for _ in range(NUM_READING_LOCKS)]

    def __len__(self) -> int:
        return self.num_documents

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < self.num_documents:
            raise IndexError(index)
        group = bisect.bisect_right(self.starts, index) - 1
        text = self._group(group)[index - self.starts[group]].as_py()
        return "" if text is None else text

    def _group(self, number: int) -> pa.ChunkedArray:
        # Threads that want the same group wait for one reader; other groups are read meanwhile.
        with self.reading_locks[number % NUM_READING_LOCKS]:
            with self.cache_lock:
                if number in self.cache:
                    self.cache.move_to_end(number)
                    return self.cache[number]
            shard, group = self.groups[number]
            column = self._read(self.shards[shard], group)
            self._keep(number, column)
            return column

    def _keep(self, number: int, column: pa.ChunkedArray) -> None:
        with self.cache_lock:
            self.cache[number] = column
            self.cached_bytes += column.nbytes
            while self.cached_bytes > CACHED_BYTES and len(self.cache) > 1:
                _, oldest = self.cache.popitem(last=False)
                self.cached_bytes -= oldest.nbytes

    @staticmethod
    def _read(path: Path, group: int) -> pa.ChunkedArray:
        try:
            return _open(path).read_row_group(group, columns=["text"]).column("text")
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(
                f"{path} is damaged in row group {group} ({_one_line(error)}); remove it and make"
                " it again with python -m nanochat.dataset"
            ) from None


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
    for index in range(len(documents)):
        text = documents[index]
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


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a parquet or jsonl file."""
    if path.suffix == ".parquet":
        try:
            rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        except (pa.ArrowInvalid, OSError):
            raise UserError(f"{path} is damaged; remove it, it is brought again") from None
        return rows
    return [row for _, row in _json_lines(path)]


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
    """Training shards of a named source; about 100 MB each on the hub, 10 MB of the primer. 0 with
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
