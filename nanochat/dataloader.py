"""Packs documents into batches, identically on any number of ranks.

Each row of the global step is a lane. Lane l of L reads the documents l, l + L, l + 2L, ... epoch
after epoch, each document preceded by <|bos|>, and fills one row per step. A row that starts inside
a document gets its own <|bos|>. Nothing is skipped or repeated. Rank r of W runs the lanes with
l % W == r; the state of a lane is two integers.

# B rows of this rank  T sequence_len
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from nanochat.data.batch import Batch
from nanochat.errors import UserError
from nanochat.tokenizer import RustBPETokenizer


class Texts(Protocol):
    """A list of texts, or `shards.Documents`, whose slices are not copied."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: slice, /) -> Sequence[str]: ...


Row = np.ndarray[Any, np.dtype[np.int64]]  # tokens of one row of the step
Ids = np.ndarray[Any, Any]  # tokens of documents, as narrow as the vocabulary allows

RUN_DOCUMENTS = 256  # encoded at a time: enough work for several threads
CACHED_BYTES = 256_000_000  # of token ids


class TokenSource(Protocol):
    """Documents as token ids without <|bos|>, numbered through the epochs."""

    num_documents: int  # of one epoch

    def tokens(self, counter: int) -> Sequence[int] | Ids: ...


class EncodedTexts:
    """Texts, encoded in batches; counter n is document n % len of epoch n // len.

    Lanes read neighboring documents and drift apart slowly, so encoded batches are cached.
    """

    def __init__(self, texts: Texts, tokenizer: RustBPETokenizer, num_threads: int = 4) -> None:
        if not len(texts):
            raise UserError("no documents; run python -m nanochat.dataset first")
        self.texts, self.tokenizer, self.num_threads = texts, tokenizer, num_threads
        self.num_documents = len(texts)
        self.encoded: OrderedDict[int, tuple[Ids, Ids]] = OrderedDict()
        self.cached_bytes = 0

    def tokens(self, counter: int) -> Ids:
        run, place = divmod(counter % self.num_documents, RUN_DOCUMENTS)
        ids, ends = self._encoded(run)
        return ids[ends[place - 1] if place else 0 : ends[place]]

    def _encoded(self, run: int) -> tuple[Ids, Ids]:
        """Token ids of a batch of documents, and where each document ends."""
        if run not in self.encoded:
            texts = self.texts[run * RUN_DOCUMENTS : (run + 1) * RUN_DOCUMENTS]
            self.encoded[run] = self.tokenizer.encode_to_array(texts, self.num_threads)
            self.cached_bytes += self.encoded[run][0].nbytes
        self.encoded.move_to_end(run)
        while self.cached_bytes > CACHED_BYTES and len(self.encoded) > 1:
            _, (ids, _) = self.encoded.popitem(last=False)
            self.cached_bytes -= ids.nbytes
        return self.encoded[run]


@dataclass
class Lane:
    """Position of one row of the step in its documents."""

    counter: int  # current document, numbered through the epochs
    offset: int  # tokens of it already used
    document: Sequence[int] | Ids | None = None  # its tokens, once encoded

    def fill(self, source: TokenSource, num_lanes: int, bos: int, row: Row) -> None:
        """Fill `row` with the next tokens of this lane, starting with <|bos|>."""
        filled = 0
        while filled < len(row):
            if not filled or self.offset == 0:
                row[filled] = bos
                filled += 1
            if self.document is None:
                self.document = source.tokens(self.counter)
            part = self.document[self.offset : self.offset + len(row) - filled]
            row[filled : filled + len(part)] = part
            filled += len(part)
            self.offset += len(part)
            if self.offset >= len(self.document):
                self.counter, self.offset, self.document = self.counter + num_lanes, 0, None


def packed_batches(
    source: TokenSource,
    *,
    bos: int,
    rows: int,
    sequence_len: int,
    rank: int,
    world_size: int,
    num_steps: int,
    resume: dict[str, Any] | None = None,
) -> Iterator[Batch]:
    """This rank's share of the `rows` rows of each step, from the start or a saved state.

    Raises UserError if the state belongs to a run with another number of documents or rows.
    """
    own = range(rank, rows, world_size)
    if resume:
        _refuse_other_run(resume, rows, sequence_len, source.num_documents)
    saved = resume["lanes"] if resume else {}
    lanes = {number: Lane(*saved.get(str(number), (number, 0))) for number in own}
    first_step = resume["step"] if resume else 0
    for step in range(first_step, num_steps):
        block = np.empty((len(own), sequence_len + 1), np.int64)
        for lane, row in zip(lanes.values(), block, strict=True):
            lane.fill(source, rows, bos, row)
        # Copied by numpy: synchronizing torch's threads costs more than the copy.
        inputs, targets = block[:, :-1].copy(), block[:, 1:].copy()
        state = {
            "step": step + 1,
            "documents": source.num_documents,
            "lanes": {str(n): [lane.counter, lane.offset] for n, lane in lanes.items()},
        }
        yield Batch(
            inputs=torch.from_numpy(inputs),
            targets=torch.from_numpy(targets),
            weights=None,
            norm=float(rows * sequence_len / world_size),
            progress=(step + 1) / num_steps,
            resume=state,
            metrics={"epoch": epoch(state)},
        )


def epoch(resume: dict[str, Any]) -> float:
    """Number of epochs at a loader state, e.g. 1.5."""
    counters = [counter for counter, _ in resume["lanes"].values()]
    # An evaluation may have fewer rows than ranks: then some ranks have no lane.
    return sum(counters) / max(1, len(counters)) / resume["documents"]


def _refuse_other_run(
    resume: dict[str, Any], rows: int, sequence_len: int, num_documents: int
) -> None:
    saved_rows = len(resume["lanes"])
    if saved_rows != rows:
        raise UserError(
            f"the run was saved with {saved_rows} rows a step and now has {rows}; use"
            f" --total_batch_size={saved_rows * sequence_len}, or start over with --fresh"
        )
    if resume.get("documents", num_documents) != num_documents:
        raise UserError(
            f"the run was saved with {resume['documents']} training documents and now there are"
            f" {num_documents}; restore the text, or start over with --fresh"
        )


def tokenizing_distributed_data_loader(
    documents: Texts,
    tokenizer: RustBPETokenizer,
    *,
    rows: int,
    sequence_len: int,
    rank: int,
    world_size: int,
    num_steps: int,
    resume: dict[str, Any] | None = None,
    num_threads: int = 4,
) -> Iterator[Batch]:
    """Batches (B, T) of packed documents, tokenized on the fly in threads.

    rows: per optimizer step, over all ranks.  resume: `Batch.resume`, merged over ranks.
    """
    return packed_batches(
        EncodedTexts(documents, tokenizer, num_threads),
        bos=tokenizer.get_bos_token_id(),
        rows=rows,
        sequence_len=sequence_len,
        rank=rank,
        world_size=world_size,
        num_steps=num_steps,
        resume=resume,
    )
