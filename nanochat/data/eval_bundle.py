"""The bundle of the CORE metric: downloaded once, unpacked safely; its definitions of tasks."""

import csv
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

import yaml  # type: ignore[import-untyped]

from nanochat import paths
from nanochat.data.download import download_url
from nanochat.errors import UserError, named_failures
from nanochat.runtime import hub_offline, mirrored

BUNDLE_URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
TASKS_FILE, BASELINES_FILE = "core.yaml", "eval_meta_data.csv"
MAX_FILES, MAX_BYTES = 1_000, 2**32  # unpacked: several times the published bundle
MAX_DEFINITIONS = 1_000_000  # bytes of a list of tasks; the published ones have a few thousand
REMEDY = "check the network, or name an unpacked bundle: python -m scripts.base_eval --bundle=PATH"


def fetch_bundle() -> Path:
    """The folder of the bundle in this base directory, downloaded if it is missing.

    Processes on one machine download it once. Raises UserError when offline or unavailable.
    """
    folder = paths.eval_dir()
    if folder.is_dir():  # it appears when it is complete
        return folder
    if hub_offline():
        raise UserError(
            f"{folder} is missing and HF_HUB_OFFLINE forbids downloading it; unset it once, or name"
            " an unpacked bundle: python -m scripts.base_eval --bundle=PATH"
        )
    archive = folder.with_name(f"{folder.name}.zip")
    with named_failures(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with paths.locked(folder):
            if not folder.is_dir():  # another process may have finished it meanwhile
                download_url(mirrored(BUNDLE_URL), archive, REMEDY)
                unpack(archive, folder)
    return folder


def unpack(archive: Path, folder: Path) -> None:
    """Turn a zip file into the folder that has its core.yaml, atomically, and remove it.

    A file that is damaged or unsafe (paths outside, links, too large) is removed with a UserError.
    """
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with zipfile.ZipFile(archive) as content:
            for name, member in _members(content).items():
                target = temporary / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with content.open(member) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)  # checks its CRC; at most the declared size
                    file.flush()
                    os.fsync(file.fileno())
        temporary.chmod(0o755)  # mkdtemp makes it private
        temporary.rename(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        archive.unlink()
        raise UserError(
            f"{archive} is not the bundle: {error}; it was removed, run the command again to"
            " download it"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    archive.unlink()


def _members(content: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The files to unpack, by path. Raises BadZipFile when one is unsafe."""
    files = [member for member in content.infolist() if not member.is_dir()]
    found = [m.filename for m in files if PurePosixPath(m.filename).name == TASKS_FILE]
    if not found:
        raise zipfile.BadZipFile(f"it has no {TASKS_FILE}")
    root = min(found, key=len).removesuffix(TASKS_FILE)  # usually "eval_bundle/"
    members = {m.filename.removeprefix(root): m for m in files if m.filename.startswith(root)}
    num_bytes = sum(member.file_size for member in members.values())
    if len(members) > MAX_FILES or num_bytes > MAX_BYTES:
        raise zipfile.BadZipFile(
            f"{len(members):,} files of {num_bytes:,} bytes are more than {MAX_FILES:,} of"
            f" {MAX_BYTES:,}"
        )
    for name, member in members.items():
        path = PurePosixPath(name)
        is_outside = path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name
        if is_outside or stat.S_ISLNK(member.external_attr >> 16):
            raise zipfile.BadZipFile(f"{member.filename!r} is a link or a path outside of it")
    return members


def read_definitions(folder: Path) -> dict[str, dict[str, Any]]:
    """What core.yaml and eval_meta_data.csv say of each task of core.yaml, as far as they exist.

    By label: file, kind, num_shots, delimiter and baseline (0 to 1), the fields of
    `core_eval.CoreTask`. Raises UserError when a file has another format.
    """
    path = folder / TASKS_FILE
    if not path.is_file():
        return {}
    try:
        definitions = {
            entry["label"]: {
                "file": entry["dataset_uri"],
                "kind": entry["icl_task_type"],
                "num_shots": entry["num_fewshot"][0],
                "delimiter": entry.get("continuation_delimiter", " "),
            }
            for entry in yaml.safe_load(_short_text(path))["icl_tasks"]
        }
        path = folder / BASELINES_FILE
        if path.is_file():
            for row in csv.DictReader(_short_text(path).splitlines()):
                if row["Eval Task"] in definitions:  # it also lists tasks of other metrics
                    percent = float(row["Random baseline"])
                    definitions[row["Eval Task"]]["baseline"] = round(percent / 100, 6)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, yaml.YAMLError):
        raise UserError(f"{path} has another format; restore the published file") from None
    return definitions


def _short_text(path: Path) -> str:
    """The text of a list of tasks. Raises UserError on one too long to be parsed in a moment."""
    if (size := path.stat().st_size) > MAX_DEFINITIONS:
        limit = f"at most {MAX_DEFINITIONS:,} are a list of tasks"
        raise UserError(f"{path} has {size:,} bytes, {limit}; restore the published file")
    return path.read_text(encoding="utf-8")
