"""Checkpoints: whole or absent, found again by tag and step, checked before they are believed.

A checkpoint of step N in a folder is
    model_{N:06d}.pt             tensors by parameter name
    optim_{N:06d}_rank{r}.pt     each rank's share of the optimizers' state
    meta_{N:06d}.json            everything else; sizes and sha256 of the files above, its own too
The meta is written last: a checkpoint exists when its meta does.
"""

import hashlib
import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from nanochat import paths
from nanochat.errors import UserError
from nanochat.gpt import GPT, GPTConfig
from nanochat.runtime import Runtime, gather_objects
from nanochat.tokenizer import RustBPETokenizer, get_tokenizer

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
FIRST_VERSION = 1  # whose meta has no digest of its own
META_NAME = re.compile(r"meta_(\d{6,})\.json")
TENSORS_NAME = re.compile(r"(?:model|optim)_(\d{6,})(?:_rank\d+)?\.pt")
PART_NAME = re.compile(r"\.(?:model|optim|meta)_\d{6,}.*\.part")
REPLACED = "replaced"  # folder of runs that a --fresh one has taken the place of
COMPILE_PREFIX = "_orig_mod."
TRAINING_COMMANDS = {
    "base": "scripts.base_train",
    "mid": "scripts.mid_train",
    "sft": "scripts.chat_sft",
    "rl": "scripts.chat_rl",
}

Meta = dict[str, Any]


# ---- where


def default_tag(n_layer: int) -> str:
    """The folder of a model that was given no `--model_tag`."""
    return f"d{n_layer}"


def find_directory(stage: str, tag: str = "") -> Path:
    """The folder of a stage's checkpoints: of `tag`, else the one saved to last.

    Raises UserError naming the command that makes one.
    """
    root = paths.checkpoints_dir(stage)
    if tag:
        candidates = [root / tag]
    else:
        candidates = list(root.iterdir()) if root.is_dir() else []
    saved = [(path.stat().st_mtime, path) for c in candidates for path in c.glob("meta_*.json")]
    if not saved:
        where = root / tag if tag else root
        raise UserError(f"no checkpoint in {where}; run python -m {TRAINING_COMMANDS[stage]} first")
    return max(saved)[1].parent


def find_stage() -> str:
    """The furthest stage that has a checkpoint. Raises UserError when none has."""
    for stage in ("rl", "sft", "mid", "base"):
        if any(paths.checkpoints_dir(stage).glob("*/meta_*.json")):
            return stage
    raise UserError(f"no model in {paths.base_dir()}; run bash speedrun.sh, or scripts.base_train")


def saved_steps(directory: Path) -> list[int]:
    """Steps that have a meta, newest first; foreign files do not disturb."""
    names = (META_NAME.fullmatch(path.name) for path in directory.glob("meta_*.json"))
    return sorted((int(name[1]) for name in names if name), reverse=True)


def _file(directory: Path, kind: str, step: int, rank: int | None = None) -> Path:
    if kind == "meta":
        return directory / f"meta_{step:06d}.json"
    owner = "" if rank is None else f"_rank{rank}"
    return directory / f"{kind}_{step:06d}{owner}.pt"


# ---- save


class _HashingWriter:
    """A file that digests what goes through it, so that nothing is read back to be checked."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _save_tensors(path: Path, content: Any) -> dict[str, Any]:
    with paths.atomic_file(path) as file:
        writer = _HashingWriter(file)
        torch.save(content, cast(IO[bytes], writer))
    return {"size": writer.size, "sha256": writer.digest.hexdigest()}


Share = dict[str, Any]  # what a rank has written: "files" with their facts, "loader", "failure"


def snapshot(model: GPT | None, optimizers: Sequence[Any]) -> dict[str, Any]:
    """What one rank is going to write, copied to the host: {"model": ..., "optim": [...]}.

    `model` is given on the main rank alone.
    """
    content: dict[str, Any] = {"optim": [optimizer.state_dict() for optimizer in optimizers]}
    if model is not None:
        content["model"] = model.state_dict()
    return _copied(content)


def _copied(content: Any) -> Any:
    if isinstance(content, Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        return {key: _copied(value) for key, value in content.items()}
    return [_copied(value) for value in content] if isinstance(content, list) else content


def save(
    directory: Path,
    step: int,
    content: dict[str, Any],
    meta: Meta,
    *,
    rank: int = 0,
    keep: int,
    gather: Callable[[Share], list[Share]] = lambda share: [share],
    failure: str = "",
) -> None:
    """Write one checkpoint; every rank calls it. Older ones than the `keep` newest are removed.

    content: the rank's `snapshot`.  meta["loader"]: the rank's loader state; they are merged.
    gather: this rank's share to those of all ranks, or to [] on ranks but the main one.
    failure: why this rank has nothing to write, which it has to tell the others.
    Raises UserError when a rank cannot write (full disk) or a tensor is not finite; the
    checkpoints that were there stay.
    """
    share: Share = {"files": {}, "loader": meta["loader"], "failure": failure}
    try:
        _refuse_not_finite(content)
        for kind, tensors in content.items():
            path = _file(directory, kind, step, rank if kind == "optim" else None)
            share["files"][path.name] = _save_tensors(path, tensors)
    except (UserError, OSError, RuntimeError) as error:
        share["failure"] = str(error)
    try:
        shares = gather(share)
        failure = next((one["failure"] for one in [share, *shares] if one["failure"]), "")
        if not failure and rank == 0:
            _finish_save(directory, step, meta, shares, keep)
    except (UserError, OSError) as error:
        failure = str(error)
    if failure:
        if rank == 0:
            _remove(directory, step)
        raise UserError(f"checkpoint of step {step} was not saved: {failure}")


def _refuse_not_finite(content: Any, name: str = "") -> None:
    """Raises UserError that names a tensor with a value that is no number or infinite."""
    if isinstance(content, Tensor):
        # A sum is cheap, and may be infinite of finite values.
        if not content.sum().isfinite() and not content.isfinite().all():
            raise UserError(f"{name} holds values that are not finite")
    elif isinstance(content, dict | list):
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in pairs:
            _refuse_not_finite(value, f"{name}/{key}" if name else str(key))


def _finish_save(directory: Path, step: int, meta: Meta, shares: list[Share], keep: int) -> None:
    whole = {
        "version": FORMAT_VERSION,
        "step": step,
        **meta,
        "files": {name: facts for share in shares for name, facts in share["files"].items()},
        "loader": merge_loader_states([share["loader"] for share in shares]),
    }
    _write_meta(directory, whole)
    so_far = [old for old in saved_steps(directory) if old <= step]  # later ones are damaged
    for old in so_far[max(1, keep) :]:
        try:
            _remove(directory, old)
        except OSError as error:  # the new one is whole all the same
            logger.warning("checkpoint of step %d could not be removed: %s", old, error)


def _write_meta(directory: Path, meta: Meta) -> None:
    whole = {**meta, "sha256": _meta_digest(meta)}
    paths.write_atomic(_file(directory, "meta", meta["step"]), json.dumps(whole, indent=1))


def _meta_digest(meta: Meta) -> str:
    """Of everything in a meta but the digest itself, however it is laid out."""
    rest = {key: value for key, value in meta.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def update_meta(directory: Path, step: int, **changes: Any) -> None:
    """Replace facts in the meta of a checkpoint that is there; its tensors stay as they are.

    Raises UserError when it cannot be read.
    """
    meta = _read_meta(directory, step)
    if meta is None:
        raise UserError(f"{_file(directory, 'meta', step)} cannot be read; run the command again")
    _write_meta(directory, {**meta, **changes})


def _remove(directory: Path, step: int) -> None:
    _file(directory, "meta", step).unlink(missing_ok=True)
    for path in directory.glob(f"*_{step:06d}*.pt"):
        path.unlink(missing_ok=True)


def remove_leftovers(directory: Path) -> None:
    """Remove what saves that were killed have left: temporary files, tensors without a meta."""
    steps = set(saved_steps(directory))
    for path in directory.glob(".*.part"):
        if PART_NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)
    for path in directory.glob("*.pt"):
        name = TENSORS_NAME.fullmatch(path.name)
        if name and int(name[1]) not in steps:
            path.unlink(missing_ok=True)


def set_aside(directory: Path) -> None:
    """Move a run out of the way of a new one, to replaced/TAG-1, TAG-2 ..., and say where it is."""
    if not saved_steps(directory):
        return
    names = (directory.parent / REPLACED / f"{directory.name}-{n}" for n in itertools.count(1))
    runtime = next(path for path in names if not path.exists())
    with paths.named_failures(runtime):
        runtime.parent.mkdir(exist_ok=True)
        directory.rename(runtime)
    logger.warning("the run that was in %s is now in %s; delete it at will", directory, runtime)


def merge_loader_states(states: list[dict[str, Any]]) -> dict[str, Any]:
    """One state from the ranks' states: folders of lanes are united, the rest is equal anyway."""
    merged: dict[str, Any] = {}
    for state in states:
        for key, value in state.items():
            if isinstance(value, dict):
                merged[key] = {**merged.get(key, {}), **value}
            else:
                merged[key] = value
    return merged


# ---- load


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are all there with the sizes and digests that its meta names."""

    directory: Path
    step: int
    meta: Meta

    @property
    def identity(self) -> str:
        """Sixteen hexadecimal digits that change when the model does."""
        return model_identity(self.meta)

    def load_model_state(self, device: torch.device) -> dict[str, Tensor]:
        """Tensors by parameter name, prefixes of compiled modules taken off."""
        path = _file(self.directory, "model", self.step)
        state = _load_tensors(path, map_location=device)
        return {name.removeprefix(COMPILE_PREFIX): tensor for name, tensor in state.items()}

    def load_optimizer_states(self) -> list[list[Any]]:
        """For each optimizer, the state dictionaries of all the ranks that saved, on the host.

        They are read from the disk when they are looked at: a rank wants little of the others'.
        """
        files = self._optimizer_files()
        by_rank = [_load_tensors(path, map_location="cpu", mmap=True) for path in files]
        return [list(states) for states in zip(*by_rank, strict=True)]

    def _optimizer_files(self) -> list[Path]:
        """One of each rank that saved, in their order."""
        number = sum(name.startswith("optim_") for name in self.meta["files"])
        return [_file(self.directory, "optim", self.step, rank) for rank in range(number)]


def _load_tensors(path: Path, **how: Any) -> Any:
    """Plain tensors in lists and dictionaries; nothing in the file is executed."""
    try:
        return torch.load(path, weights_only=True, **how)
    except Exception as error:  # whatever the content of a foreign file makes of the reader
        raise UserError(
            f"{path} is no file of plain tensors; bring back the one that was saved there"
        ) from error


def model_identity(meta: Meta) -> str:
    """Sixteen hexadecimal digits that change when the model of this meta does."""
    return str(meta["files"][_model_name(meta)]["sha256"])[:16]


def _model_name(meta: Meta) -> str:
    return f"model_{meta['step']:06d}.pt"


def read_meta(stage: str, tag: str = "", step: int = -1) -> Meta:
    """The meta of a stage's newest checkpoint (or of `step`), without opening its tensors."""
    directory = find_directory(stage, tag)
    for candidate in saved_steps(directory) if step < 0 else [step]:
        meta = _read_meta(directory, candidate)
        if meta:
            return meta
    wanted = "checkpoint" if step < 0 else f"checkpoint of step {step}"
    raise UserError(f"no readable {wanted} in {directory}; train that stage again with --fresh")


def _read_meta(directory: Path, step: int) -> Meta | None:
    try:
        meta = json.loads(_file(directory, "meta", step).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(meta, dict) or not isinstance(meta.get("files"), dict):
        return None
    is_whole = meta.get("version") == FORMAT_VERSION and meta.get("sha256") == _meta_digest(meta)
    return meta if is_whole or meta.get("version") == FIRST_VERSION else None


def newest_complete(
    directory: Path, step: int = -1, model_only_on: Runtime | None = None
) -> Checkpoint | None:
    """The newest checkpoint (or that of `step`) whose files match their checksums.

    model_only_on: verify only the model file, once per node; every rank calls it. Damaged
    checkpoints are logged and passed over.
    """
    for candidate in saved_steps(directory) if step < 0 else [step]:
        meta = _read_meta(directory, candidate)
        damage = _damage(directory, meta, model_only_on)
        if meta is not None and not damage:
            return Checkpoint(directory, candidate, meta)
        logger.warning("checkpoint of step %d in %s is skipped: %s", candidate, directory, damage)
    return None


def _damage(directory: Path, meta: Meta | None, model_only_on: Runtime | None) -> str:
    """What is wrong with a checkpoint; empty when nothing is."""
    if meta is None:
        damage = "its meta file cannot be read"
    elif model_only_on is None:
        damage = _files_damage(directory, meta["files"])
    elif model_only_on.local_rank == 0:
        # The optimizer shards are twice the size of the model, and not needed to run it.
        damage = _files_damage(
            directory, {name: meta["files"][name] for name in [_model_name(meta)]}
        )
    else:
        damage = ""
    if model_only_on is not None:  # all ranks decide alike, also where nodes have their own disks
        damage = next(filter(None, gather_objects(damage)), "")
    return damage


def _files_damage(directory: Path, files: dict[str, Any]) -> str:
    for name, facts in files.items():
        path = directory / name
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size != facts["size"]:
                    return f"{name} has {size} bytes, expected {facts['size']}"
                if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
                    return f"checksum mismatch of {name}"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return ""


def build_model(meta: Meta, device: torch.device, compute_dtype: torch.dtype) -> GPT:
    """The model that a meta describes, on `device`, its weights not yet set."""
    with device:  # torch's meta device would import its compiler: seconds before the first word
        model = GPT(GPTConfig.from_dict(meta["model"]), compute_dtype=compute_dtype)
    model.rotary.init_tables()
    return model


def refuse_other_tokenizer(meta: Meta, tokenizer: RustBPETokenizer) -> None:
    """Raises UserError when the model of `meta` was trained with another tokenizer."""
    if meta["tokenizer"] != tokenizer.content_hash:
        raise UserError(
            f"the checkpoint was trained with tokenizer {meta['tokenizer'][:12]}, but"
            f" {paths.tokenizer_dir()} holds {tokenizer.content_hash[:12]}; put the first one back"
            " or train the model again with --fresh"
        )


def load_model(
    stage: str, runtime: Runtime, tag: str = "", step: int = -1
) -> tuple[GPT, RustBPETokenizer, Meta]:
    """A stage's model in evaluation mode, its tokenizer and its meta; every rank calls it.

    Raises UserError when there is none, when its file is damaged or the tokenizer is another.
    """
    directory = find_directory(stage, tag)
    checkpoint = newest_complete(directory, step, model_only_on=runtime)
    if checkpoint is None:
        wanted = "complete checkpoint" if step < 0 else f"complete checkpoint of step {step}"
        have = ", ".join(map(str, saved_steps(directory)))
        raise UserError(
            f"no {wanted} in {directory} (steps there: {have}); train that stage again with --fresh"
        )
    tokenizer = get_tokenizer()
    refuse_other_tokenizer(checkpoint.meta, tokenizer)
    model = build_model(checkpoint.meta, runtime.device, runtime.compute_dtype)
    model.load_state_dict(checkpoint.load_model_state(runtime.device))
    return model.eval(), tokenizer, checkpoint.meta
