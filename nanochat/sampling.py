"""From logits to tokens, and how likely they were.

B batch  N tokens  V vocab
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GREEDY_BELOW = 1e-4  # temperatures under this are greedy: dividing by them overflows


@dataclass(frozen=True)
class Sampling:
    """How a row's tokens are drawn; temperature 0 takes the likeliest."""

    temperature: float = 0.0
    top_k: int | None = None
    """Only the k likeliest; None, 0 and below, or more than the vocabulary: all."""
    top_p: float = 1.0
    """Only the likeliest that together reach this probability."""
    min_p: float = 0.0
    """Only what has at least this share of the likeliest one's probability."""

    def num_candidates(self, num_tokens: int) -> int:
        """How many of `num_tokens` tokens top_k leaves."""
        return min(self.top_k, num_tokens) if self.top_k and self.top_k > 0 else num_tokens


GREEDY = Sampling()


def sample_next_token(logits: Tensor, how: Sequence[Sampling], uniforms: Sequence[float]) -> Tensor:
    """(B,) int64 tokens from logits (B, V), each row in its own way.

    uniforms: a number in [0, 1) for each row, which alone decides its draw.
    """
    likeliest = logits.argmax(dim=-1)
    if all(one.temperature < GREEDY_BELOW for one in how):
        return likeliest
    num_tokens = logits.size(-1)
    limits = [one.num_candidates(num_tokens) for one in how]
    values, tokens = logits.float().topk(max(limits), dim=-1)

    def column(numbers: Sequence[float]) -> Tensor:
        return torch.tensor(numbers, device=logits.device)[:, None]

    heat = column([max(one.temperature, GREEDY_BELOW) for one in how])
    ranks = torch.arange(values.size(-1), device=logits.device)
    values = (values / heat).masked_fill(ranks >= column(limits), -torch.inf)
    shares = values.softmax(dim=-1)
    before = shares.cumsum(dim=-1) - shares  # what the likelier ones have together
    top_p, min_p = column([one.top_p for one in how]), column([one.min_p for one in how])
    out = ((before >= top_p) & (ranks > 0)) | (shares < min_p * shares[:, :1])
    summed = shares.masked_fill(out, 0.0).cumsum(dim=-1)
    aims = column(uniforms) * summed[:, -1:]  # in float32 this may be all of the sum
    chosen = (summed < aims).sum(dim=-1, keepdim=True)
    drawn = tokens.gather(-1, chosen).squeeze(-1)
    is_greedy = column([float(one.temperature < GREEDY_BELOW) for one in how]).squeeze(-1) > 0
    return torch.where(is_greedy, likeliest, drawn)


@dataclass(frozen=True)
class TokenChoice:
    """How likely a token was, before temperature, and what was likeliest in its place."""

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]
    """(token, logprob), the likeliest first."""


def token_choices(logits: Tensor, tokens: Tensor, num_likeliest: int) -> list[TokenChoice]:
    """A choice for each of tokens (N,), drawn from logits (N, V)."""
    logprobs = logits.float().log_softmax(dim=-1)
    own = logprobs.gather(-1, tokens[:, None]).squeeze(-1).tolist()
    values, likeliest = logprobs.topk(min(num_likeliest, logits.size(-1)), dim=-1)
    rows = zip(tokens.tolist(), own, likeliest.tolist(), values.tolist(), strict=True)
    return [
        TokenChoice(token, logprob, tuple(zip(others, theirs, strict=True)))
        for token, logprob, others, theirs in rows
    ]
