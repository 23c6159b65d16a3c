"""Midtraining: teach a pretrained model the format of conversations, tools and multiple choice.

python -m scripts.mid_train
torchrun --standalone --nproc_per_node=8 -m scripts.mid_train
"""

from dataclasses import dataclass
from typing import Annotated

from nanochat.configurator import at_least, between, parse, run_command
from scripts.options import MixtureOptions


@dataclass(frozen=True)
class Options(MixtureOptions):
    """Teach a pretrained model the format of conversations, tools and multiple choice."""

    total_batch_size: int = 524288
    """Tokens of one optimizer step over all ranks."""
    num_iterations: Annotated[int, at_least(1, besides=-1)] = -1
    """Optimizer steps; -1 means one epoch of the mixture."""
    num_conversations: Annotated[int, at_least(1)] = 20_000
    """Conversations generated from the primer world, if those are in the mixture."""
    warmdown_share: Annotated[float, between(0, 1)] = 0.2
    """Share of the run, at its end, in which the learning rate falls."""


if __name__ == "__main__":
    run_command(Options)  # before the slow imports

from collections.abc import Sequence
from functools import partial

from nanochat.data import chat_batches
from nanochat.training.config import Plan
from nanochat.training.scaling_laws import RECIPE_BATCH_TOKENS, global_rows
from nanochat.training.schedule import Schedule
from scripts.training import Setup, train
from tasks.common import Task, TaskMixture
from tasks.gsm8k import GSM8K
from tasks.mmlu import MMLU
from tasks.primer import Primer
from tasks.smoltalk import SmolTalk
from tasks.spellingbee import SimpleSpelling, SpellingBee


def main(argv: list[str] | None = None) -> None:
    train("mid", parse(Options, argv), make_plan)


def make_plan(options: Options, setup: Setup) -> Plan:
    """Packed conversations of the mixture; every token is a target."""
    model, tokenizer = setup.load()
    mixture = training_mixture(options, setup.mixture, setup.own)
    length = model.config.sequence_len
    rows = global_rows(options.total_batch_size, length, setup.runtime.world_size)
    num_steps = options.num_iterations
    if num_steps == -1:
        num_steps = chat_batches.packed_steps(mixture, tokenizer, rows=rows, sequence_len=length)
    batches = partial(
        chat_batches.packed_conversations, mixture, tokenizer,
        rows=rows, sequence_len=length, num_steps=num_steps, seed=options.seed,
    )  # fmt: skip
    schedule = Schedule(num_steps, warmdown_share=options.warmdown_share)
    usual_rows = RECIPE_BATCH_TOKENS / length
    return setup.plan(
        model, tokenizer, rows=rows, usual_rows=usual_rows, schedule=schedule, batches=batches
    )


def training_mixture(options: Options, mixture: str, own: Sequence[Task]) -> Task:
    tasks: list[Task] = [*own, *own]  # small sets: two epochs of them
    if mixture == "primer":
        size = options.num_conversations
        tasks.append(Primer("train", stage="mid", size=size, seed=options.seed))
    elif mixture == "public":
        tasks += [
            SmolTalk("train"),
            MMLU("auxiliary_train", split="train"),
            GSM8K("main", "train"),
            SimpleSpelling("train", size=200_000),
            SpellingBee("train", size=80_000),
        ]
    return tasks[0] if len(tasks) == 1 else TaskMixture(tasks)
