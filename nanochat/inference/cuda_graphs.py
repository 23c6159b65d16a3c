"""CUDA graphs: a pass is recorded once and then launched as a whole.

Launching the kernels of a small pass from Python takes longer than running them. `Graphs` decides
what is recorded when; the calls of torch that it takes are in `Backend`, which tests replace.
"""

import logging
import threading
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, suppress
from typing import Any

import torch

logger = logging.getLogger(__name__)

WARM_UP_PASSES = 2  # before recording: libraries allocate workspaces and pick kernels in the first
# torch allows one recording at a time in a process, and several engines may share it.
ONE_AT_A_TIME = threading.Lock()


class Backend:
    """The calls of torch for one GPU; streams and memory pools are opaque."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def guard(self) -> AbstractContextManager[Any]:
        """Make the GPU the current device, which recording starts on."""
        return torch.cuda.device(self.device)

    def current_stream(self) -> Any:
        return torch.cuda.current_stream(self.device)

    def set_stream(self, stream: Any) -> None:
        torch.cuda.set_stream(stream)

    def new_stream(self) -> Any:
        return torch.cuda.Stream(self.device)

    def new_pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def wait(self, stream: Any, other: Any) -> None:
        """Let a stream wait for what another one has to do now."""
        stream.wait_stream(other)

    def record(self, run: Callable[[], None], stream: Any, pool: Any) -> Callable[[], None]:
        """The replay of what `run` launches. When it fails, any stream may be the current one."""
        graph = torch.cuda.CUDAGraph()
        # Without `stream` torch takes one that belongs to the first device that ever recorded.
        # thread_local: threads of other engines may allocate memory meanwhile.
        with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
            run()
        replay: Callable[[], None] = graph.replay
        return replay

    def repair(self, pool: Any) -> None:
        """Restore what a failed recording into the pool has left behind.

        Where torch raises before it has closed the recording, the allocator still redirects to the
        pool, and the generator refuses to draw outside of a graph.
        """
        index = torch.cuda.current_device()
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(index, pool)
            torch._C._cuda_releasePool(index, pool)  # reached only if it was still open
        generator = torch.cuda.default_generators[index]
        generator.graphsafe_set_state(generator.clone_state())  # same seed, same offset


class Graphs:
    """Recorded passes of one engine, by key. They never run at the same time and share memory."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.has_failed = False  # then every pass is launched kernel by kernel
        self._replays: dict[Hashable, Callable[[], None]] = {}
        self._stream: Any = None
        self._pool: Any = None

    def run(self, key: Hashable, run: Callable[[], None]) -> None:
        """Replay the pass of a key; the first time, run and record it.

        A key stands for fixed shapes and addresses: the caller fills tensors in place.
        """
        if key not in self._replays and not self.has_failed:
            with ONE_AT_A_TIME, self.backend.guard():
                self._record(key, run)
        self._replays.get(key, run)()

    def drop(self) -> None:
        """Forget all passes, because an address that they use is no longer valid."""
        # With its last graph torch frees a pool, and recording into a freed one fails.
        self._replays, self._pool = {}, None

    def _record(self, key: Hashable, run: Callable[[], None]) -> None:
        backend, outside = self.backend, self.backend.current_stream()
        # The warm-up is on the stream of the recording: memory is cached by stream.
        self._stream = self._stream or backend.new_stream()
        self._pool = self._pool or backend.new_pool()
        try:
            backend.wait(self._stream, outside)
            backend.set_stream(self._stream)
            for _ in range(WARM_UP_PASSES):
                run()
            # Now: a wait for a stream whose recording has failed could spread the failure.
            backend.wait(outside, self._stream)
            self._replays[key] = backend.record(run, self._stream, self._pool)
        except RuntimeError as error:  # CUDA's errors and torch's own
            self.has_failed = True
            reason = str(error).partition("\n")[0]
            logger.warning("no CUDA graph, kernels are launched one by one: %s", reason)
        finally:
            backend.set_stream(outside)
        if self.has_failed:
            backend.repair(self._pool)
