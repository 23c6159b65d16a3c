"""Types of the compiled module; the code is in src/python.rs."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

DEFAULT_PATTERN: str

class Tokenizer:
    vocab_size: int
    def __init__(
        self, tokens: Sequence[bytes] | None = None, pattern: str | None = None
    ) -> None: ...
    def train_from_iterator(
        self,
        iterator: Iterable[Any],
        vocab_size: int,
        buffer_size: int = 8192,
        pattern: str | None = None,
        num_threads: int = 0,
        progress: Callable[[str, int, int], object] | None = None,
    ) -> None: ...
    def get_pattern(self) -> str: ...
    def get_mergeable_ranks(self) -> list[tuple[bytes, int]]: ...
    def get_merges(self) -> list[tuple[int, int]]: ...
    def encode(
        self, text: str, prepend: int | None = None, append: int | None = None
    ) -> list[int]: ...
    def encode_batch(
        self,
        texts: Iterable[Any],
        num_threads: int = 0,
        prepend: int | None = None,
        append: int | None = None,
    ) -> list[list[int]]: ...
    def encode_to_arrays(
        self, texts: Any, num_threads: int = 0, wide: bool = False
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]: ...
