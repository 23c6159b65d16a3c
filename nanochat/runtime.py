"""The environment of a process: device, ranks, compute dtype, collectives, seeds.

Only this module and `adamw` use `torch.distributed`, and only this one and `paths` read environment
variables. Every collective is a no-op on one rank.
"""

import ctypes
import gc
import getpass
import hashlib
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from nanochat.errors import UserError

COLLECTIVE_TIMEOUT = timedelta(minutes=10)  # others wait while one rank evaluates
STORE_TIMEOUT = timedelta(seconds=5)  # for one message; a lost rank is found in less than a minute
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class RankStore:
    """Short messages between ranks by key, from any thread, outside of the collectives.

    Every method may raise RuntimeError when the store does not answer.
    """

    def __init__(self, store: Any = None) -> None:
        """store: a `torch.distributed.Store`; None: one for a single rank, in this process."""
        self.store = dist.HashStore() if store is None else store  # type: ignore[attr-defined]

    def set(self, key: str, value: str) -> None:
        """Store a value, replacing an earlier one."""
        self.store.set(key, value)

    def get(self, key: str) -> str | None:
        """The value, or None when the key is not set yet."""
        # The store's own `get` would wait for the key until its timeout.
        return str(self.store.get(key).decode()) if self.store.check([key]) else None

    def pop(self, key: str) -> str | None:
        """The value, which is deleted; None when the key is not set yet."""
        value = self.get(key)
        if value is not None:
            self.store.delete_key(key)
        return value


@dataclass(frozen=True)
class Runtime:
    """The device and the rank of one process of a run."""

    device: torch.device
    rank: int
    world_size: int
    compute_dtype: torch.dtype
    """What matrices are multiplied in; parameters stay float32."""
    store: RankStore = field(default_factory=RankStore, compare=False)
    """Messages between ranks, from any thread."""
    local_rank: int = 0
    """Index of the process (or replica) on its node; 0 verifies a model file for all of them."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def peak_bytes(self) -> int:
        """The peak memory of this process: of the GPU, else resident."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2) differs
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def synchronize(self) -> None:
        """Wait until the device has finished all work submitted to it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


# ---- start and end


def init_runtime(device_type: str = "") -> Runtime:
    """Select the device (default: CUDA, then Apple MPS, then CPU) and join the other ranks.

    Raises UserError when the requested device does not exist or a launcher's variable is invalid.
    """
    _refuse_ranks_without_torchrun()
    _name_unknown_user()
    rank, local_rank = _launcher_variable("RANK", 0), _launcher_variable("LOCAL_RANK", 0)
    world_size = _launcher_variable("WORLD_SIZE", 1)
    device = _select_device(device_type, local_rank)
    dtype = compute_dtype(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # "high" is TF32: who asks for float32 gets float32. In bfloat16 runs nothing large is
        # multiplied in float32, and "high" keeps torch.compile from warning about it.
        torch.set_float32_matmul_precision("highest" if dtype == torch.float32 else "high")
    if world_size > 1 and not dist.is_initialized():
        _join_ranks(device)
    store = _rank_store() if world_size > 1 else RankStore()
    return Runtime(device, rank, world_size, dtype, store, local_rank if world_size > 1 else 0)


def close_runtime() -> None:
    """Leave the process group; nothing to do on one rank."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _select_device(device_type: str, local_rank: int) -> torch.device:
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    device_type = device_type or ("cuda" if has_cuda else "mps" if has_mps else "cpu")
    if device_type not in ("cuda", "mps", "cpu"):
        raise UserError(f"--device_type={device_type} is not known; use cuda, mps or cpu")
    if device_type == "cuda" and not has_cuda:
        raise UserError("--device_type=cuda: there is no usable NVIDIA GPU or driver; use cpu")
    if device_type == "mps" and not has_mps:
        raise UserError("--device_type=mps: this machine has no Apple GPU; use cpu")
    return torch.device("cuda", local_rank) if device_type == "cuda" else torch.device(device_type)


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it fast, on older GPUs with tensor cores float16 (with
    loss scaling in training), else float32; NANOCHAT_DTYPE overrides."""
    name = os.environ.get("NANOCHAT_DTYPE")
    if name:
        if name not in DTYPES:
            raise UserError(f"NANOCHAT_DTYPE={name} is not known; use {' or '.join(DTYPES)}")
        return DTYPES[name]
    if device.type != "cuda":
        return torch.float32
    # Ampere (8.0) is the first generation with bfloat16 tensor cores, Volta (7.0) with those of
    # float16: V100, T4, RTX 20. AMD numbers its own: all that torch supports have bfloat16.
    generation = torch.cuda.get_device_capability(device)
    if torch.version.hip is not None or generation >= (8, 0):
        return torch.bfloat16
    return torch.float16 if generation >= (7, 0) else torch.float32


def keep_compiled_code(folder: Path) -> None:
    """Let later processes find what torch.compile makes; by default it is lost with /tmp."""
    for name, part in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton")):
        os.environ.setdefault(name, str(folder.resolve() / part))


def _name_unknown_user() -> None:
    """torch.compile names its cache after the user, whom the system of a container may not know."""
    try:
        getpass.getuser()
    except (KeyError, OSError):  # before and since Python 3.13
        os.environ["USER"] = str(os.getuid())


def _refuse_ranks_without_torchrun() -> None:
    """Raises UserError in one of several processes that would all train the same run."""
    variables = os.environ
    # A batch script of Slurm sees the tasks of its job, but is a single process itself.
    is_script = variables.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_ID" not in variables
    is_task = "SLURM_PROCID" in variables and not is_script
    srun = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in variables else "SLURM_NTASKS"
    for launcher, name in (("mpirun", "OMPI_COMM_WORLD_SIZE"), ("srun", srun * is_task)):
        if (count := variables.get(name, "1")) != "1" and "WORLD_SIZE" not in variables:
            raise UserError(
                f"{launcher} started {count} processes ({name}) that do not know of each other; use"
                " srun --ntasks-per-node=1 torchrun --nproc_per_node=GPUS ... -m COMMAND"
            )


def _launcher_variable(name: str, default: int) -> int:
    """An integer that torchrun sets for each rank; the default is also the minimum."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or int(text) < default:
        raise UserError(
            f"{name}={text} in the environment is not an integer of at least {default}; unset it"
        )
    return int(text)


def _join_ranks(device: torch.device) -> None:
    store, rank, world_size = next(rendezvous("env://", timeout=COLLECTIVE_TIMEOUT))
    is_cuda = device.type == "cuda"
    dist.init_process_group(
        "nccl" if is_cuda else "gloo",
        store=_of_this_start(store),
        rank=rank,
        world_size=world_size,
        timeout=COLLECTIVE_TIMEOUT,
        device_id=device if is_cuda else None,
    )


def _of_this_start(store: Any) -> Any:
    """The store without keys of earlier starts, which lead to dead processes.

    The launcher's store outlives the ranks, so that it gets a key prefix per restart. One of rank 0
    is new in each start, and hosts that were replaced count other restarts.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return store
    prefix = f"start {restart_count()}"
    return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]


def _rank_store() -> RankStore:
    """Messages on the rendezvous store, over a second connection with a short timeout."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(  # type: ignore[attr-defined]
        address, port, is_master=False, timeout=COLLECTIVE_TIMEOUT
    )
    store.set_timeout(STORE_TIMEOUT)
    return RankStore(_of_this_start(store))


def replicas(runtime: Runtime, count: int) -> list[Runtime]:
    """Runtimes for `count` model copies, a GPU each (0: all GPUs). UserError if there are fewer."""
    if runtime.device.type != "cuda":
        return [runtime] * max(1, count)
    num_gpus = torch.cuda.device_count()
    if count > num_gpus:
        raise UserError(f"{count} replicas need as many GPUs, but there are {num_gpus}; use less")
    devices = [torch.device("cuda", index) for index in range(count or num_gpus)]
    return [replace(runtime, device=d, local_rank=index) for index, d in enumerate(devices)]


def set_device(device: torch.device) -> None:
    """Make a GPU this thread's current device; nothing to do on other devices."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


@contextmanager
def gc_and_trim_disabled(device: torch.device) -> Iterator[None]:
    """Disable Python's garbage collection inside, and on a CPU the C library's memory trimming.

    Memory that malloc returns to the system comes back page by page, zeroed: up to a fifth of a
    step on a CPU. Only glibc has these settings (mallopt(3)); they last until the process ends.
    """
    libc = ctypes.CDLL(None) if device.type == "cpu" and os.name == "posix" else None
    if libc is not None and hasattr(libc, "mallopt"):
        libc.mallopt(M_TRIM_THRESHOLD, -1)
        libc.mallopt(M_MMAP_THRESHOLD, 2**31 - 1)  # the largest int: no block gets its own mmap
    gc.collect()
    gc.freeze()  # later collections skip the modules and the model
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


# ---- collectives: every rank calls every one


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce_sum(values: list[float]) -> list[float]:
    """The sum over ranks of each number, in float64, on every rank."""
    return _all_reduce(values, dist.ReduceOp.SUM) if dist.is_initialized() else values


def all_reduce_max(values: list[float]) -> list[float]:
    """The maximum over ranks of each number, in float64, on every rank."""
    return _all_reduce(values, dist.ReduceOp.MAX) if dist.is_initialized() else values


def _all_reduce(values: list[float], operation: Any) -> list[float]:
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"  # NCCL reduces GPU tensors only
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, op=operation)
    result: list[float] = tensor.tolist()
    return result


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def gather_objects(value: Any) -> list[Any]:
    """The objects of all ranks, ordered by rank, on every rank."""
    if not dist.is_initialized():
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def launchers() -> list[str]:
    """Names of the torchrun processes that started the ranks, one on each host, if they did.

    A restart of the ranks does not change them, but for a host that is replaced. Collective.
    """
    name = ""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        import psutil  # reads files of the kernel when it is imported

        parent = psutil.Process(os.getppid())
        name = f"{derive_seed(os.uname().nodename, parent.pid, parent.create_time()):016x}"
    return sorted({*gather_objects(name)} - {""})


def on_main_first(work: Callable[[], Any]) -> Any:
    """Run `work` on the main rank; returns its result, or raises its UserError, on every rank."""
    outcome: list[Any] = [None, None]
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            outcome[0] = work()
        except UserError as error:  # a rank that raised alone would leave the others waiting
            outcome[1] = str(error)
    if dist.is_initialized():
        dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise UserError(outcome[1])
    return outcome[0]


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from (run seed, step, example ...); equal parts give equal seeds everywhere."""
    # Not hash(), which Python salts for strings in each process.
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


# ---- environment variables


def wandb_run_name() -> str | None:
    """The name of the run in the tracker, or None for no tracking."""
    name = os.environ.get("WANDB_RUN", "")
    return None if name in ("", "dummy") else name


def api_key() -> str:
    """The key that clients of the web server must send; empty: none is required."""
    return os.environ.get("NANOCHAT_API_KEY", "")  # not an option: `ps` shows those to all users


def options_from_environment(prefix: str) -> list[str]:
    """Options set in the environment: NANOCHAT_WEB_PORT=80 is --port=80."""
    named = [(name, value) for name, value in os.environ.items() if name.startswith(prefix)]
    return [f"--{name.removeprefix(prefix).lower()}={value}" for name, value in sorted(named)]


def hub_endpoint() -> str:
    """The address of the hub without a trailing slash. UserError if HF_ENDPOINT is none."""
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if not endpoint.startswith(("http://", "https://")):
        raise UserError(
            f"HF_ENDPOINT={endpoint} must start with http:// or https://; correct or unset it"
        )
    return endpoint.rstrip("/")


def mirrored(url: str) -> str:
    """The address of a file outside of the hub: below NANOCHAT_MIRROR, if that is set."""
    mirror = os.environ.get("NANOCHAT_MIRROR", "").rstrip("/")
    return f"{mirror}/{url.rpartition('/')[2]}" if mirror else url


def hub_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids downloads."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def restart_count() -> int:
    """How often torchrun has restarted the ranks of this host after one failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
