"""Rows of documents and conversations, one token at a time."""

from collections.abc import Callable, Iterator


def lane_rows(
    tokens: Callable[[int], list[int]], lane: int, num_lanes: int, bos: int, row_len: int
) -> Iterator[list[int]]:
    """The endless rows of a lane; tokens(n) is document n, counted through the epochs."""
    counter, rest = lane, None
    while True:
        row = [bos]
        is_begun = rest is not None and len(rest) > 0
        while len(row) < row_len:
            if not rest:
                rest = list(tokens(counter))
                counter += num_lanes
                if is_begun:
                    row.append(bos)
                is_begun = True
                continue
            row.append(rest.pop(0))
        yield row


def masked_row(ids: list[int], mask: list[int], length: int) -> tuple[list[int], list[int]]:
    """inputs and targets of a conversation in a row of `length`; targets -1 where mask is 0."""
    inputs, targets = [], []
    for place in range(length):
        inputs.append(ids[place] if place + 1 < len(ids) else 0)
        is_target = place + 1 < len(ids) and mask[place + 1] == 1
        targets.append(ids[place + 1] if is_target else -1)
    return inputs, targets
