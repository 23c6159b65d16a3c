"""Small kernels that a decode step on an NVIDIA GPU would otherwise spend most of its time between.

Imported only where there is such a GPU: Triton compiles them there at their first call.

N tokens  H heads  K kv heads  D head dim  S stored positions
"""

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

BLOCK = 1024  # elements of a program of `relu_squared`


def rotate_norm_store(
    qkv: Tensor, cos: Tensor, sin: Tensor, places: Tensor, keys: Tensor, values: Tensor, eps: float
) -> Tensor:
    """Queries (N, H, D) of projections qkv (N, H + 2 K, D), contiguous; rotated, then normed.

    Keys, rotated and normed, too, and values go to the positions `places` (N,) int64 of the stores
    keys, values (S, K, D).  cos, sin: N x D / 2, contiguous.
    """
    (count, heads, width), num_kv_heads = qkv.shape, keys.size(1)
    q = qkv.new_empty(count, heads - 2 * num_kv_heads, width)
    with torch.cuda.device_of(qkv):  # Triton launches on the current device
        _rotate_norm_store[(count, heads)](
            qkv, cos, sin, places, q, keys, values, eps, q.size(1), num_kv_heads, width // 2,
            triton.next_power_of_2(width // 2), num_warps=1, enable_fp_fusion=True,
        )  # fmt: skip
    return q


# `places` may start anywhere, which must not be a reason to compile again in the middle of answers.
@triton.jit(do_not_specialize_on_alignment=["places"])  # type: ignore[untyped-decorator]
def _rotate_norm_store(  # type: ignore[no-untyped-def]
    qkv, cos, sin, places, q, keys, values, eps,
    H: tl.constexpr, K: tl.constexpr, HALF: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = tl.load(places + token)
    at = tl.arange(0, SIZE)
    is_in = at < HALF
    source = qkv + (token * (H + 2 * K) + head) * 2 * HALF + at
    a = tl.load(source, is_in, 0.0).to(tl.float32)
    b = tl.load(source + HALF, is_in, 0.0).to(tl.float32)
    c = tl.load(cos + token * HALF + at, is_in, 0.0).to(tl.float32)
    s = tl.load(sin + token * HALF + at, is_in, 0.0).to(tl.float32)
    first, second = a * c + b * s, b * c - a * s
    squares = tl.sum(first * first + second * second, 0)
    scale = 1.0 / tl.sqrt(squares / (2 * HALF) + eps)
    head_at = tl.where(is_in, head, H + 2 * K)  # of each lane; none at the padding of SIZE
    first = tl.where(head_at < H + K, first * scale, a)
    second = tl.where(head_at < H + K, second * scale, b)
    # Each head is stored once: the masks of the other two are false.
    to_q = q + (token * H + head) * 2 * HALF + at
    tl.store(to_q, first, head_at < H)
    tl.store(to_q + HALF, second, head_at < H)
    to_keys = keys + (place * K + head - H) * 2 * HALF + at
    is_key = (head_at >= H) & (head_at < H + K)
    tl.store(to_keys, first, is_key)
    tl.store(to_keys + HALF, second, is_key)
    to_values = values + (place * K + head - H - K) * 2 * HALF + at
    is_value = (head_at >= H + K) & is_in
    tl.store(to_values, first, is_value)
    tl.store(to_values + HALF, second, is_value)


def relu_squared(x: Tensor) -> Tensor:
    """relu(x)^2 of a contiguous tensor."""
    y, count = torch.empty_like(x), x.numel()
    with torch.cuda.device_of(x):
        _relu_squared[(triton.cdiv(count, BLOCK),)](x, y, count, BLOCK, enable_fp_fusion=True)
    return y


@triton.jit  # type: ignore[untyped-decorator]
def _relu_squared(x, y, count, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    positive = tl.maximum(tl.load(x + at, at < count, 0.0).to(tl.float32), 0.0)
    tl.store(y + at, positive * positive, at < count)
