"""Checkpoints: written atomically, found by tag and step, verified before they are loaded.

The files of step N in a run's folder:
    model_{N:06d}.pt             tensors by parameter name
    optim_{N:06d}_rank{r}.pt     each rank's shard of the optimizer state
    meta_{N:06d}.json            everything else, and size and sha256 of each file
The meta file is written last: a checkpoint exists when its meta file exists. Beside them lies the
tokenizer that the run was trained with.
"""

import hashlib
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
from nanochat.errors import UserError, named_failures
from nanochat.gpt import GPT, GPTConfig
from nanochat.runtime import Runtime, gather_objects
from nanochat.tokenizer import FILE_NAME, RustBPETokenizer, get_tokenizer

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
META_NAME = re.compile(r"meta_(\d{6,})\.json")
# Tensors of a step, and temporary files, see paths.atomic_file. Other files are not ours to remove.
REMOVABLE_NAME = re.compile(
    r"(?:model|optim)_(\d{6,})(?:_rank\d+)?\.pt|\.(?:model|optim|meta)_\d{6,}.*\.part"
)
COMPILE_PREFIX = "_orig_mod."  # torch.compile puts it before parameter names
TRAINING_COMMANDS = {  # in the order of the pipeline
    "base": "scripts.base_train",
    "mid": "scripts.mid_train",
    "sft": "scripts.chat_sft",
    "rl": "scripts.chat_rl",
}

Meta = dict[str, Any]
Share = dict[str, Any]
"""What one rank contributes to a save: "files" (size and sha256 by name), "failure"."""


# ---- find


def run_directory(stage: str, tag: str) -> Path:
    """The folder of a run's checkpoints, which need not exist."""
    return paths.checkpoints_dir(stage) / tag


def find_directory(stage: str, tag: str = "") -> Path:
    """The folder of `tag`, else of the run that saved last. UserError names the command to run."""
    folder = run_directory(stage, tag)
    metas = list(folder.glob("meta_*.json" if tag else "*/meta_*.json"))
    if not metas:
        command = TRAINING_COMMANDS[stage]
        raise UserError(f"no checkpoint in {folder}; run python -m {command} first")
    return max(metas, key=lambda path: (path.stat().st_mtime, path)).parent


def find_stage() -> str:
    """The furthest stage that has a checkpoint. Raises UserError when none has."""
    for stage in reversed(TRAINING_COMMANDS):
        if any(paths.checkpoints_dir(stage).glob("*/meta_*.json")):
            return stage
    raise UserError(f"no model in {paths.base_dir()}; run bash speedrun.sh, or scripts.base_train")


def saved_steps(directory: Path) -> list[int]:
    """Steps that have a meta file, newest first; other files are ignored."""
    names = (META_NAME.fullmatch(path.name) for path in directory.glob("meta_*.json"))
    return sorted((int(name[1]) for name in names if name), reverse=True)


def _meta_path(directory: Path, step: int) -> Path:
    return directory / f"meta_{step:06d}.json"


def _model_name(step: int) -> str:
    return f"model_{step:06d}.pt"


# ---- save


class _HashingWriter:
    """A file that hashes what is written, so that it need not be read back for its checksum."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0
        self.flush = file.flush

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)


def _save_tensors(path: Path, content: Any) -> dict[str, Any]:
    with paths.atomic_file(path) as file:
        writer = _HashingWriter(file)
        torch.save(content, cast(IO[bytes], writer))
    return {"size": writer.size, "sha256": writer.digest.hexdigest()}


def snapshot(model: GPT | None, optimizers: Sequence[Any]) -> dict[str, Any]:
    """A host copy of what this rank saves; `model` is None on ranks other than the main one."""
    content: dict[str, Any] = {"optim": [optimizer.state_dict() for optimizer in optimizers]}
    return _copied(content if model is None else {**content, "model": model.state_dict()})


def _copied(content: Any) -> Any:
    if isinstance(content, Tensor):
        return content.detach().to("cpu", copy=True)  # also on the CPU: training goes on meanwhile
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
    """Write one checkpoint and remove all but the `keep` newest; every rank calls it.

    content: this rank's `snapshot`.  meta: equal on all ranks, the loader's state included.
    gather: from this rank's share to those of all ranks; to [] on ranks other than the main one.
    failure: why this rank has nothing to write; the other ranks learn it from its share.
    Raises UserError when a rank cannot write (full disk) or a tensor is not finite; earlier
    checkpoints stay.
    """
    share: Share = {"files": {}, "failure": failure}
    names = {"model": _model_name(step), "optim": f"optim_{step:06d}_rank{rank}.pt"}
    try:
        _check_finite(content)
        for kind, tensors in content.items():
            share["files"][names[kind]] = _save_tensors(directory / names[kind], tensors)
    except (UserError, OSError, RuntimeError) as error:
        share["failure"] = str(error)  # gather even so: the main rank waits for every share
    try:
        shares = gather(share)
        failure = next((part["failure"] for part in [share, *shares] if part["failure"]), "")
        if not failure and rank == 0:
            _complete_save(directory, step, meta, shares, keep)
    except (UserError, OSError) as error:
        failure = str(error)
    if failure:
        if rank == 0:
            _remove(directory, step)
        raise UserError(f"checkpoint of step {step} was not saved: {failure}")


def _check_finite(content: Any, name: str = "") -> None:
    """Raises UserError naming the first tensor with an infinite value or NaN."""
    if isinstance(content, Tensor):
        # The sum is cheap, but finite values may overflow in it: then look at each.
        if not content.sum().isfinite() and not content.isfinite().all():
            raise UserError(f"{name} holds values that are not finite")
    elif isinstance(content, dict | list):
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in pairs:
            _check_finite(value, f"{name}/{key}" if name else str(key))


def _complete_save(directory: Path, step: int, meta: Meta, shares: list[Share], keep: int) -> None:
    files = {name: facts for share in shares for name, facts in share["files"].items()}
    _write_meta(directory, {"version": FORMAT_VERSION, "step": step, **meta, "files": files})
    # A later step than this one was skipped as damaged, so it must not count among the newest.
    so_far = [old for old in saved_steps(directory) if old <= step]
    for old in so_far[max(1, keep) :]:
        try:
            _remove(directory, old)
        except OSError as error:  # does not harm the checkpoint that was just written
            logger.warning("checkpoint of step %d could not be removed: %s", old, error)


def _write_meta(directory: Path, meta: Meta) -> None:
    text = json.dumps({**meta, "sha256": _meta_digest(meta)}, indent=1)
    paths.write_atomic(_meta_path(directory, meta["step"]), text)


def _meta_digest(meta: Meta) -> str:
    """Checksum of a meta's content without the checksum itself, independent of formatting."""
    rest = {key: value for key, value in meta.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def update_meta(directory: Path, step: int, **changes: Any) -> None:
    """Change facts in the meta file of a checkpoint. Raises UserError when it cannot be read."""
    meta = _read_meta(directory, step)
    if meta is None:
        raise UserError(f"{_meta_path(directory, step)} cannot be read; run the command again")
    _write_meta(directory, {**meta, **changes})


def _remove(directory: Path, step: int) -> None:
    _meta_path(directory, step).unlink(missing_ok=True)  # first: without it nothing is loaded
    for path in directory.glob(f"*_{step:06d}*.pt"):
        path.unlink(missing_ok=True)


def remove_leftovers(directory: Path) -> None:
    """Remove what killed saves left behind: temporary files, and tensors without a meta file."""
    steps = saved_steps(directory)
    for path in directory.glob("*"):
        name = REMOVABLE_NAME.fullmatch(path.name)
        if name and (name[1] is None or int(name[1]) not in steps):
            path.unlink(missing_ok=True)


def move_to_replaced(directory: Path) -> None:
    """Make room for a new run: rename the old one to replaced/TAG-1, TAG-2 ..., and log where."""
    if not saved_steps(directory):
        return
    free = paths.replaced_path(directory)
    with named_failures(free):
        free.parent.mkdir(exist_ok=True)
        directory.rename(free)
    logger.warning("moved the earlier run from %s to %s; delete it if not needed", directory, free)


# ---- load


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been verified against its meta file."""

    directory: Path
    step: int
    meta: Meta

    def load_model_state(self, device: torch.device) -> dict[str, Tensor]:
        """Tensors by parameter name, without the prefix of compiled modules."""
        state = _load_tensors(self.directory / _model_name(self.step), map_location=device)
        return {name.removeprefix(COMPILE_PREFIX): tensor for name, tensor in state.items()}

    def load_optimizer_states(self) -> list[list[Any]]:
        """For each optimizer, the state dictionaries of all ranks that saved, memory-mapped.

        Only what is used is read from disk: after a change of the number of ranks, a rank needs a
        small part of the others' shards.
        """
        names = [name for name in self.meta["files"] if name.startswith("optim_")]  # in rank order
        by_rank = [
            _load_tensors(self.directory / name, map_location="cpu", mmap=True) for name in names
        ]
        return [list(states) for states in zip(*by_rank, strict=True)]


def _load_tensors(path: Path, **options: Any) -> Any:
    """Plain tensors in lists and dictionaries; nothing in the file is executed."""
    try:
        return torch.load(path, weights_only=True, **options)
    except Exception as error:  # torch raises many types on a file that it did not write
        raise UserError(
            f"{path} is not a file of plain tensors; restore the one that was saved there"
        ) from error


def model_identity(meta: Meta) -> str:
    """16 hexadecimal digits that change when the weights do."""
    return str(meta["files"][_model_name(meta["step"])]["sha256"])[:16]


def read_meta(stage: str, tag: str = "", step: int = -1) -> Meta:
    """The meta of a stage's newest checkpoint (or of `step`), without opening its tensors."""
    directory = find_directory(stage, tag)
    for candidate in saved_steps(directory) if step < 0 else [step]:
        meta = _read_meta(directory, candidate)
        if meta:
            return meta
    raise _nothing_to_load(directory, step)


def _nothing_to_load(directory: Path, step: int) -> UserError:
    wanted = "complete checkpoint" if step < 0 else f"complete checkpoint of step {step}"
    have = ", ".join(map(str, saved_steps(directory)))
    return UserError(
        f"no {wanted} in {directory} (steps there: {have}); train that stage again with --fresh"
    )


def _read_meta(directory: Path, step: int) -> Meta | None:
    """None when it is missing, damaged, or of another format."""
    try:
        meta = json.loads(_meta_path(directory, step).read_text(encoding="utf-8"))
        is_valid = meta["version"] == FORMAT_VERSION and meta["sha256"] == _meta_digest(meta)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return meta if is_valid else None


def newest_complete(
    directory: Path, step: int = -1, model_only_on: Runtime | None = None
) -> Checkpoint | None:
    """The newest checkpoint (or that of `step`) whose files match their checksums, else None.

    model_only_on: verify only the model file, once per node; every rank calls it.
    """
    for candidate in saved_steps(directory) if step < 0 else [step]:
        meta = _read_meta(directory, candidate)
        damage = _checkpoint_error(directory, meta, model_only_on)
        if meta is not None and not damage:
            return Checkpoint(directory, candidate, meta)
        logger.warning("skipped checkpoint of step %d in %s: %s", candidate, directory, damage)
    return None


def _checkpoint_error(directory: Path, meta: Meta | None, model_only_on: Runtime | None) -> str:
    """What is wrong with a checkpoint, in words; empty when nothing is."""
    damage = "its meta file cannot be read"
    if meta is not None:
        names = list(meta["files"])
        if model_only_on is not None:  # optimizer shards are twice the size and not needed to run
            names = [_model_name(meta["step"])] if model_only_on.local_rank == 0 else []
        damages = (_file_error(directory / name, meta["files"][name]) for name in names)
        damage = next(filter(None, damages), "")
    if model_only_on is not None:  # nodes may have disks of their own: all ranks load the same step
        damage = next(filter(None, gather_objects(damage)), "")
    return damage


def _file_error(path: Path, facts: dict[str, Any]) -> str:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size  # a file cut short is found without hashing
            if size != facts["size"]:
                return f"{path.name} has {size} bytes, expected {facts['size']}"
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
    return "" if digest == facts["sha256"] else f"checksum mismatch of {path.name}"


def build_model(meta: Meta, device: torch.device, compute_dtype: torch.dtype) -> GPT:
    """The model that a meta describes, on `device`, with weights still to be loaded."""
    with device:  # not the meta device: it imports torch's compiler, which takes seconds
        model = GPT(GPTConfig.from_dict(meta["model"]), compute_dtype=compute_dtype)
    model.rotary.init_tables()
    return model


def _tokenizer(directory: Path, content_hash: str) -> RustBPETokenizer:
    """The tokenizer of a run: its copy beside the checkpoints, else the current or a replaced one.

    Raises UserError when none of them has the hash.
    """
    current = paths.tokenizer_dir()
    for folder in (directory, current, *sorted(current.parent.glob("replaced/tokenizer-*"))):
        try:
            tokenizer = RustBPETokenizer.from_directory(folder)
        except UserError as error:
            if folder != directory or (folder / FILE_NAME).exists():
                logger.warning("%s", error)
            continue
        if tokenizer.content_hash == content_hash:
            return tokenizer
    raise UserError(
        f"the checkpoint was trained with tokenizer {content_hash[:12]}, but"
        f" {current} holds {get_tokenizer().content_hash[:12]}; restore the former"
        " or train the model again with --fresh"
    )


def load_model(
    stage: str, runtime: Runtime, tag: str = "", step: int = -1
) -> tuple[GPT, RustBPETokenizer, Meta]:
    """A stage's model in evaluation mode, its tokenizer and its meta; every rank calls it.

    Raises UserError when there is none, its file is damaged, or the tokenizer hash differs.
    """
    directory = find_directory(stage, tag)
    checkpoint = newest_complete(directory, step, model_only_on=runtime)
    if checkpoint is None:
        raise _nothing_to_load(directory, step)
    meta, tokenizer = checkpoint.meta, _tokenizer(directory, checkpoint.meta["tokenizer"])
    model = build_model(meta, runtime.device, runtime.compute_dtype)
    model.load_state_dict(checkpoint.load_model_state(runtime.device))
    return model.eval(), tokenizer, meta
