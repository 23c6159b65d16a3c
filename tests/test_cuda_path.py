"""Code for NVIDIA GPUs as far as it goes without one: on fake tensors, with assumed cards.

Fake tensors of the device cuda take the branches of a GPU and check every operator's arguments and
shapes. Where the host would wait for the GPU, they raise.
"""

import ast
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from nanochat import runtime
from nanochat.gpt import GPT, GPTConfig, run_block
from nanochat.inference.cuda_graphs import Graphs
from nanochat.inference.decode import DecodeStep, Mode
from nanochat.kernels import attention, documents
from nanochat.kernels.documents import Documents
from nanochat.kernels.recompute import recomputing
from tests.stand_in_gpu import Generator, StandIn

ROOT = Path(__file__).parents[1]
GPU = torch.device("cuda:0")


def assume_card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(attention, "_has_triton", lambda: False)  # its compiler would start


# ---- fake tensors


def gpu_model(dtype: torch.dtype = torch.bfloat16, **changes: Any) -> GPT:
    shape = {
        "sequence_len": 512, "vocab_size": 64, "n_layer": 3, "n_head": 2, "n_kv_head": 1,
        "n_embd": 128,
    }  # fmt: skip
    with GPU:
        return GPT(GPTConfig(**{**shape, **changes}), dtype)


def loss_of(model: GPT, joined: bool) -> Tensor:
    shape = (1, 1024) if joined else (2, 512)
    idx = torch.zeros(shape, dtype=torch.int64, device=GPU)
    starts = torch.zeros(9, dtype=torch.int32, device=GPU)
    where = Documents(starts, torch.zeros_like(idx), 512) if joined else None
    loss: Tensor = model(idx, idx, weights=torch.ones(shape, device=GPU), documents=where)
    return loss


def test_fake_tensors_raise_where_the_host_would_wait() -> None:
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.zeros(1, device=GPU).item()


@pytest.mark.parametrize(
    ("dtype", "capability"),
    [(torch.bfloat16, (9, 0)), (torch.float16, (7, 5)), (torch.float32, (6, 1))],
)
def test_a_forward_pass_of_training_never_waits(
    dtype: torch.dtype, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assume_card(monkeypatch, capability)
    joins = documents.can_join(GPU, dtype, 64)
    assert joins == (capability == (9, 0))
    with FakeTensorMode():
        for changes in ({"value_embeddings": 1}, {"window_pattern": "SL"}):
            for joined in (False, joins):
                assert loss_of(gpu_model(dtype, **changes), joined).device == GPU


@pytest.mark.parametrize(("capability", "packs"), [((9, 0), True), ((7, 5), False)])
@torch.inference_mode()
def test_a_decode_step_never_waits(
    capability: tuple[int, int], packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assume_card(monkeypatch, capability)
    with FakeTensorMode():
        model = gpu_model(torch.float16, value_embeddings=2, window_pattern="SL")
        mode = Mode.of(model)
        assert mode == Mode(torch.cuda, packs, reads_late=True)
        step = DecodeStep(model, 4, mode)
        step.cache.reserve(1)
        step._logits[4] = torch.empty(4, model.config.vocab_size, device=GPU)
        step._forward(4)


@pytest.mark.slow
@pytest.mark.parametrize("recomputes", [False, True])
def test_blocks_of_joined_rows_compile_as_one_graph(
    recomputes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of padded rows: see `test_memory_estimate`."""
    assume_card(monkeypatch, (9, 0))
    torch.compiler.reset()
    run = recomputing(run_block) if recomputes else run_block
    with FakeTensorMode():
        model = gpu_model(value_embeddings=2)
        model.run_block = torch.compile(run, backend="eager", dynamic=True, fullgraph=True)
        assert loss_of(model, joined=True).device == GPU


# ---- cards


@pytest.mark.parametrize(
    ("capability", "dtype", "packs"),
    [
        ((6, 1), torch.float32, False),  # GTX 1080
        ((7, 0), torch.float16, False),  # V100
        ((7, 5), torch.float16, False),  # T4, RTX 2060
        ((8, 0), torch.bfloat16, True),  # A100
        ((8, 6), torch.bfloat16, True),  # RTX 3060
        ((8, 9), torch.bfloat16, True),  # RTX 4090
        ((9, 0), torch.bfloat16, True),  # H100
        ((10, 0), torch.bfloat16, True),  # B200
        ((12, 0), torch.bfloat16, True),  # RTX 5090
    ],
)
def test_each_card_gets_a_dtype_and_kernels_that_it_has(
    capability: tuple[int, int], dtype: torch.dtype, packs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NANOCHAT_DTYPE", raising=False)
    assume_card(monkeypatch, capability)
    second = torch.device("cuda:1")
    assert runtime.compute_dtype(second) == dtype
    assert attention.can_pack(second, dtype, 128) == packs
    assert documents.can_join(second, dtype, 128) == packs
    assert not attention.can_pack(second, torch.float32, 128)
    monkeypatch.setattr(torch.version, "hip", "6.4")  # AMD's cards, whose numbers mean other things
    assert runtime.compute_dtype(second) == torch.bfloat16
    assert not attention.can_pack(second, dtype, 128) and not documents.can_join(second, dtype, 128)


class TwoCards(StandIn):
    """The second one fails to record."""

    def __init__(self) -> None:
        super().__init__(fails=1)
        self.default_generators.append(Generator())
        self.index = 0

    def current_device(self) -> int:
        return self.index

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:  # type: ignore[override]
        before, self.index = self.index, device.index
        yield
        self.index = before


def test_a_failed_recording_on_another_card_is_repaired_there() -> None:
    process, runs = TwoCards(), []
    graphs = Graphs(torch.device("cuda:1"), process)
    graphs.run("a pass", lambda: runs.append(process.index))
    assert graphs.has_failed and runs == [1, 1, 0]  # the warm-up, then without a graph
    assert process.index == 0 and process.stream is process.default_stream
    assert not any(one.is_recording for one in process.default_generators)
    process.draw()


# ---- what torch is expected to have


def chains(tree: ast.AST) -> Iterator[list[str]]:
    """The names after `torch` in torch.cuda.Event; those after `cuda` where it is an object."""
    for node in ast.walk(tree):
        names: list[str] = []
        while isinstance(node, ast.Attribute):
            names.insert(0, node.attr)
            node = node.value
        names.insert(0, node.id if isinstance(node, ast.Name) else "")
        if names[0] == "torch":
            yield names[1:]
        elif names[0] == "cuda" or names[:2] == ["self", "cuda"]:
            yield names[names.index("cuda") :]


def test_everything_that_is_used_of_torch_exists() -> None:
    missing = set()
    for path in [*(ROOT / "nanochat").rglob("*.py"), *(ROOT / "dev/bench").glob("*.py")]:
        for names in chains(ast.parse(path.read_text(encoding="utf-8"))):
            if names[:2] == ["ops", "nanochat"]:
                continue  # our own
            found: Any = torch
            for name in names:
                if not hasattr(found, name):
                    missing.add(f"{path.name}: torch.{'.'.join(names)}")
                    break
                found = getattr(found, name)
                if not inspect.ismodule(found) and not inspect.isclass(found):
                    break  # what a function returns
    assert not missing


def test_graphs_are_recorded_by_arguments_that_torch_takes() -> None:
    signature = inspect.signature(torch.cuda.graph)
    signature.bind("graph", "pool", "stream", capture_error_mode="thread_local")
    for name in ("replay", "reset"):
        assert hasattr(torch.cuda.CUDAGraph, name)
    for name in ("clone_state", "graphsafe_set_state"):
        assert hasattr(torch.Generator, name)
