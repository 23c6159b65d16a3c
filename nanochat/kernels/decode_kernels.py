"""Small kernels that a decode step on an NVIDIA GPU would otherwise spend most of its time between.

Imported only where there is such a GPU: Triton compiles them there at their first call.

N tokens  C channels  H heads  K kv heads  D head dim  S stored positions  G gate channels
"""

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

BLOCK = 1024  # elements of a program of `relu_squared`


def rotate_norm_store(
    qkv: Tensor, cos: Tensor, sin: Tensor, places: Tensor, keys: Tensor, values: Tensor, eps: float,
    gated: tuple[Tensor, Tensor, Tensor, Tensor] | None = None, later_heads: int = 0,
) -> Tensor:  # fmt: skip
    """Queries (N, H, D) of projections qkv (N, H + 2 K, D), contiguous; rotated, then normed.

    Keys, rotated and normed, too, and values go to the positions `places` (N,) int64 of the stores
    keys, values (S, K, D); the keys of the first `later_heads` go to the position after.
    cos, sin: N x D / 2, contiguous.  gated: the input (N, C) of the layer,
    a table (vocabulary, K * D) float32, tokens (N,) int64 and gates (K, G) float32. Then values get
    rows of the table by their tokens, times 3 sigmoid(gates @ the first G channels of the input).
    """
    (count, heads, width), num_kv_heads = qkv.shape, keys.size(1)
    q = qkv.new_empty(count, heads - 2 * num_kv_heads, width)
    x, table, tokens, gates = gated or (qkv, cos, places, cos)  # without, none of them is read
    num_gates = gates.size(1) if gated else 0
    with torch.cuda.device_of(qkv):  # Triton launches on the current device
        _rotate_norm_store[(count, heads)](
            qkv, cos, sin, places, q, keys, values, eps, x, table, tokens, gates, x.stride(0),
            q.size(1), num_kv_heads, width // 2, triton.next_power_of_2(width // 2),
            num_gates, triton.next_power_of_2(num_gates), later_heads, num_warps=1,
            enable_fp_fusion=True,
        )  # fmt: skip
    return q


# They may start anywhere, which must not be a reason to compile again in the middle of answers.
@triton.jit(do_not_specialize_on_alignment=["places", "tokens"])  # type: ignore[untyped-decorator]
def _rotate_norm_store(  # type: ignore[no-untyped-def]
    qkv, cos, sin, places, q, keys, values, eps, x, table, tokens, gates, x_stride,
    H: tl.constexpr, K: tl.constexpr, HALF: tl.constexpr, SIZE: tl.constexpr,
    NUM_GATES: tl.constexpr, GATES_SIZE: tl.constexpr, LATER_HEADS: tl.constexpr,
):  # fmt: skip
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = tl.load(places + token)
    at = tl.arange(0, SIZE)
    is_in = at < HALF
    source = qkv + (token * (H + 2 * K) + head) * 2 * HALF + at
    a = tl.load(source, is_in, 0.0).to(tl.float32)
    b = tl.load(source + HALF, is_in, 0.0).to(tl.float32)
    if NUM_GATES > 0:
        own = head - H - K  # negative for queries and keys, whose a and b stay as they are
        is_value = tl.where(is_in, own, -1) >= 0
        channel = tl.arange(0, GATES_SIZE)
        is_gate = tl.where(channel < NUM_GATES, own, -1) >= 0
        weight = tl.load(gates + own * NUM_GATES + channel, is_gate, 0.0)
        weight *= tl.load(x + token * x_stride + channel, is_gate, 0.0).to(tl.float32)
        gate = 3.0 * tl.sigmoid(tl.sum(weight, 0))
        row = table + (tl.load(tokens + token) * K + own) * 2 * HALF + at  # in int64
        a += gate * tl.load(row, is_value, 0.0)
        b += gate * tl.load(row + HALF, is_value, 0.0)
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
    later = tl.where(head - H < LATER_HEADS, 1, 0)
    to_keys = keys + ((place + later) * K + head - H) * 2 * HALF + at
    is_key = (head_at >= H) & (head_at < H + K)
    tl.store(to_keys, first, is_key)
    tl.store(to_keys + HALF, second, is_key)
    to_values = values + (place * K + head - H - K) * 2 * HALF + at
    is_stored = (head_at >= H + K) & is_in
    tl.store(to_values, first, is_stored)
    tl.store(to_values + HALF, second, is_stored)


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
