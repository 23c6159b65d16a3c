"""Causal attention, over full rows or over a cache, and the choice of the kernel that computes it.

A token attends to the W latest tokens including itself, or to all if the window is None. The
kernels differ only in rounding. The fastest depends on the device, the dtype, the length and the
installed packages; this is the only place that decides. On a GPU that means for inference: none
of cuDNN's, which prepare each new shape for 30 to 350 ms.

B batch  T time  H heads  K kv heads  D head dim  W window
N tokens of all rows  R rows  S stored positions
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanochat.kernels.cpu_matmul import compile_time_constant

SHORT_ROW = 512  # tokens up to which plain products beat a CPU's fused attention in bfloat16
BLOCK = 256  # queries at a time within a window: 128 is as fast, 512 slower, dev/LOG.md 2026-11-24
FLEX_BLOCK = 128  # only multiples of it use FlexAttention: each other length would be compiled

Kernel = Literal["flash", "products", "fused", "flex", "blocks"]


class Rows(NamedTuple):
    """The shape of the attention of one layer, on which the choice of a kernel depends."""

    num_heads: int
    num_kv_heads: int
    length: int
    head_dim: int
    window: int | None
    device: torch.device
    dtype: torch.dtype

    @property
    def is_grouped(self) -> bool:
        return self.num_heads != self.num_kv_heads


class AttentionCache(Protocol):
    """A KV cache as the model sees it; storage and masks are up to the cache."""

    def positions(self, num_new: int) -> Tensor:
        """(B, T) int64 positions of each row's next tokens; UserError past the context."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v (B, K, T, D); attention (B, H, T, D) of q (B, H, T, D) over all stored."""


def attend_causally(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """Attention (B, H, T, D) of q (B, H, T, D) over k, v (B, K, T, D), by the fastest kernel."""
    H, T, D = q.shape[1:]
    if window is not None and window >= T:
        window = None  # it covers the row, and kernels without a window are faster
    rows = Rows(H, k.size(1), T, D, window, q.device, q.dtype)
    return KERNELS[chosen_kernel(rows, torch.is_grad_enabled())](q, k, v, window)


# ---- choice of the kernel


def chosen_kernel(rows: Rows, is_training: bool = True) -> Kernel:
    """The name in `KERNELS` of the fastest kernel that supports such rows."""
    if _flash_package(rows):
        return "flash"
    # Up to three times as fast as torch's fused kernel there, dev/LOG.md 2026-11-24.
    is_short = rows.length <= SHORT_ROW and not rows.is_grouped
    if is_short and rows.device.type == "cpu" and rows.dtype == torch.bfloat16:
        return "products"
    if rows.window is None:
        return "fused"
    # Only in training: prompts have any length, and a request must not wait for the compiler.
    if is_training and rows.length % FLEX_BLOCK == 0 and _can_flex(rows):
        return "flex"
    return "blocks"


def attention_kernel(rows: Rows) -> str:
    """A description of the kernel that training uses for such rows."""
    kernel = chosen_kernel(rows)
    if kernel == "flash":
        return f"FlashAttention, {_flash_package(rows)}"
    if kernel == "products":
        return "two batched products"
    if kernel == "flex":
        return "FlexAttention, compiled"
    # Which backend torch would choose, asked with tensors of the shape that it is given.
    length = rows.length if rows.window is None else rows.window
    q = torch.empty(1, rows.num_heads, length, rows.head_dim, dtype=rows.dtype, device=rows.device)
    kv = q[:, : rows.num_kv_heads]
    choice = torch._fused_sdp_choice(q, kv, kv, is_causal=True, enable_gqa=rows.is_grouped)
    name = f"scaled_dot_product_attention, {SDPBackend(choice).name.lower().replace('_', ' ')}"
    return name if kernel == "fused" else f"{name}, in blocks of {BLOCK} tokens"


# ---- FlashAttention: arXiv 2205.14135, for Hopper 2407.08608


def _flash_package(rows: Rows) -> str:
    """The installed package that supports such rows, or ""."""
    if rows.device.type != "cuda":
        return ""
    fits = rows.head_dim % 8 == 0 and rows.head_dim <= 256  # limits of both packages
    is_half = rows.dtype in (torch.bfloat16, torch.float16)
    return _installed_flash(rows.device) if fits and is_half else ""


@compile_time_constant
def _installed_flash(device: torch.device) -> str:
    generation, _ = torch.cuda.get_device_capability(device)
    for_hopper = ["flash_attn_interface"] if generation == 9 else []
    for_ampere = ["flash_attn"] if generation >= 8 else []  # and all later generations
    return next(filter(_can_import, [*for_hopper, *for_ampere]), "")  # the faster one first


@functools.cache
def _can_import(name: str) -> bool:
    try:
        return hasattr(importlib.import_module(name), "flash_attn_func")
    except ImportError:  # not installed, or built for another version of torch
        return False


def attend_by_flash(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """FlashAttention by the installed package."""
    if _installed_flash(q.device) == "flash_attn_interface":
        from flash_attn_interface import flash_attn_func
    else:
        from flash_attn import flash_attn_func
    left = -1 if window is None else window - 1  # earlier tokens, without the token itself
    rows = (x.transpose(1, 2) for x in (q, k, v))  # the packages take (B, T, H, D)
    y = flash_attn_func(*rows, causal=True, window_size=(left, 0))
    output: Tensor = y[0] if isinstance(y, tuple) else y  # some versions also return log-sum-exp
    return output.transpose(1, 2)


# ---- rows of any length, one after the other


class PackedRows(NamedTuple):
    """Where the queries and keys of each row are; the last query is at the row's last key."""

    query_ends: Tensor  # (R + 1,) int32: row r has queries query_ends[r] up to query_ends[r + 1]
    key_starts: Tensor  # (R + 1,) int32; the last is not used
    key_lengths: Tensor  # (R,) int32
    longest_query: int
    longest_keys: int  # an upper bound


def can_pack(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether `attend_packed` has a kernel there that works in place: torch's FlashAttention."""
    if device.type != "cuda" or torch.version.hip or head_dim % 8 or head_dim > 256:
        return False
    is_half = dtype in (torch.bfloat16, torch.float16)
    has_flash = torch.backends.cuda.is_flash_attention_available()
    return is_half and has_flash and torch.cuda.get_device_capability(device) >= (8, 0)


def attend_packed(
    q: Tensor, keys: Tensor, values: Tensor, rows: PackedRows, window: int | None
) -> Tensor:
    """Attention (N, H, D) of q (N, H, D) over keys, values (S, K, D), which it reads in place."""
    # The operator behind `torch.nn.attention.varlen`, which in torch 2.11 takes no key_lengths.
    y: Tensor = torch.ops.aten._flash_attention_forward(
        q, keys, values, rows.query_ends, rows.key_starts, rows.longest_query, rows.longest_keys,
        0.0, True, False, seqused_k=rows.key_lengths, window_size_right=0,
        window_size_left=-1 if window is None else window - 1,
    )[0]  # fmt: skip
    return y


# ---- FlexAttention, arXiv 2412.05496


def _can_flex(rows: Rows) -> bool:
    return rows.device.type == "cuda" and rows.head_dim >= 16 and _has_triton()  # tile minimum: 16


@compile_time_constant
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def attend_by_flex(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """FlexAttention, compiled for the window; skips blocks that no query attends to."""
    from torch.nn.attention.flex_attention import flex_attention  # imports the compiler

    assert window is not None
    shape, is_grouped = (q.size(2), window, q.device), q.size(1) != k.size(1)
    if torch.compiler.is_compiling():  # part of the graph: no nested compilation, no cached tensors
        y = flex_attention(q, k, v, block_mask=_block_mask(*shape), enable_gqa=is_grouped)
    else:
        flex, mask = _compiled(flex_attention), _cached_block_mask(*shape)
        y = flex(q, k, v, block_mask=mask, enable_gqa=is_grouped)
    output: Tensor = y
    return output


def _block_mask(length: int, window: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def is_visible(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key > query - window)

    return create_block_mask(is_visible, None, None, length, length, device=device)


_cached_block_mask = functools.cache(_block_mask)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)


# ---- torch's own kernels


def attend_fused(q: Tensor, k: Tensor, v: Tensor, _: int | None = None) -> Tensor:
    """Attention over all earlier tokens by torch's fused kernel."""
    with _for_any_shape(q):
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=q.size(1) != k.size(1)
        )


def attend_masked(q: Tensor, k: Tensor, v: Tensor, is_seen: Tensor | None) -> Tensor:
    """Attention (B, H, T, D) of q over k, v (B, K, S, D), where is_seen (B, 1, T, S) or to all."""
    with _for_any_shape(q):
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=is_seen, enable_gqa=q.size(1) != k.size(1)
        )


def _for_any_shape(q: Tensor) -> AbstractContextManager[None]:
    """Leave out cuDNN unless shapes stay the same: in training, and where they are compiled."""
    if q.device.type != "cuda" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return nullcontext()
    backends = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    context: AbstractContextManager[None] = sdpa_kernel(backends)
    return context


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """Attention within a window: the first W tokens as a full row, then blocks of queries.

    Each block attends only to the keys that are in the window of one of its queries. A mask of
    T x T would take twice as long, since masked scores are computed, too.
    """
    assert window is not None
    T = q.size(2)
    # Query i of a block sees the W keys that end at its own position, i + W - 1.
    visible = torch.ones(BLOCK, BLOCK + window - 1, dtype=torch.bool, device=q.device)
    visible = visible.triu().tril(window - 1)
    parts = [attend_fused(q[:, :, :window], k[:, :, :window], v[:, :, :window])]
    for first in range(window, T, BLOCK):
        end = min(first + BLOCK, T)
        queries, keys = slice(first, end), slice(first - window + 1, end)
        mask = visible[: end - first, : end - keys.start]
        parts.append(attend_masked(q[:, :, queries], k[:, :, keys], v[:, :, keys], mask))
    return torch.cat(parts, dim=2)


def attend_by_products(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """Attention by two batched products, with all T x T scores at once; heads not grouped."""
    B, H, T, D = q.shape
    q, k, v = (x.reshape(B * H, T, D) for x in (q, k, v))
    # triu and tril leave zeros elsewhere: an additive mask, which baddbmm adds for free.
    mask = torch.full((T, T), -torch.inf, dtype=q.dtype, device=q.device)
    mask = mask.triu(1) if window is None else mask.triu(1) + mask.tril(-window)
    weights = torch.baddbmm(mask, q, k.mT, alpha=D**-0.5).softmax(dim=-1)
    return (weights @ v).view(B, H, T, D)


KERNELS: dict[Kernel, Callable[[Tensor, Tensor, Tensor, int | None], Tensor]] = {
    "flash": attend_by_flash,
    "products": attend_by_products,
    "fused": attend_fused,
    "flex": attend_by_flex,
    "blocks": attend_in_blocks,
}


def offset_keys(k: Tensor, heads: int, is_first: Tensor | None = None) -> Tensor:
    """Keys (B, K, T, D), of the first heads those of the token before; zeros at is_first (B, T)."""
    if not heads:
        return k
    before = F.pad(k[:, :heads, :-1], (0, 0, 1, 0))
    if is_first is not None:
        before = before.masked_fill(is_first[:, None, :, None], 0.0)
    return torch.cat([before, k[:, heads:]], dim=1)
