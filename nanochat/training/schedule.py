"""Learning rate, momentum, weight decay and clipping of each step; pure functions of numbers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Schedules over `num_steps` steps: a linear warmup, a plateau, a linear warmdown."""

    num_steps: int
    warmup_steps: int = 0
    warmdown_share: float = 0.5
    """Share of the steps, at the end, in which the learning rate falls."""
    final: float = 0.0
    """Multiplier that the warmdown approaches."""
    momentum_warmup_steps: int = 300
    max_gradient_norm: float = 0.0
    """A larger gradient is scaled down to this norm; 0: never."""

    @property
    def warmdown_steps(self) -> int:
        """Steps at the end in which the learning rate falls."""
        return round(self.warmdown_share * self.num_steps)

    def learning_rate(self, step: int) -> float:
        """Multiplier for step 0 <= step < num_steps: rises to 1, stays, falls towards `final`."""
        # Neither the first nor the last step is at zero: it would change nothing.
        rising = (step + 1) / (self.warmup_steps + 1)
        left = self.num_steps - step
        falling = min(1.0, left / self.warmdown_steps) if self.warmdown_steps > 0 else 1.0
        return min(rising, self.final + (1.0 - self.final) * falling)

    def momentum(self, step: int) -> float:
        """Muon's momentum: lower at first, while early gradients change quickly."""
        # At most a tenth of the run: a short one would never reach the full momentum.
        num_steps = max(1, min(self.momentum_warmup_steps, self.num_steps // 10))
        share = min(1.0, step / num_steps)
        return 0.85 + 0.10 * share  # to 0.95, as in modded-nanogpt

    def gradient_scale(self, norm: float) -> float:
        """Multiplier of a gradient of that norm over all parameters and ranks."""
        return min(1.0, self.max_gradient_norm / norm) if self.max_gradient_norm and norm else 1.0

    def weight_decay(self, step: int) -> float:
        """Multiplier of the weight decay: falls linearly to zero."""
        return 1.0 - step / self.num_steps
