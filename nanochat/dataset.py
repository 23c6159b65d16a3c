"""Named sources of text, kept as parquet shards with one string column `text`.

    python -m nanochat.dataset -n 8                      fineweb-edu, by download
    python -m nanochat.dataset --source primer -n 4      the built-in world, no network needed
    python -m nanochat.dataset --source my_texts/        .parquet, .jsonl(.gz|.zst) or .txt
    python -m nanochat.dataset --prefetch sft,eval       files of later stages

The source that was made last is the one that later stages use.
"""

import difflib
import errno
import gzip
import hashlib
import io
import json
import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from nanochat import paths, primer, runtime
from nanochat.configurator import parse, run, short
from nanochat.download import download
from nanochat.errors import UserError

logger = logging.getLogger(__name__)

Split = Literal["train", "val"]

ROW_GROUP_ROWS = 1024
CACHED_ROW_GROUPS = 16
PRIMER_SEED = 1
PRIMER_SHARD_DOCUMENTS = 16_384
PRIMER_VAL_DOCUMENTS = 4_096
PATH_SHARD_CHARACTERS = 50_000_000
MAX_DOCUMENT_CHARACTERS = 10_000  # a longer text file is cut at ends of paragraphs
VAL_PERCENT = 5


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
    if source in HUB_SOURCES or source == "primer":
        return source
    if paths.data_dir(source).is_dir() and "/" not in source:
        return source
    path = Path(source).expanduser()
    if not path.exists():
        names = [*HUB_SOURCES, "primer"]
        near = difflib.get_close_matches(source, names, n=1, cutoff=0.4)
        remedy = f"did you mean {near[0]}?" if near else f"use {', '.join(names)} or a PATH"
        raise UserError(f"--source={source} is neither a known source nor a path; {remedy}")
    resolved = path.resolve()
    digest = hashlib.sha256(str(resolved).encode()).hexdigest()[:8]
    return f"{resolved.stem}-{digest}"


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
    if name in HUB_SOURCES:
        manifest = _fetch_hub(name, num_shards)
    elif name == "primer":
        manifest = _write_primer(num_shards)
    elif paths.data_dir(source).is_dir() and "/" not in source:
        manifest = _read_manifest(name)
    else:
        manifest = _import_path(Path(source).expanduser().resolve(), name)
    paths.write_whole(paths.data_dir(name) / "manifest.json", json.dumps(manifest, indent=1))
    paths.write_whole(_chosen_path(), json.dumps({"source": name}))
    return name


def _fetch_hub(name: str, num_shards: int) -> dict[str, Any]:
    source = HUB_SOURCES[name]
    if not 1 <= num_shards < source.num_files:
        raise UserError(f"-n {num_shards} is not between 1 and {source.num_files - 1}")
    found = []
    for number in [source.num_files - 1, *range(num_shards)]:
        path = paths.data_dir(name) / source.file_name(number)
        url = f"datasets/{source.repo}/resolve/{source.revision}/{path.name}"
        _bring(url, path)
        if number != source.num_files - 1:
            found.append(_shard_facts(path))
    # Shards of an earlier, larger -n stay in use.
    return {"train": found, "val": [_shard_facts(paths.data_dir(name) / source.val_name)]}


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
    if path.suffix == ".parquet":
        try:
            _open(path)
        except UserError:
            path.unlink()
            raise


def _write_primer(num_shards: int) -> dict[str, Any]:
    if num_shards < 1:
        raise UserError(f"-n {num_shards} must be 1 or more")
    folder = paths.data_dir("primer")
    wanted: list[tuple[Path, Split, range]] = [
        (folder / "val_00000.parquet", "val", range(PRIMER_VAL_DOCUMENTS))
    ]
    for number in range(num_shards):
        first = number * PRIMER_SHARD_DOCUMENTS
        indices = range(first, first + PRIMER_SHARD_DOCUMENTS)
        wanted.append((folder / f"train_{number:05d}.parquet", "train", indices))
    for path, split, indices in wanted:
        if not path.is_file():
            write_shard(path, (primer.document(PRIMER_SEED, i, split) for i in indices))
            logger.info("wrote %s", path)
    return {
        "train": [_shard_facts(path) for path, split, _ in wanted if split == "train"],
        "val": [_shard_facts(wanted[0][0])],
    }


def write_shard(path: Path, texts: Iterable[str]) -> None:
    """Write a parquet shard: row groups of 1,024 texts, zstd, pages with checksums."""
    schema = pa.schema([("text", pa.string())])
    pending = iter(texts)
    with paths.whole_file(path) as file:
        options = {"compression": "zstd", "write_page_checksum": True}
        with pq.ParquetWriter(file, schema, **options) as writer:
            while group := list(islice(pending, ROW_GROUP_ROWS)):
                writer.write_table(pa.table({"text": group}, schema=schema))


def _shard_facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "path": str(path),
        "rows": _open(path).metadata.num_rows,
        "bytes": path.stat().st_size,
        "sha256": digest,
    }


# ---- anybody's own text


def _import_path(path: Path, name: str) -> dict[str, Any]:
    files = sorted(f for f in ([path] if path.is_file() else path.rglob("*")) if _kind(f))
    if not files:
        raise UserError(
            f"{path} holds no .parquet, .jsonl, .jsonl.gz, .jsonl.zst or .txt file; put text there"
        )
    if all(_kind(file) == ".parquet" for file in files) and len(files) > 1:
        # Shards already: used where they are, the last by name for validation.
        facts = [_shard_facts(file) for file in files]
        return {"train": facts[:-1], "val": facts[-1:]}
    folder = paths.data_dir(name)
    if (folder / "manifest.json").is_file() and _is_unchanged(files, folder):
        return _read_manifest(name)
    shards: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    for split in ("train", "val"):
        texts = (text for text in _texts_of(files) if _is_val(text) == (split == "val"))
        for number, batch in enumerate(_batches(texts)):
            shard = folder / f"{split}_{number:05d}.parquet"
            write_shard(shard, batch)
            shards[split].append(_shard_facts(shard))
    if not shards["train"] or not shards["val"]:
        raise UserError(
            f"{path} holds too little text: {len(shards['train'])} shards to train on and"
            f" {len(shards['val'])} to validate; give it at least a few dozen documents"
        )
    return {**shards, "files": _stamps(files)}


def _kind(path: Path) -> str:
    kinds = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt")
    return next((kind for kind in kinds if path.name.endswith(kind)), "")


def _stamps(files: list[Path]) -> list[list[Any]]:
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _is_unchanged(files: list[Path], folder: Path) -> bool:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return bool(manifest.get("files") == _stamps(files))


def _is_val(text: str) -> bool:
    """A share of the documents, chosen by content: the same however files are named or ordered."""
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 100 < VAL_PERCENT


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= PATH_SHARD_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _texts_of(files: list[Path]) -> Iterator[str]:
    for file in files:
        if _kind(file) == ".parquet":
            documents = Documents([file])
            yield from (documents[i] for i in range(len(documents)))
        elif _kind(file) == ".txt":
            text = file.read_text(encoding="utf-8", errors="replace")
            yield from cut_at_paragraphs(text, MAX_DOCUMENT_CHARACTERS)
        else:
            yield from (_text_field(file, n, row) for n, row in _json_lines(file))


def _text_field(file: Path, number: int, row: Any) -> str:
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise UserError(f'{file}:{number} is not an object with a "text" that is a string')
    return str(row["text"])


def cut_at_paragraphs(text: str, max_characters: int) -> Iterator[str]:
    """Parts of a text, each a run of whole paragraphs of about `max_characters` at most."""
    part: list[str] = []
    size = 0
    for paragraph in re.split(r"\n\s*\n", text):
        if part and size + len(paragraph) > max_characters:
            yield "\n\n".join(part)
            part, size = [], 0
        if paragraph.strip():
            part.append(paragraph)
            size += len(paragraph)
    if part:
        yield "\n\n".join(part)


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) of each line that is not blank. Raises UserError naming file:line."""
    with path.open("rb") as raw:
        stream: Any = raw
        if path.suffix == ".gz":
            stream = gzip.GzipFile(fileobj=raw)
        elif path.suffix == ".zst":
            stream = zstandard.ZstdDecompressor().stream_reader(raw)
        number = 0
        try:
            for number, line in enumerate(io.TextIOWrapper(stream, encoding="utf-8"), start=1):
                if line.strip():
                    yield number, json.loads(line)
        except (ValueError, OSError, EOFError, zstandard.ZstdError) as error:
            raise UserError(f"{path}:{number}: {error}; each line must be one JSON value") from None


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
    for facts in _read_manifest(source_name(source))[split]:
        path = Path(facts["path"])
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
    names = file.schema_arrow.names
    if "text" not in names:
        raise UserError(f'{path} has columns {", ".join(names)} and none named "text"; rename one')
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
        self.cache: OrderedDict[int, list[str]] = OrderedDict()
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return self.num_documents

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < self.num_documents:
            raise IndexError(index)
        low, high = 0, len(self.starts)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.starts[middle] <= index else (low, middle)
        return self._group(low)[index - self.starts[low]]

    def _group(self, number: int) -> list[str]:
        with self.lock:
            if number in self.cache:
                self.cache.move_to_end(number)
                return self.cache[number]
            shard, group = self.groups[number]
            texts = self._read(self.shards[shard], group)
            self.cache[number] = texts
            if len(self.cache) > CACHED_ROW_GROUPS:
                self.cache.popitem(last=False)
            return texts

    @staticmethod
    def _read(path: Path, group: int) -> list[str]:
        try:
            column = _open(path).read_row_group(group, columns=["text"]).column("text")
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(
                f"{path} is damaged in row group {group} ({error}); bring it again"
            ) from None
        return ["" if text is None else text for text in column.to_pylist()]


def iter_texts(
    split: Split, source: str = "", max_chars: int = -1, doc_cap: int = -1
) -> Iterator[str]:
    """Texts of a source (empty: the current one), each cut at `doc_cap`, `max_chars` in all."""
    documents = Documents(shard_paths(source or current_source(), split))
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
    for name in filter(None, names.split(",")):
        if name not in TASK_FILES:
            raise UserError(f"--prefetch={name} is not one of {', '.join(TASK_FILES)}")
        for repo, path in TASK_FILES[name]:
            task_file(repo, path)


@dataclass(frozen=True)
class Options:
    """Bring or write the text that a model is trained on."""

    num_shards: Annotated[int, short("-n")] = 8
    """Training shards of a named source; about 100 MB each on the hub, 10 MB of the primer."""
    source: str = "fineweb-edu"
    """fineweb-edu, climbmix, primer, or a PATH with .parquet, .jsonl(.gz|.zst) or .txt files."""
    prefetch: str = ""
    """Files of later stages to bring as well: mid, sft, rl, eval; separated by commas."""


def main(argv: list[str] | None = None) -> None:
    """Make the source current."""
    options = parse(Options, argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    name = make(options.source, options.num_shards)
    documents = {split: len(Documents(shard_paths(name, split))) for split in ("train", "val")}  # type: ignore[arg-type]
    print(
        f"{name}: {documents['train']:,} documents to train on, {documents['val']:,} to validate,"
        f" in {paths.data_dir(name)}"
    )
    prefetch(options.prefetch)


if __name__ == "__main__":
    run(main)
