import dataclasses

import pytest
import torch
from torch import Tensor

from nanochat.gpt import GPT, GPTConfig, run_block
from nanochat.kernels.recompute import recomputing
from nanochat.training import memory_estimate
from nanochat.training.memory_estimate import estimate

GPU = {"compute_dtype": torch.bfloat16, "device_type": "cuda"}


def of_depth(depth: int) -> GPTConfig:
    return GPTConfig.from_depth(depth, vocab_size=65_536, sequence_len=2048)


@pytest.mark.parametrize(("depth", "rows", "measured"), [(12, 32, 33.6e9), (20, 16, 46.4e9)])
def test_the_estimate_is_near_the_peaks_measured_on_an_h200(
    depth: int, rows: int, measured: float
) -> None:
    """Of a loss compiled with its groups of 2^28 logits in one graph, seven float32 buffers, and of
    attention whose output was copied."""
    config = GPTConfig.from_depth(depth, vocab_size=32_768, sequence_len=2048)
    guess = estimate(config, rows=rows, **GPU)
    kept = 2 * rows * config.sequence_len * config.n_embd + 4 * config.vocab_size * config.n_embd
    copied = depth * 2 * rows * config.sequence_len * config.n_embd
    then = dataclasses.replace(
        guess, loss=7 * 4 * 2**28 + kept, activations=guess.activations + copied
    )
    assert then.total == pytest.approx(measured, rel=0.05)
    assert guess.total < 0.9 * measured


def test_depth_20_with_32_rows_fits_an_80_gigabyte_card() -> None:
    assert estimate(of_depth(20), rows=32, **GPU).total < 76e9
    assert estimate(of_depth(20), rows=32, recomputes=True, **GPU).total < 45e9


@pytest.mark.parametrize(("depth", "rows"), [(20, 32), (32, 8)])
@pytest.mark.parametrize("world_size", [1, 8])
def test_the_reference_runs_fit_80_gigabytes(depth: int, rows: int, world_size: int) -> None:
    fits = estimate(of_depth(depth), rows=rows, world_size=world_size, **GPU)
    assert 40e9 < fits.total < 80e9
    again = estimate(of_depth(depth), rows=2 * rows, world_size=world_size, **GPU)
    assert again.total > 80e9
    light = estimate(
        of_depth(depth), rows=2 * rows, world_size=world_size, keeps_activations=False, **GPU
    )
    assert light.total < 80e9


def test_only_moments_are_sharded() -> None:
    alone, shared = (estimate(of_depth(12), rows=8, world_size=n, **GPU) for n in (1, 8))
    assert shared.moments == pytest.approx(alone.moments / 8)
    assert (shared.parameters, shared.activations) == (alone.parameters, alone.activations)


def kept_bytes(model: GPT, rows: int) -> int:
    """Bytes that autograd keeps, without parameters and tables."""
    everything = [*model.parameters(), *model.buffers()]
    known = {tensor.untyped_storage().data_ptr() for tensor in everything}
    sizes: dict[int, int] = {}
    kept = []  # alive, so that no address is reused

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    idx = torch.zeros(rows, model.config.sequence_len, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(idx, idx, weights=torch.ones(idx.shape))
    return sum(sizes.values())


@pytest.mark.parametrize("n_kv_head", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keeps_activations", [True, False])
@pytest.mark.parametrize(("pattern", "values"), [("L", 0), ("S", 0), ("L", 1)])
def test_a_block_keeps_the_estimated_bytes(
    pattern: str, values: int, keeps_activations: bool, dtype: torch.dtype, n_kv_head: int
) -> None:
    """Measured as the difference between five blocks and two."""
    found, expected = [], []
    for n_layer in (2, 5):
        config = GPTConfig(
            sequence_len=640, vocab_size=32, n_layer=n_layer, n_head=4, n_kv_head=n_kv_head,
            n_embd=256, window_pattern=pattern, value_embeddings=values,
        )  # fmt: skip
        model = GPT(config, dtype)
        model.init_weights(0)
        model.keeps_activations = keeps_activations
        found.append(kept_bytes(model, rows=4))
        guess = estimate(
            config, rows=4, compute_dtype=dtype, device_type="cpu",
            keeps_activations=keeps_activations,
        )  # fmt: skip
        expected.append(guess.activations + guess.weights)
    assert found[1] - found[0] == pytest.approx(expected[1] - expected[0], rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("values", [0, 1])
@pytest.mark.parametrize("recomputes", [False, True])
def test_a_compiled_block_is_one_graph_that_keeps_the_estimated_bytes(
    recomputes: bool, values: int
) -> None:
    """By the partition into forward and backward pass that every GPU's compiler takes over."""
    found, expected = [], []
    torch.compiler.reset()
    for n_layer in (2, 5):
        config = GPTConfig(
            sequence_len=256, vocab_size=32, n_layer=n_layer, n_head=4, n_kv_head=2, n_embd=256,
            value_embeddings=values,
        )  # fmt: skip
        model = GPT(config, torch.bfloat16)
        model.init_weights(0)
        run = recomputing(run_block) if recomputes else run_block
        partitioned = "aot_eager_decomp_partition"
        model.run_block = torch.compile(run, backend=partitioned, fullgraph=True)
        found.append(kept_bytes(model, rows=4))
        guess = estimate(config, rows=4, recomputes=recomputes, **GPU)
        expected.append(guess.activations + guess.weights)
    # It also keeps each layer's cast of the rotary tables, which is independent of the rows.
    assert found[1] - found[0] == pytest.approx(expected[1] - expected[0], rel=0.01)


@pytest.mark.parametrize("values", [0, 1, 2])
def test_parameters_and_moments_are_those_of_the_model(values: int) -> None:
    config = GPTConfig.from_depth(2, vocab_size=100, sequence_len=16, value_embeddings=values)
    counts = GPT(config).num_parameters()
    guess = estimate(config, rows=1, compute_dtype=torch.float32, device_type="cpu")
    assert guess.parameters == guess.gradients == 4 * counts["total"]
    in_adamw = counts["total"] - counts["matrices"]
    assert guess.moments == 4 * (2 * in_adamw + counts["matrices"])


def test_an_estimate_is_printed_in_readable_units() -> None:
    guess = memory_estimate.Estimate(2 * 10**9, 10**9, 0, 5 * 10**8, 0, 0, 2 * 10**8)
    assert str(guess) == (
        "3.5 GB (parameters 2.0 GB, gradients 1.0 GB, activations 500.0 MB, update 200.0 MB)"
    )
