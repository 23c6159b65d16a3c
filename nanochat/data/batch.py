"""What a stage gives the training loop: one rank's rows of one optimizer step.

B batch (rows of this rank in this step)  T time
"""

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One rank's share of one optimizer step; the loss is sum(weights * nll) / norm.

    With norm = (targets of the global step) / ranks, gradients averaged over ranks are those of
    the global step, for any number of ranks and any micro-batch size.
    """

    inputs: Tensor  # (B, T) int64 token ids
    targets: Tensor  # (B, T) int64 next tokens; -1: no target
    weights: Tensor | None  # (B, T) float32 weight of each target; None: 1 everywhere
    norm: float  # this rank's share of the normalizer of the global step
    progress: float  # share of the stage that is done after this step, from 0 to 1
    resume: dict[str, Any]  # JSON-able loader state after this step; equal on all ranks
    metrics: dict[str, float] = field(default_factory=dict)  # logged with the step, e.g. reward
    has_signal: bool = True  # False, on all ranks: the gradient is zero, so nothing is updated

    def rows(self, which: slice) -> "Batch":
        """Some of the rows; the norm is still that of all."""
        weights = None if self.weights is None else self.weights[which]
        return replace(
            self, inputs=self.inputs[which], targets=self.targets[which], weights=weights
        )
