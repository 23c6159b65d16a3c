import pytest
import torch

from nanochat.runtime import Runtime
from nanochat.training import micro_batch
from tests.small_model import small_model

PLACE = Runtime(torch.device("cpu"), 0, 1, torch.float32)


def test_the_largest_that_fits_is_taken_and_nothing_is_tried_beyond() -> None:
    tried = []

    def attempt(rows: int) -> None:
        tried.append(rows)
        if rows > 6:
            raise torch.OutOfMemoryError

    assert micro_batch.largest_that_fits([24, 12, 6, 3, 1], attempt) == 6
    assert tried == [24, 12, 6]


def test_when_nothing_fits_single_rows_are_what_is_left() -> None:
    def attempt(rows: int) -> None:
        raise torch.OutOfMemoryError

    assert micro_batch.largest_that_fits([4, 2, 1], attempt) == 1


def test_other_errors_than_memory_are_not_swallowed() -> None:
    def attempt(rows: int) -> None:
        raise RuntimeError("illegal instruction")

    with pytest.raises(RuntimeError, match="illegal"):
        micro_batch.largest_that_fits([2], attempt)


def test_the_fastest_is_that_of_the_fewest_seconds_a_row() -> None:
    seconds = {8: 4.0, 4: 1.6, 2: 0.9, 1: 0.5}
    assert micro_batch.fastest(seconds, seconds.__getitem__) == 4


def test_a_search_on_a_cpu_takes_a_part_and_leaves_the_model_as_it_was() -> None:
    model = small_model(sequence_len=512)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    rows = micro_batch.search(model, 12, PLACE)
    assert rows in (2, 3, 6, 12)  # of 1,024 to 8,192 tokens
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert parameter.grad is None and torch.equal(parameter, old)


def test_rows_that_nothing_divides_are_cut_nearly_in_half_again_and_again() -> None:
    assert micro_batch.sizes(43) == [43, 22, 11, 6, 3, 2, 1]
    assert micro_batch.sizes(32) == [32, 16, 8, 4, 2, 1]
    assert micro_batch.sizes(1) == [1]


def test_short_rows_go_together_and_long_ones_alone() -> None:
    assert micro_batch.usual(64, 256) == 8
    assert micro_batch.usual(3, 256) == 3
    assert micro_batch.usual(64, 4096) == 1
