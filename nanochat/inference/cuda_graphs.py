"""CUDA graphs: a pass is recorded once and then launched as a whole.

Launching the kernels of a small pass from Python takes longer than running them. torch leaves the
process unusable when a recording fails or goes into memory of freed graphs; `Graphs` does not.
"""

import logging
import threading
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

import torch

logger = logging.getLogger(__name__)

WARM_UP_PASSES = 2  # before recording: libraries allocate workspaces and pick kernels in the first
# torch allows one recording at a time in a process, and several engines may share it.
ONE_AT_A_TIME = threading.Lock()


class Graphs:
    """Recorded passes of one engine, by key. They never run at the same time and share memory."""

    def __init__(self, device: torch.device, cuda: Any) -> None:
        """cuda: `torch.cuda`, or a stand-in where there is no GPU."""
        self.device, self.cuda = device, cuda
        self.has_failed = False  # then every pass is launched kernel by kernel
        self._replays: dict[Hashable, Callable[[], None]] = {}
        self._stream: Any = None
        self._pool: Any = None

    def run(self, key: Hashable, run: Callable[[], None]) -> None:
        """Replay the pass of a key; the first time, run and record it.

        A key stands for fixed shapes and addresses: the caller fills tensors in place.
        """
        if key not in self._replays and not self.has_failed:
            with ONE_AT_A_TIME, self.cuda.device(self.device):
                self._record(key, run)
        self._replays.get(key, run)()

    def drop(self) -> None:
        """Forget all passes, because an address that they use is no longer valid."""
        # With its last graph torch frees a pool, and recording into a freed one fails.
        self._replays, self._pool = {}, None

    def _record(self, key: Hashable, run: Callable[[], None]) -> None:
        cuda, outside = self.cuda, self.cuda.current_stream()
        # The warm-up is on the stream of the recording: memory is cached by stream. torch's own
        # stream for recordings would belong to the first device that ever recorded.
        self._stream = self._stream or cuda.Stream()
        self._pool = self._pool or cuda.graph_pool_handle()
        graph = cuda.CUDAGraph()
        try:
            self._stream.wait_stream(outside)
            cuda.set_stream(self._stream)
            for _ in range(WARM_UP_PASSES):
                run()
            # Now: a wait for a stream whose recording has failed could spread the failure.
            outside.wait_stream(self._stream)
            # thread_local: threads of other engines may allocate memory meanwhile.
            with cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                run()
            self._replays[key] = graph.replay
        except RuntimeError as error:  # CUDA's errors and torch's own
            self.has_failed = True
            reason = str(error).partition("\n")[0]
            logger.warning("no CUDA graph, kernels are launched one by one: %s", reason)
        finally:
            cuda.set_stream(outside)  # torch may not have left the stream of the recording
        if self.has_failed:
            self._repair(graph)

    def _repair(self, graph: Any) -> None:
        """Restore what torch leaves behind when it fails before it has closed the recording.

        The allocator still redirects to the pool, and the generator refuses to draw.
        """
        index = self.cuda.current_device()
        with suppress(RuntimeError):
            graph.reset()  # later versions of torch close here what others leave open
        with suppress(RuntimeError):
            self.cuda.memory._cuda_endAllocateToPool(index, self._pool)
            self.cuda.memory._cuda_releasePool(index, self._pool)  # only if it was still open
        generator = self.cuda.default_generators[index]
        generator.graphsafe_set_state(generator.clone_state())  # same seed and offset
