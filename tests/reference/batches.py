"""Rows of documents and conversations, one token at a time."""

from collections.abc import Callable, Iterator
from itertools import chain, count, islice


def stream_rows(tokens: Callable[[int], list[int]], bos: int, row_len: int) -> Iterator[list[int]]:
    """The endless rows of the token stream; tokens(n) is document n, counted through the epochs."""
    stream = chain.from_iterable([bos, *tokens(number)] for number in count())
    for token in stream:
        row = [bos] if token == bos else [bos, token]
        yield row + list(islice(stream, row_len - len(row)))


def shuffled_rows(
    rows: Iterator[list[int]], total: int, block_rows: int, order: Callable[[int, int], list[int]]
) -> list[list[int]]:
    """`total` rows in the order of training; order(block, num_rows) is the place of each row."""
    trained: dict[int, list[int]] = {}
    for first in range(0, total, block_rows):
        for place in order(first // block_rows, min(block_rows, total - first)):
            trained[first + place] = next(rows)
    return [trained[number] for number in range(total)]


def masked_row(ids: list[int], mask: list[int], length: int) -> tuple[list[int], list[int]]:
    """inputs and targets of a conversation in a row of `length`; targets -1 where mask is 0."""
    inputs, targets = [], []
    for place in range(length):
        inputs.append(ids[place] if place + 1 < len(ids) else 0)
        is_target = place + 1 < len(ids) and mask[place + 1] == 1
        targets.append(ids[place + 1] if is_target else -1)
    return inputs, targets
