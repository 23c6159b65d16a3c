"""Pretrain a model on the text of the current source.

python -m scripts.base_train --depth=4
torchrun --standalone --nproc_per_node=8 -m scripts.base_train -- --depth=20
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any

from nanochat.configurator import at_least, between, is_given, parse, run_command
from scripts.options import LoopOptions


@dataclass(frozen=True)
class Options(LoopOptions):
    """Pretrain a model on the text of the current source."""

    depth: int = 20
    """Layers; the width is 64 times as much, and everything else is derived."""
    head_dim: int = 128
    """Width of an attention head; small depths use the nearest legal shape."""
    max_seq_len: Annotated[int, at_least(1)] = 2048
    """Tokens of context."""
    rope_base: Annotated[float, at_least(2)] = 10_000.0
    """Base of the rotary embedding; smaller for a short context."""
    window_pattern: str = "L"
    """Letters for the layers, repeated: S attends to half the context, L to all; the last is L."""
    value_embeddings: Annotated[int, at_least(0)] = 0
    """Tables of values, looked up by token: 1 for every layer, 2 for every second one, and so on,
    the last one included; 0 for none."""
    key_offset_heads: Annotated[int, at_least(0)] = 0
    """Heads, in each layer, whose keys are those of the token before: small models learn sooner to
    copy from the context."""
    rotary_share: Annotated[float, between(0, 1)] = 1.0
    """Share of a head's channels that are rotated by their position; 0.5 suits
    --key_offset_heads."""
    sampled_softmax_share: Annotated[float, between(0, 1)] = 0.0
    """Share of the run, at its start, in which the softmax sums over the target and a sample of the
    vocabulary: small models train faster. Only on a CPU in float32 or bfloat16; elsewhere 0."""
    sampled_softmax_size: Annotated[int, at_least(1)] = 320
    """Tokens that are in each sample; the n-th of the vocabulary with probability size / n."""
    num_iterations: Annotated[int, at_least(1, besides=-1)] = -1
    """Optimizer steps; -1 means by --target_flops or --tokens_per_parameter."""
    target_flops: Annotated[float, at_least(1, besides=-1)] = -1.0
    """FLOPs to spend; -1 means by --tokens_per_parameter."""
    tokens_per_parameter: float = 20.0
    """Training tokens per parameter; all parameters count but value embeddings."""
    total_batch_size: int = -1
    """Tokens of one optimizer step over all ranks; -1 means 524,288, and less for a budget below
    1.1 billion tokens."""
    grad_clip: Annotated[float, at_least(0)] = 1.0
    """Norm above which the gradient is scaled down to it; 0 means no limit."""
    warmup_steps: Annotated[int, at_least(0)] = 0
    """Steps in which the learning rate rises, at the start."""
    warmdown_share: Annotated[float, between(0, 1)] = 0.2
    """Share of the run, at its end, in which the learning rate falls."""
    final_lr: Annotated[float, between(0, 1)] = 0.0
    """Final learning rate, as a share of the peak."""
    source: str = ""
    """Text to train on; empty means the last choice of nanochat.dataset."""


if __name__ == "__main__":
    run_command(Options)  # before the slow imports

import math
from functools import partial

import torch

from nanochat import dataset
from nanochat.data.shards import Documents
from nanochat.dataloader import tokenizing_distributed_data_loader
from nanochat.gpt import GPT, GPTConfig
from nanochat.runtime import Runtime
from nanochat.tokenizer import RustBPETokenizer, get_tokenizer
from nanochat.training import run_summary, scaling_laws
from nanochat.training.config import Plan
from nanochat.training.sampled_softmax import SampledSoftmax
from nanochat.training.schedule import Schedule
from scripts.training import Setup, defining_settings, train

SAMPLE_DOCUMENTS = 200  # for tokens per byte


def main(argv: list[str] | None = None) -> None:
    train("base", with_recipe(parse(Options, argv)), make_plan, start)


def with_recipe(options: Options) -> Options:
    """The options, with the recipe's values where none were given; -1 stands for its rates."""
    usual: dict[str, Any] = {
        name: value
        for name, value in scaling_laws.RECIPES[options.recipe].items()
        if name not in scaling_laws.RATES and not is_given(options, name)
    }
    return replace(options, **usual)


def start(name: str, options: Options, runtime: Runtime) -> Setup:
    """The untrained model and what defines the run."""
    tokenizer = get_tokenizer()
    config = GPTConfig.from_depth(
        options.depth,
        vocab_size=tokenizer.get_vocab_size(),
        sequence_len=options.max_seq_len,
        head_dim=options.head_dim,
        rope_base=options.rope_base,
        window_pattern=options.window_pattern,
        value_embeddings=options.value_embeddings,
        key_offset_heads=options.key_offset_heads,
        rotary_share=options.rotary_share,
    )
    with torch.device("meta"):  # no memory before the summary of the run has been logged
        model = GPT(config, compute_dtype=runtime.compute_dtype)
    source = dataset.source_name(options.source or dataset.current_source())
    tag = options.model_tag or f"d{options.depth}"
    settings = defining_settings(
        options,
        model_tag=tag,
        source=source,
        text=dataset.text_digest(source),  # another text cannot continue a run
        tokenizer=tokenizer.content_hash,
        # Not -1: a run keeps its batch size even if the law for it changes.
        total_batch_size=run_length(options, model)[0],
        sampled_softmax_share=sampled_share(options, runtime),
    )
    return Setup(name, options, runtime, tag, source, settings, lambda: (model, tokenizer))


def sampled_share(options: Options, runtime: Runtime) -> float:
    """The share of steps with a sampled softmax: none where its gain has not been measured."""
    is_measured = runtime.device.type == "cpu" and runtime.compute_dtype != torch.float16
    return options.sampled_softmax_share if is_measured else 0.0


def run_length(options: Options, model: GPT) -> tuple[int, int]:
    """Tokens of one optimizer step, and the number of steps."""
    budget = scaling_laws.horizon_tokens(
        num_parameters=scaling_laws.counted_parameters(model.num_parameters()),
        flops_per_token=model.flops_per_token(),
        target_flops=options.target_flops,
        tokens_per_parameter=options.tokens_per_parameter,
    )
    step_tokens, num_steps = options.total_batch_size, options.num_iterations
    if step_tokens == -1:
        step_tokens = scaling_laws.batch_tokens(budget, options.max_seq_len)
    if num_steps == -1:
        num_steps = max(1, budget // max(1, step_tokens))  # global_rows refuses less than 1
    return step_tokens, num_steps


def make_plan(options: Options, setup: Setup) -> Plan:
    """Packed documents, for as many steps as the token budget allows."""
    model, tokenizer = setup.load()
    step_tokens, num_steps = run_length(options, model)
    rows = scaling_laws.global_rows(step_tokens, options.max_seq_len, setup.runtime.world_size)
    documents = dataset.open_documents(setup.source, "train")
    batches = partial(
        tokenizing_distributed_data_loader, documents, tokenizer,
        rows=rows, sequence_len=options.max_seq_len, num_steps=num_steps, seed=options.seed,
    )  # fmt: skip
    schedule = Schedule(
        num_steps, options.warmup_steps, options.warmdown_share, options.final_lr,
        max_gradient_norm=options.grad_clip,
    )  # fmt: skip
    num_tokens = num_steps * step_tokens
    summary = text_rows(setup.source, documents, tokenizer, num_tokens)
    if setup.source in dataset.HUB_SOURCES:
        summary = [*run_summary.of_text(num_tokens), *summary]
    share, sampled_softmax = sampled_share(options, setup.runtime), None
    if share:
        sampled_softmax = SampledSoftmax(
            tokenizer.get_vocab_size(), options.sampled_softmax_size, round(share * num_steps),
            options.seed,
        )  # fmt: skip
        summary = [*summary, ("softmax", str(sampled_softmax))]
    return setup.plan(
        model, tokenizer, rows=rows, schedule=schedule, batches=batches,
        sampled_softmax=sampled_softmax,
        usual_rows=scaling_laws.RECIPE_BATCH_TOKENS / options.max_seq_len,
        summary=summary,
    )  # fmt: skip


def text_rows(
    source: str, documents: Documents, tokenizer: RustBPETokenizer, num_tokens: int
) -> list[tuple[str, str]]:
    """How often the run reads the text that is here, and how many shards would be enough."""
    texts = [text or "" for text in documents[:SAMPLE_DOCUMENTS].to_pylist()]
    sample_tokens = sum(map(len, tokenizer.encode(texts))) + len(texts)
    tokens_per_byte = sample_tokens / max(1, sum(len(text.encode()) for text in texts))
    num_bytes, shards = dataset.train_bytes(source), len(documents.shards)
    epochs = num_tokens / max(1.0, num_bytes * tokens_per_byte)
    value = f"about {num_bytes * tokens_per_byte / 1e6:,.0f} million tokens, {epochs:.2f} epochs"
    missing = math.ceil(shards * epochs) - shards
    if missing > 0 and source in dataset.HUB_SOURCES:
        total = min(shards + missing, dataset.HUB_SOURCES[source][1] - 1)
        value += (
            f"; {total - shards} more shards make it fewer: python -m nanochat.dataset"
            f" --source={source} -n {total}, then the same command with --fresh"
        )
    return [("text that is here", value)]
