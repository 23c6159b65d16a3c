"""Measure the training loop: tok/s, share of the matmul peak, seconds of each part, memory.

    python -m dev.bench.train --depths 4 8
    python -m dev.bench.train --depths 1 --vocab_size 65536 --loss plain      beside --loss grouped
    python -m dev.bench.train --depths 12 20 26 --sequence_len 2048 --vocab_size 65536 --rows 256
    torchrun --nproc_per_node=2 -m dev.bench.train --depths 4

The model, the optimizers and the loop are those of every training command; the tokens are random.
Each depth runs in its own process, so that its peak memory is its own. Products of large square
matrices are timed between the steps, on a CPU between all micro-batches; the median of the fastest
library is the peak that the loop is compared with. `base_train` takes more tokens per step than
this benchmark, 262,144 at depths 4 and 8, so that the optimizer is a still smaller part.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from dev.bench.instruments import (
    PARTS,
    Peak,
    Stopwatch,
    TimedModel,
    TimedOptimizer,
    time_collectives,
    timed_batches,
)
from nanochat import gpt
from nanochat.data.batch import Batch
from nanochat.data.packing import Ids, packed_batches
from nanochat.gpt import GPT, GPTConfig
from nanochat.kernels.cross_entropy import plain_cross_entropy
from nanochat.kernels.documents import can_join
from nanochat.metrics import RunLog
from nanochat.runtime import Runtime
from nanochat.training import memory_estimate, param_groups, stage, trainer
from nanochat.training.async_checkpoint import TrainState
from nanochat.training.schedule import Schedule
from nanochat.training.stop_requests import StopRequests
from nanochat.training.trainer import Every, RunContext

RESULTS = Path(__file__).parent / "results"


class NoSaver:
    """A checkpoint saver that writes nothing."""

    last = "none"

    def is_due(self) -> bool:
        return False

    def begin(self, state: TrainState) -> None:
        pass

    def wait(self) -> str:
        return ""


class RandomTokens:
    """Documents of 700 random tokens; the same number gives the same document."""

    bos, num_documents = 0, 1000

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, first: int) -> tuple[Ids, Ids]:
        rng = np.random.default_rng(first)
        return rng.integers(1, self.vocab_size, 100 * 700), np.arange(1, 101) * 700


def shortened(batches: Iterator[Batch], share: float) -> Iterator[Batch]:
    """Rows of evenly spread lengths, on average that share of their width, as in finetuning."""
    for batch in batches:
        count, width = batch.targets.shape
        lengths = torch.linspace(0.02, 2 * share - 0.02, count) * width  # share: at most a half
        is_used = torch.arange(width) < lengths[:, None].round().clamp(1, width)
        yield replace(batch, targets=batch.targets.masked_fill(~is_used, -1))


def plain_loss(x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, cap: float) -> Tensor:
    """The same as `weighted_cross_entropy`, with all logits materialized."""
    return (plain_cross_entropy(x, weight, targets, cap) * weights).sum()


def build_model(depth: int, options: argparse.Namespace, runtime: Runtime) -> GPT:
    """A new model on the device; with --loss plain, all models use the plain loss."""
    if options.loss == "plain":
        vars(gpt)["weighted_cross_entropy"] = plain_loss
    config = GPTConfig.from_depth(
        depth, vocab_size=options.vocab_size, sequence_len=options.sequence_len,
        window_pattern=options.window_pattern, value_embeddings=options.value_embeddings,
    )  # fmt: skip
    model = GPT(config, compute_dtype=runtime.compute_dtype)
    model.init_weights(0)
    return model.to(runtime.device)


def measure(depth: int, options: argparse.Namespace, runtime: Runtime) -> dict[str, Any]:
    """All figures of one depth, measured in this process."""
    model, watch = build_model(depth, options, runtime), Stopwatch(runtime)
    time_collectives(watch)
    module: Any = model
    if options.compile and runtime.device.type == "cuda":  # as autotune.compiled
        model.compile_regions(dynamic=options.share_in_use < 1)
    elif options.compile:
        module = torch.compile(model, dynamic=False)
    built = param_groups.build_optimizers(model)
    for optimizer in built:
        optimizer.transport = getattr(torch, options.transport)
    optimizers = [TimedOptimizer(o, watch) for o in built]
    timed_model = TimedModel(module, model, watch)
    bytes_before = runtime.peak_bytes()
    peak = Peak(runtime)

    def measure_peak(*_: Any) -> None:
        if watch.steps:  # the first step is not counted: it compiles and fills caches
            with watch.paused():
                peak.measure()

    on_cpu = runtime.device.type == "cpu"
    if on_cpu:  # its clock changes within a step; a GPU would be stalled here
        timed_model.register_forward_pre_hook(measure_peak)
    start = time.perf_counter()

    def between_steps(state: TrainState) -> dict[str, float]:
        nonlocal start
        watch.end_step(time.perf_counter() - start)
        if not on_cpu and state.step > 1:
            peak.measure()
        start = time.perf_counter()
        return {}

    num_steps = options.steps + 1  # hooks are not called after the last step
    batches = packed_batches(
        RandomTokens(options.vocab_size), rows=options.rows,
        sequence_len=options.sequence_len, rank=runtime.rank, world_size=runtime.world_size,
        num_steps=num_steps,
    )  # fmt: skip
    joined = 0
    if options.share_in_use < 1:
        batches = shortened(batches, options.share_in_use)
        if not on_cpu and can_join(runtime.device, runtime.compute_dtype, model.config.head_dim):
            joined = options.sequence_len
    with tempfile.TemporaryDirectory() as folder:
        log, saver = RunLog(Path(folder), "bench", {}, runtime.is_main), cast(Any, NoSaver())
        start = time.perf_counter()
        trainer.train(
            timed_model,
            cast(Any, optimizers),
            timed_batches(batches, watch),
            Schedule(num_steps),
            TrainState(),
            RunContext(runtime, saver, StopRequests(), log, f"depth {depth}", math.inf),
            device_batch_size=options.device_batch_size,
            every=[Every(1, between_steps)],
            prefetch=False,
            joined_length=joined,
        )
    estimate = memory_estimate.of(model, options.device_batch_size, runtime)
    return {"depth": depth, "compiled": options.compile, "dtype": str(runtime.compute_dtype)} | {
        **figures(watch, peak, model, options),
        "start to first micro-batch, s": round(timed_model.until_first_backward, 1),
        "peak memory, MB": runtime.peak_bytes() // 10**6,
        "memory before the first step, MB": bytes_before // 10**6,
        "estimated memory, MB": estimate.total // 10**6,
    }


def figures(
    watch: Stopwatch, peak: Peak, model: GPT, options: argparse.Namespace
) -> dict[str, Any]:
    """Medians over all steps but the first."""
    steps = watch.steps[1:]
    median = {name: statistics.median(step[name] for step in steps) for name in steps[0]}
    tokens = options.rows * options.sequence_len * min(1.0, options.share_in_use)
    rate = tokens / median["step"]
    flops = rate * model.flops_per_token()
    overheads = [step["step"] - sum(step[part] for part in PARTS) for step in steps]
    return {
        "tok/s": round(rate),
        "model MFLOP/token": round(model.flops_per_token() / 1e6, 2),
        "GFLOP/s": round(flops / 1e9, 1),
        **peak.figures(flops),
        **{f"{name}, s": round(value, 4) for name, value in median.items()},
        "loop overhead": round(statistics.median(overheads) / median["step"], 4),
    }


def measure_in_subprocess(depth: int) -> dict[str, Any]:
    """All figures of one depth, measured in a new process."""
    command = [sys.executable, "-m", "dev.bench.train", *sys.argv[1:], "--only", str(depth)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    results: dict[str, Any] = json.loads(output)
    return results


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--sequence_len", type=int, default=512)
    parser.add_argument("--vocab_size", type=int, default=32_768)
    parser.add_argument("--window_pattern", default="L")
    parser.add_argument("--value_embeddings", type=int, default=0)
    parser.add_argument("--rows", type=int, default=64, help="per step, over all ranks")
    parser.add_argument("--device_batch_size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--share_in_use", type=float, default=1.0, help="below 0.5: rows vary")
    parser.add_argument("--transport", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device_type", default="")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--loss", choices=["grouped", "plain"], default="grouped")
    parser.add_argument("--out", type=Path, default=RESULTS / f"train-{date.today()}.json")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure all depths and write dev/bench/results/train-DATE.json (--out)."""
    options = parse_options()
    if options.only is None and "RANK" not in os.environ:
        results = [measure_in_subprocess(depth) for depth in options.depths]
    else:
        with stage.command_runtime(options.device_type) as runtime:
            depths = [options.only] if options.only else options.depths
            results = [measure(depth, options, runtime) for depth in depths]
        if options.only or not runtime.is_main:
            print(json.dumps(results[0]) if options.only else "", end="")
            return
    settings = {name: value for name, value in vars(options).items() if name not in ("only", "out")}
    text = json.dumps({"settings": settings, "figures": results}, indent=1) + "\n"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)
    print(f"{text}{options.out}")


if __name__ == "__main__":
    main()
