"""What a stage hands the training loop: one rank's rows of one optimizer step.

B batch (rows of this rank in this step)  T time
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One rank's share of one optimizer step; the loss is sum(weights * nll) / norm.

    With norm = (targets of the whole step) / ranks, gradients averaged over ranks are those of
    the whole step, however many ranks there are and however the rows are cut into micro-batches.
    """

    inputs: Tensor
    """(B, T) int64 token ids."""
    targets: Tensor
    """(B, T) int64 next tokens; -1 where nothing is to be predicted."""
    weights: Tensor | None
    """(B, T) float32 weight of each target; None means 1 everywhere."""
    norm: float
    """This rank's share of the whole step's normaliser."""
    progress: float
    """How much of the stage is done after this step, from 0 to 1."""
    resume: dict[str, Any]
    """JSON-able state of the loader after this step; the ranks' states are merged when saved."""
