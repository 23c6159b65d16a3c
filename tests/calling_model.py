"""A random model that calls its tool often, and tools whose outputs it can tell apart."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nanochat.engine import Engine
from nanochat.inference.decode import Mode
from nanochat.inference.tools import Tool
from tests.small_model import ids, small_model, small_tokenizer


def shortened(expression: str) -> str | None:
    return None if len(expression) % 3 == 0 else expression[:4]


def shortened_later(expression: str) -> str | None:
    time.sleep(0.002 * (len(expression) % 4))
    return shortened(expression)


@contextmanager
def calls_often(tool: Tool, mode: Mode | None = None) -> Iterator[Engine]:
    """An engine with that model.

    In float64: how many rows share a pass depends on when a slow tool ends, and rounding on that.
    In float32 the logits of two tokens are sometimes so near that it decides between them.
    """
    model = small_model(sequence_len=200).double()
    model.compute_dtype = torch.float64
    engine = Engine(model, small_tokenizer(), tool, mode)
    bias = torch.zeros(engine.model.config.vocab_size)
    bias[ids("<|python_start|><|python_end|>")] = 4.0
    hook = engine.model.register_forward_hook(lambda _, args, logits: logits + bias)
    yield engine
    hook.remove()
