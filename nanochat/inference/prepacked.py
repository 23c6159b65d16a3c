"""A copy of a model for inference with its matrices in the layout that is read fastest.

Training keeps float32 matrices and casts them at every use, which is most of the work when only one
token is computed. The copy casts them once, on an x86 CPU in oneDNN's blocked layout
(`cpu_matmul.PrepackedLinear`), and computes queries, keys and values in one product.

B batch  T time  H heads  K kv heads  D head dim
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from nanochat.gpt import Attention, CosSin, Linear, norm, rotate
from nanochat.kernels.cpu_matmul import PrepackedLinear

ModelType = TypeVar("ModelType", bound=nn.Module)


def prepack(model: ModelType, dtype: torch.dtype) -> ModelType:
    """A copy with matrices cast to `dtype` and prepacked; it gives logits, but no losses.

    Everything else is shared with the model. When the model's weights change, `refresh` follows. A
    prepacked model is returned as it is.
    """
    if any(isinstance(module, PrepackedLinear) for module in model.modules()):
        return model
    shared = [*model.parameters(), *model.buffers()]
    prepacked = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})  # copies no tensor
    for module in [*prepacked.modules()]:
        for name, child in [*module.named_children()]:
            if isinstance(child, Attention):  # reached before the Linears inside it
                setattr(module, name, _PrepackedAttention(child, dtype))
            elif isinstance(child, Linear):
                setattr(module, name, _Packed(dtype, child.weight))
    return prepacked.eval()


@torch.inference_mode(False)  # or a later update could only be made in inference, too
@torch.no_grad()
def refresh(prepacked: nn.Module) -> None:
    """Follow the weights of the model that was prepacked; on a GPU at the same addresses."""
    for module in prepacked.modules():
        if isinstance(module, _Packed):
            module.refresh()


class _Packed(PrepackedLinear):
    """One product with several matrices of the model, which it can read again."""

    def __init__(self, dtype: torch.dtype, *matrices: Tensor) -> None:
        self._matrices, self._dtype = matrices, dtype
        with torch.inference_mode(False), torch.no_grad():  # normal tensors wherever it is called
            super().__init__(torch.cat(matrices) if len(matrices) > 1 else matrices[0], dtype)

    def refresh(self) -> None:
        fresh = _Packed(self._dtype, *self._matrices).weight
        if self.is_blocked:  # oneDNN's layout cannot be filled in place
            self.weight = fresh
        elif fresh.data_ptr() != self.weight.data_ptr():  # not the model's own matrix
            self.weight.copy_(fresh)


class _PrepackedAttention(Attention):
    output: nn.Module  # type: ignore[assignment]

    def __init__(self, attention: Attention, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)  # not that of Attention, which would allocate its matrices
        self.config, self.layer = attention.config, attention.layer
        self.window = attention.window
        matrices = attention.query.weight, attention.key.weight, attention.value.weight
        self.projection = _Packed(dtype, *matrices)
        self.output = _Packed(dtype, attention.output.weight)

    def project(self, x: Tensor, cos_sin: CosSin) -> tuple[Tensor, Tensor, Tensor]:
        (B, T, _), config = x.shape, self.config
        heads = self.projection(x).view(B, T, -1, config.head_dim).transpose(1, 2)
        sizes = config.n_head, config.n_kv_head
        # Queries and keys are rotated and normed together: half the kernel launches.
        q_and_k, v = heads.split([sum(sizes), config.n_kv_head], dim=1)
        q, k = norm(rotate(q_and_k, *cos_sin), config.rms_eps).split(sizes, dim=1)
        return q, k, v
