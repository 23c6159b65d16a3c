"""Select the tier of speedrun.sh from the hardware: depth, text and ranks, and estimate the times.

python -m scripts.select_tier                    prints assignments for a shell
python -m scripts.select_tier --tier=gpu --hours=24
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from nanochat.configurator import at_least, parse, run_command


@dataclass(frozen=True)
class Options:
    """Select the tier of speedrun.sh from the hardware and print it as assignments for a shell."""

    tier: Literal["", "cpu", "gpu", "node", "smoke"] = ""
    """Tier; empty means by the number of GPUs."""
    depth: Annotated[int, at_least(0)] = 0
    """Depth of the model; 0 means 20 on a node, and what one GPU's memory and --hours allow."""
    tokens_per_parameter: Annotated[float, at_least(0.01)] = 20.0
    """Length of pretraining."""
    hours: Annotated[float, at_least(0.1)] = 8.0
    """Hours that pretraining may take on one GPU."""
    num_shards: Annotated[int, at_least(0)] = 0
    """Shards of text; 0 means enough for one epoch."""
    num_ranks: Annotated[int, at_least(0)] = 0
    """Processes; 0 means one per GPU."""
    device_type: Literal["", "cuda", "cpu"] = ""
    """cpu: run a tier of GPUs on a CPU, to try it."""


if __name__ == "__main__":
    run_command(Options)  # before the slow imports

import math
import re
import shlex
from dataclasses import replace
from pathlib import Path

import torch

from nanochat.errors import UserError
from nanochat.gpt import GPT, GPTConfig
from nanochat.runtime import Runtime, compute_dtype
from nanochat.training import autotune, memory_estimate
from nanochat.training.run_summary import CHARACTERS_PER_SHARD, CHARACTERS_PER_TOKEN, EXPECTED_MFU

VOCAB_SIZE, SEQUENCE_LEN = 65_536, 2_048
NODE_DEPTH, MIN_DEPTH, MAX_DEPTH = 20, 4, 20
DRIVER_VERSION = Path("/proc/driver/nvidia/version")
MIN_MEMORY = 7.5e9  # what a card of 8 GB has
MEMORY_SHARE = 0.85  # the estimate needs a margin, and the desktop some memory
SPARE_SHARDS = 1.1
MAX_SHARDS = 1_822
# Minutes of each stage at depth 20 on 8 x H100, whose peak is REFERENCE_TOKENS_PER_SECOND. Rough:
# the late-2025 run of about four hours, not measured with this code.
REFERENCE_MINUTES = {
    "LOSS": 1, "CORE": 4, "BASE_QUESTIONS": 12, "MID": 10, "MID_QUESTIONS": 12, "SFT": 10,
    "SFT_QUESTIONS": 12, "RL": 90, "RL_QUESTIONS": 12,
}  # fmt: skip
REFERENCE_TOKENS_PER_SECOND = 8 * 989e12 / 3.5e9
DOWNLOAD_BYTES_PER_SECOND = 50e6
SHARD_BYTES = 1e8
NUM_CHECKPOINTS = 8  # the two newest of each of four stages
OTHER_GB = 10  # packages in .venv, data sets of tasks, the bundle of CORE
# Minutes on two cores in bfloat16, of the run in README.md.
CPU_MINUTES = {
    "TEXT": 0.2, "TOKENIZER": 0.1, "TOKENIZER_EVALUATION": 0.1, "BASE": 2.3, "LOSS": 0.1,
    "CORE": 0.1, "BASE_QUESTIONS": 0.3, "MID": 0.8, "MID_QUESTIONS": 0.2, "SFT": 5.8,
    "SFT_QUESTIONS": 0.2, "RL": 1.5, "RL_QUESTIONS": 0.2, "REPORT": 0.1,
}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Print NAME=value lines."""
    for name, value in select(parse(Options, argv)).items():
        print(f"{name}={shlex.quote(str(value))}")


def select(options: Options) -> dict[str, object]:
    """The assignments. Raises UserError when the GPUs of the tier cannot be used."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    refuse_unusable_gpus(options, num_gpus)
    tier = options.tier or {0: "cpu", 1: "gpu"}.get(num_gpus, "node")
    if tier in ("cpu", "smoke"):
        share = 1.0 if tier == "cpu" else 0.15
        times = {f"MINUTES_{name}": share * minutes for name, minutes in CPU_MINUTES.items()}
        return {"NANOCHAT_TIER": tier, "NUM_GPUS": num_gpus, "NUM_RANKS": 1, **times}
    uses_gpu = num_gpus > 0 and options.device_type != "cpu"
    num_ranks = options.num_ranks or (max(1, num_gpus) if tier == "node" else 1)
    device = torch.device("cuda" if uses_gpu else "cpu")
    runtime = Runtime(device, 0, num_ranks, compute_dtype(device))
    depth = options.depth or NODE_DEPTH
    if tier == "gpu" and not options.depth and uses_gpu:
        depth = depth_that_fits(options, runtime, torch.cuda.mem_get_info(device)[1])
    model = untrained(depth, runtime)
    num_tokens = options.tokens_per_parameter * model.num_parameters()["total"]
    needed = num_tokens * CHARACTERS_PER_TOKEN / CHARACTERS_PER_SHARD * SPARE_SHARDS
    shards = options.num_shards or min(MAX_SHARDS, math.ceil(needed))
    times = {"TEXT": shards * SHARD_BYTES / DOWNLOAD_BYTES_PER_SECOND / 60, "TOKENIZER": 1.0}
    times |= {"TOKENIZER_EVALUATION": 0.5, "REPORT": 0.5}  # not measured
    if uses_gpu:  # a tier of GPUs on a CPU is only tried, with a few steps
        rate = autotune.peak_tokens_per_second(model, runtime)
        slower = REFERENCE_TOKENS_PER_SECOND / rate
        times |= {name: slower * minutes for name, minutes in REFERENCE_MINUTES.items()}
        times["BASE"] = num_tokens / (EXPECTED_MFU * rate) / 60
    return {
        "NANOCHAT_TIER": tier, "NUM_GPUS": num_gpus, "NUM_RANKS": num_ranks, "DEPTH": depth,
        "NUM_SHARDS": shards, "DISK_GB": disk_gigabytes(model, shards, runtime),
        **{f"MINUTES_{name}": time for name, time in times.items()},
    }  # fmt: skip


def disk_gigabytes(model: GPT, shards: int, runtime: Runtime) -> int:
    """What a run takes on the disk, about."""
    memory = memory_estimate.of(model, 1, replace(runtime, world_size=1))  # of all ranks together
    checkpoints = NUM_CHECKPOINTS * (memory.parameters + memory.moments)
    return math.ceil(OTHER_GB + (shards * SHARD_BYTES + checkpoints) / 1e9)


def refuse_unusable_gpus(options: Options, num_gpus: int) -> None:
    """Raises UserError rather than train for days on a CPU what is meant for GPUs."""
    if num_gpus or options.device_type == "cpu" or options.tier in ("cpu", "smoke"):
        return
    on_cpu = "NANOCHAT_TIER=cpu trains a small model on the CPU"
    if DRIVER_VERSION.is_file():
        text = DRIVER_VERSION.read_text(encoding="utf-8", errors="replace")
        match = re.search(r"Kernel Module\D*(\d[\d.]*)", text)
        driver = match[1] if match else "of unknown version"
        built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU only"
        raise UserError(
            f"torch {torch.__version__}, built for {built_for}, cannot use the GPU with NVIDIA"
            f" driver {driver}: update the driver, or install the torch that suits it: uv pip"
            " install --python=.venv/bin/python --reinstall --torch-backend=auto torch (also see"
            f" that CUDA_VISIBLE_DEVICES hides no GPU); {on_cpu}"
        )
    if options.tier:
        raise UserError(
            f"NANOCHAT_TIER={options.tier} needs a GPU and there is none, nor an NVIDIA driver;"
            f" {on_cpu}"
        )


def untrained(depth: int, runtime: Runtime) -> GPT:
    """A model without memory."""
    config = GPTConfig.from_depth(depth, vocab_size=VOCAB_SIZE, sequence_len=SEQUENCE_LEN)
    with torch.device("meta"):
        return GPT(config, compute_dtype=runtime.compute_dtype)


def depth_that_fits(options: Options, runtime: Runtime, memory: int) -> int:
    """The largest even depth that can be pretrained in the memory and hours.

    Raises UserError when the memory is too small for any.
    """
    if memory < MIN_MEMORY:
        raise UserError(
            f"the GPU has {memory / 1e9:.1f} GB of memory, less than the 8 GB of this tier; use"
            " NANOCHAT_TIER=cpu, or DEPTH=2 DEVICE_BATCH_SIZE=1"
        )
    best = MIN_DEPTH
    for depth in range(MIN_DEPTH, MAX_DEPTH + 1, 2):
        model = untrained(depth, runtime)
        tokens = options.tokens_per_parameter * model.num_parameters()["total"]
        rate = EXPECTED_MFU * autotune.peak_tokens_per_second(model, runtime)
        fits = memory_estimate.of(model, 1, runtime).total <= MEMORY_SHARE * memory
        if fits and tokens / rate <= options.hours * 3600:
            best = depth
    return best
