"""A model with value embeddings for transformers, whose own nanochat models have none.

export.py copies this file into the folder of such a model, where AutoModelForCausalLM runs it with
trust_remote_code=True. It imports nothing of this package.
"""

from typing import Any

from torch import Tensor, nn
from transformers import NanoChatConfig, NanoChatForCausalLM

GATE_CHANNELS = 12


class NanoChatValuesConfig(NanoChatConfig):
    # Not "nanochat", whose model of transformers would drop the tables with a mere warning.
    model_type = "nanochat_values"
    value_embeddings: int = 1


class ValueProjection(nn.Linear):
    """The values of a layer: a product with its input, plus a scaled row of a table per token."""

    token_ids: Tensor | None

    def __init__(self, width: int, num_heads: int, head_dim: int, vocab_size: int) -> None:
        super().__init__(width, num_heads * head_dim, bias=False)
        self.gate = nn.Linear(GATE_CHANNELS, num_heads, bias=False)
        self.table = nn.Embedding(vocab_size, num_heads * head_dim)

    def forward(self, x: Tensor) -> Tensor:
        scales = 3 * self.gate(x[..., :GATE_CHANNELS]).sigmoid()
        heads = self.table(self.token_ids).unflatten(-1, (scales.size(-1), -1))
        return super().forward(x) + (heads * scales.unsqueeze(-1)).flatten(-2)


class NanoChatValuesForCausalLM(NanoChatForCausalLM):
    config_class = NanoChatValuesConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        shape = config.num_key_value_heads, config.head_dim, config.vocab_size
        # Counted from the last layer.
        for layer in self.model.layers[::-1][:: config.value_embeddings]:
            layer.self_attn.v_proj = ValueProjection(config.hidden_size, *shape)
        self.post_init()

    def forward(self, input_ids: Tensor | None = None, **options: Any) -> Any:
        for module in self.modules():
            if isinstance(module, ValueProjection):
                module.token_ids = input_ids
        return super().forward(input_ids=input_ids, **options)
