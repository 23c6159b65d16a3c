"""Which optimizer moves which parameter, and how fast."""

from nanochat import runtime
from nanochat.adamw import DistAdamW
from nanochat.gpt import GPT
from nanochat.muon import DistMuon, Muon

REFERENCE_WIDTH = 768  # rates of AdamW are given at this width


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
    scale = (model.config.n_embd / REFERENCE_WIDTH) ** -0.5
    adamw_rates = {
        "embedding.weight": embedding_lr * scale,
        "unembedding.weight": unembedding_lr * scale,
    }
    parameters = dict(model.named_parameters())
    groups = [
        {"params": [(name, parameters.pop(name))], "lr": lr} for name, lr in adamw_rates.items()
    ]
    kind = DistMuon if runtime.world_size() > 1 else Muon
    muon = kind(
        parameters.items(), lr=matrix_lr, weight_decay=weight_decay, dtype=model.compute_dtype
    )
    return [DistAdamW(groups), muon]
