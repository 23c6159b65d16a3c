"""How long a run is, how large its steps are, and how its rates move: pure functions of numbers."""

import math
from dataclasses import dataclass

from nanochat.errors import UserError

REFERENCE_BATCH_TOKENS = 2**19  # at the token budget of depth 12; "Power Lines", arXiv 2505.13738
REFERENCE_BUDGET_TOKENS = 20 * 110_000_000  # 20 tokens for each parameter of depth 12
BATCH_EXPONENT = 0.383  # B ~ D^0.383, arXiv 2505.13738
REFERENCE_WIDTH = 768  # rates of AdamW and weight decay are given at this width


def horizon_tokens(
    *,
    num_parameters: int,
    flops_per_token: float,
    target_flops: float = -1.0,
    tokens_per_parameter: float = 20.0,
) -> int:
    """Tokens to train on: from a FLOP budget, else tokens per parameter.

    Negative means not given. Raises UserError when nothing positive remains, or more than 2^63.
    """
    if target_flops > 0:
        return _countable("target_flops", target_flops, max(1, target_flops / flops_per_token))
    if tokens_per_parameter <= 0:
        raise UserError(
            f"--tokens_per_parameter={tokens_per_parameter} gives no horizon; use a positive"
            " number (20 is usual), or --num_iterations or --target_flops"
        )
    tokens = tokens_per_parameter * num_parameters
    return _countable("tokens_per_parameter", tokens_per_parameter, tokens)


def _countable(name: str, value: float, tokens: float) -> int:
    if tokens >= 2**63:
        raise UserError(
            f"--{name}={value:g} gives {tokens:.3g} tokens; use less, below {2**63:.3g}"
        )
    return int(tokens)


def batch_tokens(budget_tokens: int, sequence_len: int) -> int:
    """Tokens of one optimizer step that suit a token budget, a whole number of rows.

    The law is B ~ D^0.383, and a fiftieth of the budget the most (a short run needs steps more than
    it needs large ones); the result is the power of two of rows that is nearest on a log scale.
    """
    ideal = REFERENCE_BATCH_TOKENS * (budget_tokens / REFERENCE_BUDGET_TOKENS) ** BATCH_EXPONENT
    ideal = min(ideal, budget_tokens / 50)
    rows = 2 ** round(math.log2(max(1.0, ideal / sequence_len)))
    return int(rows) * sequence_len


def global_rows(total_batch_tokens: int, sequence_len: int, world_size: int) -> int:
    """Rows of `sequence_len` tokens in one step; no rank is without one.

    Raises UserError naming a size that will do.
    """
    rows, rest = divmod(total_batch_tokens, sequence_len)
    if rest or rows < 1:
        nearest = max(world_size, round(total_batch_tokens / sequence_len)) * sequence_len
        raise UserError(
            f"--total_batch_size={total_batch_tokens} is not a positive multiple of {sequence_len}"
            f" (max_seq_len); try {nearest}"
        )
    if rows < world_size:
        raise UserError(
            f"--total_batch_size={total_batch_tokens} is {rows} rows (max_seq_len {sequence_len})"
            f" for {world_size} ranks; use at most {rows} ranks, or in a new run"
            f" --total_batch_size={world_size * sequence_len}"
        )
    return rows


@dataclass(frozen=True)
class Schedule:
    """Rates over a run of `num_steps` steps, each a multiplier of the rate at the plateau."""

    num_steps: int
    warmup_steps: int = 0
    warmdown_share: float = 0.5
    """Share of the run in which the rate falls linearly, at its end."""
    final: float = 0.0
    """Where the fall ends."""
    momentum_warmup_steps: int = 300

    @property
    def warmdown_steps(self) -> int:
        """Steps at the end in which the rate falls."""
        return round(self.warmdown_share * self.num_steps)

    def learning_rate(self, step: int) -> float:
        """Multiplier for step 0 <= step < num_steps: rises to 1, stays, falls towards `final`."""
        left = self.num_steps - step
        rising = (step + 1) / (self.warmup_steps + 1)
        falling = left / self.warmdown_steps if self.warmdown_steps > 0 else 1.0
        return self.final + (1.0 - self.final) * min(1.0, rising, falling)

    def momentum(self, step: int) -> float:
        """Muon's momentum: from 0.85 up to 0.95 while the first gradients settle."""
        # A short run would spend all its steps below 0.95: let the rise take a tenth of it at most.
        rise = max(1, min(self.momentum_warmup_steps, self.num_steps // 10))
        share = min(1.0, step / rise)
        return 0.85 + 0.10 * share

    def weight_decay(self, step: int) -> float:
        """Multiplier of the weight decay: falls linearly to zero."""
        return 1.0 - step / self.num_steps


def scaled_weight_decay(weight_decay: float, n_embd: int) -> float:
    """Weight decay given at width 768, scaled as 1 / width^2."""
    return weight_decay * (REFERENCE_WIDTH / n_embd) ** 2
