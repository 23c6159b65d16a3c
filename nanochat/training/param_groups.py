"""Which optimizer updates which parameters, and at what learning rates."""

from nanochat.adamw import DistAdamW
from nanochat.gpt import GPT, GPTConfig
from nanochat.muon import Muon
from nanochat.training.scaling_laws import RATES, REFERENCE_WIDTH


def scaled_rates(
    config: GPTConfig,
    *,
    matrix_lr: float = RATES["matrix_lr"],
    embedding_lr: float = RATES["embedding_lr"],
    unembedding_lr: float = RATES["unembedding_lr"],
    weight_decay: float = 0.0,
) -> dict[str, float]:
    """The options as learning rates at this width: AdamW's scale with (width / 768) ** -0.5."""
    # Adam's step does not shrink with the gradient, so wider layers need lower rates. Muon's
    # update is already normalized by the matrix shape.
    scale = (config.n_embd / REFERENCE_WIDTH) ** -0.5
    return {
        "matrices": matrix_lr,
        "embedding": embedding_lr * scale,
        "unembedding": unembedding_lr * scale,
        "weight decay": weight_decay,
    }


def build_optimizers(model: GPT, **rates: float) -> list[DistAdamW | Muon]:
    """AdamW for embeddings and the unembedding, Muon for the matrices of the blocks.

    rates: those of `scaled_rates`; weight decay applies to the matrices only. Parameters are named
    as in the model, so that saved moments find them again.
    """
    scaled = scaled_rates(model.config, **rates)
    parameters = dict(model.named_parameters())
    groups = [
        {"params": [(f"{name}.weight", parameters.pop(f"{name}.weight"))], "lr": scaled[name]}
        for name in ("embedding", "unembedding")
    ]
    values = [name for name in parameters if name.startswith("value_embeddings.")]
    if values:
        named = [(name, parameters.pop(name)) for name in values]
        groups.append({"params": named, "lr": scaled["embedding"]})
    muon = Muon(
        parameters.items(),
        lr=scaled["matrices"],
        weight_decay=scaled["weight decay"],
        dtype=model.compute_dtype,
    )
    return [DistAdamW(groups), muon]
