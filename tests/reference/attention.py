"""Attention one query at a time, in float64: the slow twin of what the model does."""

import math

import torch
from torch import Tensor


def rotate(x: Tensor, position: int, base: float) -> Tensor:
    """x (D,) float64 with each pair (i, i + D/2) turned by minus position * base^(-2i/D)."""
    half = x.numel() // 2
    turned = x.clone()
    for i in range(half):
        angle = position * base ** (-i / half)
        a, b = float(x[i]), float(x[i + half])
        turned[i] = a * math.cos(angle) + b * math.sin(angle)
        turned[i + half] = b * math.cos(angle) - a * math.sin(angle)
    return turned


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """x (D,) divided by its root mean square."""
    return x / math.sqrt(float((x * x).mean()) + eps)


def attend(q: Tensor, k: Tensor, v: Tensor, *, base: float, eps: float) -> Tensor:
    """q (H, T, D), k and v (K, T, D), raw projections of one row: outputs (H, T, D) float64.

    Rotary, then norm of queries and keys, then softmax over the past; head h reads key head
    h // (H / K).
    """
    q, k, v = q.double(), k.double(), v.double()
    num_heads, length, width = q.shape
    per_group = num_heads // k.size(0)
    out = torch.zeros_like(q)
    for head in range(num_heads):
        group = head // per_group
        keys = [rms_norm(rotate(k[group, t], t, base), eps) for t in range(length)]
        for t in range(length):
            query = rms_norm(rotate(q[head, t], t, base), eps)
            scores = [float(query @ keys[s]) / math.sqrt(width) for s in range(t + 1)]
            top = max(scores)
            shares = [math.exp(score - top) for score in scores]
            for s, share in enumerate(shares):
                out[head, t] += share / sum(shares) * v[group, s]
    return out
