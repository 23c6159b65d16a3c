"""Activations that are cheaper to compute again in the backward pass than to keep."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

KEPT = ("mm", "attention", "attn", "flex")  # in names of operators: products and attention


def recomputing(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function, to be compiled, of whose steps only products and attention are kept.

    Norms, rotary embeddings, ReLU^2 and casts are computed again, fused into a few passes: half of
    the activations of a block for a few percent of its time.
    """

    def run(*arguments: Any) -> Tensor:
        contexts = partial(create_selective_checkpoint_contexts, _policy)
        y: Tensor = checkpoint(
            function, *arguments,
            use_reentrant=False, preserve_rng_state=False, context_fn=contexts,
        )  # fmt: skip
        return y

    return run


def _policy(_context: Any, operator: Any, *_arguments: Any, **_named: Any) -> CheckpointPolicy:
    is_kept = any(part in str(operator) for part in KEPT)
    return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE
