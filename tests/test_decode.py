import os
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.inference import kv_cache
from nanochat.inference.decode import DecodeStep, Mode
from nanochat.inference.kv_cache import KVCache
from tests.small_model import small_model, small_tokenizer
from tests.stand_in_gpu import StandIn, attend_packed

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def packed_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "attend_packed", attend_packed)


@pytest.mark.parametrize("can_pack", [False, True])
@pytest.mark.parametrize(("kv_heads", "pattern"), [(1, "SL"), (4, "L"), (4, "SL")])
@torch.inference_mode()
def test_a_recorded_step_equals_an_eager_one_while_the_cache_grows(
    kv_heads: int, pattern: str, can_pack: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_cache, "CAPACITY_STEP", 8)
    is_modern = kv_heads == 1
    changes = {"n_kv_head": kv_heads, "window_pattern": pattern, "value_embeddings": is_modern}
    model = small_model(sequence_len=26, key_offset_heads=int(is_modern), **changes)
    rng, process = random.Random(0), StandIn()
    modes = Mode(), Mode(process, can_pack)
    eager, recorded = (DecodeStep(model, 6, mode) for mode in modes)
    prompts = torch.tensor([[rng.randrange(265) for _ in range(9)] for _ in range(6)])
    for cache in (eager.cache, recorded.cache):
        model(prompts, kv_cache=cache)
        cache.advance([9, 2, 5, 1, 7, 3])
    for count in [*[6] * 10, 5, 4, 3, 2, 1, 1]:  # fewer rows: the last slots are free
        tokens = torch.tensor([rng.randrange(265) for _ in range(count)])
        expected, found = eager(tokens), recorded(tokens)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        assert eager.cache.lengths == recorded.cache.lengths
    # Six rows at capacities 16 and 26, then four (for three as well), two and one.
    assert len(process.recorded_on) == 5 and recorded.cache.capacity == 26 + is_modern
    assert process.stream is process.default_stream and set(process.recorded_on) == {"stream 1"}
    assert len(process.pools) == 2  # a new one when the cache has grown


@torch.inference_mode()
def test_a_recorded_step_refuses_tokens_past_the_context() -> None:
    step = DecodeStep(small_model(sequence_len=4), 1, Mode(StandIn()))
    for _ in range(4):
        step(torch.tensor([1]))
    with pytest.raises(UserError, match="5 tokens are more than the model's context of 4"):
        step(torch.tensor([1]))


# ---- engines as on a GPU


def gpu_engine(process: StandIn, pattern: str = "L") -> Engine:
    mode = Mode(process, can_pack=True, reads_late=True)
    return Engine(small_model(window_pattern=pattern), small_tokenizer(), mode=mode)


PROMPTS = [[1 + n] * (1 + 7 * n % 30) for n in range(17)]


@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_the_same_as_on_a_cpu(temperature: float, batch_size: int) -> None:
    ask = partial(Engine.complete, prompts=PROMPTS, max_tokens=25, temperature=temperature)
    expected = ask(Engine(small_model(window_pattern="SL"), small_tokenizer()))
    found = ask(gpu_engine(StandIn(), pattern="SL"), batch_size=batch_size)
    assert found == expected
    assert any(one.finish_reason == "stop" for one in expected) or not temperature


def test_an_engine_records_each_number_of_rows_once_whatever_it_is_asked() -> None:
    process = StandIn()
    engine = gpu_engine(process)
    first = engine.complete(PROMPTS, max_tokens=25)
    engine.complete(PROMPTS[:1], max_tokens=2)
    num_recorded = len(process.recorded_on)
    for _ in range(3):  # as in reinforcement learning: weights change in place between answers
        with torch.no_grad():
            for parameter in engine.model.parameters():
                parameter.mul_(1.0)
        assert engine.complete(PROMPTS, max_tokens=25) == first
        assert engine.complete(PROMPTS[3:4], max_tokens=25) == first[3:4]
    assert len(process.recorded_on) == num_recorded


def test_recorded_passes_follow_updated_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    # In oneDNN's layout, which no GPU has, weights are replaced and not filled.
    monkeypatch.setattr("nanochat.kernels.cpu_matmul.has_onednn", lambda dtype: False)
    process, model = StandIn(), small_model()
    model.compute_dtype = torch.bfloat16  # the packed matrices are copies
    engine = Engine(model, small_tokenizer(), mode=Mode(process, reads_late=True))
    before = engine.complete(PROMPTS[:4], max_tokens=25)
    num_recorded = len(process.recorded_on)
    updated = small_model(seed=1)
    updated.compute_dtype = torch.bfloat16
    with torch.no_grad():
        for parameter, target in zip(model.parameters(), updated.parameters(), strict=True):
            parameter.copy_(target)
    expected = Engine(updated, small_tokenizer()).complete(PROMPTS[:4], max_tokens=25)
    assert engine.complete(PROMPTS[:4], max_tokens=25) == expected != before
    assert len(process.recorded_on) == num_recorded


def test_a_failed_recording_leaves_the_process_usable(caplog: pytest.LogCaptureFixture) -> None:
    process = StandIn(fails=1)
    failing, other = gpu_engine(process), gpu_engine(process)
    expected = Engine(small_model(), small_tokenizer()).complete(PROMPTS, max_tokens=25)
    assert failing.complete(PROMPTS, max_tokens=25) == expected
    process.draw()  # as training would
    assert not process.recorded_on
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("no CUDA graph, kernels are launched one by one") and "\n" not in line
    assert other.complete(PROMPTS, max_tokens=25) == expected and process.recorded_on
    process.draw()


def test_two_engines_record_on_streams_of_their_own() -> None:
    process = StandIn()
    for engine in (gpu_engine(process), gpu_engine(process)):
        engine.complete(PROMPTS[:3], max_tokens=3)
        process.draw()
    assert set(process.recorded_on) == {"stream 1", "stream 2"}


def test_the_cache_of_a_cpu_is_not_kept() -> None:
    engine = Engine(small_model(), small_tokenizer())
    engine.complete(PROMPTS, max_tokens=2)
    assert engine._kept_step is None
    assert KVCache(engine.model.config, 1, CPU, torch.float32).can_pack is False


# ---- kernels


@pytest.mark.slow
def test_triton_kernels_are_right_by_its_interpreter() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "interpreted_kernels.py"]
    interpreted = {**os.environ, "TRITON_INTERPRET": "1"}  # read when Triton is imported
    done = subprocess.run(
        command, env=interpreted, cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
