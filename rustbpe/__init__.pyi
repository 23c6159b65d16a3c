"""What the compiled module holds; the code is in src/python.rs."""

from collections.abc import Iterable

DEFAULT_PATTERN: str

class Tokenizer:
    vocab_size: int
    def __init__(self) -> None: ...
    def train_from_iterator(
        self,
        iterator: Iterable[str],
        vocab_size: int,
        buffer_size: int = 8192,
        pattern: str | None = None,
    ) -> None: ...
    def get_pattern(self) -> str: ...
    def get_mergeable_ranks(self) -> list[tuple[bytes, int]]: ...
    def encode(self, text: str) -> list[int]: ...
