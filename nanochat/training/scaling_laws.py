"""Run length, batch size and rates derived from model size; pure functions of numbers."""

import math

from nanochat.errors import UserError

# The batch size of the reference run; others follow by "Power Lines", arXiv 2505.13738.
REFERENCE_BATCH_TOKENS = 2**19
REFERENCE_BUDGET_TOKENS = 20 * 110_000_000  # 20 per parameter of depth 12 at vocabulary 32,768
BATCH_EXPONENT = 0.383  # B ~ D^0.383, arXiv 2505.13738
MIN_STEPS = 50  # a short run needs steps more than large batches
REFERENCE_WIDTH = 768  # depth 12; learning rates of AdamW and weight decay refer to it


def horizon_tokens(
    *,
    num_parameters: int,
    flops_per_token: float,
    target_flops: float = -1.0,
    tokens_per_parameter: float = 20.0,
) -> int:
    """Tokens to train on: from the FLOP budget if it is positive, else from tokens per parameter.

    Raises UserError when that is not positive, or 2^63 or more.
    """
    if target_flops > 0:
        option, tokens = f"target_flops={target_flops:g}", max(1, target_flops / flops_per_token)
    elif tokens_per_parameter > 0:
        option = f"tokens_per_parameter={tokens_per_parameter:g}"
        tokens = tokens_per_parameter * num_parameters
    else:
        raise UserError(
            f"--tokens_per_parameter={tokens_per_parameter} gives no horizon; use a positive"
            " number (20 is usual), or --num_iterations or --target_flops"
        )
    if tokens >= 2**63:  # beyond int64, which counts tokens in tensors and files
        raise UserError(f"--{option} gives {tokens:.3g} tokens; use less, below {2**63:.3g}")
    return int(tokens)


def batch_tokens(budget_tokens: int, sequence_len: int) -> int:
    """Tokens per optimizer step for a token budget, a power of two of full rows.

    B ~ D^0.383, at most a fiftieth of the budget, rounded on a log scale.
    """
    ideal = REFERENCE_BATCH_TOKENS * (budget_tokens / REFERENCE_BUDGET_TOKENS) ** BATCH_EXPONENT
    ideal = min(ideal, budget_tokens / MIN_STEPS)
    rows = 2 ** round(math.log2(max(1.0, ideal / sequence_len)))
    return int(rows) * sequence_len


def global_rows(total_batch_tokens: int, sequence_len: int, world_size: int) -> int:
    """Rows per step, at least one per rank. Raises UserError with a batch size that works."""
    rows, remainder = divmod(total_batch_tokens, sequence_len)
    if remainder or rows < 1:
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


def scaled_weight_decay(weight_decay: float, n_embd: int) -> float:
    """Weight decay given at width 768, scaled as 1 / width^2."""
    return weight_decay * (REFERENCE_WIDTH / n_embd) ** 2
