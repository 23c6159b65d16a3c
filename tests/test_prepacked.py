import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nanochat.inference import kv_cache, prepacked
from nanochat.inference.kv_cache import KVCache
from nanochat.inference.prepacked import prepack
from nanochat.kernels import cpu_matmul
from tests.small_model import small_model

IDX = torch.randint(265, (3, 40), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("is_blocked", [True, False])
@torch.inference_mode()
def test_a_prepacked_model_gives_the_same_logits(
    kv_heads: int, is_blocked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_blocked:
        monkeypatch.setattr(cpu_matmul, "has_onednn", lambda dtype: False)
    model = small_model(n_kv_head=kv_heads, window_pattern="SL")
    prepacked = prepack(model, torch.float32)
    found, expected = prepacked(IDX), model(IDX)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


@torch.inference_mode()
def test_in_bfloat16_a_prepacked_model_is_as_near_to_float32() -> None:
    model = small_model()
    exact = model(IDX)
    model.compute_dtype = torch.bfloat16
    theirs = (model(IDX) - exact).abs().mean()
    ours = (prepack(model, torch.bfloat16)(IDX) - exact).abs().mean()
    assert 0 < ours < 1.2 * theirs


def test_prepacking_leaves_the_model_unchanged_and_shares_embedding_and_tables() -> None:
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    prepacked = prepack(model, torch.float32)
    assert model.training and not prepacked.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert prepacked.embedding.weight is model.embedding.weight
    assert prepacked.rotary.cos is model.rotary.cos


def test_a_prepacked_model_is_returned_as_it_is() -> None:
    prepacked = prepack(small_model(), torch.float32)
    assert prepack(prepacked, torch.float32) is prepacked


# ---- how many kernels a GPU launches


class Launches(TorchDispatchMode):
    """Names of the operators that launch a kernel: all but views and allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if not func.is_view and "empty" not in func.name():
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))

    def fused_kernels(self) -> SimpleNamespace:
        """Stand-ins of the module with Triton's kernels, which need no GPU and compute nothing."""

        def rotate_norm_store(qkv: Any, *_: Any) -> Any:
            self.names.append("rotate, norm, gate, store")
            return qkv[:, :4]

        def relu_squared(x: Any) -> Any:
            self.names.append("relu squared")
            return x

        return SimpleNamespace(rotate_norm_store=rotate_norm_store, relu_squared=relu_squared)

    def attend_packed(self, q: Any, *_: Any) -> Any:
        self.names.append("attention")
        return q


@torch.inference_mode()
def launched_kernels(monkeypatch: pytest.MonkeyPatch, num_layers: int, values: int) -> list[str]:
    """Of a decode step of fused blocks."""
    launches = Launches()
    module = "nanochat.kernels.decode_kernels"
    monkeypatch.setitem(sys.modules, module, launches.fused_kernels())  # type: ignore[arg-type]
    monkeypatch.setattr(kv_cache, "attend_packed", launches.attend_packed)
    monkeypatch.setattr(cpu_matmul, "has_onednn", lambda dtype: False)
    monkeypatch.setattr(prepacked, "fused_kernels_work", lambda *_: True)
    model = prepack(small_model(n_layer=num_layers, value_embeddings=values), torch.float32)
    cache = KVCache(model.config, 3, torch.device("cpu"), torch.float32, can_pack=True)
    cache.reserve(1)
    cache.static_starts = torch.zeros(3, dtype=torch.int64)
    with launches:
        model(torch.zeros(3, 1, dtype=torch.int64), kv_cache=cache)
    return launches.names


def test_a_fused_block_launches_nine_kernels_with_value_embeddings_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = {
        (layers, values): launched_kernels(monkeypatch, layers, values)
        for layers in (2, 4) for values in (0, 1, 2)
    }  # fmt: skip
    assert len(found[4, 0]) == len(found[2, 0]) + 2 * 9, found
    assert all(names == found[layers, 0] for (layers, _), names in found.items())
