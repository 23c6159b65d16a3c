"""Packs documents into batches, identically on any number of ranks.

There is one token stream: document after document, epoch after epoch, each preceded by <|bos|>. It
is cut into rows of T + 1 tokens: T inputs and, shifted by one, T targets. Rows do not overlap; a
row that starts inside a document gets its own <|bos|>, so every token of a document is a target
exactly once. Blocks of 4,096 rows are shuffled by (seed, block), so that one long document does not
fill a batch; the last block ends with the run. Row r of a step belongs to rank r % world_size: each
rank encodes the whole stream and keeps its own rows. What is trained on depends only on the rows
per step. The state is the position of a block (document, offset) and the row within it.

# B rows of this rank  T sequence_len
"""

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch

from nanochat.data.batch import Batch
from nanochat.errors import UserError
from nanochat.runtime import derive_seed

Ids = np.ndarray[Any, Any]  # token ids, as narrow as the vocabulary allows
Position = tuple[int, int]  # document, through the epochs; tokens of it used, its <|bos|> included

BLOCK_ROWS = 4096  # 8.4M tokens at T = 2048: 17 MB as uint16, and longer than almost any document


class Texts(Protocol):
    """A list of texts, or `shards.Documents`, whose slices are not copied."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: slice, /) -> Sequence[str]: ...


class DocumentSource(Protocol):
    """Documents as token ids, numbered through the epochs."""

    bos: int  # id of <|bos|>, which no document contains
    num_documents: int  # of one epoch

    def encode(self, first: int) -> tuple[Ids, Ids]:
        """Ids of some documents from number `first` on, end to end, and where each one ends."""


def packed_batches(
    source: DocumentSource, *,
    rows: int, sequence_len: int, rank: int, world_size: int, num_steps: int, seed: int = 0,
    resume: dict[str, Any] | None = None,
) -> Iterator[Batch]:  # fmt: skip
    """This rank's share of the `rows` rows of each step, from the start or from `Batch.resume`.

    Raises UserError if there is no document, or if the state belongs to a run with another number
    of documents or rows.
    """
    if not source.num_documents:
        raise UserError("no documents; run python -m nanochat.dataset first")
    state = {"step": 0, "document": 0, "offset": 0, "row": 0} if resume is None else resume
    run = {"rows": rows, "documents": source.num_documents}
    _check_resume(run | state, run)
    position, total = (state["document"], state["offset"]), rows * num_steps
    num_read = state["step"] * rows - state["row"]  # rows of the stream; a state starts a block
    positions = {num_read: position}  # where the steps and blocks start, by rows read
    stream = cut_rows(source, sequence_len, position)
    shuffled = _shuffled(stream, num_read, total, seed)
    kept: dict[int, Ids] = {}  # rows of this rank that are yet to be trained on
    for step in range(state["step"], num_steps):
        first, end = step * rows, (step + 1) * rows
        # Any row may be the last of its block. Reading a block ahead spreads the work over steps.
        until = min(total, end + BLOCK_ROWS - 1)
        while num_read < until:
            row, tokens, position = next(shuffled)
            if row >= first and row % rows % world_size == rank:
                kept[row] = tokens.copy()  # a view would hold the rows of all ranks
            num_read += 1
            if num_read % rows == 0 or num_read % BLOCK_ROWS == 0:
                positions[num_read] = position
        own = [kept.pop(row) for row in range(first + rank, end, world_size)]
        block = end - end % BLOCK_ROWS  # first row of the block that the next step starts in
        while (oldest := next(iter(positions))) < block:
            del positions[oldest]
        document, offset = positions[block]
        state = {"step": step + 1, "document": document, "offset": offset, "row": end - block}
        inputs, targets = _tensors(own, source.bos, sequence_len)
        norm = rows * sequence_len / world_size
        # Documents the stream has gone through; the order within a block is left aside.
        metrics = {"epoch": positions[end][0] / source.num_documents}
        yield Batch(inputs, targets, None, norm, end / total, run | state, metrics)


def _check_resume(resume: dict[str, Any], run: dict[str, int]) -> None:
    if "lanes" in resume:  # each row of the step once read documents of its own
        raise UserError(
            f"the checkpoint of step {resume['step']} has the loader state of an earlier version"
            f" ({len(resume['lanes'])} lanes), which cannot be resumed; finish the run with that"
            " version, or start over with --fresh"
        )
    for name, value in run.items():
        if resume[name] != value:
            raise UserError(
                f"the run was saved with {resume[name]} {name} (rows per step, documents per epoch)"
                f" and now has {value}; restore the earlier number, or start over with --fresh"
            )


def _tensors(rows: list[Ids], bos: int, sequence_len: int) -> tuple[torch.Tensor, torch.Tensor]:
    """inputs and targets (B, T) int64 of rows of T + 1 tokens, or T without their <|bos|>."""
    tokens = np.full((len(rows), sequence_len + 1), bos, np.int64)
    for line, row in zip(tokens, rows, strict=True):
        line[-len(row) :] = row
    # Copied by numpy: synchronizing torch's threads costs more than the copy.
    return torch.from_numpy(tokens[:, :-1].copy()), torch.from_numpy(tokens[:, 1:].copy())


# ---- the stream


def cut_rows(
    source: DocumentSource, sequence_len: int, position: Position
) -> Iterator[tuple[Ids, Position]]:
    """Endless rows of the stream from a position on, each with the position after it.

    T + 1 tokens that start with <|bos|>, or T tokens that are to be preceded by one.
    """
    first, cut = position  # number of the document that `tokens` starts with; start of the next row
    number = first  # of the next document to encode
    tokens, starts = np.empty(0, np.uint16), np.empty(0, np.int64)
    while True:
        ids, ends = source.encode(number)
        number += len(ends)
        begins = np.concatenate(([0], ends[:-1]))
        # Each document is shifted by the <|bos|> of those before it.
        starts = np.concatenate((starts, len(tokens) + begins + np.arange(len(ends))))
        tokens = np.concatenate((tokens.astype(ids.dtype), np.insert(ids, begins, source.bos)))
        bounds = np.append(starts, len(tokens))  # where the next document will start
        if cut > bounds[1]:  # of a damaged state: all text would be read up to there
            raise UserError(f"document {first} has less than {cut} tokens; use --fresh")
        cuts = [cut]
        while cut < len(tokens):
            cut += sequence_len + int(tokens[cut] == source.bos)  # else its own takes a place
            cuts.append(cut)
        if cut > len(tokens):  # the last row is incomplete
            cuts.pop()
        documents = np.searchsorted(bounds, cuts, side="right") - 1
        offsets = cuts - bounds[documents]
        after = zip((first + documents[1:]).tolist(), offsets[1:].tolist(), strict=True)
        for (begin, end), next_position in zip(pairwise(cuts), after, strict=True):
            yield tokens[begin:end], next_position
        kept = min(int(documents[-1]), len(starts) - 1)  # the next row starts in it or after it
        first, cut = first + kept, cuts[-1] - int(starts[kept])
        tokens, starts = tokens[starts[kept] :], starts[kept:] - starts[kept]


def _shuffled(
    stream: Iterator[tuple[Ids, Position]], first: int, total: int, seed: int
) -> Iterator[tuple[int, Ids, Position]]:
    """The rows of the stream from the block at row `first` on, each with its number in the run."""
    for block_first in range(first, total, BLOCK_ROWS):
        num_rows = min(BLOCK_ROWS, total - block_first)
        for place in block_order(seed, block_first // BLOCK_ROWS, num_rows):
            yield block_first + place, *next(stream)


def block_order(seed: int, block: int, num_rows: int) -> list[int]:
    """For each row of a block, in stream order, its place in the order of training."""
    order = list(range(num_rows))
    # Not numpy's generator: a later version may draw other numbers, and a resumed run other rows.
    random.Random(derive_seed(seed, "block", block)).shuffle(order)
    return order
