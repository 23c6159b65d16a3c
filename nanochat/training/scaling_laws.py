"""Recipes, and run length, batch size and rates derived from them; pure functions of numbers."""

import math
from typing import Literal

from nanochat.errors import UserError

Recipe = Literal["classic", "modern"]
# Options by recipe: peak learning rates, at the recipe's batch size and width 768, and what else
# pretraining defaults to. classic: nanochat of late 2025. modern: what won since, dev/LOG.md.
RATES = {"matrix_lr": 0.02, "embedding_lr": 0.3, "unembedding_lr": 0.004}
RECIPES: dict[Recipe, dict[str, float]] = {
    "classic": {**RATES, "value_embeddings": 0, "sampled_softmax_share": 0.0},
    "modern": {**RATES, "value_embeddings": 2, "sampled_softmax_share": 0.85},
}
# The recipe's batch size, and the budget from which on it is used: 20 tokens per parameter of
# depth 6 at vocabulary 65,536. Smaller batches follow by "Power Lines", arXiv 2505.13738.
RECIPE_BATCH_TOKENS = 2**19
RECIPE_BUDGET_TOKENS = 20 * 55_000_000
MIN_RATE_SCALE = 0.5  # lower rates waste short runs of small batches: dev/LOG.md, 2026-11-28
BATCH_EXPONENT = 0.383  # B ~ D^0.383, arXiv 2505.13738
MIN_STEPS = 50  # a short run needs steps more than large batches
REFERENCE_WIDTH = 768  # depth 12; learning rates of AdamW and weight decay refer to it


def counted_parameters(counts: dict[str, int]) -> int:
    """The parameters that horizons are relative to, from the numbers by group.

    Without value embeddings: a horizon of the recipes is that of the model without them.
    """
    return counts["total"] - counts.get("value embeddings", 0)


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

    B ~ D^0.383, at most the recipe's and a fiftieth of the budget, rounded on a log scale.
    """
    share = min(1.0, (budget_tokens / RECIPE_BUDGET_TOKENS) ** BATCH_EXPONENT)
    ideal = min(RECIPE_BATCH_TOKENS * share, budget_tokens / MIN_STEPS)
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


def rates(recipe: Recipe, given: dict[str, float], batch_share: float) -> dict[str, float]:
    """Peak learning rates: as given or, for -1, the recipe's for a batch of that share of its own.

    They scale with the square root of the batch size (arXiv 2205.10287), but not below a half.
    """
    scale = max(MIN_RATE_SCALE, math.sqrt(batch_share))
    usual = RECIPES[recipe]
    return {name: scale * usual[name] if rate == -1 else rate for name, rate in given.items()}


def scaled_weight_decay(weight_decay: float, n_embd: int) -> float:
    """Weight decay given at width 768, scaled as 1 / width^2."""
    return weight_decay * (REFERENCE_WIDTH / n_embd) ** 2
