"""A stand-in for the recording of CUDA graphs, with the rules and the failures of torch's.

A recording keeps each operation with the tensors that it had. A replay runs them again on these
very tensors: numbers that Python has seen and tensors that were replaced since stay as they were.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nanochat.inference.cuda_graphs import Backend
from nanochat.kernels.attention import PackedRows, attend_masked


class Replay:
    """A recorded graph."""

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __call__(self) -> None:
        for operation, arguments, named, output in self.operations:
            new = operation(*arguments, **named)
            if isinstance(output, torch.Tensor) and new.data_ptr() != output.data_ptr():
                output.copy_(new)
            elif isinstance(output, tuple | list):
                for before, after in zip(output, new, strict=True):
                    if isinstance(before, torch.Tensor) and before.data_ptr() != after.data_ptr():
                        before.copy_(after)


class Recording(TorchDispatchMode):
    def __init__(self, replay: Replay) -> None:
        super().__init__()
        self.replay = replay

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        output = func(*args, **(kwargs or {}))
        self.replay.operations.append((func, args, kwargs or {}, output))
        return output


@dataclass
class Process:
    """What all engines of a process share: the current stream, the generator, the allocator."""

    stream: str = "default"
    is_recording: bool = False
    can_draw: bool = True  # the generator, outside of a recording
    num_streams: int = 0
    num_pools: int = 0
    recorded_on: list[str] = field(default_factory=list)

    def draw(self) -> None:
        """What every random number on the device checks."""
        if not self.can_draw or self.stream != "default":
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly")


def attend_packed(
    q: Tensor, keys: Tensor, values: Tensor, rows: PackedRows, window: int | None
) -> Tensor:
    """As `kernels.attention.attend_packed`, by gathering the keys of each query."""
    tokens, places = torch.arange(len(q)), torch.arange(rows.longest_keys)
    row = torch.searchsorted(rows.query_ends, tokens, right=True) - 1
    last = (rows.key_lengths[row] - rows.query_ends[row + 1] + tokens)[:, None]
    is_seen = (places <= last) & (places > last - (window or len(keys)))
    at = (rows.key_starts[row][:, None] + places).clamp(max=len(keys) - 1)
    k, v = (stored[at].transpose(1, 2) for stored in (keys, values))
    return attend_masked(q[:, :, None], k, v, is_seen[:, None, None])[:, :, 0]


class StandIn(Backend):
    """A backend; `fails` is a number of recordings that fail, in one of torch's ways."""

    def __init__(self, process: Process, fails: int = 0) -> None:
        self.process, self.fails = process, fails
        self.pools: dict[int, WeakSet[Replay]] = {}
        self.used: set[int] = set()

    def guard(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def current_stream(self) -> str:
        return self.process.stream

    def set_stream(self, stream: str) -> None:
        self.process.stream = stream

    def new_stream(self) -> str:
        self.process.num_streams += 1
        return f"stream {self.process.num_streams}"

    def new_pool(self) -> int:
        self.process.num_pools += 1
        self.pools[self.process.num_pools] = WeakSet()
        return self.process.num_pools

    def wait(self, stream: str, other: str) -> None:
        assert stream != other

    def record(self, run: Callable[[], None], stream: str, pool: int) -> Callable[[], None]:
        process = self.process
        assert process.stream == stream, "the warm-up was on another stream"
        assert not process.is_recording, "two recordings at a time"
        process.is_recording, process.can_draw = True, False
        if self.fails or (pool in self.used and not self.pools[pool]):
            self.fails -= 1
            process.is_recording = False  # neither the stream nor the generator is restored
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED\nat a line")
        replay = Replay()
        with Recording(replay):
            run()
        self.pools[pool].add(replay)
        self.used.add(pool)
        process.is_recording, process.can_draw = False, True
        process.recorded_on.append(stream)
        return replay

    def repair(self, pool: int) -> None:
        assert pool in self.pools
        self.process.is_recording, self.process.can_draw = False, True
