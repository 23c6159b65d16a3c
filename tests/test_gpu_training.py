"""Training on an NVIDIA GPU: compiled, joined and in half precision against the plain float32."""

import dataclasses

import pytest
import torch
from torch import Tensor

from nanochat.data.batch import Batch
from nanochat.gpt import GPT
from nanochat.kernels.documents import can_join
from nanochat.training.trainer import accumulate_gradients
from tests.small_model import small_model
from tests.test_micro_batch import rows_of_lengths

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
LENGTHS = [64, 1, 0, 17, 40, 64, 3]
SHAPE = {"n_embd": 64, "n_head": 2, "n_kv_head": 2, "n_layer": 3, "value_embeddings": 2}


def gradients(
    model: GPT, batch: Batch, *, scale: float = 1.0, joined_length: int = 0
) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad(set_to_none=True)
    device = model.embedding.weight.device
    loss = accumulate_gradients(model, batch, 3, device, scale=scale, joined_length=joined_length)
    return loss.cpu(), [p.grad.cpu() / scale for p in model.parameters() if p.grad is not None]


def assert_near(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for ours, one in zip(found, expected, strict=True):
        assert float((ours - one).norm()) <= tolerance * float(one.norm())


@pytest.mark.parametrize("joined_length", [0, 64])
@pytest.mark.parametrize(
    ("dtype", "compiled"),
    [
        (torch.bfloat16, "no"), (torch.bfloat16, "yes"), (torch.bfloat16, "recomputing"),
        (torch.float16, "no"),  # each compilation takes several seconds
    ],
)  # fmt: skip
def test_loss_and_gradient_are_those_of_float32_on_a_cpu(
    dtype: torch.dtype, compiled: str, joined_length: int
) -> None:
    if joined_length and not can_join(torch.device("cuda:0"), dtype, 32):
        pytest.skip("rows are not joined on this card")
    batch = rows_of_lengths(LENGTHS)
    batch = dataclasses.replace(batch, weights=torch.ones(batch.targets.shape))
    loss, expected = gradients(small_model(**SHAPE), batch)
    model = small_model(**SHAPE).to("cuda")
    model.compute_dtype = dtype
    torch.compiler.reset()
    if compiled != "no":
        model.compile_regions(dynamic=True, recomputes=compiled == "recomputing")
    scale = 1024.0 if dtype == torch.float16 else 1.0
    found_loss, found = gradients(model, batch, scale=scale, joined_length=joined_length)
    torch.testing.assert_close(found_loss, loss, rtol=0.02, atol=0.02)
    assert_near(found, expected, 0.1)


def test_out_of_memory_by_a_fraction_leaves_the_device_usable() -> None:
    model, batch = small_model(**SHAPE).to("cuda"), rows_of_lengths(LENGTHS)
    _, expected = gradients(model, batch)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.001)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(2**32, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert_near(gradients(model, batch)[1], expected, 1e-5)
