import random
from functools import partial

import pytest
import torch

from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.inference import batch, kv_cache
from nanochat.inference.decode import DecodeStep
from nanochat.inference.kv_cache import KVCache
from tests.small_model import small_model, small_tokenizer

CPU = torch.device("cpu")


@pytest.mark.parametrize(("kv_heads", "pattern"), [(1, "SL"), (4, "L"), (4, "SL")])
@torch.inference_mode()
def test_decode_with_static_shapes_equals_eager_decode(
    kv_heads: int, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_cache, "CAPACITY_STEP", 8)
    model = small_model(n_kv_head=kv_heads, window_pattern=pattern, sequence_len=26)
    rng = random.Random(0)
    caches = [KVCache(model.config, 6, CPU, torch.float32) for _ in range(2)]
    prompts = torch.tensor([[rng.randrange(265) for _ in range(9)] for _ in range(6)])
    for cache in caches:
        model(prompts, kv_cache=cache)
        cache.advance([9, 2, 5, 1, 7, 3])
    eager, static = (DecodeStep(model, cache, cache is caches[1]) for cache in caches)
    for count in [*[6] * 10, 5, 4, 3, 2, 1, 1]:  # fewer rows: the last slots are free
        tokens = [rng.randrange(265) for _ in range(count)]
        expected, found = eager(tokens), static(tokens)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        assert caches[0].lengths == caches[1].lengths
    assert set(static._captured) == {6, 4, 2, 1} and caches[1].capacity > 16


@torch.inference_mode()
def test_decode_with_static_shapes_refuses_tokens_past_the_context() -> None:
    model = small_model(sequence_len=4)
    step = DecodeStep(model, KVCache(model.config, 1, CPU, torch.float32), is_static=True)
    for _ in range(4):
        step([1])
    with pytest.raises(UserError, match="5 tokens are more than the model's context of 4"):
        step([1])


def test_answers_are_the_same_with_static_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [[1 + n] * (1 + 7 * n % 30) for n in range(17)]
    engine = Engine(small_model(window_pattern="SL"), small_tokenizer())
    ask = partial(engine.complete, prompts, 25, 1.0, batch_size=5)
    expected = ask()
    monkeypatch.setattr(
        batch, "DecodeStep", lambda model, cache, is_static: DecodeStep(model, cache, True)
    )
    assert ask() == expected
