"""Which optimizer moves which parameter, and how fast."""

from nanochat.adamw import DistAdamW
from nanochat.gpt import GPT, GPTConfig
from nanochat.muon import DistMuon, Muon
from nanochat.runtime import world_size
from nanochat.training.schedule import REFERENCE_WIDTH


def scaled_rates(
    config: GPTConfig,
    *,
    matrix_lr: float,
    embedding_lr: float,
    unembedding_lr: float,
    weight_decay: float,
) -> dict[str, float]:
    """What the options come to at this width; AdamW's rates go with (width / 768) ** -0.5."""
    scale = (config.n_embd / REFERENCE_WIDTH) ** -0.5
    return {
        "matrices": matrix_lr,
        "embedding": embedding_lr * scale,
        "unembedding": unembedding_lr * scale,
        "weight decay": weight_decay,
    }


def build_optimizers(
    model: GPT,
    *,
    matrix_lr: float = 0.02,
    embedding_lr: float = 0.2,
    unembedding_lr: float = 0.004,
    weight_decay: float = 0.0,
) -> list[DistAdamW | Muon]:
    """AdamW for embedding and unembedding, Muon for the matrices of the blocks.

    AdamW's rates are scaled by (width / 768) ** -0.5; `weight_decay` is that of the matrices.
    Parameters go by their names in the model, so that saved moments find them again.
    """
    rates = scaled_rates(
        model.config,
        matrix_lr=matrix_lr,
        embedding_lr=embedding_lr,
        unembedding_lr=unembedding_lr,
        weight_decay=weight_decay,
    )
    parameters = dict(model.named_parameters())
    groups = [
        {"params": [(f"{one}.weight", parameters.pop(f"{one}.weight"))], "lr": rates[one]}
        for one in ("embedding", "unembedding")
    ]
    kind = DistMuon if world_size() > 1 else Muon
    muon = kind(
        parameters.items(), lr=matrix_lr, weight_decay=weight_decay, dtype=model.compute_dtype
    )
    return [DistAdamW(groups), muon]
