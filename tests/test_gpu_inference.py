"""Inference on an NVIDIA GPU; on other machines `test_decode` has a stand-in."""

import logging
import random
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanochat.chat import render_for_completion
from nanochat.engine import Completion, Engine
from nanochat.gpt import GPT
from nanochat.inference import kv_cache, prepacked
from nanochat.inference.cuda_graphs import Graphs
from nanochat.inference.decode import DecodeStep, Mode
from nanochat.kernels import attention
from nanochat.kernels.attention import PackedRows, attend_masked, attend_packed
from tests import memorized_model
from tests.reference import attention as slow
from tests.small_model import small_model, small_tokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

BFLOAT16 = torch.bfloat16
HAS_FLASH = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
needs_flash = pytest.mark.skipif(not HAS_FLASH, reason="needs Ampere or later")
PROMPTS = [[1 + n] * (1 + 7 * n % 30) for n in range(17)]


def on_gpu(model: GPT, dtype: torch.dtype = BFLOAT16, device: str = "cuda:0") -> GPT:
    model = model.to(device)
    model.compute_dtype = dtype
    return model


def gpu_model(dtype: torch.dtype = BFLOAT16, device: str = "cuda:0", **changes: object) -> GPT:
    """With a head dim that FlashAttention takes."""
    shape = {"n_embd": 128, "sequence_len": 200, **changes}
    return on_gpu(small_model(**shape), dtype, device)  # type: ignore[arg-type]


def answers(engine: Engine) -> list[Completion]:
    return engine.complete(PROMPTS, max_tokens=40, temperature=1.0, top_k=50)


def graphs_of(engine: Engine) -> Graphs:
    assert engine._kept_step and engine._kept_step.graphs
    return engine._kept_step.graphs


def train_a_step(model: GPT) -> float:
    """Everything that training does on the GPU: random numbers, gradients, an update."""
    tokens = torch.randint(265, (4, 64), device=model.embedding.weight.device)
    loss = model(tokens, targets=tokens.roll(-1, 1)).mean()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all()
            parameter.sub_(parameter.grad, alpha=1e-3)
            parameter.grad = None
    return float(loss)


# ---- attention

LENGTHS = [(5, 5), (1, 40), (33, 33), (7, 90), (1, 1)]  # queries and stored keys of each row


@needs_flash
@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("num_kv_heads", [1, 4])
def test_packed_attention_equals_the_reference(num_kv_heads: int, window: int | None) -> None:
    capacity, dim = 128, 64
    device = torch.device("cuda")
    assert attention.can_pack(device, BFLOAT16, dim)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, BFLOAT16)

    k, v = (draw(len(LENGTHS) * capacity, num_kv_heads, dim) for _ in range(2))
    q = draw(sum(count for count, _ in LENGTHS), 4, dim)

    def numbers(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    ends = [sum(count for count, _ in LENGTHS[:n]) for n in range(len(LENGTHS) + 1)]
    starts = [n * capacity for n in range(len(LENGTHS) + 1)]
    lengths = [length for _, length in LENGTHS]
    rows = PackedRows(numbers(ends), numbers(starts), numbers(lengths), 33, capacity)
    found = attend_packed(q, k, v, rows, window)
    for row, (count, length) in enumerate(LENGTHS):
        own = q[ends[row] : ends[row + 1]].transpose(0, 1).cpu()
        keys, values = (
            one[starts[row] : starts[row] + length].transpose(0, 1).cpu() for one in (k, v)
        )
        padded = torch.cat([torch.zeros(4, length - count, dim), own.float()], dim=1)
        expected = slow.attend(padded, keys, values, window)[:, -count:].transpose(0, 1)
        torch.testing.assert_close(
            found[ends[row] : ends[row + 1]].cpu().double(), expected, atol=0.02, rtol=0.02
        )


@needs_flash
@pytest.mark.parametrize("backend", [None, *SDPBackend.__members__.values()])
def test_every_backend_for_full_rows_equals_the_reference(backend: SDPBackend | None) -> None:
    backends = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
    if backend not in (None, *backends, SDPBackend.CUDNN_ATTENTION):
        pytest.skip("not a kernel for a GPU")
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 128, 64, generator=generator).bfloat16() for _ in range(3))
    expected = slow.attend(q[0], k[0], v[0], None)
    q, k, v = (one.cuda() for one in (q, k, v))
    with sdpa_kernel(backend) if backend is not None else nullcontext():
        found = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(found[0].cpu().double(), expected, atol=0.02, rtol=0.02)


def test_masked_attention_prepares_no_plan_for_a_new_length() -> None:
    """cuDNN's plans take 30 to 350 ms; forty new lengths must not take one second."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.inference_mode():
        q = torch.randn(1, 4, 1, 64, device="cuda", dtype=BFLOAT16)
        for length in range(100, 141):
            if length == 101:
                start.record()  # after the first, which may load the kernel
            k = torch.randn(1, 4, length, 64, device="cuda", dtype=BFLOAT16)
            is_seen = torch.ones(1, 1, 1, length, dtype=torch.bool, device="cuda")
            attend_masked(q, k, k, is_seen)
        end.record()
    end.synchronize()
    assert start.elapsed_time(end) < 1000


# ---- graphs


@pytest.mark.parametrize(("dtype", "tolerance"), [(BFLOAT16, 0.5), (torch.float32, 1e-3)])
@pytest.mark.parametrize("pattern", ["L", "SL"])
@torch.inference_mode()
def test_a_graph_equals_eager_kernels_while_the_cache_grows(
    dtype: torch.dtype,
    tolerance: float,
    pattern: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(kv_cache, "CAPACITY_STEP", 32)
    torch.set_float32_matmul_precision("highest")
    model, rng = gpu_model(dtype, window_pattern=pattern), random.Random(0)
    assert Mode.of(model).can_pack == (dtype == BFLOAT16 and HAS_FLASH)
    eager, recorded = DecodeStep(model, 6, Mode()), DecodeStep(model, 6, Mode.of(model))
    prompts = torch.tensor([[rng.randrange(265) for _ in range(9)] for _ in range(6)])
    for cache in (eager.cache, recorded.cache):
        model(prompts.cuda(), kv_cache=cache)
        cache.advance([9, 2, 5, 1, 7, 3])
    capacities = set()
    for count in [6] * 130 + [5, 4, 3, 2, 1, 1]:
        tokens = torch.tensor([rng.randrange(265) for _ in range(count)]).cuda()
        expected, found = eager(tokens), recorded(tokens)
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
        capacities.add(recorded.cache.capacity)
    assert len(capacities) > 2
    assert not caplog.records and recorded.graphs is not None and not recorded.graphs.has_failed
    train_free = torch.rand(3, device="cuda")  # draws after every recording
    assert train_free.isfinite().all()


@needs_flash
@pytest.mark.parametrize("values", [0, 2])
@torch.inference_mode()
def test_fused_blocks_equal_plain_ones(
    values: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, rng = gpu_model(value_embeddings=values), random.Random(0)
    assert prepacked.fused_kernels_work(torch.device("cuda:0"), BFLOAT16, model.config.head_dim)
    fused = prepacked.prepack(model, BFLOAT16)
    monkeypatch.setattr(prepacked, "fused_kernels_work", lambda *_: False)
    plain = prepacked.prepack(model, BFLOAT16)
    steps = [DecodeStep(one, 5, Mode.of(one)) for one in (fused, plain)]
    for _ in range(150):
        tokens = torch.tensor([rng.randrange(265) for _ in range(5)]).cuda()
        found, expected = (step(tokens) for step in steps)
        torch.testing.assert_close(found, expected, atol=0.5, rtol=0)
    assert not caplog.records


def test_a_trained_model_answers_as_on_a_cpu() -> None:
    model, tokenizer = memorized_model.model_and_tokenizer()
    conversations = memorized_model.conversations()
    prompts = [render_for_completion({"messages": one}, tokenizer) for one in conversations]
    expected = Engine(model, tokenizer).complete(prompts, max_tokens=80)
    copy = GPT(model.config)
    copy.init_weights(0)
    copy.load_state_dict(model.state_dict())
    for dtype in (torch.float32, BFLOAT16):
        engine = Engine(on_gpu(copy, dtype).eval(), tokenizer)
        assert engine.complete(prompts, max_tokens=80) == expected


def test_graphs_and_caches_survive_answers_and_updates(caplog: pytest.LogCaptureFixture) -> None:
    model = gpu_model()
    engine = Engine(model, small_tokenizer())
    answers(engine)
    graphs = graphs_of(engine)
    recorded = dict(graphs._replays)
    for _ in range(2):
        train_a_step(model)
        found = answers(engine)
        assert found == answers(Engine(model, small_tokenizer()))
    assert graphs._replays == recorded and recorded and not caplog.records


def test_two_engines_of_one_process_record_at_the_same_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    devices = [f"cuda:{n % torch.cuda.device_count()}" for n in range(2)]
    engines = [Engine(gpu_model(device=device), small_tokenizer()) for device in devices]
    alone = answers(Engine(gpu_model(), small_tokenizer()))
    found: dict[int, list[Completion]] = {}

    def work(number: int) -> None:
        engines[number].bind_to_thread()
        found[number] = answers(engines[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == alone and not caplog.records
    assert train_a_step(gpu_model()) > 0


def test_an_engine_on_another_gpu_does_not_need_it_to_be_current() -> None:
    device = f"cuda:{torch.cuda.device_count() - 1}"
    torch.cuda.set_device(0)
    engine = Engine(gpu_model(device=device), small_tokenizer())
    assert answers(engine) and torch.cuda.current_device() == 0
    assert not graphs_of(engine).has_failed


def reads_a_number(model: GPT) -> Callable[[], None]:
    """Break each recording of the model as real code would: a read from the device."""

    def read(*_: object) -> None:
        if torch.cuda.is_current_stream_capturing():
            torch.zeros(1, device="cuda").item()

    return model.register_forward_hook(read).remove


def raises_an_error(model: GPT) -> Callable[[], None]:
    def fail(*_: object) -> None:
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("injected")

    return model.register_forward_hook(fail).remove


@pytest.mark.parametrize("inject", [reads_a_number, raises_an_error])
def test_a_failed_recording_leaves_the_process_usable(
    inject: Callable[[GPT], Callable[[], None]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    expected = answers(Engine(gpu_model(), small_tokenizer()))
    torch.cuda.manual_seed(7)
    uniforms = torch.rand(8, device="cuda")
    torch.cuda.manual_seed(7)
    engine = Engine(gpu_model(), small_tokenizer())
    remove = inject(engine.model)
    assert len(answers(engine)) == len(expected)  # by kernels launched one by one
    remove()
    assert [record.getMessage()[:14] for record in caplog.records] == ["no CUDA graph,"]
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.equal(torch.rand(8, device="cuda"), uniforms)  # where the generator was
    assert train_a_step(gpu_model()) > 0
    other = Engine(gpu_model(), small_tokenizer())
    assert answers(other) == expected
    assert graphs_of(other)._replays
