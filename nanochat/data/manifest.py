"""The folder of a source's shards and its manifest: size, time and checksum of each shard."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from nanochat import paths
from nanochat.data.download import sha256
from nanochat.data.shards import open_parquet

Split = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")
Manifest = dict[str, Any]  # {"train": [shard, ...], "val": [...]}, see `ShardFolder.describe`


def load_manifest(name: str) -> Manifest | None:
    """The manifest of a source; None if there is none, or a damaged one."""
    keys = {"path", "bytes", "rows", "mtime_ns", "sha256"}
    try:
        manifest = json.loads((paths.data_dir(name) / "manifest.json").read_text(encoding="utf-8"))
        shards = [shard for split in SPLITS for shard in manifest[split]]
        return manifest if all(shard.keys() >= keys for shard in shards) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


class ShardFolder:
    """The shards of a source that are recorded in its manifest, and whether they are intact."""

    def __init__(self, name: str) -> None:
        self.folder = paths.data_dir(name)
        self.manifest = load_manifest(name) or {}
        recorded = [shard for split in SPLITS for shard in self.manifest.get(split, [])]
        self.recorded = {self.folder / shard["path"]: shard for shard in recorded}

    def is_intact(self, path: Path) -> bool:
        """True when a shard exists and, if it was recorded, has not changed since."""
        if not path.is_file():
            return False
        if (shard := self.recorded.get(path)) is None:
            return True
        is_same = size_and_time(path) == [shard["bytes"], shard["mtime_ns"]]
        return is_same or sha256(path) == shard["sha256"]  # copied or restored: another time

    def describe(self, path: Path) -> dict[str, Any]:
        """The manifest's entry for a shard. Raises UserError when the shard is damaged."""
        size, mtime = size_and_time(path)
        shard: dict[str, Any] = self.recorded.get(path, {})
        if [size, mtime] == [shard.get("bytes"), shard.get("mtime_ns")]:
            return shard  # hashing again would read gigabytes
        is_ours = path.is_relative_to(self.folder)  # relative then: the folder may be moved
        return {
            "path": str(path.relative_to(self.folder)) if is_ours else str(path),
            "rows": open_parquet(path).metadata.num_rows,
            "bytes": size,
            "mtime_ns": mtime,
            "sha256": sha256(path),
        }

    def remove_others(self, manifest: Manifest) -> None:
        """Remove the shards of earlier imports, which the manifest does not name."""
        named = {self.folder / shard["path"] for split in SPLITS for shard in manifest[split]}
        for path in list(self.folder.rglob("*.parquet")):
            if path not in named:
                path.unlink()
                with suppress(OSError):
                    path.parent.rmdir()


def size_and_time(path: Path) -> list[int]:
    """By which a file that has not changed is recognized."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
