"""The compile decision is in test_engine.py, beside what it must leave usable."""

import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nanochat.runtime import Runtime
from nanochat.training import autotune
from nanochat.training.schedule import Schedule
from tests.small_model import small_model

ONE_RANK = Runtime(torch.device("cpu"), 0, 1, torch.float32)


def plan_of(rows: int, device_batch_size: int = -1, model: Any = None) -> Any:
    return SimpleNamespace(
        rank_rows=lambda world_size: -(-rows // world_size), rows=rows,
        model=model or small_model(), schedule=Schedule(1), has_fixed_shape=True,
        device_batch_size=device_batch_size,
    )  # fmt: skip


def test_the_largest_size_that_fits_is_used_and_no_smaller_one_is_tried() -> None:
    tried = []

    def attempt(rows: int) -> None:
        tried.append(rows)
        if rows > 6:
            raise torch.OutOfMemoryError

    assert autotune.largest_that_fits([24, 12, 6, 3, 1], attempt) == 6
    assert tried == [24, 12, 6]


def test_what_did_not_fit_is_free_before_the_next_size_is_tried() -> None:
    found: list[Any] = []

    def attempt(rows: int) -> None:
        assert all(tensor() is None for tensor in found)
        activations = torch.empty(rows)
        found.append(weakref.ref(activations))
        error = torch.OutOfMemoryError()
        raise error  # which this frame refers to, and the error to the frame

    assert autotune.largest_that_fits([4, 2, 1], attempt) == 1 and len(found) == 3


def test_single_rows_remain_when_nothing_fits() -> None:
    def attempt(rows: int) -> None:
        raise torch.OutOfMemoryError

    assert autotune.largest_that_fits([4, 2, 1], attempt) == 1


def test_other_errors_than_out_of_memory_are_raised() -> None:
    def attempt(rows: int) -> None:
        raise RuntimeError("illegal instruction")

    with pytest.raises(RuntimeError, match="illegal"):
        autotune.largest_that_fits([2], attempt)


def test_the_fastest_size_needs_the_fewest_seconds_per_row() -> None:
    seconds = {8: 4.0, 4: 1.6, 2: 0.9, 1: 0.5}
    assert autotune.fastest(seconds, seconds.__getitem__) == 4


def test_a_search_on_a_cpu_leaves_the_model_unchanged() -> None:
    model = small_model(sequence_len=512)
    plan = plan_of(12, model=model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    rows = autotune.search(plan, ONE_RANK)
    assert rows in (2, 3, 6, 12)  # of 1,024 to 8,192 tokens
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert parameter.grad is None and torch.equal(parameter, old)


def test_rows_are_halved_and_rounded_up_until_there_is_one() -> None:
    assert autotune.halvings(43) == [43, 22, 11, 6, 3, 2, 1]
    assert autotune.halvings(32) == [32, 16, 8, 4, 2, 1]
    assert autotune.halvings(1) == [1]


@pytest.mark.parametrize(
    ("rank_rows", "context", "rows"), [(64, 256, 8), (3, 256, 3), (64, 4096, 1)]
)
def test_a_cpu_takes_several_short_rows_or_one_long_row_at_a_time(
    rank_rows: int, context: int, rows: int
) -> None:
    plan = plan_of(rank_rows, model=small_model(sequence_len=context))
    assert autotune.expected_rows(plan, ONE_RANK) == rows


@pytest.mark.parametrize("device_batch_size", [-1, 1, 4])
@pytest.mark.parametrize(("rows", "world_size"), [(8, 3), (32, 24), (2, 4)])
def test_a_micro_batch_has_at_least_a_row_on_any_number_of_ranks(
    rows: int, world_size: int, device_batch_size: int
) -> None:
    runtime = Runtime(torch.device("cpu"), 0, world_size, torch.float32)
    found = autotune.micro_batch_rows(plan_of(rows, device_batch_size), 1e12, runtime, {})
    most = -(-rows // world_size)
    assert found == (most if device_batch_size < 0 else min(device_batch_size, most))


def test_a_resumed_run_keeps_the_size_that_was_found_on_the_same_hardware() -> None:
    meta = {"micro_batch": ["CPU", 1, 7]}
    assert autotune.micro_batch_rows(plan_of(64), 1e12, ONE_RANK, meta) == 7
    other = {"micro_batch": ["NVIDIA H100", 1, 7]}
    assert autotune.micro_batch_rows(plan_of(64), 1e12, ONE_RANK, other) == 32
