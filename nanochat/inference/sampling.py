"""From logits to tokens, and how likely they were.

B batch  N tokens  V vocab
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FIRST_CANDIDATES = 256  # looked at before all are sorted, which takes twice a step of 32 rows
GREEDY_BELOW = 1e-4  # temperatures under this are greedy: dividing by them overflows


@dataclass(frozen=True)
class Sampling:
    """How a row's tokens are drawn; temperature 0 takes the most likely."""

    temperature: float = 0.0
    top_k: int | None = None
    """Only the k most likely; None, 0 and below, or more than the vocabulary: all."""
    top_p: float = 1.0
    """Only the most likely that together reach this probability."""
    min_p: float = 0.0
    """Only what has at least this share of the most likely one's probability."""

    def num_candidates(self, num_tokens: int) -> int:
        """How many of `num_tokens` tokens top_k leaves."""
        return min(self.top_k, num_tokens) if self.top_k and self.top_k > 0 else num_tokens


GREEDY = Sampling()


def sample_next_token(logits: Tensor, how: Sequence[Sampling], uniforms: Sequence[float]) -> Tensor:
    """(B,) int64 tokens from logits (B, V), each row in its own way.

    uniforms: a number in [0, 1) for each row, which alone decides its draw.
    """
    next_tokens = logits.argmax(dim=-1)
    hot = [row for row, one in enumerate(how) if one.temperature >= GREEDY_BELOW]
    for num_candidates in (FIRST_CANDIDATES, logits.size(-1)):
        if not hot:
            break
        rows = torch.tensor(hot, device=logits.device)
        drawn, is_sure = _draw(
            logits[rows], [how[row] for row in hot], [uniforms[row] for row in hot], num_candidates
        )
        next_tokens[rows] = torch.where(is_sure, drawn, next_tokens[rows])
        hot = [row for row, sure in zip(hot, is_sure.tolist(), strict=True) if not sure]
    return next_tokens


def _draw(
    logits: Tensor, how: Sequence[Sampling], uniforms: Sequence[float], num_candidates: int
) -> tuple[Tensor, Tensor]:
    """(B,) tokens drawn from the most likely ones of each row, and whether they are sure.

    One is not when it could be among those that were not looked at, or when top_p or min_p take in
    some of these. With as many candidates as there are tokens, all are sure.
    """

    def column(numbers: Sequence[float]) -> Tensor:
        return torch.tensor(numbers, device=logits.device)[:, None]

    num_tokens = logits.size(-1)
    limits = [one.num_candidates(num_tokens) for one in how]
    count = max(num_candidates if n == num_tokens else n for n in limits)
    count = min(count, num_tokens)
    heated = logits.float() / column([one.temperature for one in how])
    values, tokens = heated.topk(count, dim=-1)
    ranks, limit = torch.arange(count, device=logits.device), column(limits)
    values = values.masked_fill(ranks >= limit, -torch.inf)
    log_sums = values.logsumexp(dim=-1, keepdim=True)
    if max(limits) > count:
        log_sums = torch.where(limit > count, heated.logsumexp(dim=-1, keepdim=True), log_sums)
    shares = (values - log_sums).exp()
    before = shares.cumsum(dim=-1) - shares  # what the likelier ones have together
    top_p, min_p = column([one.top_p for one in how]), column([one.min_p for one in how])
    out = ((before >= top_p) & (ranks > 0)) | (shares < min_p * shares[:, :1])
    summed = shares.masked_fill(out, 0.0).cumsum(dim=-1)
    ends_here = (limit <= count) | out[:, -1:]
    whole = torch.where(ends_here, summed[:, -1:], 1.0)
    aims = column(uniforms) * whole  # in float32 this may be all of the sum
    chosen = (summed < aims).sum(dim=-1, keepdim=True)
    is_sure = ends_here | ((top_p >= 1) & (min_p <= 0) & (chosen < count))
    drawn = tokens.gather(-1, chosen.clamp(max=count - 1))
    return drawn.squeeze(-1), is_sure.squeeze(-1)


@dataclass(frozen=True)
class TokenChoice:
    """How likely a token was, before temperature, and what was most likely in its place."""

    token: int
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...]
    """(token, logprob), the most likely first."""


def token_choices(logits: Tensor, tokens: Tensor, num_top_logprobs: int) -> list[TokenChoice]:
    """A choice for each of tokens (N,), drawn from logits (N, V)."""
    logprobs = logits.float().log_softmax(dim=-1)
    own = logprobs.gather(-1, tokens[:, None]).squeeze(-1).tolist()
    values, top_logprobs = logprobs.topk(min(num_top_logprobs, logits.size(-1)), dim=-1)
    rows = zip(tokens.tolist(), own, top_logprobs.tolist(), values.tolist(), strict=True)
    return [
        TokenChoice(token, logprob, tuple(zip(others, theirs, strict=True)))
        for token, logprob, others, theirs in rows
    ]
