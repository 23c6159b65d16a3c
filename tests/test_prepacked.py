import pytest
import torch

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
