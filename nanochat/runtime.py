"""Where a run happens: device, rank, compute dtype, collectives, seeds, environment.

This module, `adamw` and `muon` are the only ones that name `torch.distributed`; this one and
`paths` are the only ones that read the environment. Every collective is a no-op on one rank.
"""

import ctypes
import gc
import hashlib
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from nanochat.errors import UserError

COLLECTIVE_TIMEOUT = timedelta(minutes=10)  # evaluation on one rank may keep the others waiting
STORE_TIMEOUT = timedelta(seconds=5)  # for one note on the store
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class KeyValueStore(Protocol):
    """The part of torch's `Store` that is used; any call may raise RuntimeError."""

    def set(self, key: str, value: str, /) -> None: ...

    def get(self, key: str, /) -> bytes: ...

    def check(self, keys: list[str], /) -> bool: ...

    def delete_key(self, key: str, /) -> bool: ...


class RankStore:
    """Short messages between ranks by key, from any thread, outside of the collectives."""

    def __init__(self, store: KeyValueStore | None = None) -> None:
        """store: None for a single rank, which reads its own messages."""
        self.store, self.own = store, dict[str, str]()

    def set(self, key: str, value: str) -> None:
        """Store a value, replacing an earlier one."""
        if self.store is None:
            self.own[key] = value
        else:
            self.store.set(key, value)

    def get(self, key: str) -> str | None:
        """The value, or None when the key is not set yet."""
        if self.store is None:
            return self.own.get(key)
        return self.store.get(key).decode() if self.store.check([key]) else None

    def pop(self, key: str) -> str | None:
        """The value, which is deleted; None when the key is not set yet."""
        value = self.get(key)
        if value is not None and self.store is not None:
            self.store.delete_key(key)
        self.own.pop(key, None)
        return value


@dataclass(frozen=True)
class Runtime:
    """The place of one process in a run."""

    device: torch.device
    rank: int
    world_size: int
    compute_dtype: torch.dtype
    """What matrices are multiplied in; parameters stay float32."""
    local_rank: int = 0
    """Index of the process, or of the replica, on its node."""
    store: RankStore = field(default_factory=RankStore, compare=False)
    """Notes between ranks, from any thread."""

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes and prints."""
        return self.rank == 0

    def peak_bytes(self) -> int:
        """The most memory that this process has had: of the GPU, else resident."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def synchronize(self) -> None:
        """Wait until the device has finished what was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


def init_runtime(device_type: str = "") -> Runtime:
    """Find the device (CUDA, then Apple MPS, then CPU, unless told) and join the other ranks.

    Raises UserError when the device asked for is not there, or a launcher's number is none.
    """
    device_type = device_type or best_device_type()
    if device_type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device_type=cuda: there is no usable NVIDIA GPU or driver; use cpu")
    rank, local_rank = _from_launcher("RANK", 0), _from_launcher("LOCAL_RANK", 0)
    world_size = _from_launcher("WORLD_SIZE", 1)
    device = torch.device(device_type, local_rank) if device_type == "cuda" else _plain(device_type)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
    if world_size > 1 and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        device_id = device if device.type == "cuda" else None
        _join(backend, device_id)
    return Runtime(
        device=device,
        rank=rank,
        world_size=world_size,
        compute_dtype=compute_dtype(device),
        local_rank=local_rank if world_size > 1 else 0,
        store=_rank_store() if world_size > 1 else RankStore(),
    )


def _from_launcher(name: str, alone: int) -> int:
    """A number that the launcher leaves for each rank, or what it is without a launcher."""
    text = os.environ.get(name, str(alone))
    if not text.isdecimal() or int(text) < alone:
        raise UserError(f"{name}={text} in the environment is no number from {alone}; unset it")
    return int(text)


def _join(backend: str, device_id: torch.device | None) -> None:
    """Meet the other ranks, under keys of this start: earlier ones lead to dead processes."""
    store, rank, world_size = next(rendezvous("env://", timeout=COLLECTIVE_TIMEOUT))
    dist.init_process_group(
        backend,
        store=_of_this_start(store),
        rank=rank,
        world_size=world_size,
        timeout=COLLECTIVE_TIMEOUT,
        device_id=device_id,
    )


def _of_this_start(store: Any) -> Any:
    prefix = f"start {restart_count()}"
    return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]


def _rank_store() -> RankStore:
    """A store on the store that the ranks found each other by, over a connection of its own."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(  # type: ignore[attr-defined]
        address, port, is_master=False, timeout=COLLECTIVE_TIMEOUT
    )
    store.set_timeout(STORE_TIMEOUT)
    return RankStore(_of_this_start(store))


def replicas(runtime: Runtime, count: int) -> list[Runtime]:
    """`count` places for copies of one model, each GPU its own; 0: as many as there are GPUs.

    Raises UserError when there are fewer GPUs.
    """
    if runtime.device.type != "cuda":
        return [runtime] * max(1, count)
    there = torch.cuda.device_count()
    if count > there:
        raise UserError(f"{count} GPUs are asked for and {there} are here; use {there} or less")
    devices = [torch.device("cuda", number) for number in range(count or there)]
    return [
        replace(runtime, device=device, local_rank=number) for number, device in enumerate(devices)
    ]


def set_device(device: torch.device) -> None:
    """Make this thread's GPU the one of `device`; nothing to do elsewhere."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def close_runtime() -> None:
    """Leave the group of ranks; nothing to do on one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def best_device_type() -> str:
    """The fastest kind of device that is here: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _plain(device_type: str) -> torch.device:
    if device_type not in ("cpu", "mps"):
        raise UserError(f"--device_type={device_type} is not known; use cuda, mps or cpu")
    if device_type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device_type=mps: this machine has no Apple GPU; use cpu")
    return torch.device(device_type)


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it fast, else float32; NANOCHAT_DTYPE overrides."""
    asked = os.environ.get("NANOCHAT_DTYPE")
    if asked:
        if asked not in DTYPES:
            raise UserError(f"NANOCHAT_DTYPE={asked} is not known; use {' or '.join(DTYPES)}")
        return DTYPES[asked]
    fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if fast else torch.float32


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Within it Python collects no garbage by itself, and the C library keeps freed memory.

    What it gives back at once is handed out again page by page, zeroed: up to a fifth of a step on
    a CPU. glibc alone knows the settings (mallopt(3)), and they stay for the rest of the process.
    """
    libc = ctypes.CDLL(None) if device.type == "cpu" and os.name == "posix" else None
    if libc is not None and hasattr(libc, "mallopt"):
        libc.mallopt(M_TRIM_THRESHOLD, -1)
        libc.mallopt(M_MMAP_THRESHOLD, 2**31 - 1)
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


# ---- collectives: every rank calls every one


def world_size() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce_sum(values: list[float]) -> list[float]:
    """The sum over ranks of each number, in float64, on every rank."""
    return _all_reduce(values, "SUM")


def all_reduce_max(values: list[float]) -> list[float]:
    """The maximum over ranks of each number, in float64, on every rank."""
    return _all_reduce(values, "MAX")


def _all_reduce(values: list[float], operation: str) -> list[float]:
    if not dist.is_initialized():
        return values
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, op=getattr(dist.ReduceOp, operation))
    result: list[float] = tensor.tolist()
    return result


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def gather_objects(mine: Any) -> list[Any]:
    """Every rank's object, in the order of ranks, on every rank."""
    if not dist.is_initialized():
        return [mine]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def on_main_first(work: Callable[[], Any]) -> Any:
    """What `work` returns on the main rank, on every rank; its UserError is raised everywhere."""
    outcome: list[Any] = [None, None]
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            outcome[0] = work()
        except UserError as error:
            outcome[1] = str(error)
    if dist.is_initialized():
        dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise UserError(outcome[1])
    return outcome[0]


# ---- seeds


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from (run seed, step, example ...): equal parts, equal seed, everywhere."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


# ---- environment


def wandb_run_name() -> str | None:
    """The name of the run in the tracker, or None when nothing is to be tracked."""
    name = os.environ.get("WANDB_RUN", "")
    return None if name in ("", "dummy") else name


def api_key() -> str:
    """What clients of the web chat must show; empty: nothing. A flag would be seen by all."""
    return os.environ.get("NANOCHAT_API_KEY", "")


def options_from_environment(prefix: str) -> list[str]:
    """Options that the environment sets: NANOCHAT_WEB_PORT=80 is --port=80."""
    named = [(name, value) for name, value in os.environ.items() if name.startswith(prefix)]
    return [f"--{name.removeprefix(prefix).lower()}={value}" for name, value in sorted(named)]


def hub_endpoint() -> str:
    """Where data sets are downloaded from, without a trailing slash.

    Raises UserError when HF_ENDPOINT is no address.
    """
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if not endpoint.startswith(("http://", "https://")):
        raise UserError(
            f"HF_ENDPOINT={endpoint} must begin with http:// or https://; mend or unset it"
        )
    return endpoint.rstrip("/")


def hub_offline() -> bool:
    """True when HF_HUB_OFFLINE forbids any download."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def restart_count() -> int:
    """How often torchrun has started this job again after a rank had failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


# ---- signals


class StopRequests:
    """Which signal has asked the process to stop, if any.

    Then it leaves with 128 + the signal's number, as shells and schedulers expect: 130, 138, 143.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.is_deferred = False

    def note(self, number: int, _frame: object) -> None:
        """The handler: leaves, or notes the signal where that is deferred."""
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = self.name or signal.Signals(number).name
        if not self.is_deferred:
            self._leave_if_told()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it there is something to be saved first: a signal ends the process behind it.

        A second SIGINT interrupts even so.
        """
        self.is_deferred = True
        try:
            yield
        finally:
            self.is_deferred = False
        self._leave_if_told()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A piece of what is deferred where nothing is left to be saved."""
        self.is_deferred = False
        try:
            self._leave_if_told()
            yield
        finally:
            self.is_deferred = True

    def _leave_if_told(self) -> None:
        if self.name is not None:
            raise SystemExit(128 + signal.Signals[self.name].value)


@contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """Within it, SIGTERM, SIGINT and SIGUSR1 end the process as `StopRequests` says."""
    requests = StopRequests()
    before = {number: signal.signal(number, requests.note) for number in STOP_SIGNALS}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
