"""Reference implementation of nanochat.engine: no cache, no batch, one forward per token."""

import random
from collections.abc import Sequence

import torch

from nanochat.gpt import GPT
from nanochat.inference.sampling import Sampling
from tests.reference import sampling


def answer(
    model: GPT, prompt: Sequence[int], how: Sampling, seed: int, max_tokens: int,
    end_tokens: frozenset[int],
) -> list[int]:  # fmt: skip
    """The sampled tokens, the end token included; no tools."""
    tokens, rng = list(prompt), random.Random(seed)
    while len(tokens) < len(prompt) + max_tokens:
        with torch.no_grad():
            logits = model(torch.tensor([tokens]))[0, -1]
        tokens.append(sampling.draw(logits.tolist(), how, rng.random()))
        if tokens[-1] in end_tokens:
            break
    return tokens[len(prompt) :]
