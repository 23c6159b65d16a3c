"""Rows that are joined to one, and the compiled block, give the loss and gradient of plain rows."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat.data.batch import Batch
from nanochat.gpt import GPT
from nanochat.kernels.documents import (
    CPU_SIZES,
    _padded_length,
    can_join,
    documents_of,
    places_of_targets,
)
from nanochat.runtime import init_runtime
from nanochat.training.micro_batch import micro_batches
from nanochat.training.trainer import accumulate_gradients, two_threads
from tests.small_model import small_model

CPU, CONTEXT, VOCAB = torch.device("cpu"), 64, 100


def rows_of_lengths(lengths: list[int], *, masked: bool = True, weighted: bool = True) -> Batch:
    """Rows whose targets end at the lengths, with gaps between them; the rest is padding."""
    generator = torch.Generator().manual_seed(len(lengths))
    inputs = torch.randint(VOCAB, (len(lengths), CONTEXT), generator=generator)
    targets = torch.randint(VOCAB, inputs.shape, generator=generator)
    if masked:
        targets[:, ::3] = -1
    for row, length in zip(targets, lengths, strict=True):
        row[length:] = -1
        if length:
            row[length - 1] = 7
    weights = torch.randn(inputs.shape, generator=generator) if weighted else None
    return Batch(inputs, targets, weights, 13.0, 0.0, {})


def gradients(model: GPT, batch: Batch, rows: int, **named: Any) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad(set_to_none=True)
    loss = accumulate_gradients(model, batch, rows, CPU, **named)
    return loss, [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("window_pattern", ["L", "S"])
@pytest.mark.parametrize(
    "lengths", [[64, 1, 0, 17, 40, 64, 3], [5], [0, 0], [64] * 4, list(range(2, 42, 3))]
)
def test_joined_rows_give_the_loss_and_gradient_of_plain_rows(
    lengths: list[int], window_pattern: str
) -> None:
    model = small_model(window_pattern=window_pattern)
    for weighted in (True, False):
        batch = rows_of_lengths(lengths, weighted=weighted)
        loss, expected = gradients(model, batch, 2)
        for rows in (1, 3, len(lengths)):
            joined_loss, found = gradients(model, batch, rows, joined_length=CONTEXT)
            torch.testing.assert_close(joined_loss, loss, rtol=1e-6, atol=1e-6)
            for ours, one in zip(found, expected, strict=True):
                assert float((ours - one).norm()) <= 1e-6 * max(1.0, float(one.norm()))


@pytest.mark.parametrize("value_embeddings", [0, 1])
@pytest.mark.parametrize("lengths", [[64, 1, 0, 17, 40], [1], [0, 0]])
def test_tokens_without_target_are_left_out_of_the_last_layer(
    lengths: list[int], value_embeddings: int
) -> None:
    more = {"value_embeddings": value_embeddings, "key_offset_heads": value_embeddings}
    model, batch = small_model(**more), rows_of_lengths(lengths)
    assert batch.weights is not None
    losses = model(batch.inputs, batch.targets)  # all of them are computed
    expected = (losses * batch.weights).sum() / batch.norm
    expected.backward()
    slow = [p.grad for p in model.parameters() if p.grad is not None]
    for joined_length in (0, CONTEXT):
        loss, found = gradients(model, batch, 3, joined_length=joined_length)
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-5)
        for ours, one in zip(found, slow, strict=True):
            torch.testing.assert_close(ours, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_rows", [1, 2, 7])
@pytest.mark.parametrize("joined_length", [0, CONTEXT])
def test_halves_in_two_threads_have_the_gradient_of_the_batch(
    num_rows: int, joined_length: int
) -> None:
    model = small_model(value_embeddings=1)
    batch = rows_of_lengths([64, 1, 0, 17, 40, 64, 3][:num_rows])
    loss, expected = gradients(model, batch, 7, joined_length=joined_length)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        runtime = replace(init_runtime("cpu"), compute_dtype=torch.bfloat16)
        threads = two_threads(model, runtime)
        assert threads is not None and torch.get_num_threads() == 2
        with threads:
            assert threads.submit(torch.get_num_threads).result() == 1
            runs = [
                gradients(model, batch, 7, joined_length=joined_length, threads=threads)
                for _ in range(5)
            ]
        assert two_threads(model, replace(runtime, compute_dtype=torch.float32)) is None
    finally:
        torch.set_num_threads(before)
    for again, found in runs:
        torch.testing.assert_close(again, loss, rtol=1e-5, atol=1e-5)
        for ours, one, first in zip(found, expected, runs[0][1], strict=True):
            torch.testing.assert_close(ours, one, rtol=1e-4, atol=1e-5)
            assert torch.equal(ours, first)  # whichever half is done first


def test_joined_rows_hold_each_used_token_once() -> None:
    lengths, seen = [30, 64, 2, 0, 51, 64, 9, 12], 0
    for inputs, targets, named in micro_batches(
        rows_of_lengths(lengths, masked=False), 3, CONTEXT, CPU
    ):
        documents, (count, size) = named["documents"], inputs.shape
        assert count == 1 and size <= 3 * CONTEXT and size % CPU_SIZES == 0
        assert documents.starts[-1] == size and documents.positions.shape == inputs.shape
        assert int(documents.starts.diff().max()) <= documents.longest
        begins = documents.starts[:-1][documents.starts.diff() > 0]
        assert not documents.positions[0, begins].any()
        seen += int((targets >= 0).sum())
    assert seen == sum(lengths)


def test_chosen_places_are_those_of_targets_and_others_up_to_a_multiple() -> None:
    targets = torch.full((3, CONTEXT), -1)
    assert places_of_targets(targets) is None
    targets[1, 5:45] = 7
    places = places_of_targets(targets)
    assert places is not None and len(places) == 2 * CPU_SIZES == len(places.unique())
    assert int((targets.flatten()[places] == 7).sum()) == 40
    targets[:, :-1] = 7  # fewer others than are missing
    places = places_of_targets(targets)
    assert places is None or len(places) < targets.numel()


def test_padded_lengths_are_few_and_at_most_half_longer() -> None:
    found = [_padded_length(n) for n in range(1, 2049)]
    assert all(n <= m and (m < 1.5 * n + 2 or m == 12) for n, m in enumerate(found, 1))
    assert sorted(set(found))[:5] == [12, 16, 24, 32, 48] and len(set(found)) == 16


def test_joined_rows_have_few_lengths_elsewhere_than_on_a_cpu() -> None:
    batch = rows_of_lengths([30, 64, 2, 0, 51, 64, 9, 12])
    for inputs, _, named in micro_batches(batch, 3, CONTEXT, torch.device("meta")):
        assert inputs.size(1) % 12 == 0  # 16 lengths up to 3 * 64
        assert named["documents"].positions.shape == inputs.shape


def test_documents_are_positions_that_start_over() -> None:
    documents = documents_of([2, 3], 5)
    assert documents.starts.tolist() == [0, 2, 5, 5, 5]
    assert documents.positions.tolist() == [[0, 1, 0, 1, 2]] and documents.longest == 4


def test_no_kernel_is_claimed_where_it_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    assert can_join(gpu, torch.bfloat16, 128) and can_join(gpu, torch.float16, 64)
    assert not can_join(gpu, torch.float32, 128) and not can_join(gpu, torch.bfloat16, 12)
    assert can_join(gpu, torch.bfloat16, 192) and not can_join(gpu, torch.bfloat16, 200)
    for capability in [(8, 0), (9, 0), (10, 0)]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, own=capability: own)
        assert can_join(gpu, torch.bfloat16, 256) and not can_join(gpu, torch.bfloat16, 264)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    assert not can_join(torch.device("mps"), torch.float16, 64)
    assert can_join(CPU, torch.float32, 12)
    monkeypatch.setattr(torch.version, "hip", "7.2")
    assert not can_join(gpu, torch.bfloat16, 128)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert not can_join(gpu, torch.float16, 64)


@pytest.mark.parametrize("recomputes", [False, True])
def test_the_block_is_compiled_once_for_all_layers_and_all_lengths(
    recomputes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compilations = []

    def backend(graph: Any, inputs: Any) -> Any:
        from torch._dynamo.backends.debugging import aot_eager

        compilations.append(graph)
        return aot_eager(graph, inputs)

    compile_function = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **named: compile_function(f, backend=backend, **named)
    )
    torch.compiler.reset()
    plain, model = small_model(n_layer=3), small_model(n_layer=3)
    model.compile_regions(dynamic=True, recomputes=recomputes)
    first = 0
    for lengths in ([40, 20, 12], [64, 64, 64], [30, 31, 5]):
        batch = rows_of_lengths(lengths)
        loss, expected = gradients(plain, batch, 3)
        compiled_loss, found = gradients(model, batch, 3)
        torch.testing.assert_close(compiled_loss, loss, rtol=1e-5, atol=1e-5)
        for ours, one in zip(found, expected, strict=True):
            assert float((ours - one).norm()) <= 1e-5 * max(1.0, float(one.norm()))
        first = first or len(compilations)  # the compiler may start over once, for constants
    assert len(compilations) == first <= 2
    with torch.no_grad():  # inference has graphs of its own
        model(batch.inputs)
    assert len(compilations) == first
