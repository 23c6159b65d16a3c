"""Batches of conversations: packed for midtraining, one per row and masked for finetuning.

# B rows of this rank  T time
"""

import logging
import random
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch

from nanochat.chat import Conversation, Tokenizer, render_conversation
from nanochat.data.batch import Batch
from nanochat.data.packing import Ids, packed_batches
from nanochat.errors import UserError
from nanochat.runtime import derive_seed

logger = logging.getLogger(__name__)

BATCH_CONVERSATIONS = 64  # rendered at a time: a few milliseconds
LENGTH_STEP = 32  # rows are padded to a multiple of this: fewer shapes to compile and plan
SAMPLE_SIZE = 500  # conversations whose lengths give the steps of an epoch


class Conversations(Protocol):
    """Any indexable source of conversations."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Conversation: ...


def _refuse_empty(task: Conversations) -> None:
    if not len(task):
        raise UserError("no conversations: the task is empty; choose another one")


class ShuffledConversations:
    """The conversations of a task as token ids, epoch after epoch, each epoch in another order."""

    def __init__(self, task: Conversations, tokenizer: Tokenizer, seed: int) -> None:
        _refuse_empty(task)
        self.task, self.tokenizer, self.seed = task, tokenizer, seed
        self.bos, self.num_documents = tokenizer.encode_special("<|bos|>"), len(task)
        self.order = lru_cache(maxsize=2)(self._order)  # a step may span two epochs

    def _order(self, epoch: int) -> list[int]:
        order = list(range(len(self.task)))
        random.Random(derive_seed(self.seed, "epoch", epoch)).shuffle(order)
        return order

    def render(self, number: int) -> tuple[list[int], list[int]]:
        """ids and mask of a conversation, numbered through the epochs."""
        epoch, index = divmod(number, len(self.task))
        return render_conversation(self.task[self.order(epoch)[index]], self.tokenizer)

    def encode(self, first: int) -> tuple[Ids, Ids]:
        """As `packing.DocumentSource`: without <|bos|>, which packing adds."""
        rendered = [self.render(first + i)[0][1:] for i in range(BATCH_CONVERSATIONS)]
        return np.array([*chain(*rendered)], np.int32), np.cumsum([len(ids) for ids in rendered])


def packed_conversations(
    task: Conversations, tokenizer: Tokenizer, *, seed: int, **packing: Any
) -> Iterator[Batch]:
    """Batches (B, T) of conversations end to end; `packing`: keywords of `packed_batches`."""
    return packed_batches(ShuffledConversations(task, tokenizer, seed), seed=seed, **packing)


def packed_steps(task: Conversations, tokenizer: Tokenizer, *, rows: int, sequence_len: int) -> int:
    """Steps of about one epoch, estimated from the lengths of 500 conversations."""
    _refuse_empty(task)
    sample = range(0, len(task), max(1, len(task) // SAMPLE_SIZE))  # from every part of a mixture
    lengths = [len(render_conversation(task[i], tokenizer)[0]) for i in sample]
    total = sum(lengths) * len(task) / len(lengths)
    return max(1, round(total / (rows * sequence_len)))


def masked_steps(task: Conversations, rows: int, num_epochs: int) -> int:
    """Optimizer steps of `num_epochs` epochs; the last step may have fewer rows."""
    return -(-len(task) * num_epochs // rows)


def masked_conversations(
    task: Conversations, tokenizer: Tokenizer, *,
    rows: int, sequence_len: int, rank: int, world_size: int, num_epochs: int, seed: int,
    resume: dict[str, Any] | None = None,
) -> Iterator[Batch]:  # fmt: skip
    """Batches (B, T) of one conversation per row; only the assistant's tokens are targets.

    T is the longest row of the step. Longer conversations are truncated to `sequence_len`, and
    their number is logged at the end.
    """
    conversations = ShuffledConversations(task, tokenizer, seed)
    total, num_steps = len(task) * num_epochs, masked_steps(task, rows, num_epochs)
    first_step = resume["step"] if resume else 0
    row_len = sequence_len + 1  # inputs and the last target
    num_truncated, num_without_targets = 0, 0
    for step in range(first_step, num_steps):
        # Every rank renders the whole step: the norm and T depend on all of its rows.
        numbers = range(step * rows, min((step + 1) * rows, total))
        rendered = [conversations.render(number) for number in numbers]
        num_truncated += sum(len(ids) > row_len for ids, _ in rendered)
        num_without_targets += sum(any(mask) and not any(mask[:row_len]) for _, mask in rendered)
        rendered = [(ids[:row_len], mask[:row_len]) for ids, mask in rendered]
        num_targets = sum(sum(mask[1:]) for _, mask in rendered)
        # Sorted by length, micro-batches need less padding; the sum of gradients is the same.
        rendered.sort(key=lambda row: len(row[0]))
        longest = len(rendered[-1][0]) - 1
        length = min(-(-longest // LENGTH_STEP) * LENGTH_STEP, sequence_len)
        inputs, targets = padded_rows(rendered[rank::world_size], -(-rows // world_size), length)
        norm = max(1, num_targets) / world_size  # 1: no NaN without targets
        yield Batch(inputs, targets, None, norm, (step + 1) / num_steps, {"step": step + 1})
    if num_truncated and rank == 0:
        logger.info(
            "%d of %d conversations were truncated to %d tokens; %d of them lost every target",
            num_truncated, total - first_step * rows, sequence_len, num_without_targets,
        )  # fmt: skip


def padded_rows(
    rendered: list[tuple[list[int], list[int]]], num_rows: int, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """inputs and targets (num_rows, length); missing rows are padding without targets."""
    inputs = torch.zeros(num_rows, length, dtype=torch.int64)
    targets = torch.full((num_rows, length), -1, dtype=torch.int64)
    for row, (ids, mask) in enumerate(rendered):
        tokens, is_target = torch.tensor(ids), torch.tensor(mask, dtype=torch.bool)
        inputs[row, : len(ids) - 1] = tokens[:-1]
        targets[row, : len(ids) - 1] = torch.where(is_target, tokens, -1)[1:]
    return inputs, targets
