"""Reference implementation of attention: one query at a time, in float64."""

import math

import torch
from torch import Tensor


def rotate(x: Tensor, position: int, base: float) -> Tensor:
    """x (D,) float64 with each pair (i, i + D/2) rotated by minus position * base^(-2i/D)."""
    half = x.numel() // 2
    rotated = x.clone()
    for i in range(half):
        angle = position * base ** (-i / half)
        a, b = float(x[i]), float(x[i + half])
        rotated[i] = a * math.cos(angle) + b * math.sin(angle)
        rotated[i + half] = b * math.cos(angle) - a * math.sin(angle)
    return rotated


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """x (D,) divided by its root mean square."""
    return x / math.sqrt(float((x * x).mean()) + eps)


def rotate_and_norm(x: Tensor, *, base: float, eps: float) -> Tensor:
    """x (H, T, D), raw projections of one row: rotary, then norm, of each position of each head."""
    heads = [
        [rms_norm(rotate(head[t], t, base), eps) for t in range(len(head))] for head in x.double()
    ]
    return torch.stack([torch.stack(head) for head in heads])


def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """q (H, T, D), k and v (K, T, D) of one row: outputs (H, T, D) float64.

    Softmax over the latest `window` tokens, or over all earlier ones; head h uses KV head
    h // (H / K).
    """
    q, k, v = q.double(), k.double(), v.double()
    num_heads, length, width = q.shape
    per_group = num_heads // k.size(0)
    out = torch.zeros_like(q)
    for head in range(num_heads):
        group = head // per_group
        for t in range(length):
            visible = [s for s in range(t + 1) if window is None or t - s < window]
            scores = [float(q[head, t] @ k[group, s]) / math.sqrt(width) for s in visible]
            weights = [math.exp(score - max(scores)) for score in scores]
            for s, weight in zip(visible, weights, strict=True):
                out[head, t] += weight / sum(weights) * v[group, s]
    return out
