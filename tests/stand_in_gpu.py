"""A stand-in for what `torch.cuda` has to record graphs, with its rules and its failures.

A recording keeps each operation with the tensors that it had. A replay runs them again on these
very tensors: numbers that Python has seen and tensors that were replaced since stay as they were.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nanochat.kernels.attention import PackedRows, attend_masked


class Graph:
    """A recorded graph."""

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def reset(self) -> None:
        """As in torch 2.11: of a recording that has failed nothing is closed."""
        self.operations.clear()

    def replay(self) -> None:
        for operation, arguments, named, output in self.operations:
            new = operation(*arguments, **named)
            if isinstance(output, torch.Tensor) and new.data_ptr() != output.data_ptr():
                output.copy_(new)
            elif isinstance(output, tuple | list):
                for before, after in zip(output, new, strict=True):
                    if isinstance(before, torch.Tensor) and before.data_ptr() != after.data_ptr():
                        before.copy_(after)


class Recording(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        output = func(*args, **(kwargs or {}))
        self.graph.operations.append((func, args, kwargs or {}, output))
        return output


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


class OneStream:
    def __init__(self, name: str) -> None:
        self.name = name

    def wait_stream(self, other: "OneStream") -> None:
        assert other is not self


class Generator:
    """The random numbers of the device."""

    is_recording = False

    def clone_state(self) -> "Generator":
        return Generator()

    def graphsafe_set_state(self, state: "Generator") -> None:
        self.is_recording = state.is_recording


class StandIn:
    """The GPU of one process: what `torch.cuda` has for graphs."""

    CUDAGraph, device = Graph, nullcontext

    def __init__(self, fails: int = 0) -> None:
        """fails: the number of recordings that fail."""
        self.fails = fails
        self.default_stream = self.stream = OneStream("default")
        self.default_generators = [Generator()]
        self.pools: list[WeakSet[Graph]] = []  # those of each that are alive
        self.used: set[int] = set()
        self.open_pool: int | None = None  # that allocations go to
        self.recorded_on: list[str] = []  # the stream of each recording
        self.num_streams = 0
        self.memory = SimpleNamespace(
            _cuda_endAllocateToPool=self.end_allocations, _cuda_releasePool=lambda *_: None
        )

    def draw(self) -> None:
        """What every random number and every allocation on the device needs."""
        assert self.stream is self.default_stream and self.open_pool is None
        if self.default_generators[0].is_recording:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly")

    def current_device(self) -> int:
        return 0

    def current_stream(self) -> OneStream:
        return self.stream

    def set_stream(self, stream: OneStream) -> None:
        self.stream = stream

    def Stream(self) -> OneStream:
        self.num_streams += 1
        return OneStream(f"stream {self.num_streams}")

    def graph_pool_handle(self) -> tuple[int]:
        self.pools.append(WeakSet())
        return (len(self.pools) - 1,)

    def end_allocations(self, _device: int, pool: tuple[int]) -> None:
        if self.open_pool != pool[0]:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.open_pool = None

    @contextmanager
    def graph(
        self, graph: Graph, pool: tuple[int], stream: OneStream, capture_error_mode: str
    ) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        assert self.stream is stream, "the warm-up was on another stream"
        assert self.open_pool is None, "two recordings at a time"
        generator = self.default_generators[self.current_device()]
        self.open_pool, generator.is_recording = pool[0], True
        was_freed = pool[0] in self.used and not self.pools[pool[0]]
        if self.fails or was_freed:
            self.fails -= 1  # neither the stream nor the rest is restored
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED\nat a line")
        with Recording(graph):
            yield
        self.pools[pool[0]].add(graph)
        self.used.add(pool[0])
        self.open_pool, generator.is_recording = None, False
        self.recorded_on.append(stream.name)
