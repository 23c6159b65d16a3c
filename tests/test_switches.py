"""Each switch of the model alone, all of them and none: the fast ways equal the obvious one.

Elsewhere: test_ranks.py (any number of ranks) and test_stages.py (resuming) train with all of them,
test_gpt.py and test_sampled_softmax.py have slow references, test_export.py the exported models.
"""

from dataclasses import fields
from typing import Any

import pytest
import torch

from nanochat.gpt import GPTConfig
from nanochat.inference.kv_cache import KVCache
from nanochat.training.trainer import accumulate_gradients
from tests.small_model import small_model
from tests.test_micro_batch import CONTEXT, gradients, rows_of_lengths

CPU = torch.device("cpu")
SIZES = {"sequence_len", "vocab_size", "n_layer", "n_head", "n_embd"}
SWITCHES: dict[str, Any] = {
    "n_kv_head": 1, "rope_base": 100.0, "rms_eps": 0.1, "softcap": 2.0, "window_pattern": "S",
    "value_embeddings": 2, "rotary_share": 0.5, "key_offset_heads": 1,
}  # fmt: skip
EACH = pytest.mark.parametrize(
    "switches", [{}, *({name: value} for name, value in SWITCHES.items()), SWITCHES],
    ids=["none", *SWITCHES, "all"],
)  # fmt: skip


def test_each_field_of_the_config_is_a_size_or_a_switch_that_changes_the_logits() -> None:
    assert {field.name for field in fields(GPTConfig)} == SIZES | SWITCHES.keys()
    idx = rows_of_lengths([CONTEXT]).inputs
    plain = small_model()
    for name, value in SWITCHES.items():
        model = small_model(**{name: value})
        same = {n: p for n, p in plain.state_dict().items() if name != "n_kv_head"}
        model.load_state_dict(same, strict=False)
        with torch.no_grad():
            assert not torch.allclose(model(idx), plain(idx), atol=1e-3), name


@EACH
@torch.inference_mode()
def test_cached_tokens_have_the_logits_of_one_forward(switches: dict[str, Any]) -> None:
    model, idx = small_model(n_layer=3, **switches), rows_of_lengths([CONTEXT] * 2).inputs
    cache, found, first = KVCache(model.config, 2, CPU, torch.float32), [], 0
    for length in (30, 1, 1, 12, *[1] * (CONTEXT - 44)):  # a window is 32 tokens
        found.append(model(idx[:, first : first + length], kv_cache=cache))
        cache.advance([length] * 2)
        first += length
    torch.testing.assert_close(torch.cat(found, 1), model(idx), atol=1e-4, rtol=0)


@EACH
def test_the_gradient_is_that_of_all_losses_for_any_micro_batch(switches: dict[str, Any]) -> None:
    model, batch = small_model(n_layer=3, **switches), rows_of_lengths([64, 1, 0, 17, 40])
    assert batch.weights is not None
    losses = model(batch.inputs, batch.targets)
    expected = (losses * batch.weights).sum() / batch.norm
    expected.backward()
    slow = [p.grad for p in model.parameters() if p.grad is not None]
    for rows, joined_length in ((5, 0), (2, 0), (5, CONTEXT), (2, CONTEXT)):
        loss, found = gradients(model, batch, rows, joined_length=joined_length)
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-5)
        for ours, one in zip(found, slow, strict=True):
            assert float((ours - one).norm()) <= 1e-5 * max(1.0, float(one.norm()))


@EACH
def test_recomputed_activations_give_the_same_gradient(switches: dict[str, Any]) -> None:
    model, batch = small_model(n_layer=3, **switches), rows_of_lengths([64, 17])
    _, expected = gradients(model, batch, 2)
    model.keeps_activations = False
    model.zero_grad(set_to_none=True)
    accumulate_gradients(model, batch, 2, CPU)
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@EACH
def test_the_config_survives_its_checkpoint(switches: dict[str, Any]) -> None:
    config = small_model(**switches).config
    assert GPTConfig.from_dict(config.to_dict()) == config
