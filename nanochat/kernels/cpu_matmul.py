"""The CPU backend: matrix products by the fastest library, in layouts and sizes that it likes.

torch multiplies float32 matrices with MKL, which does not use the AVX-512 units of AMD processors:
there oneDNN takes 10 to 50 % less time (dev/LOG.md, 2026-11-24 and 2026-11-27). torch has no public
call of oneDNN in float32; this is the operator that its own compiler emits. On other devices, in
other dtypes and without oneDNN every function here is the plain torch operation, so that callers
need no cases of their own.

K input features  N output features  R rows that are summed over  B stacked matrices
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL = 2**24  # multiply-adds; below, the call of the private operator costs what it saves
LARGE, STRIPS = 512, 4  # symmetric products of this size are computed in so many strips
CACHE_ELEMENTS = 2**18  # float32 values worked on at a time: 1 MB, the L2 cache of one core

FunctionType = TypeVar("FunctionType", bound=Callable[..., Any])


# ---- what the processor has


def compile_time_constant(function: FunctionType) -> FunctionType:
    """Let torch.compile call the function once, while tracing, instead of tracing into it.

    It is what torch.compiler.assume_constant_result does, which would import the compiler: 2 s.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@compile_time_constant  # traced, these calls would break the graph in every layer
def has_onednn(dtype: torch.dtype) -> bool:
    """Whether oneDNN is built in and has its own kernels for a dtype on this processor."""
    if not torch.backends.mkldnn.is_available():
        return False
    # On ARM it passes the work on to another library, which gains nothing here.
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


@compile_time_constant
def is_amd() -> bool:
    """Whether this is an AMD processor; false where that is not known."""
    return _is_amd()


@functools.cache  # read at the first product and not at import: importing has no side effects
def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return False


def _prefers_onednn(x: Tensor, weight: Tensor) -> bool:
    if x.device.type != "cpu" or weight.dtype != torch.float32:
        return False  # in bfloat16 torch calls oneDNN by itself
    return x.numel() * weight.size(0) > SMALL and has_onednn(weight.dtype)


def _mkl_is_slow(tensor: Tensor) -> bool:
    """Whether sums of products go to oneDNN: elsewhere MKL is as fast and copies nothing."""
    is_float32 = tensor.device.type == "cpu" and tensor.dtype == torch.float32
    return is_float32 and is_amd() and has_onednn(tensor.dtype)


# ---- products


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T with gradients, (..., K) by (N, K) -> (..., N)."""
    if torch.is_grad_enabled() and _prefers_onednn(x, weight):
        y: Tensor = _Linear.apply(x, weight)
        return y
    return F.linear(x, weight)  # evaluation keeps the bits of stock engines


def product(x: Tensor, weight: Tensor, activation: Literal["none", "sigmoid"] = "none") -> Tensor:
    """x @ weight.T without gradients; oneDNN applies the activation in the same pass over memory.

    weight or its transpose must be contiguous: with other strides oneDNN may take seconds.
    """
    if _prefers_onednn(x, weight):
        y: Tensor = torch.ops.nanochat.product(x, weight, activation)
        return y
    return F.linear(x, weight) if activation == "none" else F.linear(x, weight).sigmoid_()


def sum_of_products(left: Tensor, right: Tensor) -> Tensor:
    """left.T @ right without gradients, (R, N) by (R, K) -> (N, K): the gradient of a weight.

    Where MKL is slow the narrower of both is copied, since oneDNN reads one of them by rows; when
    that is `right`, the result is the transpose of a contiguous matrix.
    """
    if not _mkl_is_slow(left):
        return left.T @ right
    if left.size(1) > right.size(1):
        return sum_of_products(right, left).T
    return product(left.T, right.contiguous().T)


def zeros_for_sums(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Zeros (N, K) like the weight, in the layout of `sum_of_products` of that dtype.

    Adding matrices of different layouts would read one of them by columns.
    """
    if dtype == weight.dtype and _mkl_is_slow(weight):
        return weight.new_zeros(weight.shape[::-1]).T
    return torch.zeros_like(weight)


def add_sum_of_products(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left.T @ right, in place; total comes from `zeros_for_sums`."""
    if left.dtype == total.dtype and not _mkl_is_slow(left):
        total.addmm_(left.T, right)  # one pass less over the total
    else:
        total += sum_of_products(left, right)


def symmetric_product(a: Tensor, b: Tensor, *, beta: float = 0.0, alpha: float = 1.0) -> Tensor:
    """alpha * a @ b + beta * a where that is known to be symmetric, (B, N, K) by (B, K, N).

    On a CPU large ones are computed in strips that begin at the diagonal and then mirrored: four
    strips do five eighths of the work.
    """
    size = a.size(1)
    out = a.new_empty(a.size(0), size, size)
    addend = a if beta else out  # with beta = 0 it is not read
    if a.device.type != "cpu" or a.dtype == torch.bfloat16 or size < LARGE:
        return torch.baddbmm(addend, a, b, beta=beta, alpha=alpha)
    width = -(-size // STRIPS)
    for first in range(0, size, width):
        rows, below = slice(first, first + width), slice(first + width, size)
        torch.baddbmm(
            addend[:, rows, first:], a[:, rows], b[:, :, first:],
            beta=beta, alpha=alpha, out=out[:, rows, first:],
        )  # fmt: skip
        out[:, below, rows] = out[:, rows, below].mT
    return out


class PrepackedLinear(nn.Module):
    """x @ weight.T for inference, the weight cast once and kept in oneDNN's blocked layout.

    With 1 to 64 rows the blocked layout is two to four times as fast (dev/LOG.md, 2026-11-24).
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = weight.detach().to(dtype)
        self.is_blocked = weight.device.type == "cpu" and has_onednn(dtype)
        if self.is_blocked:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_blocked:
            return F.linear(x, self.weight)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")
        return y


def split_for_cache(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Views of groups of rows, small enough that the first tensor's stay in a CPU's cache.

    Elsewhere, and compiled, where the passes over memory are fused, all rows at once.
    """
    if tensors[0].device.type != "cpu" or torch.compiler.is_compiling():
        return [tensors]
    num_rows = max(1, CACHE_ELEMENTS // tensors[0].size(1))
    return list(zip(*(tensor.split(num_rows) for tensor in tensors), strict=True))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        grad_weight = sum_of_products(upstream[0].flatten(0, -2), x.flatten(0, -2))
        return product(upstream[0], weight.T), grad_weight


# ---- oneDNN as an operator that torch.compile leaves alone


def _onednn_product(x: Tensor, weight: Tensor, activation: str) -> Tensor:
    # oneDNN reads x by rows; other strides are a slow path.
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, None, activation, [], "")
    return y


def _product_shape(x: Tensor, weight: Tensor, _activation: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.size(0))


# The compiler cannot lower mkldnn's operator on unpacked weights, but treats one of our own as
# opaque. `torch.library.custom_op` would do, too, and import the compiler when nothing is compiled.
LIBRARY = torch.library.Library("nanochat", "DEF")
LIBRARY.define("product(Tensor x, Tensor matrix, str activation) -> Tensor")
LIBRARY.impl("product", _onednn_product, "CPU")
torch.library.register_fake("nanochat::product", _product_shape, lib=LIBRARY)
