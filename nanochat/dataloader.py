"""Batches of text for pretraining: documents, tokenized on the fly and packed by `data.packing`.

B batch  T time
"""

from collections.abc import Iterator
from typing import Any

from nanochat.data.batch import Batch
from nanochat.data.packing import Ids, Texts, packed_batches
from nanochat.tokenizer import RustBPETokenizer

BATCH_DOCUMENTS = 256  # encoded at a time: enough work for several threads


class EncodedTexts:
    """Texts, encoded in batches; number n is text n % len of epoch n // len."""

    def __init__(self, texts: Texts, tokenizer: RustBPETokenizer, num_threads: int = 4) -> None:
        self.texts, self.tokenizer, self.num_threads = texts, tokenizer, num_threads
        self.bos, self.num_documents = tokenizer.get_bos_token_id(), len(texts)

    def encode(self, first: int) -> tuple[Ids, Ids]:
        index = first % self.num_documents  # the slice ends at the end of the epoch
        texts = self.texts[index : index + BATCH_DOCUMENTS]
        return self.tokenizer.encode_to_array(texts, self.num_threads)


def tokenizing_distributed_data_loader(
    documents: Texts, tokenizer: RustBPETokenizer, *, num_threads: int = 4, **packing: Any
) -> Iterator[Batch]:
    """Batches (B, T) of packed documents, tokenized on the fly; keywords as of `packed_batches`."""
    return packed_batches(EncodedTexts(documents, tokenizer, num_threads), **packing)
