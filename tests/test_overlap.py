"""Gradients that reduce during the backward pass are those that reduce after it."""

from pathlib import Path

import pytest
import torch

from nanochat.adamw import OverlappedReduction
from nanochat.data.batch import Batch
from nanochat.training import trainer
from nanochat.training.param_groups import build_optimizers
from nanochat.training.schedule import Schedule
from tests.ranks import run_in_ranks
from tests.small_model import small_model

CPU = torch.device("cpu")
SHAPE = {"n_layer": 5, "value_embeddings": 2}


def batch(step: int, rank: int, rows: int) -> Batch:
    generator = torch.Generator().manual_seed(2 * step + rank)
    tokens = torch.randint(100, (rows, 17), generator=generator)
    return Batch(tokens[:, :-1], tokens[:, 1:], None, 64.0, 0.0, {})


def trained(rank: int, overlaps: bool, transport: torch.dtype) -> dict[str, torch.Tensor]:
    """Three steps; in the second, rank 1 has no rows, and rank 0 runs out of memory once."""
    model = small_model(**SHAPE)
    optimizers = build_optimizers(model)
    for optimizer in optimizers:
        optimizer.transport = transport
    reduction = OverlappedReduction(optimizers, model.parameters()) if overlaps else None
    if reduction is not None:  # a table when its layer is done, and not after all layers
        names = [bucket.named[0][0] for _, bucket in reduction.queue]
        tables = [names.index(f"value_embeddings.{layer}.weight") for layer in (4, 2, 0)]
        first_layer = names.index("blocks.0.attention.query.weight")
        assert tables[0] < tables[1] < first_layer < tables[2]
        assert (names[0], names[-1]) == ("unembedding.weight", "embedding.weight")
    for step in range(3):
        rows = 4 if rank == 0 or step != 1 else 0
        if step == 1 and rank == 0 and reduction is not None:  # an attempt that fails at its end
            reduction.expect_last()
            parts = batch(step, rank, rows)
            weights = torch.ones(parts.targets.shape) / parts.norm
            handle = model.blocks[0].attention.query.weight.register_hook(fail)
            with pytest.raises(torch.OutOfMemoryError):
                model(parts.inputs, parts.targets, weights=weights).backward()
            handle.remove()
            model.zero_grad(set_to_none=True)
            assert any(bucket.reduction is not None for _, bucket in reduction.queue)
        trainer.accumulate_gradients(model, batch(step, rank, rows), 2, CPU, reduction=reduction)
        for optimizer in optimizers:
            optimizer.reduce_gradients()
        trainer.update(optimizers, Schedule(3), step, 1.0)
        model.zero_grad(set_to_none=True)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def fail(_: torch.Tensor) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def all_trained(rank: int, _world_size: int) -> list[dict[str, torch.Tensor]]:
    ways = ((False, torch.float32), (True, torch.float32), (True, torch.bfloat16))
    return [trained(rank, overlaps, transport) for overlaps, transport in ways]


def test_overlapped_reduction_gives_the_same_parameters(tmp_path: Path) -> None:
    (plain, overlapped, halved), (_, other, _) = run_in_ranks(all_trained, 2, tmp_path)
    start = {name: p.detach() for name, p in small_model(**SHAPE).named_parameters()}
    for name, one in plain.items():
        moved = float((one - start[name]).norm())
        assert moved > 0 and torch.equal(overlapped[name], other[name])
        assert float((overlapped[name] - one).norm()) <= 1e-4 * moved
        assert float((halved[name] - one).norm()) <= 0.2 * moved
