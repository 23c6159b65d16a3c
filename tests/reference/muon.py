"""Reference implementation of Muon: one matrix at a time, in float64, by singular values."""

import torch
from torch import Tensor

from nanochat.muon import POLYNOMIALS, SAFETY


def polar_factor(matrix: Tensor) -> Tensor:
    """(R, C) with the polynomials applied to each singular value."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    norm = float(values.square().sum()) ** 0.5
    mapped = []
    for value in values.tolist():
        x = value / (norm * SAFETY + 1e-7)
        for a, b, c in POLYNOMIALS:
            x = a * x + b * x**3 + c * x**5
        mapped.append(x)
    return left @ torch.diag(torch.tensor(mapped, dtype=torch.float64)) @ right


class SlowMuon:
    """The optimizer of one matrix."""

    def __init__(
        self, parameter: Tensor, *, lr: float, momentum: float, variance_decay: float | None,
        weight_decay: float, cautious: bool,
    ) -> None:  # fmt: skip
        self.parameter = parameter.detach().double().clone()
        self.momentum = torch.zeros_like(self.parameter)
        self.variance = [0.0] * parameter.size(0)
        self.lr, self.beta, self.variance_decay = lr, momentum, variance_decay
        self.weight_decay, self.cautious = weight_decay, cautious

    def step(self, gradient: Tensor) -> None:
        gradient = gradient.double()
        self.momentum = self.beta * self.momentum + (1 - self.beta) * gradient
        nesterov = self.beta * self.momentum + (1 - self.beta) * gradient
        update = polar_factor(nesterov)
        if self.variance_decay is not None:
            update = self._normalize_rows(update, self.variance_decay)
        num_rows, num_columns = update.shape
        if num_rows > num_columns:
            update = update * (num_rows / num_columns) ** 0.5
        for i in range(num_rows):
            for j in range(num_columns):
                weight = float(self.parameter[i, j])
                decays = not self.cautious or float(update[i, j]) * weight > 0
                decay = self.weight_decay * weight if decays else 0.0
                self.parameter[i, j] = weight - self.lr * (float(update[i, j]) + decay)

    def _normalize_rows(self, update: Tensor, decay: float) -> Tensor:
        size = float(update.square().sum()) ** 0.5
        rows = []
        for i, row in enumerate(update):
            mean_square = float(row.square().mean())
            self.variance[i] = decay * self.variance[i] + (1 - decay) * mean_square
            rows.append(row / max(self.variance[i], 1e-10) ** 0.5)
        normalized = torch.stack(rows)
        return normalized * size / float(normalized.square().sum()) ** 0.5
