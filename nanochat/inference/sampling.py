"""Sampling tokens from logits, and log-probabilities of tokens.

B batch  N tokens  V vocab
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat.inference.kv_cache import on_device

# Most draws are decided among the top 256; a full sort takes twice as long as a decode step of 32.
FIRST_CANDIDATES = 256
MIN_TEMPERATURE = 1e-4  # below it, greedy: dividing logits by less overflows


@dataclass(frozen=True)
class Sampling:
    """How to sample a sequence's tokens; temperature 0 is greedy."""

    temperature: float = 0.0
    top_k: int | None = None  # keep the k most likely tokens; None, or 0 and below: all
    top_p: float = 1.0  # keep the most likely tokens whose probabilities add up to this
    min_p: float = 0.0  # keep tokens with at least this fraction of the highest probability

    def num_candidates(self, num_tokens: int) -> int:
        """Number of `num_tokens` tokens that top_k keeps."""
        return min(self.top_k, num_tokens) if self.top_k and self.top_k > 0 else num_tokens


GREEDY = Sampling()


def sample_next_token(
    logits: Tensor, sampling: Sequence[Sampling], uniforms: Sequence[float], waits: bool = True
) -> Tensor:
    """(B,) int64 tokens from logits (B, V), with settings per row.

    uniforms: one number in [0, 1) per row. A row's draw depends on nothing else, so it is the same
    in any batch.  waits: whether it may wait for the device, to sort the vocabulary only where the
    first candidates do not decide; otherwise it is sorted for all rows without top_k.
    """
    next_tokens = logits.argmax(dim=-1)
    open_rows = [row for row, one in enumerate(sampling) if one.temperature >= MIN_TEMPERATURE]
    for num_candidates in (FIRST_CANDIDATES, logits.size(-1))[0 if waits else 1 :]:
        if not open_rows:
            break
        is_all = len(open_rows) == len(sampling)
        rows = slice(None) if is_all else on_device(open_rows, logits.device)
        drawn, is_decided = _draw(
            logits[rows],
            [sampling[row] for row in open_rows],
            [uniforms[row] for row in open_rows],
            num_candidates,
        )
        next_tokens[rows] = torch.where(is_decided, drawn, next_tokens[rows])
        if waits:
            open_rows = [
                row for row, done in zip(open_rows, is_decided.tolist(), strict=True) if not done
            ]
    return next_tokens


def _draw(
    logits: Tensor, sampling: Sequence[Sampling], uniforms: Sequence[float], num_candidates: int
) -> tuple[Tensor, Tensor]:
    """(B,) tokens drawn from the most likely candidates, and whether each draw is decided.

    It is not when a token beyond the candidates could be drawn, or when top_p or min_p keep some of
    those. With all tokens as candidates every draw is decided.
    """
    num_tokens = logits.size(-1)
    limits = [one.num_candidates(num_tokens) for one in sampling]
    count = max(num_candidates if n == num_tokens else n for n in limits)
    count = min(count, num_tokens)
    numbers = [
        (one.temperature, limit, one.top_p, one.min_p, uniform)
        for one, limit, uniform in zip(sampling, limits, uniforms, strict=True)
    ]
    columns = on_device(numbers, logits.device, torch.float32)
    temperature, limit, top_p, min_p, uniform = columns[:, :, None].unbind(1)
    scaled = logits.float() / temperature
    values, tokens = scaled.topk(count, dim=-1)  # sorted, the most likely first
    ranks = torch.arange(count, device=logits.device)
    values = values.masked_fill(ranks >= limit, -torch.inf)
    log_sums = values.logsumexp(dim=-1, keepdim=True)
    if max(limits) > count:  # rows without top_k normalize over the whole vocabulary
        log_sums = torch.where(limit > count, scaled.logsumexp(dim=-1, keepdim=True), log_sums)
    probs = (values - log_sums).exp()
    before = probs.cumsum(dim=-1) - probs  # total probability of the more likely tokens
    is_removed = ((before >= top_p) & (ranks > 0)) | (probs < min_p * probs[:, :1])
    cumulative = probs.masked_fill(is_removed, 0.0).cumsum(dim=-1)
    # All kept tokens are among the candidates if top_k or a filter ends within them.
    is_complete = (limit <= count) | is_removed[:, -1:]
    total = torch.where(is_complete, cumulative[:, -1:], 1.0)
    thresholds = uniform * total  # may round to the total in float32: hence the clamp
    chosen = (cumulative < thresholds).sum(dim=-1, keepdim=True)
    is_decided = is_complete | ((top_p >= 1) & (min_p <= 0) & (chosen < count))
    drawn = tokens.gather(-1, chosen.clamp(max=count - 1))
    return drawn.squeeze(-1), is_decided.squeeze(-1)


@dataclass(frozen=True)
class TokenLogprob:
    """A token's log-probability before temperature, and the most likely alternatives."""

    token: int
    logprob: float | None  # None: the first token of a text, which nothing predicts
    top_logprobs: tuple[tuple[int, float], ...] = ()  # (token, logprob), the most likely first


def token_logprobs(logits: Tensor, tokens: Tensor, num_top_logprobs: int) -> list[TokenLogprob]:
    """One for each of tokens (N,), given the logits (N, V) that predict it."""
    logprobs = logits.float().log_softmax(dim=-1)
    taken = logprobs.gather(-1, tokens[:, None]).squeeze(-1).tolist()
    values, top_tokens = logprobs.topk(min(num_top_logprobs, logits.size(-1)), dim=-1)
    rows = zip(tokens.tolist(), taken, top_tokens.tolist(), values.tolist(), strict=True)
    return [
        TokenLogprob(token, logprob, tuple(zip(others, other_logprobs, strict=True)))
        for token, logprob, others, other_logprobs in rows
    ]
