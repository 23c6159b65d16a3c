"""Checkpoints: written atomically, found by tag and step, verified before they are loaded.

The files of step N in a run's folder:
    model_{N:06d}.pt             tensors by parameter name
    optim_{N:06d}_rank{r}.pt     each rank's shard of the optimizer state
    meta_{N:06d}.json            everything else, and size and sha256 of each file
The meta file is written last: a checkpoint exists when its meta file exists. Beside them lies the
tokenizer that the run was trained with.
"""

import logging
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from nanochat import paths
from nanochat.checkpoint_manager import meta_file, tensor_files
from nanochat.checkpoint_manager.meta_file import FORMAT_VERSION, model_name, optim_name
from nanochat.checkpoint_manager.meta_file import common_steps as common_steps
from nanochat.checkpoint_manager.meta_file import saved_steps as saved_steps
from nanochat.errors import UserError, named_failures
from nanochat.gpt import GPT, GPTConfig
from nanochat.runtime import Runtime, gather_objects, launchers, on_main_first
from nanochat.tokenizer import FILE_NAME, RustBPETokenizer, get_tokenizer

logger = logging.getLogger(__name__)

# Tensors of a step. Other files are not ours to remove.
TENSOR_NAME = re.compile(r"(?:model|optim)_([0-9]{6,})(?:_rank[0-9]+)?\.pt")
COMPILE_PREFIX = "_orig_mod."  # torch.compile puts it before parameter names
TRAINING_COMMANDS = {  # in the order of the pipeline
    "base": "python -m scripts.base_train",
    "mid": "python -m scripts.mid_train",
    "sft": "python -m scripts.chat_sft",
    "rl": "python -m scripts.chat_rl",
}

Result = TypeVar("Result")
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
        raise UserError(f"no checkpoint in {folder}; run {TRAINING_COMMANDS[stage]} first")
    # Not stat, which fails for a link that leads nowhere.
    return max(metas, key=lambda path: (path.lstat().st_mtime, path)).parent


def find_stage() -> str:
    """The furthest stage that has a checkpoint. Raises UserError when none has."""
    for stage in reversed(TRAINING_COMMANDS):
        if any(paths.checkpoints_dir(stage).glob("*/meta_*.json")):
            return stage
    remedy = f"run bash speedrun.sh, or {TRAINING_COMMANDS['base']}"
    raise UserError(f"no model in {paths.base_dir()}; {remedy}")


def lock_run(stage: str, tag: str, wait_seconds: float) -> AbstractContextManager[None]:
    """The lock of a run, beside its folder, which --fresh renames.

    Raises UserError naming its holder when it is not free within `wait_seconds`.
    """
    remedy = "wait until it ends or stop it; another --model_tag is another run"
    return paths.locked(run_directory(stage, tag), remedy, wait_seconds)


# ---- save


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
    names = {"model": model_name(step), "optim": optim_name(step, rank)}
    try:
        tensor_files.check_finite(content)
        for kind, tensors in content.items():
            share["files"][names[kind]] = tensor_files.write(directory / names[kind], tensors)
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


def _complete_save(directory: Path, step: int, meta: Meta, shares: list[Share], keep: int) -> None:
    files = {name: facts for share in shares for name, facts in share["files"].items()}
    meta_file.write(directory, {"version": FORMAT_VERSION, "step": step, **meta, "files": files})
    # A later step than this one was skipped as damaged, so it must not count among the newest.
    so_far = [old for old in saved_steps(directory) if old <= step]
    for old in so_far[max(1, keep) :]:
        try:
            _remove(directory, old)
        except OSError as error:  # does not harm the checkpoint that was just written
            logger.warning("checkpoint of step %d could not be removed: %s", old, error)


def update_meta(directory: Path, step: int, **changes: Any) -> None:
    """Change facts in the meta file of a checkpoint. Raises UserError when it cannot be read."""
    meta_file.write(directory, {**meta_file.read(directory, step), **changes})


def _remove(directory: Path, step: int) -> None:
    meta_file.path_of(directory, step).unlink(missing_ok=True)  # first: it makes it one
    for path in directory.glob(f"*_{step:06d}*.pt"):
        path.unlink(missing_ok=True)


def prepare(directory: Path) -> None:
    """Raises UserError before a run if its folder or that of the report cannot be written."""
    for folder in (directory, paths.report_dir()):
        paths.require_writable(folder)
    remove_leftovers(directory)


def remove_leftovers(directory: Path) -> None:
    """Remove what killed saves left behind: temporary files, and tensors without a meta file.

    Only for the holder of the run's lock.
    """
    paths.remove_temporary_files(directory)
    steps = saved_steps(directory)
    for path in directory.glob("*.pt"):
        name = TENSOR_NAME.fullmatch(path.name)
        if name and int(name[1]) not in steps and not path.is_dir():
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
        state = tensor_files.read(self.directory / model_name(self.step))
        if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
            raise UserError(f"{model_name(self.step)} does not hold tensors by name")
        return {str(n).removeprefix(COMPILE_PREFIX): t.to(device) for n, t in state.items()}

    def load_weights(self, model: GPT) -> None:
        """Copy the weights into a model.

        Raises UserError naming the file, before any is copied, when they are those of another
        model or not finite.
        """
        state = self.load_model_state(next(model.parameters()).device)
        expected = model.state_dict()
        for name in sorted(state.keys() | expected.keys()):
            shapes = [
                f"{tuple(t.shape)} {t.dtype}" if (t := some.get(name)) is not None else "missing"
                for some in (state, expected)
            ]
            if shapes[0] != shapes[1]:
                raise UserError(
                    f"{model_name(self.step)} holds another model: {name[:80]} is {shapes[0]}"
                    f" instead of {shapes[1]}"
                )
        tensor_files.check_finite(state, model_name(self.step))
        model.load_state_dict(state)

    def load_optimizer_states(self) -> list[list[Any]]:
        """For each optimizer, the state dictionaries of all ranks that saved, memory-mapped.

        Only what is used is read from disk: after a change of the number of ranks, a rank needs a
        small part of the others' shards.
        """
        names = [optim_name(self.step, rank) for rank in range(len(self.meta["files"]) - 1)]
        by_rank = [tensor_files.read(self.directory / name) for name in names]
        return [list(states) for states in zip(*by_rank, strict=True)]


def model_identity(meta: Meta) -> str:
    """16 hexadecimal digits that change when the weights do."""
    return str(meta["files"][model_name(meta["step"])]["sha256"])[:16]


def read_meta(stage: str, tag: str = "", step: int = -1) -> Meta:
    """The meta of a stage's newest checkpoint (or of `step`), without opening its tensors."""
    directory = find_directory(stage, tag)
    steps = saved_steps(directory) if step < 0 else [step]
    found = _first_usable(directory, steps, lambda step: meta_file.read(directory, step))
    if found is None:
        raise nothing_to_load(directory, step)
    return found


def is_of_this_job(directory: Path) -> bool:
    """Whether a run was saved last by this job before torchrun restarted it. Collective."""
    names, read = launchers(), lambda step: meta_file.read(directory, step)
    meta = on_main_first(lambda: _first_usable(directory, saved_steps(directory), read)) or {}
    return any(name in meta.get("launchers", []) for name in names)


def nothing_to_load(directory: Path, step: int = -1) -> UserError:
    """The error that no checkpoint (or not that of `step`) can be loaded."""
    steps = saved_steps(directory)
    wanted = "complete checkpoint" if step < 0 else f"complete checkpoint of step {step}"
    remedy = "train that stage again with --fresh"
    if step >= 0 and steps != [step]:
        remedy = "train that stage again: it resumes from the newest complete one"
    have = ", ".join(map(str, steps))
    return UserError(f"no {wanted} in {directory} (steps there: {have}); {remedy}")


def _first_usable(
    directory: Path,
    steps: Sequence[int],
    attempt: Callable[[int], Result],
    agreed: Callable[[str], str] = lambda damage: damage,
) -> Result | None:
    """What `attempt` returns for the first of the steps for which it does not fail.

    agreed: from the damage that this rank found, or "", to that of all ranks.
    """
    for candidate in steps:
        result, damage = None, ""
        try:
            result = attempt(candidate)
        except UserError as error:  # which may quote the file
            damage = "".join(c if c.isprintable() else "?" for c in str(error))[:500]
        damage = agreed(damage)
        if not damage:
            return result
        logger.warning("skipped checkpoint of step %d in %s: %s", candidate, directory, damage)
    return None


def _verified(directory: Path, step: int, model_only: bool = False) -> Checkpoint:
    """Raises UserError unless the files match their checksums."""
    meta = meta_file.read(directory, step)
    for name in [model_name(step)] if model_only else meta["files"]:
        tensor_files.verify(directory / name, meta["files"][name])
    return Checkpoint(directory, step, meta)


def newest_complete(
    directory: Path, step: int = -1, *, model_only: bool = False
) -> Checkpoint | None:
    """The newest checkpoint (or that of `step`) whose files match their checksums, else None.

    model_only: only the file of the weights; optimizer states are twice the size.
    """
    steps = saved_steps(directory) if step < 0 else [step]
    return _first_usable(directory, steps, lambda step: _verified(directory, step, model_only))


def load_newest(
    directory: Path,
    load: Callable[[Checkpoint], Result],
    *,
    step: int = -1,
    verifies: bool,
    model_only: bool = False,
) -> Result | None:
    """What `load` makes of the newest checkpoint (or that of `step`) that is usable, else None.

    Every rank calls it, and all load the same step.  load: raises UserError if it cannot use it.
    verifies: whether this rank compares the files with their checksums; model_only: only those of
    the weights. Raises UserError as `common_steps`.
    """
    steps = common_steps(directory) if step < 0 else [step]

    def attempt(step: int) -> Result:
        if verifies:
            return load(_verified(directory, step, model_only))
        return load(Checkpoint(directory, step, meta_file.read(directory, step)))

    def agreed(damage: str) -> str:  # nodes may have disks of their own
        return next(filter(None, gather_objects(damage)), "")

    return _first_usable(directory, steps, attempt, agreed)


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

    def load(checkpoint: Checkpoint) -> tuple[GPT, Meta]:
        meta_file.check_model(checkpoint.meta)
        model = build_model(checkpoint.meta, runtime.device, runtime.compute_dtype)
        checkpoint.load_weights(model)
        return model, checkpoint.meta

    found = load_newest(
        directory, load, step=step, verifies=runtime.local_rank == 0, model_only=True
    )
    if found is None:
        raise nothing_to_load(directory, step)
    model, meta = found
    return model.eval(), _tokenizer(directory, meta["tokenizer"]), meta
