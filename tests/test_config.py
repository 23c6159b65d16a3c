from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat import primer
from nanochat.data import chat_batches
from nanochat.dataloader import tokenizing_distributed_data_loader
from nanochat.errors import UserError
from nanochat.runtime import Runtime
from nanochat.training import autotune
from nanochat.training.config import LoopOptions, Plan, refuse_other_settings
from nanochat.training.schedule import Schedule
from nanochat.training.trainer import Speed
from tasks.primer import Primer
from tests.small_model import small_model, small_tokenizer


def plan_of(rows: int, **options: Any) -> Plan:
    given: dict[str, Any] = {field.name: None for field in fields(Plan)}
    given |= {"options": LoopOptions(**options), "model": small_model(), "rows": rows}
    return Plan(**{**given, "schedule": Schedule(1), "has_fixed_shape": True})


@pytest.mark.parametrize(("rows", "world_size"), [(8, 1), (8, 3), (8, 8), (32, 24), (43, 6)])
def test_a_rank_has_at_most_as_many_rows_as_the_plan_says(rows: int, world_size: int) -> None:
    shape = {"rows": rows, "sequence_len": 32, "world_size": world_size}
    texts = [primer.document(seed=0, index=i) for i in range(50)]
    packed, masked = [], []
    for rank in range(world_size):
        packed += tokenizing_distributed_data_loader(
            texts, small_tokenizer(), num_steps=1, num_threads=1, rank=rank, **shape
        )
        masked += chat_batches.masked_conversations(
            Primer("train", stage="sft", size=rows), small_tokenizer(), num_epochs=1, seed=0,
            rank=rank, **shape,
        )  # fmt: skip
    most = plan_of(rows).rank_rows(world_size)
    assert max(len(batch.inputs) for batch in packed) == most
    assert {len(batch.inputs) for batch in masked} == {most}


@pytest.mark.parametrize("device_batch_size", [-1, 1, 4])
@pytest.mark.parametrize(("rows", "world_size"), [(8, 3), (32, 24), (2, 4)])
def test_micro_batches_are_of_a_row_at_least_on_any_number_of_ranks(
    rows: int, world_size: int, device_batch_size: int
) -> None:
    plan = plan_of(rows, device_batch_size=device_batch_size)
    place = Runtime(torch.device("cpu"), 0, world_size, torch.float32)
    found = autotune.micro_rows(plan, Speed(1.0, 1e12), place, {})
    most = -(-rows // world_size)
    assert found == (most if device_batch_size < 0 else min(device_batch_size, most))


def test_what_a_size_became_that_was_not_noted_is_no_other_setting() -> None:
    asked = {"total_batch_size": 4096, "seed": 1}
    refuse_other_settings(Path("d1"), {"total_batch_size": -1, "seed": 1}, asked, LoopOptions())
    with pytest.raises(UserError, match=r"\(total_batch_size: 2048 there, 4096 asked\)"):
        refuse_other_settings(Path("d1"), {**asked, "total_batch_size": 2048}, asked, LoopOptions())
