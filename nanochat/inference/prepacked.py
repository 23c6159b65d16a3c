"""A copy of a model for inference with its matrices in the layout that is read fastest.

Training keeps float32 matrices and casts them at every use, which is most of the work when only one
token is computed. The copy casts them once, on an x86 CPU in oneDNN's blocked layout
(`cpu_matmul.PrepackedLinear`), and computes queries, keys and values in one product. On an NVIDIA
GPU a block is nine kernels, where they work.

B batch  T time  H heads  K kv heads  D head dim
"""

import copy
import logging
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nanochat.gpt import GPT, Attention, Block, Linear, Values
from nanochat.inference.kv_cache import KVCache
from nanochat.kernels.attention import can_pack
from nanochat.kernels.cpu_matmul import PrepackedLinear
from nanochat.kernels.rms_norm import rms_norm as norm
from nanochat.kernels.rotary import CosSin, rotate

logger = logging.getLogger(__name__)

ModelType = TypeVar("ModelType", bound=GPT)


def prepack(model: ModelType, dtype: torch.dtype) -> ModelType:
    """A copy with matrices cast to `dtype` and prepacked; it gives logits, but no losses.

    Everything else is shared with the model. When the model's weights change, `refresh` follows. A
    prepacked model is returned as it is.
    """
    if any(isinstance(module, PrepackedLinear) for module in model.modules()):
        return model
    shared = [*model.parameters(), *model.buffers()]
    prepacked = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})  # copies no tensor
    fuses = fused_kernels_work(model.embedding.weight.device, dtype, model.config.head_dim)
    for module in [*prepacked.modules()]:
        for name, child in [*module.named_children()]:
            if isinstance(child, Block) and fuses:
                child.__class__ = _FusedBlock
            elif isinstance(child, Attention):  # reached before the Linears inside it
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
        self.window, self.gate = attention.window, attention.gate
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


class _FusedBlock(Block):
    """A block whose kernels do as much as they can at a time, in inference with a cache."""

    def forward(
        self, x: Tensor, cos_sin: CosSin, cache: Any, values: Values | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        if not isinstance(cache, KVCache) or not cache.is_packed:
            return super().forward(x, cos_sin, cache, values, kept)
        from nanochat.kernels.decode_kernels import relu_squared

        attention: Any = self.attention
        tokens, mlp = x.flatten(0, 1), self.mlp
        normed = norm(tokens, self.eps)
        qkv = attention.projection(normed).view(len(tokens), -1, attention.config.head_dim)
        gated = values and (normed, values.table, values.tokens.flatten(), attention.gate.weight)
        y = cache.attend_projections(attention.layer, qkv, cos_sin, self.eps, gated)
        # In place: each product adds to the residual stream by itself.
        tokens.addmm_(y.flatten(1), attention.output.weight.T)
        hidden = relu_squared(mlp.up(norm(tokens, self.eps)))
        tokens.addmm_(hidden, mlp.down.weight.T)
        return tokens.view_as(x)


@torch.inference_mode()
def fused_kernels_work(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether Triton can compile its kernels here, and they give what torch's own give."""
    if not can_pack(device, dtype, head_dim):
        return False
    try:
        from nanochat.kernels.decode_kernels import relu_squared, rotate_norm_store

        qkv = torch.linspace(-2, 2, 8 * 4 * head_dim, device=device).to(dtype).view(8, 4, -1)
        places, angles = torch.arange(8, device=device), qkv[:, 0, ::2].float().contiguous()
        keys, values = torch.empty(2, 8, 1, head_dim, device=device, dtype=dtype)
        expected = norm(rotate(qkv[:, :3], angles.cos()[:, None], angles.sin()[:, None]), 1e-6)
        x, table, gates = qkv[:, 0], angles.repeat(1, 2), angles[1:2]
        scales = 3 * (x.float() @ gates.T.repeat(2, 1)).sigmoid()
        gated_values = qkv[:, 3:] + (scales * table.flip(0))[:, None]
        near = partial(torch.testing.assert_close, atol=0.05, rtol=0.05, check_dtype=False)
        for gated, found in (
            (None, qkv[:, 3:]), ((x, table, 7 - places, gates.repeat(1, 2)), gated_values)
        ):  # fmt: skip
            q = rotate_norm_store(
                qkv, angles.cos(), angles.sin(), places, keys, values, 1e-6, gated
            )
            near(torch.cat([q, keys], 1), expected)
            near(values, found)
        near(relu_squared(qkv), qkv.relu().square())
    except Exception as error:  # no Triton, no C compiler, a GPU that it does not know
        reason = str(error).partition("\n")[0]
        logger.warning("decoding with more, smaller kernels: %s: %s", type(error).__name__, reason)
        return False
    return True
