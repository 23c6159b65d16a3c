"""Reinforcement learning: make frequent what the model answers correctly only sometimes.

python -m scripts.chat_rl
torchrun --standalone --nproc_per_node=8 -m scripts.chat_rl
"""

from dataclasses import dataclass
from typing import Annotated

from nanochat.configurator import at_least, parse, run_command
from scripts.options import ChatOptions


@dataclass(frozen=True)
class Options(ChatOptions):
    """Reinforcement learning: make frequent what the model answers correctly only sometimes."""

    num_iterations: Annotated[int, at_least(1, besides=-1)] = -1
    """Optimizer steps; -1 means --num_epochs passes over the prompts."""
    num_epochs: Annotated[int, at_least(1)] = 1
    """Passes over the prompts."""
    num_prompts: Annotated[int, at_least(1)] = 2_000
    """Prompts generated from the primer world, if that is the source."""
    family: str = "word_problems"
    """Family of the primer world to train on."""
    prompts_per_step: Annotated[int, at_least(1)] = 16
    """Prompts of one optimizer step over all ranks."""
    num_samples: Annotated[int, at_least(2)] = 16
    """Answers sampled for each prompt."""
    max_new_tokens: Annotated[int, at_least(1)] = 256
    """Maximum tokens of an answer."""
    temperature: Annotated[float, at_least(0)] = 1.0
    """Temperature of the samples."""
    top_k: Annotated[int, at_least(0)] = 50
    """Sample from this many most probable tokens; 0 means all."""
    init_lr: Annotated[float, at_least(0)] = 0.05


if __name__ == "__main__":
    run_command(Options)  # before the slow imports

from functools import partial

from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.training import rollout
from nanochat.training.config import Plan
from nanochat.training.schedule import Schedule
from scripts.training import Setup, train
from tasks.common import Task
from tasks.gsm8k import GSM8K
from tasks.primer import Primer


def main(argv: list[str] | None = None) -> None:
    train("rl", parse(Options, argv), make_plan)


def make_plan(options: Options, setup: Setup) -> Plan:
    """Answers of the model to the prompts, sampled in each step."""
    world_size = setup.runtime.world_size
    if options.prompts_per_step % world_size:
        raise UserError(
            f"--prompts_per_step={options.prompts_per_step} is not a multiple of the"
            f" {world_size} ranks; try {world_size * 4}"
        )
    model, tokenizer = setup.load()
    task, engine = training_prompts(options, setup.source), Engine(model, tokenizer)
    num_steps = options.num_iterations
    if num_steps == -1:
        num_steps = max(1, options.num_epochs * len(task) // options.prompts_per_step)
    batches = partial(
        rollout.rollout_batches, engine, task, num_steps=num_steps,
        prompts_per_step=options.prompts_per_step, num_samples=options.num_samples,
        max_tokens=options.max_new_tokens, temperature=options.temperature, top_k=options.top_k,
        seed=options.seed,
    )  # fmt: skip
    return setup.plan(
        model, tokenizer, rows=options.prompts_per_step * options.num_samples, batches=batches,
        schedule=Schedule(num_steps, warmdown_share=1.0),  # falls from the start, as in SFT
        prefetch=False,  # on-policy: the next samples need this step's weights
        has_fixed_shape=False, engine=engine,
    )  # fmt: skip


def training_prompts(options: Options, source: str) -> Task:
    if source == "primer":  # another seed than midtraining's and finetuning's: other questions
        seed, size = options.seed + 2, options.num_prompts
        return Primer("train", family=options.family, stage="rl", size=size, seed=seed)
    return GSM8K("main", "train")
