"""What transformers' own nanochat models lack: value embeddings, key offset, partial rotary.

export.py copies this file into the folder of such a model, where AutoModelForCausalLM runs it with
trust_remote_code=True. It imports nothing of this package.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, NanoChatConfig, NanoChatForCausalLM
from transformers.models.nanochat.modeling_nanochat import (
    NanoChatAttention,
    NanoChatRotaryEmbedding,
)  # fmt: skip

GATE_CHANNELS = 12


class NanoChatValuesConfig(NanoChatConfig):
    # Not "nanochat", whose model of transformers would drop the tables with a mere warning.
    model_type = "nanochat_values"
    value_embeddings: int = 0
    key_offset_heads: int = 0
    rotary_share: float = 1.0


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


class OffsetCache:
    """A cache of keys that attention sees, of the first heads, one token later."""

    def __init__(self, cache: Any, heads: int, is_first: Tensor | None) -> None:
        self.cache, self.heads, self.is_first = cache, heads, is_first

    def update(self, k: Tensor, v: Tensor, *more: Any, **named: Any) -> tuple[Tensor, Tensor]:
        k, v = self.cache.update(k, v, *more, **named)
        before = F.pad(k[:, : self.heads, :-1], (0, 0, 1, 0))
        if self.is_first is not None:  # after padding
            before = before.masked_fill(self.is_first[:, None, :, None], 0.0)
        return torch.cat([before, k[:, self.heads :]], dim=1), v


class OffsetAttention(NanoChatAttention):
    is_first: Tensor | None  # (B, S) of the cached and the new tokens

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, past_key_values: Any = None, **options: Any
    ) -> Any:
        cache = DynamicCache() if past_key_values is None else past_key_values
        offset: Any = OffsetCache(cache, self.config.key_offset_heads, self.is_first)
        return super().forward(hidden_states, past_key_values=offset, **options)


# transformers fills the buffers of modules whose names have "RotaryEmbedding" in them.
class PartialRotaryEmbedding(NanoChatRotaryEmbedding):
    @staticmethod
    def compute_default_rope_parameters(config: Any, *_: Any, **__: Any) -> tuple[Tensor, float]:
        half = config.head_dim // 2
        num_rotated = round(half * config.rotary_share)
        steps = torch.arange(0, 2 * half, 2, dtype=torch.float)
        exponents = steps / max(2 * num_rotated, 2)
        frequencies = 1.0 / config.rope_parameters["rope_theta"] ** exponents
        frequencies[num_rotated:] = 0.0
        return frequencies, 1.0


class NanoChatValuesForCausalLM(NanoChatForCausalLM):
    config_class = NanoChatValuesConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        shape = config.num_key_value_heads, config.head_dim, config.vocab_size
        # Counted from the last layer.
        for number, layer in enumerate(self.model.layers[::-1]):
            if config.value_embeddings and number % config.value_embeddings == 0:
                layer.self_attn.v_proj = ValueProjection(config.hidden_size, *shape)
            if config.key_offset_heads:
                layer.self_attn.__class__ = OffsetAttention
        self.model.rotary_emb = PartialRotaryEmbedding(config)
        self.post_init()

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **options: Any
    ) -> Any:
        is_first = None
        if attention_mask is not None and attention_mask.dim() == 2:
            is_first = F.pad(attention_mask, (1, 0)).diff(dim=1) > 0
        for module in self.modules():
            if isinstance(module, ValueProjection):
                module.token_ids = input_ids
            elif isinstance(module, OffsetAttention):
                module.is_first = is_first
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **options)
