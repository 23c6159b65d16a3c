"""Reference implementation of nanochat.inference.sampling: one row, plain Python."""

import math

from nanochat.inference.sampling import Sampling


def distribution(logits: list[float], how: Sampling) -> dict[int, float]:
    """Probability of each token that can be drawn, the most likely first."""
    order = sorted(range(len(logits)), key=lambda token: -logits[token])
    if how.temperature < 1e-4:
        return {order[0]: 1.0}
    if how.top_k is not None and 0 < how.top_k < len(order):
        order = order[: how.top_k]
    top = logits[order[0]]
    heights = [math.exp((logits[token] - top) / how.temperature) for token in order]
    shares = [height / sum(heights) for height in heights]
    kept: dict[int, float] = {}
    reached = 0.0
    for token, share in zip(order, shares, strict=True):
        if kept and (reached >= how.top_p or share < how.min_p * shares[0]):
            break
        kept[token] = share
        reached += share
    return {token: share / sum(kept.values()) for token, share in kept.items()}


def draw(logits: list[float], how: Sampling, uniform: float) -> int:
    """The token whose share of [0, 1) holds `uniform`, the most likely tokens first."""
    reached, drawn = 0.0, -1
    for token, share in distribution(logits, how).items():
        if reached < uniform or drawn < 0:
            drawn = token
        reached += share
    return drawn


def logprobs(
    logits: list[float], token: int, num_top_logprobs: int
) -> tuple[float, list[tuple[int, float]]]:
    """A token's log-probability before temperature, and those of the most likely tokens."""
    top = max(logits)
    log_sum = top + math.log(sum(math.exp(one - top) for one in logits))
    order = sorted(range(len(logits)), key=lambda one: -logits[one])[:num_top_logprobs]
    return logits[token] - log_sum, [(one, logits[one] - log_sum) for one in order]
