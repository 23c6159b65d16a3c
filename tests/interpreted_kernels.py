"""Triton's kernels on a CPU, by its interpreter, which `test_decode` starts in a new process."""

from contextlib import nullcontext

import pytest
import torch

from nanochat.engine import Engine
from nanochat.gpt import Values, norm
from nanochat.inference import kv_cache, prepacked
from nanochat.inference.decode import Mode
from nanochat.kernels import cpu_matmul
from nanochat.kernels import decode_kernels as kernels
from nanochat.kernels.rotary import rotate
from tests.small_model import small_model, small_tokenizer
from tests.stand_in_gpu import attend_packed


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_of", lambda _: nullcontext())


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "later"), [(2, 2, 16, 0), (4, 2, 24, 1), (2, 2, 16, 2)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotary_norm_and_store_are_those_of_the_model(
    heads: int, kv_heads: int, width: int, later: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, heads + 2 * kv_heads, width, generator=generator).to(dtype)
    cos, sin = torch.randn(2, 3, width // 2, generator=generator)
    places = torch.randperm(39, generator=generator)[:3]
    keys, values = torch.zeros(2, 40, kv_heads, width, dtype=dtype)
    q = kernels.rotate_norm_store(qkv, cos, sin, places, keys, values, 1e-6, None, later)
    rotated = norm(rotate(qkv.float(), cos[:, None], sin[:, None]), 1e-6).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    expected = rotated[:, : heads + kv_heads].split([heads, kv_heads], dim=1)
    keys[:, :later] = keys[:, :later].roll(-1, 0)  # the position after
    for found, one in zip((q, keys[places]), expected, strict=True):
        torch.testing.assert_close(found, one, atol=tolerance, rtol=tolerance)
    assert torch.equal(values[places], qkv[:, heads + kv_heads :])
    others = [place for place in range(40) if place not in places.tolist()]
    assert not keys[others].any() and not values[others].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_embeddings_are_those_of_the_model(dtype: torch.dtype) -> None:
    model = small_model(value_embeddings=1)
    attention, values = model.blocks[0].attention, model.value_embeddings["0"].weight
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 2, model.config.n_embd, generator=generator).to(dtype)[:, 0]  # strided
    qkv = torch.randn(5, 8, 8, generator=generator).to(dtype)
    tokens, places = torch.tensor([3, 264, 0, 3, 7]), torch.arange(1, 6)
    cos, sin = torch.randn(2, 5, 4, generator=generator)
    found = torch.zeros(2, 2, 40, 2, 8, dtype=dtype)  # with and without, keys and values
    gated = x, values, tokens, attention.gate.weight
    qs = [
        kernels.rotate_norm_store(qkv, cos, sin, places, *stores, 1e-6, one)
        for stores, one in zip(found, (gated, None), strict=True)
    ]
    assert torch.equal(*qs) and torch.equal(found[0, 0], found[1, 0])
    exact = attention.gated(Values(values, tokens), x.float())
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    expected = (qkv[:, 6:].float() + exact).to(dtype)
    torch.testing.assert_close(found[0, 1, places], expected, atol=tolerance, rtol=tolerance)


def test_relu_squared_is_that_of_the_model() -> None:
    x = torch.randn(3, 700, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(kernels.relu_squared(x), x.relu().square())


@pytest.mark.parametrize("values", [0, 2])
def test_fused_blocks_give_the_same_answers(values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [[1 + n] * (1 + 5 * n) for n in range(2)]
    model = small_model(window_pattern="SL", value_embeddings=values, key_offset_heads=values // 2)
    expected = Engine(model, small_tokenizer()).complete(prompts, max_tokens=3)
    monkeypatch.setattr(cpu_matmul, "has_onednn", lambda dtype: False)
    monkeypatch.setattr(kv_cache, "attend_packed", attend_packed)
    monkeypatch.setattr(prepacked, "fused_kernels_work", lambda *_: True)
    engine = Engine(model, small_tokenizer(), mode=Mode(can_pack=True, reads_late=True))
    assert engine.complete(prompts, max_tokens=3) == expected
    assert all(type(block) is prepacked._FusedBlock for block in engine.model.blocks)
    scores = engine.score(prompts[1])  # without a cache: as in the model
    assert [one.token for one in scores] == prompts[1][1:]


def test_kernels_are_checked_against_the_model_before_they_are_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prepacked, "can_pack", lambda *_: True)
    arguments = torch.device("cpu"), torch.bfloat16, 32
    assert prepacked.fused_kernels_work(*arguments) and not caplog.records
    monkeypatch.setattr(kernels, "relu_squared", torch.relu)
    assert not prepacked.fused_kernels_work(*arguments)
    [record] = caplog.records
    assert "decoding with more, smaller kernels" in record.getMessage()
    assert "\n" not in record.getMessage()
