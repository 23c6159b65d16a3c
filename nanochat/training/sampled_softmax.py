"""Which tokens the softmax of a training step sums over, if not all of the vocabulary.

For a small model on a CPU the logits are most of the work, and most tokens are rare.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nanochat.tokenizer import SPECIAL_TOKENS

NUM_BYTES = 256  # the first ids; those of merges follow in the order of their frequency


@dataclass(frozen=True)
class SampledSoftmax:
    """Sampled softmax, Jean et al. 2015, arXiv 1412.2007, in the first steps of a run.

    Each token is drawn on its own with probability p = min(1, size / rank), and counts 1 / p times
    in the sum of exponentials, whose expected value is therefore that of the full softmax. All rows
    of a step, on all ranks, share what is drawn.
    """

    vocab_size: int
    size: int
    """So many tokens beside the bytes always count, and later ones more and more rarely."""
    num_steps: int
    """From the first; afterwards the softmax is the full one."""
    seed: int

    def __str__(self) -> str:
        mean = self.probabilities().sum()
        return (
            f"over about {mean:,.0f} of {self.vocab_size:,} tokens in the first {self.num_steps:,}"
            " steps; FLOPs and MFU count all"
        )

    def probabilities(self) -> np.ndarray:
        """(V,) float64. Special tokens, the last ids, are frequent."""
        ranks = np.arange(self.vocab_size) - (NUM_BYTES - 1)
        ranks[-len(SPECIAL_TOKENS) :] = 1
        return np.minimum(1.0, self.size / np.maximum(1, ranks))

    def factors(self, step: int) -> Tensor | None:
        """(V,) float32 of step 1, 2, ...: 1 / p of the drawn tokens, else 0. None: full softmax."""
        if step > self.num_steps:
            return None
        # From the step alone: a run that is resumed draws the same.
        generator = np.random.default_rng((self.seed % 2**64, step))
        probabilities = self.probabilities()
        is_drawn = generator.random(self.vocab_size) < probabilities
        return torch.from_numpy((is_drawn / probabilities).astype(np.float32))
