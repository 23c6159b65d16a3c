"""An estimate of the memory that training takes, before anything is allocated.

B batch  T time  C channels  H heads  K kv heads  D head dim  V vocab
"""

from dataclasses import dataclass, fields

import torch

from nanochat.gpt import GATE_CHANNELS, GPT, GPTConfig
from nanochat.kernels.cross_entropy import rows_at_once
from nanochat.runtime import Runtime

MUON_COPIES = 4  # of this rank's matrices at most: gradients, updates, two products in between


@dataclass(frozen=True)
class Estimate:
    """Bytes on one device."""

    parameters: int
    gradients: int
    moments: int
    """Of both optimizers: this rank's shard."""
    activations: int
    """Kept by the forward pass for the backward pass, without `weights`."""
    weights: int
    """Copies of the matrices in the compute dtype."""
    loss: int
    """A group of logits with intermediate results, and the two gradients that the loss keeps."""
    update: int
    """Buffers of the optimizers; the activations are freed by then."""

    @property
    def total(self) -> int:
        """The peak within a step."""
        always = self.parameters + self.gradients + self.moments
        return always + max(self.activations + self.weights + self.loss, self.update)

    def __str__(self) -> str:
        sizes = {field.name: getattr(self, field.name) for field in fields(self)}
        parts = [f"{name} {format_bytes(size)}" for name, size in sizes.items() if size]
        return f"{format_bytes(self.total)} ({', '.join(parts)})"


def format_bytes(num_bytes: int) -> str:
    """Bytes as 71.9 GB or 12.3 MB."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 10**9 else f"{num_bytes / 1e6:.1f} MB"


def of(model: GPT, rows: int, runtime: Runtime) -> Estimate:
    """The memory of training this model on this runtime with micro-batches of `rows` rows."""
    return estimate(
        model.config,
        rows=rows,
        compute_dtype=runtime.compute_dtype,
        device_type=runtime.device.type,
        world_size=runtime.world_size,
        keeps_activations=model.keeps_activations,
        recomputes=model.recomputes,
    )


def estimate(
    config: GPTConfig,
    *,
    rows: int,
    compute_dtype: torch.dtype,
    device_type: str,
    world_size: int = 1,
    keeps_activations: bool = True,
    recomputes: bool = False,
) -> Estimate:
    """The memory of a training step with micro-batches of `rows` full rows; on a GPU, compiled.

    keeps_activations: False if blocks keep only their input and are recomputed. recomputes: true if
    they keep only products and attention.
    """
    size = compute_dtype.itemsize
    vocabulary = config.vocab_size * config.n_embd  # elements of the embedding
    kv_width = config.n_kv_head * config.head_dim
    num_tables = sum(config.has_values(layer) for layer in range(config.n_layer))
    # Elements of all embeddings with the unembedding.
    tables = 2 * vocabulary + num_tables * config.vocab_size * kv_width
    matrices = config.n_layer * config.n_embd * (10 * config.n_embd + 2 * kv_width)  # 8 in the MLP
    matrices += num_tables * GATE_CHANNELS * config.n_kv_head
    tokens = rows * config.sequence_len
    block = tokens * block_bytes(config, size, recomputes)
    # Of a layer with value embeddings: what is looked up and, in any case, the products for gates.
    values = tokens * size * ((0 if recomputes else kv_width) + config.n_kv_head)
    num_kept = config.n_layer if keeps_activations else 1
    activations = num_kept * block + min(num_kept, num_tables) * values
    if device_type == "cpu":  # copies a window's attention, which it computes in parts
        num_windows = sum(window is not None for window in config.windows)
        activations += min(num_kept, num_windows) * tokens * size * config.n_embd
    if not keeps_activations:
        activations += config.n_layer * tokens * size * config.n_embd
    casts_all = keeps_activations and not recomputes  # else they are cast again, layer by layer
    # Buffers of the collectives: gradients to reduce, parameters to gather.
    sent = 2 * (tables + matrices) if world_size > 1 else 0
    logits = config.vocab_size * min(tokens, rows_at_once(config.vocab_size, device_type))
    return Estimate(
        parameters=4 * (tables + matrices),
        gradients=4 * (tables + matrices),
        # AdamW keeps two moments per element, Muon one; its variances are negligible.
        moments=4 * -(-(2 * tables + matrices) // world_size),
        activations=activations,
        weights=size * (vocabulary + matrices // (1 if casts_all else config.n_layer))
        if size < 4
        else 0,
        # grad_x and grad_weight, and of a group of logits: on a CPU logits and exponentials in
        # float32, else both in the compute dtype; then their gradient.
        loss=(2 * size if device_type == "cuda" else 8 + size) * logits
        + size * tokens * config.n_embd
        + 4 * vocabulary,
        update=4 * (MUON_COPIES * matrices // world_size + sent),
    )


def block_bytes(config: GPTConfig, size: int, recomputes: bool = False) -> int:
    """Bytes that one block keeps per token for the backward pass, `size` bytes per number.

    Recomputing: its input, queries, keys, values, the outputs of attention and of the second
    product, and 4 C of the third. Else also inputs and outputs of norms: the residual stream twice,
    queries, keys; and the square of relu. In float32 the scales of norms, and attention's sum of
    exponentials.
    """
    kv_width, num_heads = config.n_kv_head * config.head_dim, config.n_head
    if recomputes:
        return size * (8 * config.n_embd + 2 * kv_width) + 4 * num_heads
    statistics = 4 * (2 + 2 * num_heads + config.n_kv_head)
    return size * (15 * config.n_embd + 3 * kv_width) + statistics
