"""Products of float32 matrices through oneDNN, where torch would take MKL.

On AMD's processors MKL is a tenth slower to half as fast (dev/LOG.md, 2026-11-24 and 2026-11-27).
torch has no public way to oneDNN in float32; this is the one of its compiler.

K columns of both  N rows of the matrix  R rows to sum over
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


IS_AMD = _is_amd()  # MKL leaves the AVX-512 of these processors alone
SMALL = 2**24  # multiplications up to which the way there costs what it wins


def linear(x: Tensor, matrix: Tensor) -> Tensor:
    """x @ matrix.T with its gradients, (..., K) by (N, K) -> (..., N)."""
    if torch.is_grad_enabled() and _suits_onednn(x, matrix):
        y: Tensor = _Linear.apply(x, matrix)
        return y
    return F.linear(x, matrix)  # without gradients: the bits of stock engines


def product(x: Tensor, matrix: Tensor) -> Tensor:
    """The same without gradients.

    The matrix, or its transpose, is contiguous: with others oneDNN may take seconds.
    """
    return _product(x, matrix, F.linear, "none")


def sum_of_products(left: Tensor, right: Tensor) -> Tensor:
    """left.T @ right without gradients, (R, N) by (R, K) -> (N, K).

    Where MKL is slow the narrower of both is copied, since oneDNN reads rows of one of them; when
    that is `right`, the result is the transpose of a contiguous matrix.
    """
    if not mkl_is_slow_for(left):
        return left.T @ right
    if left.size(1) > right.size(1):
        return sum_of_products(right, left).T
    return product(left.T, right.contiguous().T)


def mkl_is_slow_for(matrix: Tensor) -> bool:
    """Whether a sum of products goes by oneDNN: in float32 on AMD's processors.

    Elsewhere MKL is level, and copies nothing.
    """
    return matrix.dtype == torch.float32 and IS_AMD and has_kernels_for(matrix)


def sigmoids(x: Tensor, matrix: Tensor) -> Tensor:
    """sigmoid(x @ matrix.T) without gradients, in the same pass over memory."""
    return _product(x, matrix, _sigmoids, "sigmoid")


def _sigmoids(x: Tensor, matrix: Tensor) -> Tensor:
    return F.linear(x, matrix).sigmoid_()


def _product(
    x: Tensor, matrix: Tensor, by_torch: Callable[[Tensor, Tensor], Tensor], activation: str
) -> Tensor:
    if not _suits_onednn(x, matrix):
        return by_torch(x, matrix)
    y: Tensor = torch.ops.nanochat.product(x, matrix, activation)
    return y


def has_kernels_for(matrix: Tensor) -> bool:
    """Whether oneDNN is here and has kernels of its own for such a matrix."""
    if matrix.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False
    if matrix.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return matrix.dtype == torch.float32


def _suits_onednn(x: Tensor, matrix: Tensor) -> bool:
    if matrix.dtype != torch.float32:  # in bfloat16 torch takes oneDNN by itself
        return False
    return x.numel() * matrix.size(0) > SMALL and has_kernels_for(matrix)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor) -> Tensor:
        ctx.save_for_backward(x, matrix)
        return product(x, matrix)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor]:
        x, matrix = ctx.saved_tensors
        of_matrix = sum_of_products(upstream[0].flatten(0, -2), x.flatten(0, -2))
        return product(upstream[0], matrix.T), of_matrix


def _through_onednn(x: Tensor, matrix: Tensor, activation: str) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), matrix, None, activation, [], "")
    return y


def _shape(x: Tensor, matrix: Tensor, _activation: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], matrix.size(0))


# An operator of its own is left as it is by torch.compile, which cannot lower that of oneDNN;
# `torch.library.custom_op` would import the compiler where nothing is compiled.
LIBRARY = torch.library.Library("nanochat", "DEF")
LIBRARY.define("product(Tensor x, Tensor matrix, str activation) -> Tensor")
LIBRARY.impl("product", _through_onednn, "CPU")
torch.library.register_fake("nanochat::product", _shape, lib=LIBRARY)
