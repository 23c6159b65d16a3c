"""The table that describes a run before its first step."""

import math

import torch

from nanochat.gpt import GPT, GPTConfig
from nanochat.kernels import attention
from nanochat.metrics import peak_flops
from nanochat.runtime import Runtime
from nanochat.training import scaling_laws
from nanochat.training.memory_estimate import Estimate
from nanochat.training.schedule import Schedule

Rows = list[tuple[str, str]]

# Of the hub's sources, with a vocabulary of 65,536.
CHARACTERS_PER_TOKEN, CHARACTERS_PER_SHARD = 4.8, 250_000_000
LARGE_RUN_FLOPS = 1e18  # meant for GPUs
EXPECTED_MFU = 0.5  # one H200 reaches 0.53 to 0.60; several GPUs also communicate


def of_model(model: GPT) -> Rows:
    """Shape, parameters and FLOPs per token."""
    config, counts = model.config, model.num_parameters()
    heads = f"{config.n_head} heads of {config.head_dim}"
    if config.n_kv_head != config.n_head:
        heads += f", {config.n_kv_head} KV heads"
    flops = f"{model.flops_per_token():.3g} (6 N + 12 C T per layer, T its window)"
    return [
        ("model", f"depth {config.n_layer}, width {config.n_embd}, {heads}"),
        ("context, vocabulary", f"{config.sequence_len:,} tokens, {config.vocab_size:,}"),
        ("parameters", ", ".join(f"{name} {number:,}" for name, number in counts.items())),
        ("FLOPs per token", flops),
    ]


def of_attention(config: GPTConfig, device: torch.device, dtype: torch.dtype) -> Rows:
    """The attention kernel, and that of layers with a window."""
    shape = config.n_head, config.n_kv_head, config.sequence_len, config.head_dim
    kernels = {
        window: attention.attention_kernel(attention.Rows(*shape, window, device, dtype))
        for window in config.windows
    }
    table = [("attention", kernels.pop(None))]  # the last layer has no window
    for window, kernel in kernels.items():
        layers = f"{config.windows.count(window)} of {config.n_layer} layers see {window:,} tokens"
        table.append(("windows", f"{config.window_pattern}: {layers}; {kernel}"))
    return table


def of_steps(model: GPT, schedule: Schedule, rows: int, world_size: int) -> Rows:
    """Number and size of the steps, tokens and FLOPs in total."""
    length, counts = model.config.sequence_len, model.num_parameters()
    step_tokens, num_steps = rows * length, schedule.num_steps
    tokens = num_steps * step_tokens
    ratio = tokens / scaling_laws.counted_parameters(counts)
    counted = "of all but value embeddings" if "value embeddings" in counts else "of all"
    ranks = "1 rank" if world_size == 1 else f"{world_size} ranks"
    return [
        ("steps", f"{num_steps:,} of {step_tokens:,} tokens: {rows:,} rows, {ranks}"),
        ("horizon", f"{tokens:,} tokens, {ratio:.2f} per parameter ({counted})"),
        ("FLOPs", f"{tokens * model.flops_per_token():.3g}"),
    ]


def of_text(num_tokens: int) -> Rows:
    """The shards of a source on the hub that a run reads once."""
    characters = num_tokens * CHARACTERS_PER_TOKEN
    shards = math.ceil(characters / CHARACTERS_PER_SHARD)
    return [("text", f"about {characters / 1e9:,.1f} billion characters, {shards:,} shards")]


def of_time(model: GPT, schedule: Schedule, rows: int, runtime: Runtime) -> Rows:
    """Estimated time of the steps on these GPUs or, for a large model elsewhere, on 8 x H100."""
    tokens = schedule.num_steps * rows * model.config.sequence_len
    flops, count, name = tokens * model.flops_per_token(), 8, "H100"
    if runtime.device.type == "cuda":
        count, name = runtime.world_size, torch.cuda.get_device_name(runtime.device)
    elif flops < LARGE_RUN_FLOPS:
        return []
    peak = peak_flops(name, torch.bfloat16)
    if peak is None:
        return []
    hours = flops / (EXPECTED_MFU * peak * count) / 3600
    return [("time, estimated", f"{hours:,.1f} h on {count} x {name} at {EXPECTED_MFU:.0%} MFU")]


def of_rates(schedule: Schedule, scaled_rates: dict[str, float]) -> Rows:
    """Learning rates and their schedule."""
    num_steps, warmdown = schedule.num_steps, schedule.warmdown_steps
    phases = {
        "warmup": schedule.warmup_steps,
        "plateau": max(0, num_steps - schedule.warmup_steps - warmdown),
        "warmdown": warmdown,
    }
    lengths = ", ".join(f"{name} {count:,}" for name, count in phases.items() if count)
    points = sorted({0, num_steps // 4, num_steps // 2, 3 * num_steps // 4, num_steps - 1})
    multipliers = ", ".join(f"{step + 1:,}: {schedule.learning_rate(step):.3f}" for step in points)
    clipped = [("gradient norm", f"at most {schedule.max_gradient_norm:g}")]
    return [
        *(clipped if schedule.max_gradient_norm else []),
        ("learning rates", ", ".join(f"{name} {rate:.4g}" for name, rate in scaled_rates.items())),
        ("learning-rate schedule", f"{lengths} steps, to {schedule.final:g}"),
        ("multiplier at step", multipliers),
    ]


def of_memory(micro_batch_rows: int, rank_rows: int, estimate: Estimate) -> Rows:
    """Micro-batches per step, and their estimated memory."""
    passes = -(-rank_rows // micro_batch_rows)
    return [
        ("micro-batch", f"{micro_batch_rows} rows, at most {passes} per step and rank"),
        ("memory, estimated", str(estimate)),
    ]


def as_lines(rows: Rows) -> list[str]:
    """The table as text with aligned values."""
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {value}" for name, value in rows]
