"""Ways to damage the newer checkpoint of a `mutations.Run`, which has steps 1 and 2.

Each takes the folder and a random generator and returns the name of the file that it changed, or ""
if it changed none of them.
"""

import hashlib
import io
import json
import math
import os
import random
import socket
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nanochat.checkpoint_manager import meta_file

Rng = random.Random
Mutator = Callable[[Path, Rng], str]


# ---- the meta file


def read(directory: Path) -> dict[str, Any]:
    meta: dict[str, Any] = json.loads(meta_file.path_of(directory, 2).read_text())
    return meta


def sign(directory: Path, meta: Any) -> str:
    """Write a meta file with a checksum that matches; returns its name."""
    path = meta_file.path_of(directory, 2)
    path.write_text(json.dumps({**meta, "sha256": meta_file._digest(meta)}))
    return path.name


VALUES: list[Any] = [
    None, -1, 1.5, 10**30, 2**63, True, "", "x\n\x1b[2J", [], {}, [[]], {"a": {"b": []}},
    ["\ud800"], math.nan, math.inf, "../../../etc", [1] * 1000,
]  # fmt: skip


def _other_type(directory: Path, rng: Rng) -> str:
    meta = read(directory)
    name = rng.choice(sorted(meta.keys() - {"sha256", "stage", "tokenizer", "finished", "model"}))
    # Another loss would be as good as this one.
    types = {type(meta[name]), *((int, float, type(None)) if name == "loss" else ())}
    meta[name] = rng.choice([value for value in VALUES if type(value) not in types])
    return sign(directory, meta)


def _missing_key(directory: Path, rng: Rng) -> str:
    meta = read(directory)
    del meta[rng.choice(sorted(meta.keys() - {"sha256"}))]
    return sign(directory, meta)


def _other_loader(directory: Path, rng: Rng) -> str:
    meta = read(directory)
    name = rng.choice(sorted(meta["loader"]))
    meta["loader"][name] = rng.choice([*VALUES[:2], *VALUES[4:], 0.5, 10**40])
    return sign(directory, meta)


def _other_shape(directory: Path, rng: Rng) -> str:
    meta = read(directory)
    name = rng.choice([*meta["model"], "unknown"])
    meta["model"][name] = rng.choice([*VALUES, 0, 10**9, 10**12, 2**40, 1 << 20, -(10**9), 1e300])
    return sign(directory, meta)


def _other_number(directory: Path, rng: Rng) -> str:
    meta = read(directory)
    choices: dict[str, list[Any]] = {
        "step": [0, 1, 3, 10**9], "version": [0, 1, 3, 2.5, "2", None, [2]],
        "progress": [-1, 2, 1e308], "train_seconds": [-1, "1e9", 10**400],
        "tokens": [-5, 0.5, 10**25], "skipped_steps": [[-1], [[]], ["a"], {"a": 1}, 5],
        "micro_batch": [[], [0], ["cpu", -1], 7, "cpu", {"a": 1}],
    }  # fmt: skip
    name = rng.choice(list(choices))
    meta[name] = rng.choice(choices[name])
    return sign(directory, meta)


def _other_files(directory: Path, rng: Rng) -> str:
    meta = read(directory)
    files: Any = meta["files"]
    name = rng.choice(sorted(files))
    facts = files[name]
    changes: list[Callable[[], Any]] = [
        lambda: files.pop(name), lambda: facts.pop("size"), lambda: facts.pop("sha256"),
        lambda: facts.update(size=10**18), lambda: facts.update(size=-1),
        lambda: facts.update(size="9"), lambda: facts.update(sha256=None),
        lambda: facts.update(sha256=""), lambda: files.update({name: None}),
        lambda: files.update({name: []}), lambda: files.update({"../d1/" + name: files.pop(name)}),
        lambda: files.update({"/etc/passwd": facts}), lambda: files.clear(),
        lambda: files.update({f"optim_000002_rank{10**6}.pt": facts}),
        lambda: meta.update(files=list(files)), lambda: files.update({"": facts}),
    ]  # fmt: skip
    rng.choice(changes)()
    return sign(directory, meta)


def _other_text(directory: Path, rng: Rng) -> str:
    path = meta_file.path_of(directory, 2)
    text = path.read_text()
    texts = [
        "", "[]", "null", "1", '"x"', "{", "[" * 100_000, '{"a":' * 100_000, "9" * 100_000,
        '{"version": 2, "sha256": ' + "[" * 50_000 + "]" * 50_000 + "}", text[: len(text) // 2],
        text + "x", text.replace("2.5", "NaN"), text.replace("2.5", "1e999"), "\0" * 1000, text * 2,
        '{"version": 1}', text.replace('"version": 2', '"version": 1'), " " * 2**25 + text,
        json.dumps({**json.loads(text), "sha256": None}),
    ]  # fmt: skip
    path.write_text(rng.choice(texts))
    if rng.random() < 0.2:
        path.write_bytes(rng.choice([b"\xff\xfe\xfa", text.encode("utf-16"), os.urandom(5000)]))
    return path.name


# ---- files that are none


def _special_file(directory: Path, rng: Rng) -> str:
    path = directory / rng.choice(["meta_000002.json", "model_000002.pt", "optim_000002_rank0.pt"])
    path.unlink()
    kinds: list[Callable[[], Any]] = [
        lambda: None, lambda: os.mkfifo(path), path.mkdir, lambda: path.symlink_to(path),
        lambda: path.symlink_to("nowhere"), lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to("/dev/null"), lambda: path.symlink_to(directory),
        lambda: _make_socket(path), lambda: path.write_bytes(b""), lambda: path.write_bytes(b"PK"),
        lambda: _make_sparse(path), lambda: path.write_bytes(os.urandom(2000)),
    ]  # fmt: skip
    if path.suffix == ".json":  # it is written last: without it, the save was cut off
        kinds = kinds[1:]
    rng.choice(kinds)()
    return path.name


def _make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made, _folder(path.parent):
        made.bind(path.name)  # the whole path may be too long for a socket


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Works in a folder inside."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


def _dates(directory: Path, rng: Rng) -> str:
    path = rng.choice(sorted(directory.iterdir()))
    os.utime(path, (0, rng.choice([0, -(2**31), 2**31, 2**33, 1])))
    return ""


def _odd_neighbors(directory: Path, rng: Rng) -> str:
    """More files, of names that look like ours."""
    for name in ("meta_000003.json", "meta_000000.json", "meta_9999999999999999999.json",
                 "meta_0000002.json", "meta_\u0662\u0662\u0662\u0662\u0662\u0662.json",
                 "model_000009.pt", ".model_000009.pt.0123abcd.part"):  # fmt: skip
        if rng.random() < 0.5:
            (directory / name).symlink_to(rng.choice([name, "/dev/zero", "nowhere", "."]))
    return ""


# ---- tensors


def store(directory: Path, kind: str, data: bytes) -> str:
    """Replace a file of step 2, with its checksum."""
    name = {"model": "model_000002.pt", "optim": "optim_000002_rank0.pt"}[kind]
    (directory / name).write_bytes(data)
    meta = read(directory)
    meta["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    sign(directory, meta)
    return name


def saved(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def loaded(directory: Path, kind: str) -> Any:
    name = {"model": "model_000002.pt", "optim": "optim_000002_rank0.pt"}[kind]
    return torch.load(directory / name, weights_only=True)


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def _self_containing() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def _doubling(levels: int) -> Any:
    value: Any = [torch.zeros(1)]
    for _ in range(levels):
        value = [value, value]
    return value


def _foreign_content(directory: Path, rng: Rng) -> str:
    """Something else in the file of the weights, or in that of the optimizer."""
    wide = torch.zeros(1).expand(10**6, 25_000)
    values: list[Callable[[], Any]] = [
        list, dict, lambda: None, lambda: 5, lambda: "x", lambda: torch.zeros(3), lambda: wide,
        lambda: {"a": wide}, lambda: [{"a": wide}], lambda: _nested(100), _self_containing,
        lambda: _doubling(60), lambda: {1: torch.zeros(1)}, lambda: {"a": 1}, lambda: [1, 2],
        lambda: [[], []], lambda: [{}, {}], lambda: {"a": torch.zeros(2, device="meta")},
        lambda: {"a": torch.zeros(2).to_sparse()}, lambda: torch.nn.Parameter(torch.zeros(2)),
        lambda: {"a\n\x1b": torch.zeros(1)}, lambda: {("a", 1): torch.zeros(1)},
        lambda: {"a" * 10**5: torch.zeros(1)}, lambda: torch.zeros(2, dtype=torch.complex64),
        lambda: ["x"] * 300_000, lambda: {"a": b"x"}, lambda: {"a": {1, 2}},
    ]  # fmt: skip
    return store(directory, rng.choice(["model", "optim"]), saved(rng.choice(values)()))


def _foreign_weight(directory: Path, rng: Rng) -> str:
    """One of the weights is changed, missing, or one too many."""
    state = loaded(directory, "model")
    name = rng.choice(sorted(state))
    weight = state[name]
    changes: list[Callable[[], Any]] = [
        lambda: state.pop(name), lambda: state.update(more=weight),
        lambda: state.update({name: weight[:-1]}), lambda: state.update({name: weight.flatten()}),
        lambda: state.update({name: weight[:1, :1].expand(weight.shape)}),
        lambda: state.update({name: weight.double()}), lambda: state.update({name: weight.int()}),
        lambda: state.update({name: weight.bfloat16()}), lambda: state.update({name: weight[None]}),
        lambda: state.update({name: torch.zeros(())}), lambda: state.update({name: None}),
        lambda: state.update({name: [weight]}), lambda: state.update({name: torch.empty(0)}),
        lambda: weight.view(-1).__setitem__(rng.randrange(weight.numel()), math.nan),
        lambda: weight.view(-1).__setitem__(rng.randrange(weight.numel()), math.inf),
        lambda: weight.view(-1).__setitem__(rng.randrange(weight.numel()), -math.inf),
    ]  # fmt: skip
    change = rng.choice(changes)
    change()
    data = saved(state)
    if name in state and isinstance(state[name], torch.Tensor) and 0 in state[name].stride():
        data = saved({**state, name: weight[:1, :1].expand(10**6, 25_000)})
    return store(directory, "model", data)


def _foreign_moments(directory: Path, rng: Rng) -> str:
    """The state of one optimizer is changed."""
    states = loaded(directory, "optim")
    state = rng.choice(states)
    name = rng.choice(sorted(state["tensors"]))
    moments = state["tensors"][name]
    kind = rng.choice(sorted(moments))
    moment = moments[kind]
    changes: list[Callable[[], Any]] = [
        lambda: states.pop(), lambda: states.append(state), lambda: state.clear(),
        lambda: state.pop(rng.choice(sorted(state))),
        lambda: state.update(rank=rng.choice([1, -1, "0", None, 10**12])),
        lambda: state.update(world_size=rng.choice([0, 2, -1, 10**12, "1", None, 1.5])),
        lambda: state.update(num_steps=rng.choice([-1, 3, 10**12, "2", None, math.nan])),
        lambda: state.update(tensors=rng.choice([None, [], {}, 5, torch.zeros(1)])),
        lambda: state["tensors"].pop(name), lambda: state["tensors"].update(more=moments),
        lambda: state["tensors"].update({name: moment}), lambda: moments.pop(kind),
        lambda: moments.update({kind: moment.flatten()[:1]}),
        lambda: moments.update({kind: torch.zeros(())}), lambda: moments.update({kind: 1.0}),
        lambda: moments.update({kind: moment.double()}),
        lambda: moments.update({kind: moment.flatten()[:-1]}),
        lambda: moments.update({kind: moment.flatten()[:1].expand(25 * 10**9)}),
        lambda: moment.view(-1).__setitem__(rng.randrange(moment.numel()), math.nan),
    ]  # fmt: skip
    rng.choice(changes)()
    return store(directory, "optim", saved(states))


def _foreign_archive(directory: Path, rng: Rng) -> str:
    """The right content, in a file of another kind, or one that states too much."""
    kind = rng.choice(["model", "optim"])
    content = loaded(directory, kind)
    good = saved(content)
    kinds: list[Callable[[], bytes]] = [
        lambda: saved(content, _use_new_zipfile_serialization=False), lambda: _compressed(good),
        lambda: _declares_100_gb(content), lambda: _zip({"archive/data.pkl": b"]."}),
        lambda: _zip({"archive/data.pkl": BYTEARRAY}), lambda: _zip({"x": b"y"}),
        lambda: _zip({"archive/data.pkl": b"\0" * 50_000_000}, zipfile.ZIP_DEFLATED),
        lambda: good[: len(good) // 2], lambda: good[100:], lambda: b"\x80\x02]." + good,
        lambda: _zip({"archive/data.pkl": b"(" * 10**6 + b"."}),
        lambda: _zip({"archive/data.pkl": b"]q\0" + b"h\0a" * 10**6 + b"."}),
    ]  # fmt: skip
    return store(directory, kind, rng.choice(kinds)())


BYTEARRAY = b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x17\x85R."  # of 98 GB


def _zip(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return stream.getvalue()


def _compressed(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return _zip(members, zipfile.ZIP_DEFLATED)


def _declares_100_gb(content: Any) -> bytes:
    """The first storage is said to have 2**31 - 1 values more than there are."""
    data = saved(content)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    [pickle] = [name for name in members if name.endswith("data.pkl")]
    place = members[pickle].index(b"cpu")
    place = members[pickle].index(b"M", place)  # a number of 16 bits follows
    old = members[pickle]
    members[pickle] = old[:place] + b"J" + struct.pack("<i", 2**31 - 1) + old[place + 3 :]
    return _zip(members)


MUTATORS: dict[str, Mutator] = {
    "a value of another type": _other_type, "a missing key": _missing_key,
    "a loader of another state": _other_loader, "a model of another shape": _other_shape,
    "an absurd number": _other_number,
    "other files": _other_files, "text that is no meta": _other_text,
    "a special file": _special_file, "an absurd date": _dates, "odd neighbors": _odd_neighbors,
    "foreign content": _foreign_content, "a foreign weight": _foreign_weight,
    "foreign moments": _foreign_moments, "a foreign archive": _foreign_archive,
}  # fmt: skip
