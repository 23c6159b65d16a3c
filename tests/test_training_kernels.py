"""What training computes with gradients of its own equals autograd in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.kernels.rms_norm import rms_norm
from nanochat.kernels.rotary import rotate

EPS = 1e-6


def with_gradient(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return y.detach(), torch.autograd.grad(y, x, upstream.to(y.dtype))[0]


@pytest.mark.parametrize("width", [64, 192, 12])
@pytest.mark.parametrize("case", ["usual", "a zero row", "small", "strided"])
def test_norm_in_bfloat16_is_exact_but_for_rounding(width: int, case: str) -> None:
    x = torch.randn(3, 5, width, generator=torch.Generator().manual_seed(0)).bfloat16()
    if case == "a zero row":
        x[1, 2] = 0
    if case == "small":
        x *= 1e-3  # eps matters
    if case == "strided":
        x = x.transpose(0, 1)
    wide = x.double().requires_grad_()
    expected = with_gradient(F.rms_norm(wide, (width,), eps=EPS), wide)
    for one, ours in zip(
        expected, with_gradient(rms_norm(x.requires_grad_(), EPS), x), strict=True
    ):
        assert ours.shape == x.shape and ours.dtype == torch.bfloat16 and ours.isfinite().all()
        differences = (ours.double() - one).norm(dim=-1) / one.norm(dim=-1)
        assert differences.nan_to_num().max() < 2**-7  # two roundings


def test_the_gradient_of_a_rotation_is_rotated_back() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, 3, 8, generator=generator, dtype=torch.float64).transpose(1, 2)
    angles = torch.randn(2, 1, 7, 4, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    rotated = rotate(x, angles.cos(), angles.sin())
    with torch.no_grad():
        torch.testing.assert_close(rotated, rotate(x, angles.cos(), angles.sin()))
    assert torch.autograd.gradcheck(lambda x: rotate(x, angles.cos(), angles.sin()), (x,))
