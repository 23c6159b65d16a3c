"""Pretrain a model on the text of the current source.

python -m scripts.base_train --depth=4
torchrun --standalone --nproc_per_node=8 -m scripts.base_train -- --depth=20
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch

from nanochat import dataset
from nanochat.configurator import at_least, between, parse, run
from nanochat.data import shards
from nanochat.data.batch import Batch
from nanochat.dataloader import tokenizing_distributed_data_loader
from nanochat.engine import Engine
from nanochat.gpt import GPT, GPTConfig
from nanochat.runtime import Runtime
from nanochat.tokenizer import get_tokenizer
from nanochat.training import schedule, stage
from nanochat.training.config import LoopOptions, Plan, defining_settings
from nanochat.training.samples import continuations

SAMPLE_PROMPTS = (
    "The fox is",
    "Once upon a time",
    "Question: What day comes after Monday? Answer:",
)


@dataclass(frozen=True)
class Options(LoopOptions):
    """Pretrain a model on the text of the current source."""

    depth: int = 20
    """Layers; the width is 64 times as much, and everything else follows."""
    head_dim: int = 128
    """Width of an attention head; small depths take the nearest legal shape."""
    max_seq_len: Annotated[int, at_least(1)] = 2048
    """Tokens of context."""
    rope_base: Annotated[float, at_least(2)] = 10_000.0
    """Base of the rotary embedding; a short context wants a small one."""
    window_pattern: str = "L"
    """Letters for the layers, repeated: S attends to half the context, L to all; the last is L."""
    num_iterations: Annotated[int, at_least(1, besides=-1)] = -1
    """Optimizer steps; -1 means what --target_flops or --tokens_per_parameter give."""
    target_flops: Annotated[float, at_least(1, besides=-1)] = -1.0
    """FLOPs to spend; -1 means by --tokens_per_parameter."""
    tokens_per_parameter: float = 20.0
    """Training tokens for each parameter outside the embedding."""
    total_batch_size: int = -1
    """Tokens of one optimizer step over all ranks; -1 means by the token budget."""
    warmup_steps: Annotated[int, at_least(0)] = 0
    """Steps in which the learning rate rises."""
    warmdown_share: Annotated[float, between(0, 1)] = 0.5
    """Share of the run, at its end, in which the learning rate falls."""
    final_lr: Annotated[float, between(0, 1)] = 0.0
    """Where the learning rate ends, as a share of its plateau."""
    source: str = ""
    """Text to train on; empty means what nanochat.dataset chose last."""


def main(argv: list[str] | None = None) -> None:
    """Train to the end, or say that it is done."""
    options = parse(Options, argv)
    with stage.opened(options.device_type) as runtime:
        pretrain(options, runtime)


def pretrain(options: Options, runtime: Runtime) -> None:
    """Everything between the options and the loop."""
    tokenizer = get_tokenizer()
    config = GPTConfig.from_depth(
        options.depth,
        vocab_size=tokenizer.get_vocab_size(),
        sequence_len=options.max_seq_len,
        head_dim=options.head_dim,
        rope_base=options.rope_base,
        window_pattern=options.window_pattern,
    )
    source = dataset.source_name(options.source or dataset.current_source())
    tag = options.model_tag or f"d{options.depth}"
    with torch.device("meta"):  # no memory before the table of the run has been printed
        model = GPT(config, compute_dtype=runtime.compute_dtype)
    budget = token_budget(options, model)
    step_tokens = options.total_batch_size
    if step_tokens == -1:
        step_tokens = stage.unnoted_step_tokens("base", tag, options)
        step_tokens = step_tokens or schedule.batch_tokens(budget, options.max_seq_len)
    settings = defining_settings(
        options,
        model_tag=tag,
        source=source,
        tokenizer=tokenizer.content_hash,
        total_batch_size=step_tokens,
    )
    if stage.finished("base", tag, settings, options):
        return
    rows = schedule.global_rows(step_tokens, options.max_seq_len, runtime.world_size)
    num_steps = options.num_iterations
    if num_steps == -1:
        num_steps = max(1, budget // step_tokens)
    documents = shards.Documents(dataset.shard_paths(source, "train"))

    def batches(resume: dict[str, Any] | None) -> Iterator[Batch]:
        return tokenizing_distributed_data_loader(
            documents,
            tokenizer,
            rows=rows,
            sequence_len=options.max_seq_len,
            rank=runtime.rank,
            world_size=runtime.world_size,
            num_steps=num_steps,
            resume=resume,
        )

    plan = Plan(
        stage="base",
        tag=tag,
        options=options,
        settings=settings,
        source=source,
        tokenizer=tokenizer,
        model=model,
        schedule=schedule.Schedule(
            num_steps, options.warmup_steps, options.warmdown_share, options.final_lr
        ),
        rows=rows,
        batches=batches,
        samples=lambda: continuations(Engine(model, tokenizer), SAMPLE_PROMPTS),
    )
    stage.run(plan, runtime)


def token_budget(options: Options, model: GPT) -> int:
    """Tokens to train on, unless --num_iterations says otherwise."""
    counts = model.num_parameters()
    return schedule.horizon_tokens(
        num_parameters=counts["total"] - counts["embedding"],
        flops_per_token=model.flops_per_token(),
        target_flops=options.target_flops,
        tokens_per_parameter=options.tokens_per_parameter,
    )


if __name__ == "__main__":
    run(main)
