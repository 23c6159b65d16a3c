import logging
from collections import Counter
from functools import cache, partial
from typing import Any

import pytest
import torch

from nanochat.chat import Conversation, render_conversation
from nanochat.data import packing
from nanochat.data.batch import Batch
from nanochat.data.chat_batches import (
    ShuffledConversations,
    masked_conversations,
    masked_steps,
    packed_conversations,
    packed_steps,
)
from nanochat.errors import UserError
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import SPECIAL_TOKENS, RustBPETokenizer
from nanochat.training.trainer import accumulate_gradients
from tasks.primer import Primer
from tests.reference.batches import masked_row, shuffled_rows, stream_rows
from tests.small_model import random_model

CONTEXT = 64


@cache
def tokenizer() -> RustBPETokenizer:
    return RustBPETokenizer.train_from_iterator(["what is the name of the fox"] * 3, 280)


def conversation(number: int) -> Conversation:
    """A tool call in every third one, two turns in every second one."""
    parts = [
        {"type": "python", "text": f"{number}+1"},
        {"type": "python_output", "text": str(number + 1)},
        {"type": "text", "text": f"It is {number + 1}."},
    ]
    messages: list[dict[str, Any]] = []
    for turn in range(1 + number % 2):
        messages += [
            {"role": "user", "content": f"what is {number} and {turn}? <|assistant_end|>"},
            {"role": "assistant", "content": parts if number % 3 == 0 else f"the fox {number}"},
        ]
    if number % 4 == 0:
        messages = [{"role": "system", "content": "Be brief."}, *messages]
    return {"messages": messages}


def answer(text: str) -> Conversation:
    return {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]}


TASK = [conversation(number) for number in range(11)]


def masked(task: Any = TASK, **changes: Any) -> list[Batch]:
    arguments: dict[str, Any] = {
        "rows": 4, "sequence_len": CONTEXT, "rank": 0, "world_size": 1, "num_epochs": 1, "seed": 7,
        **changes,
    }  # fmt: skip
    return list(masked_conversations(task, tokenizer(), **arguments))


def rows_of(batches: list[Batch]) -> Counter[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The rows that have a target, without the padding after the last target."""
    found: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    for batch in batches:
        for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
            end = max((place + 1 for place, t in enumerate(targets) if t >= 0), default=0)
            if end:
                found[tuple(inputs[:end]), tuple(targets[:end])] += 1
    return found


def reference_rows(task: Any, context: int = CONTEXT) -> Counter[Any]:
    batches = []
    for messages in task:
        inputs, targets = masked_row(*render_conversation(messages, tokenizer()), context)
        batches.append(Batch(torch.tensor([inputs]), torch.tensor([targets]), None, 1.0, 0.0, {}))
    return rows_of(batches)


# ---- one conversation per row, masked


@pytest.mark.parametrize("rows", [1, 2, 4, 16])
def test_rows_equal_the_reference_and_none_is_missing(rows: int) -> None:
    assert rows_of(masked(rows=rows)) == reference_rows(TASK)


def test_targets_are_the_assistants_tokens_including_the_end_token() -> None:
    for batch in masked():
        for targets in batch.targets.tolist():
            text = tokenizer().decode([token for token in targets if token >= 0])
            if not text:
                continue
            pieces = [piece for piece in text.split("<|assistant_end|>") if piece]
            assert text.endswith("<|assistant_end|>")
            for piece in pieces:
                is_call = piece.startswith("<|python_start|>")
                assert ("<|python_end|>It is" in piece) if is_call else piece.startswith("the fox")
            specials = {name for name in SPECIAL_TOKENS if name in text}
            assert specials <= {"<|python_start|>", "<|python_end|>", "<|assistant_end|>"}


def test_every_epoch_has_each_conversation_once_in_another_order() -> None:
    one, three = masked(rows=11), masked(rows=11, num_epochs=3)
    assert rows_of(three) == Counter({row: 3 * n for row, n in reference_rows(TASK).items()})
    assert all(rows_of([batch]) == rows_of(one) for batch in three)
    shuffled = ShuffledConversations(TASK, tokenizer(), 7)
    epochs = [[shuffled.render(epoch * 11 + i) for i in range(11)] for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    again, other = (ShuffledConversations(TASK, tokenizer(), seed) for seed in (7, 8))
    assert [again.render(i) for i in range(11)] == epochs[0]
    assert [other.render(i) for i in range(11)] != epochs[0]


def test_a_step_may_span_two_epochs() -> None:
    batches = masked(rows=4, num_epochs=3)
    assert len(batches) == masked_steps(TASK, 4, 3) == 9
    assert [batch.progress for batch in batches] == [(step + 1) / 9 for step in range(9)]
    assert sum(rows_of(batches).values()) == 33


@pytest.mark.parametrize("world_size", [2, 3, 5, 8])
def test_ranks_share_the_rows_of_a_step_and_have_equal_norms(world_size: int) -> None:
    alone = masked(num_epochs=2)
    ranks = [masked(num_epochs=2, rank=rank, world_size=world_size) for rank in range(world_size)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert rows_of(parts) == rows_of([whole])
        assert len({part.inputs.shape for part in parts}) == 1
        num_targets = int((whole.targets >= 0).sum())
        assert whole.norm == num_targets
        assert {part.norm for part in parts} == {num_targets / world_size}


@pytest.mark.parametrize("stop", [1, 4, 8])
def test_a_resumed_run_equals_an_uninterrupted_one(stop: int) -> None:
    uninterrupted = masked(num_epochs=3)
    rest = masked(num_epochs=3, resume=uninterrupted[stop - 1].resume)
    assert len(rest) == 9 - stop
    for a, b in zip(uninterrupted[stop:], rest, strict=True):
        assert torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets)
        assert (a.norm, a.resume, a.progress) == (b.norm, b.resume, b.progress)


@pytest.mark.parametrize("context", [1, 2, 5, 8, 16, 33])
def test_long_conversations_are_truncated_to_the_context_and_counted_in_the_log(
    context: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    batches = masked(sequence_len=context, num_epochs=2)
    assert all(batch.inputs.size(1) <= context for batch in batches)
    assert rows_of(batches) == Counter({r: 2 * n for r, n in reference_rows(TASK, context).items()})
    assert len(batches) == masked_steps(TASK, 4, 2)
    assert all(batch.norm >= 1 for batch in batches)
    lengths = [len(render_conversation(one, tokenizer())[0]) for one in TASK]
    num_cut = 2 * sum(length > context + 1 for length in lengths)
    num_empty = 2 * (len(TASK) - sum(reference_rows(TASK, context).values()))
    assert f"{num_cut} of 22 conversations were truncated" in caplog.text
    assert f"{num_empty} of them lost every target" in caplog.text


def test_after_resuming_only_later_conversations_are_counted_as_truncated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    masked(sequence_len=1, resume={"step": 1})
    assert "7 of 7 conversations were truncated" in caplog.text


def test_nothing_is_logged_without_truncated_conversations(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    masked(sequence_len=200)
    assert caplog.text == ""


def test_rows_are_padded_to_a_multiple_of_32() -> None:
    widths = {batch.inputs.size(1) for batch in masked(sequence_len=1000, rows=1)}
    assert all(width % 32 == 0 for width in widths)


@pytest.fixture(scope="module")
def model() -> GPT:
    config = GPTConfig(
        sequence_len=CONTEXT, vocab_size=tokenizer().get_vocab_size(), n_layer=1, n_head=2,
        n_kv_head=2, n_embd=16,
    )  # fmt: skip
    return random_model(config, seed=1, scale=0.2)


def gradients(model: GPT, batches: list[Batch], device_batch_size: int) -> list[torch.Tensor]:
    model.zero_grad()
    for batch in batches:
        loss = accumulate_gradients(model, batch, device_batch_size, torch.device("cpu"))
        assert loss == loss
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_a_batch_without_targets_has_zero_gradients_and_no_nan(model: GPT) -> None:
    without_targets = [{"messages": [{"role": "user", "content": "hello"}]}] * 3
    (batch,) = masked(without_targets)
    assert (batch.targets == -1).all() and batch.norm == 1
    assert all((gradient == 0).all() for gradient in gradients(model, [batch], 2))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_gradient_depends_neither_on_ranks_nor_on_the_micro_batch(
    model: GPT, world_size: int
) -> None:
    (step,) = masked(rows=11)
    expected = gradients(model, [step], 11)
    for device_batch_size in (1, 3):
        parts = [masked(rows=11, rank=rank, world_size=world_size)[0] for rank in range(world_size)]
        summed = gradients(model, parts, device_batch_size)
        for a, b in zip(expected, summed, strict=True):
            torch.testing.assert_close(b / world_size, a, rtol=1e-4, atol=1e-6)


def test_a_task_without_conversations_is_refused() -> None:
    for make in (
        lambda: masked([]),
        lambda: packed([]),
        lambda: packed_steps([], tokenizer(), rows=4, sequence_len=8),
    ):
        with pytest.raises(UserError, match="no conversation"):
            make()


# ---- packed


def packed(task: Any = TASK, **changes: Any) -> list[Batch]:
    arguments: dict[str, Any] = {
        "rows": 4, "sequence_len": 24, "rank": 0, "world_size": 1, "num_steps": 30, "seed": 7,
        **changes,
    }  # fmt: skip
    return list(packed_conversations(task, tokenizer(), **arguments))


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_packed_rows_equal_the_reference_over_epochs(
    monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(packing, "BLOCK_ROWS", 20)
    order = ShuffledConversations(TASK, tokenizer(), 7)
    bos = tokenizer().get_bos_token_id()
    stream = stream_rows(lambda number: order.render(number)[0][1:], bos, 25)
    expected = shuffled_rows(stream, 30 * rows, 20, partial(packing.block_order, 7))
    batches = packed(rows=rows)
    assert [row for batch in batches for row in packed_rows(batch)] == expected
    assert all(batch.weights is None and batch.norm == rows * 24 for batch in batches)


def packed_rows(batch: Batch) -> list[list[int]]:
    return torch.cat([batch.inputs, batch.targets[:, -1:]], dim=1).tolist()


def test_packed_rows_depend_neither_on_ranks_nor_on_resuming() -> None:
    alone = packed()
    ranks = [packed(rank=rank, world_size=2) for rank in range(2)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert torch.equal(whole.inputs[0::2], parts[0].inputs)
        assert torch.equal(whole.inputs[1::2], parts[1].inputs)
    rest = packed(resume=alone[9].resume)
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(alone[10:], rest, strict=True))


def test_packed_steps_are_about_one_epoch() -> None:
    num_tokens = sum(len(render_conversation(one, tokenizer())[0]) for one in TASK)
    assert packed_steps(TASK, tokenizer(), rows=2, sequence_len=8) == round(num_tokens / 16)
    assert packed_steps(TASK[:1], tokenizer(), rows=512, sequence_len=512) == 1


def test_packed_steps_train_on_each_conversation_of_a_task_once() -> None:
    task = Primer("train", stage="mid", size=2000)
    shape = {"rows": 8, "sequence_len": 64}
    num_steps = packed_steps(task, tokenizer(), **shape)
    *_, last = packed(task, num_steps=num_steps, **shape)
    assert last.metrics["epoch"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("make", [packed, masked])
def test_a_very_long_conversation_is_truncated_or_split(make: Any) -> None:
    batches = make([answer("the fox " * 2000)], rows=2)
    assert all((batch.inputs >= 0).all() for batch in batches)
    assert all(batch.inputs.size(1) <= CONTEXT for batch in batches)
