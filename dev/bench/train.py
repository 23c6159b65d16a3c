"""How fast the training loop is: tokens/s, share of the matmul peak, seconds of each part, memory.

    python -m dev.bench.train --depths 4 8
    python -m dev.bench.train --depths 1 --vocab_size 65536 --loss plain      beside --loss grouped
    python -m dev.bench.train --depths 12 20 26 --sequence_len 2048 --vocab_size 65536 --rows 256
    torchrun --nproc_per_node=2 -m dev.bench.train --depths 4

The model, the optimizers and the loop are those of every training command; the tokens are random.
A depth is a process of its own, so that its peak of memory is its own. Between the steps, on a CPU
between all micro-batches, products of large square matrices are timed: their median is the peak
that the loop is compared with, once by torch's own way and once by oneDNN's, which is twice as fast
on some processors. `base_train` gives a step more tokens than the bench, 262,144 at
depths 4 and 8, of which the optimizer is a still smaller part.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dev.bench.instruments import (
    PARTS,
    Peaks,
    Stopwatch,
    Watched,
    WatchedOptimizer,
    timed_batches,
    watch_collectives,
)
from nanochat import gpt
from nanochat.dataloader import Ids, packed_batches
from nanochat.gpt import GPT, GPTConfig
from nanochat.kernels.cross_entropy import plain_cross_entropy
from nanochat.metrics import RunLog
from nanochat.runtime import Runtime, StopRequests
from nanochat.training import param_groups, stage, trainer
from nanochat.training.schedule import Schedule
from nanochat.training.trainer import State

RESULTS = Path(__file__).parent / "results"


class NoSaver:
    """Writes nothing."""

    last = "none"

    def is_due(self) -> bool:
        return False

    def begin(self, state: State) -> None:
        pass

    def wait(self) -> str:
        return ""


class RandomTokens:
    """Documents of 700 random tokens, a function of their number."""

    bos, num_documents = 0, 1000

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, first: int) -> tuple[Ids, Ids]:
        generator = np.random.default_rng(first)
        return generator.integers(1, self.vocab_size, 70_000), np.arange(700, 70_001, 700)  # 0: bos


def plain_loss(x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, cap: float) -> Tensor:
    """As `capped_loss.weighted_cross_entropy`, the obvious way: the logits stand whole."""
    return (plain_cross_entropy(x, weight, targets, cap) * weights).sum()


def measure(depth: int, options: argparse.Namespace, runtime: Runtime) -> dict[str, Any]:
    """Everything about one depth, in this process."""
    if options.loss == "plain":
        vars(gpt)["weighted_cross_entropy"] = plain_loss
    config = GPTConfig.from_depth(
        depth, vocab_size=options.vocab_size, sequence_len=options.sequence_len,
        window_pattern=options.window_pattern,
    )  # fmt: skip
    model = GPT(config, compute_dtype=runtime.compute_dtype)
    model.init_weights(0)
    model.to(runtime.device)
    watch = Stopwatch(runtime)
    watch_collectives(watch)
    module: Any = torch.compile(model, dynamic=False) if options.compile else model
    optimizers = [WatchedOptimizer(one, watch) for one in param_groups.build_optimizers(model)]
    watched = Watched(module, model, watch)
    bytes_before = runtime.peak_bytes()
    peaks = Peaks(runtime)

    def measure_peak(*_: Any) -> None:
        if watch.steps:  # the first step is none of those that count
            with watch.paused():
                peaks.measure()

    on_cpu = runtime.device.type == "cpu"
    if on_cpu:  # its speed changes within a step; a GPU must not be kept waiting there
        watched.register_forward_pre_hook(measure_peak)
    began = time.perf_counter()

    def between_steps(state: State) -> dict[str, float]:
        nonlocal began
        watch.end_step(time.perf_counter() - began)
        if not on_cpu and state.step > 1:
            peaks.measure()
        began = time.perf_counter()
        return {}

    batches = packed_batches(
        RandomTokens(options.vocab_size), rows=options.rows,
        sequence_len=options.sequence_len, rank=runtime.rank, world_size=runtime.world_size,
        num_steps=options.steps,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        trainer.train(
            watched,
            optimizers,
            timed_batches(batches, watch),
            Schedule(options.steps),
            State(0, 0.0, 0.0, 0.0, 0, {}, is_last=False),
            device_batch_size=options.device_batch_size,
            every=[],
            saver=NoSaver(),
            runtime=runtime,
            stop=StopRequests(),
            log=RunLog(Path(folder), "bench", {}, runtime.is_main),
            speed=trainer.Speed(model.flops_per_token(), None),
            label=f"depth {depth}",
            prefetch=False,
            observed=between_steps,
        )
    return {"depth": depth, "compiled": options.compile, "dtype": str(runtime.compute_dtype)} | {
        **figures(watch, peaks, model, options),
        "from start to the first micro-batch, s": round(watched.until_first_backward, 1),
        "peak memory, MB": runtime.peak_bytes() // 10**6,
        "of it before the first step, MB": bytes_before // 10**6,
    }


def figures(
    watch: Stopwatch, peaks: Peaks, model: GPT, options: argparse.Namespace
) -> dict[str, Any]:
    """Medians over the steps but the first."""
    steps = watch.steps[1:]
    median = {name: statistics.median(step[name] for step in steps) for name in steps[0]}
    tokens = options.rows * options.sequence_len
    rate = tokens / median["step"]
    flops = rate * model.flops_per_token()
    rest = [step["step"] - sum(step[part] for part in PARTS) for step in steps]
    return {
        "tokens/s": round(rate),
        "model MFLOP/token": round(model.flops_per_token() / 1e6, 2),
        "GFLOP/s": round(flops / 1e9, 1),
        **peaks.figures(flops),
        **{f"{name}, s": round(value, 4) for name, value in median.items()},
        "overhead of the loop": round(statistics.median(rest) / median["step"], 4),
    }


def measured_alone(depth: int) -> dict[str, Any]:
    """Everything about one depth, from a process of its own."""
    command = [sys.executable, "-m", "dev.bench.train", *sys.argv[1:], "--only", str(depth)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--sequence_len", type=int, default=512)
    parser.add_argument("--vocab_size", type=int, default=32_768)
    parser.add_argument("--window_pattern", default="L")
    parser.add_argument("--rows", type=int, default=64, help="of one step over all ranks")
    parser.add_argument("--device_batch_size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--device_type", default="")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--loss", choices=["grouped", "plain"], default="grouped")
    parser.add_argument("--out", type=Path, default=RESULTS / f"train-{date.today()}.json")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure all depths and keep the figures, by default as dev/bench/results/train-DATE.json."""
    options = parsed()
    if options.only is None and "RANK" not in os.environ:
        found = [measured_alone(depth) for depth in options.depths]
    else:
        with stage.opened(options.device_type) as runtime:
            depths = [options.only] if options.only else options.depths
            found = [measure(depth, options, runtime) for depth in depths]
        if options.only or not runtime.is_main:
            print(json.dumps(found[0]) if options.only else "", end="")
            return
    settings = {name: value for name, value in vars(options).items() if name not in ("only", "out")}
    text = json.dumps({"settings": settings, "figures": found}, indent=1) + "\n"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)
    print(f"{text}{options.out}")


if __name__ == "__main__":
    main()
