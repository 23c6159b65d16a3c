"""The meta file of a checkpoint: JSON with a checksum of itself, checked before it is used."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from nanochat import paths
from nanochat.checkpoint_manager.tensor_files import open_regular
from nanochat.errors import UserError
from nanochat.gpt import MAX_DEPTH, GPTConfig
from nanochat.runtime import gather_objects

FORMAT_VERSION = 2
NAME = re.compile(r"meta_([0-9]{6}|[1-9][0-9]{6,})\.json")
MAX_BYTES = 2**24
MAX_ROTARY_VALUES = 2**27  # 512 MB of tables that no file holds: a context of a million

Meta = dict[str, Any]


def path_of(directory: Path, step: int) -> Path:
    return directory / f"meta_{step:06d}.json"


def model_name(step: int) -> str:
    return f"model_{step:06d}.pt"


def optim_name(step: int, rank: int) -> str:
    return f"optim_{step:06d}_rank{rank}.pt"


def saved_steps(directory: Path) -> list[int]:
    """Steps that have a meta file, newest first; other files are ignored."""
    names = (NAME.fullmatch(path.name) for path in directory.glob("meta_*.json"))
    return sorted((int(name[1]) for name in names if name), reverse=True)


def common_steps(directory: Path) -> list[int]:
    """The `saved_steps` that every rank sees; every rank calls it, or they would differ.

    Raises UserError if there are some but none in common: each machine has a folder of its own.
    """
    of_ranks = gather_objects(saved_steps(directory))
    common = [step for step in of_ranks[0] if all(step in steps for steps in of_ranks)]
    if any(of_ranks) and not common:
        raise UserError(
            f"{directory} does not have the same checkpoints on all machines: this folder must be"
            " on a file system that they share (a link to one will do)"
        )
    return common


def write(directory: Path, meta: Meta) -> None:
    text = json.dumps({**meta, "sha256": _digest(meta)}, indent=1)
    paths.write_atomic(path_of(directory, meta["step"]), text)


def _digest(meta: Meta) -> str:
    """Checksum of a meta's content without the checksum itself, independent of formatting."""
    rest = {key: value for key, value in meta.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read(directory: Path, step: int) -> Meta:
    """Raises UserError naming the file when it is missing, damaged or of another format."""
    path, problem = path_of(directory, step), "is damaged, or of another version"
    try:
        with open_regular(path) as file:
            meta: Meta = json.loads(file.read(MAX_BYTES))
        if meta["version"] == FORMAT_VERSION and meta["sha256"] == _digest(meta):
            problem = _problem(meta, step)  # a checksum that matches does not make it ours
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    if problem:
        raise UserError(f"{path.name} {problem}")
    return meta


def _problem(meta: Meta, step: int) -> str:
    """What is wrong with the content; "" if nothing is. May raise KeyError or TypeError instead."""
    for name in ("step", "finished", "settings", "files", *(CHECKS.keys() & meta.keys())):
        if not CHECKS[name](meta[name]):
            return f"has no valid {name}"
    optims = {optim_name(step, rank) for rank in range(len(meta["files"]) - 1)}
    if meta["step"] != step or meta["files"].keys() != {model_name(step)} | optims:
        return "does not name all files of its step, or others"
    return ""


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 2**62  # neither NaN nor infinite


def _is(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


CHECKS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("step", "tokens"), _is_count),
    **dict.fromkeys(("stage", "tokenizer"), _is(str)),
    "model": _is(dict),
    "loader": lambda value: all(_is_count(x) for name, x in value.items() if name != "lanes"),
    "train_seconds": lambda value: _is_number(value) and value >= 0,
    "progress": lambda value: _is_number(value) and 0 <= value <= 1,
    "loss_scale": lambda value: _is_number(value) and value > 0,
    "scale_since": _is_count,
    "loss": lambda value: value is None or _is_number(value),
    "finished": _is(bool),
    "skipped_steps": lambda value: all(map(_is_count, value)),
    "launchers": _is(list),
    "micro_batch": lambda value: _is_count(value[-1]) and value[-1] > 0,
    # The tag becomes part of paths.
    "settings": lambda value: Path(tag := value.get("model_tag", "d1")).name == tag,
    "files": lambda value: all(
        _is_count(facts["size"]) and isinstance(facts["sha256"], str) for facts in value.values()
    ),
}


def check_model(meta: Meta) -> None:
    """Raises UserError unless the file of the weights can hold the model, which is built first."""
    checks: dict[Any, Callable[[Any], bool]]
    checks = {int: _is_count, float: lambda value: _is_number(value) and value > 0, str: _is(str)}
    if not meta.keys() >= {"model", "tokenizer"}:
        raise UserError("its meta file does not name its model or its tokenizer")
    saved = meta["model"]
    for field in fields(GPTConfig):
        value = saved.get(field.name, field.default)
        if not checks[field.type](value):
            raise UserError(f"{field.name}={str(value)[:50]} of its model is not valid")
    config = GPTConfig.from_dict(saved)
    width, size = config.n_embd, meta["files"][model_name(meta["step"])]["size"]
    if max(config.n_layer * width**2, config.vocab_size * width) > size / 4:
        raise UserError(f"its model has more weights than fit into {size} bytes")
    if config.n_layer > MAX_DEPTH or config.sequence_len * config.head_dim > MAX_ROTARY_VALUES:
        raise UserError("its model has too many layers or too long a context")
