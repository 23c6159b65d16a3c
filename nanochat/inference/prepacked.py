"""A model's twin for inference: its matrices as the processor reads them fastest.

Training keeps matrices in float32 and casts them at every use. For one token at a time that is
most of the work, so the twin casts them once, and on an x86 processor lays them out in the blocks
of oneDNN: a product with 1 to 64 rows is then two to four times as fast as the plain one
(dev/LOG.md, 2026-11-24). Queries, keys and values come from one product.

B batch  T time  C channels  H heads  K kv heads  D head dim
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from nanochat.gpt import Attention, Linear, norm, rotate
from nanochat.kernels import cpu_matmul

ModelType = TypeVar("ModelType", bound=nn.Module)


def packed(model: ModelType, dtype: torch.dtype) -> ModelType:
    """A twin whose matrices are cast to `dtype` and laid out anew; it gives logits, no losses.

    It shares all else with the model, and does not follow when the model's weights move. A twin is
    its own twin.
    """
    if any(isinstance(module, _Packed) for module in model.modules()):
        return model
    shared = [*model.parameters(), *model.buffers()]
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    for module in [*twin.modules()]:
        for name, child in [*module.named_children()]:
            if isinstance(child, Attention):
                setattr(module, name, _PackedAttention(child, dtype))
            elif isinstance(child, Linear):
                setattr(module, name, _Packed(child.weight, dtype))
    return twin.eval()


class _Packed(nn.Module):
    """Stands for a `Linear`."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = weight.detach().to(dtype)
        self.is_blocked = cpu_matmul.has_kernels_for(self.weight)
        if self.is_blocked:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_blocked:
            return nn.functional.linear(x, self.weight)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")
        return y


class _PackedAttention(Attention):
    """Stands for an `Attention`."""

    output: nn.Module  # type: ignore[assignment]

    def __init__(self, attention: Attention, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.config, self.layer = attention.config, attention.layer
        self.window = attention.window
        matrices = attention.query.weight, attention.key.weight, attention.value.weight
        self.projection = _Packed(torch.cat(matrices), dtype)
        self.output = _Packed(attention.output.weight, dtype)

    def project(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        (B, T, _), config = x.shape, self.config
        heads = self.projection(x).view(B, T, -1, config.head_dim).transpose(1, 2)
        sizes = config.n_head, config.n_kv_head
        turned, v = heads.split([sum(sizes), config.n_kv_head], dim=1)
        q, k = norm(rotate(turned, *turn), config.rms_eps).split(sizes, dim=1)
        return q, k, v
