"""Bits per byte: a loss that is comparable between tokenizers."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nanochat.data.batch import Batch
from nanochat.data.chat_batches import Conversations, masked_conversations
from nanochat.data.packing import Texts
from nanochat.dataloader import tokenizing_distributed_data_loader
from nanochat.gpt import GPT
from nanochat.runtime import Runtime, all_reduce_sum
from nanochat.tokenizer import RustBPETokenizer

ROWS_PER_PASS = 16  # micro-batch of a forward pass
TEXT_ROWS = 32  # per step over all ranks, fixed: any number of ranks evaluates the same text


@dataclass(frozen=True)
class Loss:
    """The loss on held-out text, in two units."""

    bits_per_byte: float  # without special tokens; infinity if no byte was counted
    nats_per_token: float  # of all targets, as the training loss


def text_loss(
    model: GPT, tokenizer: RustBPETokenizer, runtime: Runtime, documents: Texts, num_tokens: int
) -> Loss:
    """The loss on the first `num_tokens` tokens of documents, packed as in training.

    Rounded down to steps of 32 rows, at least one. Raises ValueError if `num_tokens` < 1.
    """
    if num_tokens <= 0:
        raise ValueError(f"--eval_tokens={num_tokens} evaluates nothing; use 1 or more")
    length = model.config.sequence_len
    batches = tokenizing_distributed_data_loader(
        documents, tokenizer,
        rows=TEXT_ROWS, sequence_len=length, rank=runtime.rank, world_size=runtime.world_size,
        num_steps=max(1, num_tokens // (TEXT_ROWS * length)),  # the shuffled block ends there
    )  # fmt: skip
    return evaluate_loss(model, batches, _token_bytes(tokenizer, runtime), ROWS_PER_PASS)


def chat_loss(
    model: GPT, tokenizer: RustBPETokenizer, runtime: Runtime, held_out: Conversations
) -> Loss:
    """The loss on the assistant's messages of held-out conversations."""
    batches = masked_conversations(
        held_out, tokenizer, rows=ROWS_PER_PASS * runtime.world_size,
        sequence_len=model.config.sequence_len, rank=runtime.rank, world_size=runtime.world_size,
        num_epochs=1, seed=0,
    )  # fmt: skip
    return evaluate_loss(model, batches, _token_bytes(tokenizer, runtime), ROWS_PER_PASS)


def _token_bytes(tokenizer: RustBPETokenizer, runtime: Runtime) -> Tensor:
    return torch.tensor(tokenizer.token_bytes(), dtype=torch.int32, device=runtime.device)


@torch.inference_mode()
def evaluate_loss(
    model: nn.Module, batches: Iterable[Batch], token_bytes: Tensor, device_batch_size: int
) -> Loss:
    """The loss of the batches' targets over all ranks. Collective.

    token_bytes: (V,) UTF-8 bytes of each token, 0 for special tokens, which bits per byte leave
    out. Raises ValueError if there is no batch on any rank.
    """
    was_training = model.training
    model.eval()
    # Without special tokens, and with them. float64 is exact up to 2^53.
    nats = num_bytes = all_nats = num_targets = num_batches = 0.0
    for batch in batches:
        num_batches += 1
        for first in range(0, batch.inputs.size(0), device_batch_size):
            rows = slice(first, first + device_batch_size)
            inputs = batch.inputs[rows].to(token_bytes.device)
            targets = batch.targets[rows].to(token_bytes.device)
            nll = model(inputs, targets)
            # Clamped: a masked target is -1, which would index the last token.
            sizes = torch.where(targets >= 0, token_bytes[targets.clamp(min=0)], 0)
            nats += float((nll * (sizes > 0)).sum(dtype=torch.float64))
            num_bytes += int(sizes.sum())
            all_nats += float(nll.sum(dtype=torch.float64))  # 0 where nothing is predicted
            num_targets += int((targets >= 0).sum())
    model.train(was_training)
    sums = [nats, num_bytes, num_batches, all_nats, num_targets]
    nats, num_bytes, num_batches, all_nats, num_targets = all_reduce_sum(sums)
    if num_batches == 0:
        raise ValueError("bits per byte over 0 steps is undefined; evaluate at least one step")
    return Loss(
        bits_per_byte=nats / (math.log(2) * num_bytes) if num_bytes else math.inf,
        nats_per_token=all_nats / num_targets if num_targets else math.inf,
    )
