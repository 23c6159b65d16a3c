"""Faults of files: damage and hostile content."""

import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import torch

from dev.faults.outcome import Outcome
from nanochat import checkpoint_manager as checkpoints
from nanochat.checkpoint_manager import Checkpoint
from nanochat.configurator import read_config
from nanochat.data import shards
from nanochat.errors import UserError
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import RustBPETokenizer
from scripts.options import LoopOptions


class _Moments:
    def __init__(self, step: int) -> None:
        self.step = step

    def state_dict(self) -> dict[str, Any]:
        return {"num_steps": self.step, "moment": torch.full((5000,), float(self.step))}


def two_checkpoints(folder: Path) -> None:
    """Save steps 1 and 2 of a small model."""
    model = GPT(GPTConfig.from_depth(1, vocab_size=64, sequence_len=8))
    for step in (1, 2):
        model.init_weights(step)
        loader = {"step": step, "document": 17 * step, "offset": 5, "row": 8}
        meta = {
            "tokenizer": "t", "settings": {"model_tag": "d1"}, "finished": False,
            "model": model.config.to_dict(), "loss": 2.5, "loader": loader,
        }  # fmt: skip
        checkpoints.save(folder, step, checkpoints.snapshot(model, [_Moments(step)]), meta, keep=2)


def content(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything that can be loaded from a checkpoint, in a form that can be compared."""
    tensors = checkpoint.load_model_state(torch.device("cpu"))
    [[moments]] = checkpoint.load_optimizer_states()
    return {
        "meta": checkpoint.meta,
        "model": {name: tensor.numpy().tobytes() for name, tensor in tensors.items()},
        "optim": (moments["num_steps"], moments["moment"].numpy().tobytes()),
    }


def damaged_checkpoints(folder: Path, count: int, seed: int, how: str) -> Outcome:
    """Flip a bit in a random file of the newest checkpoint, or truncate it."""
    outcome = Outcome(
        {"flip": "one flipped bit in a checkpoint", "cut": "a checkpoint's file cut short"}[how],
        "other content is loaded without an error, or nothing",
    )
    rng = random.Random(seed)
    intact = folder / "intact"
    two_checkpoints(intact)
    truth = {step: content(Checkpoint(intact, step, meta)) for step, meta in metas(intact).items()}
    fell_back = 0
    for number in range(count):
        damaged = folder / f"damaged-{number}"
        shutil.copytree(intact, damaged)
        path = rng.choice(sorted(damaged.glob("*_000002*")))
        data = bytearray(path.read_bytes())
        place = rng.randrange(len(data))
        if how == "flip":
            data[place] ^= 1 << rng.randrange(8)
        else:
            del data[place:]
        path.write_bytes(data)
        outcome.tried += 1
        found = checkpoints.newest_complete(damaged)
        outcome.expect(found is not None, f"{path.name} at {place}: nothing is loaded")
        if found is not None:
            fell_back += found.step == 1
            is_true = content(found) == truth[found.step]
            outcome.expect(is_true, f"{path.name} at {place}: step {found.step} has other content")
        shutil.rmtree(damaged)
    outcome.facts["earlier checkpoint used"] = fell_back
    return outcome


def metas(folder: Path) -> dict[int, Any]:
    """The metas of all checkpoints in a folder, by step."""
    steps = checkpoints.saved_steps(folder)
    return {step: json.loads((folder / f"meta_{step:06d}.json").read_text()) for step in steps}


def damaged_shards(folder: Path, count: int, seed: int) -> Outcome:
    """Flip a bit in a shard of text."""
    outcome = Outcome("one flipped bit in a shard of text", "other text is read without an error")
    rng = random.Random(seed)
    texts = [f"{n}: " + " ".join(rng.choices(["ab", "cd", "efg", "hij", "k"], k=40))
             for n in range(3000)]  # fmt: skip
    path = folder / "shard.parquet"
    shards.write_shard(path, texts)
    intact = path.read_bytes()
    refused = 0
    for _ in range(count):
        place, bit = rng.randrange(len(intact)), rng.randrange(8)
        path.write_bytes(intact[:place] + bytes([intact[place] ^ 1 << bit]) + intact[place + 1 :])
        outcome.tried += 1
        try:
            documents = shards.Documents([path])
            read = list(documents)
        except UserError:
            refused += 1
        else:
            outcome.expect(read == texts, f"bit {bit} of byte {place} of {len(intact)}")
    outcome.facts["refused"] = refused
    return outcome


class _Hostile:
    """Calls a function when it is unpickled; torch.save can pickle it."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call, self.arguments


def _pickled(call: str, *arguments: str) -> bytes:
    """The same as a handwritten pickle: global, mark, strings, tuple, reduce, stop."""
    texts = "".join(f"V{argument}\n" for argument in arguments)
    return f"c{call}\n({texts}tR.".encode()


def hostile_pickles(canary: Path) -> dict[str, bytes]:
    """Files that create the canary when they are unpickled, in all formats of tensor files."""
    touch, code = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    corpus = {}
    for module, name, function, arguments in (
        ("posix", "system", os.system, (touch,)),
        ("subprocess", "getoutput", subprocess.getoutput, (touch,)),
        ("builtins", "exec", exec, (code,)),
        ("builtins", "eval", eval, (f"__import__('os').system('{touch}')",)),
        ("io", "open", open, (str(canary), "w")),
        ("shutil", "copy", shutil.copy, (__file__, str(canary))),
    ):
        by_hand = _pickled(f"{module}\n{name}", *arguments)
        for protocol in (2, 3, 4):
            corpus[f"{name}, pickle {protocol}"] = bytes([0x80, protocol]) + by_hand
        corpus[f"{name}, pickle 0"] = by_hand
        for is_zip in (True, False):
            stream = io.BytesIO()
            content = {"weight": _Hostile(function, *arguments)}
            torch.save(content, stream, _use_new_zipfile_serialization=is_zip)
            corpus[f"{name}, torch.save {'zip' if is_zip else 'old'}"] = stream.getvalue()
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("archive/data.pkl", bytes([0x80, 2]) + by_hand)
            archive.writestr("archive/version", "3\n")
        corpus[f"{name}, zip by hand"] = stream.getvalue()
    return corpus


def hostile_files(folder: Path) -> Outcome:
    """Load files that would execute code, with matching checksums, wherever files are loaded."""
    outcome = Outcome("a hostile file instead of a good one", "its code is executed")
    canary = folder / "executed"
    refused = 0
    for name, data in hostile_pickles(canary).items():
        for kind in ("model_000002.pt", "optim_000002_rank0.pt", "tokenizer.json", "config"):
            outcome.tried += 1
            try:
                _load(folder / f"{outcome.tried}", kind, data)
            except (UserError, KeyError):
                refused += 1
            outcome.expect(not canary.exists(), f"{name} as {kind}")
            canary.unlink(missing_ok=True)
    outcome.facts["refused"] = refused
    return outcome


def _load(folder: Path, kind: str, data: bytes) -> None:
    """Replace a file by the data and load it as the commands do."""
    if kind == "config":
        folder.mkdir()
        (folder / kind).write_bytes(data)
        read_config(folder / kind, LoopOptions)
    elif kind == "tokenizer.json":
        folder.mkdir()
        (folder / kind).write_bytes(data)
        RustBPETokenizer.from_directory(folder)
    else:
        two_checkpoints(folder)
        (folder / kind).write_bytes(data)
        facts = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        meta = metas(folder)[2]
        checkpoints.update_meta(folder, 2, files={**meta["files"], kind: facts})
        found = checkpoints.newest_complete(folder)
        assert found is not None and found.step == 2
        content(found)
