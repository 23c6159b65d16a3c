"""A batch cut into what one forward pass takes: rows padded, or joined without padding."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nanochat.data.batch import Batch
from nanochat.kernels.documents import CPU_SIZES, documents_of

WIDTH_STEP = 8  # tensor cores want multiples of 8, and the padding stays small
JOINED_SIZES = 16  # lengths of joined rows on a GPU: with few of them memory can be used again


def micro_batches(
    batch: Batch, rows: int, joined_length: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, dict[str, Any]]]:
    """Inputs, targets, weights (None: 1 everywhere) and documents of each forward pass.

    rows: of a pass. joined_length: 0, or the number of tokens that rows are joined to per row.
    Neither of them changes the loss or the gradient.
    """
    num_sizes = 0 if device.type == "cpu" else JOINED_SIZES
    cut = _joined(batch, rows, joined_length, num_sizes) if joined_length else _padded(batch, rows)
    for inputs, targets, weights, documents in cut:
        if weights is None:
            weights = torch.ones(targets.shape, device=device)
        named: dict[str, Any] = {"weights": _to_device(weights, device)}
        if documents is not None:
            starts, positions, longest = documents
            moved = _to_device(starts, device), _to_device(positions, device), longest
            named["documents"] = documents._make(moved)
        yield _to_device(inputs, device), _to_device(targets, device), named


def _padded(batch: Batch, num_rows: int) -> Iterator[Any]:
    for first in range(0, batch.inputs.size(0), num_rows):
        rows = slice(first, first + num_rows)
        used = rows, slice(width_in_use(batch.targets[rows]))
        weights = None if batch.weights is None else batch.weights[used]
        yield batch.inputs[used], batch.targets[used], weights, None


def _joined(batch: Batch, num_rows: int, length: int, num_sizes: int) -> Iterator[Any]:
    """Rows up to their last target, end to end in one row of at most num_rows * length tokens.

    Padded to one of `num_sizes` lengths; 0: to a multiple of CPU_SIZES.
    """
    capacity = num_rows * max(length, batch.inputs.size(1))
    step = -(-capacity // num_sizes) if num_sizes else CPU_SIZES
    lengths = used_lengths(batch.targets)
    totals, first = lengths.cumsum(0), 0
    while first < len(lengths):
        before = int(totals[first - 1]) if first else 0
        end = int(torch.searchsorted(totals, before + capacity, right=True))
        yield _as_one_row(batch, lengths[first:end], slice(first, end), step)
        first = end


def _as_one_row(batch: Batch, lengths: Tensor, rows: slice, step: int) -> Any:
    total = int(lengths.sum())
    padding = max(1, -(-total // step)) * step - total
    is_used = torch.arange(batch.inputs.size(1)) < lengths[:, None]

    def joined(values: Tensor, fill: float) -> Tensor:
        return torch.cat([values[rows][is_used], values.new_full((padding,), fill)])[None]

    # The padding consists of documents as well: attention leaves nothing else undefined.
    most = max(1, int(lengths.max()))
    pads = [most] * (padding // most) + [padding % most] * (padding % most > 0)
    documents = documents_of([*filter(None, lengths.tolist()), *pads], len(lengths) + len(pads) + 1)
    weights = None if batch.weights is None else joined(batch.weights, 0.0)
    return joined(batch.inputs, 0), joined(batch.targets, -1), weights, documents


def width_in_use(targets: Tensor) -> int:
    """Columns up to the last target of any row, rounded up; later ones do not affect the loss."""
    has_target = (targets >= 0).any(dim=0)
    last = int(has_target.nonzero().max()) + 1 if has_target.any() else 1
    return min(-(-last // WIDTH_STEP) * WIDTH_STEP, targets.size(1))  # never beyond the context


def used_lengths(targets: Tensor) -> Tensor:
    """(B,) tokens up to the last target of each row."""
    return ((targets >= 0) * torch.arange(1, targets.size(1) + 1)).amax(dim=1)


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=device.type == "cuda")
