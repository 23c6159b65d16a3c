import pytest
import torch

from nanochat.inference.prepacked import packed
from nanochat.kernels import cpu_matmul
from tests.small_model import small_model

IDX = torch.randint(265, (3, 40), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("is_blocked", [True, False])
@torch.inference_mode()
def test_a_twin_gives_the_logits_of_its_model(
    kv_heads: int, is_blocked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_blocked:
        monkeypatch.setattr(cpu_matmul, "has_kernels_for", lambda matrix: False)
    model = small_model(n_kv_head=kv_heads, window_pattern="SL")
    twin = packed(model, torch.float32)
    found, expected = twin(IDX), model(IDX)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


@torch.inference_mode()
def test_in_bfloat16_a_twin_is_as_near_to_float32_as_its_model() -> None:
    model = small_model()
    exact = model(IDX)
    model.compute_dtype = torch.bfloat16
    theirs = (model(IDX) - exact).abs().mean()
    ours = (packed(model, torch.bfloat16)(IDX) - exact).abs().mean()
    assert 0 < ours < 1.2 * theirs


def test_a_model_is_what_it_was_and_shares_what_is_no_matrix_with_its_twin() -> None:
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    twin = packed(model, torch.float32)
    assert model.training and not twin.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert twin.embedding.weight is model.embedding.weight
    assert twin.rotary.cos is model.rotary.cos


def test_a_twin_is_its_own_twin() -> None:
    twin = packed(small_model(), torch.float32)
    assert packed(twin, torch.float32) is twin
