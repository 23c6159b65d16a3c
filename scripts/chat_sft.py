"""Supervised finetuning (SFT): train on the assistant's tokens of conversations.

python -m scripts.chat_sft
torchrun --standalone --nproc_per_node=8 -m scripts.chat_sft
"""

from dataclasses import dataclass
from typing import Annotated

from nanochat.configurator import at_least, between, parse, run_command
from scripts.options import MixtureOptions


@dataclass(frozen=True)
class Options(MixtureOptions):
    """Supervised finetuning: train on the assistant's tokens of conversations."""

    rows_per_step: Annotated[int, at_least(1)] = 32
    """Conversations of one optimizer step over all ranks."""
    num_epochs: Annotated[int, at_least(1)] = 1
    """Passes over the conversations."""
    num_iterations: Annotated[int, at_least(1, besides=-1)] = -1
    """Optimizer steps at most; -1 means as many as --num_epochs needs."""
    num_conversations: Annotated[int, at_least(1)] = 8_000
    """Conversations generated from the primer world, if those are in the mixture."""
    warmdown_share: Annotated[float, between(0, 1)] = 1.0
    """Share of the run, at its end, in which the learning rate falls."""
    init_lr: Annotated[float, at_least(0)] = 0.02


if __name__ == "__main__":
    run_command(Options)  # before the slow imports

from collections.abc import Sequence
from functools import partial

from nanochat.data import chat_batches
from nanochat.training.config import Plan
from nanochat.training.schedule import Schedule
from scripts.training import Setup, train
from tasks.arc import ARC
from tasks.common import Task, TaskMixture
from tasks.gsm8k import GSM8K
from tasks.primer import Primer
from tasks.smoltalk import SmolTalk
from tasks.spellingbee import SimpleSpelling, SpellingBee


def main(argv: list[str] | None = None) -> None:
    train("sft", parse(Options, argv), make_plan)


def make_plan(options: Options, setup: Setup) -> Plan:
    """One conversation per row, of which only the assistant's tokens are targets."""
    model, tokenizer = setup.load()
    mixture, rows = training_mixture(options, setup.mixture, setup.own), options.rows_per_step
    num_steps = chat_batches.masked_steps(mixture, rows, options.num_epochs)
    if options.num_iterations > 0:
        num_steps = min(num_steps, options.num_iterations)
    batches = partial(
        chat_batches.masked_conversations, mixture, tokenizer, rows=rows,
        sequence_len=model.config.sequence_len, num_epochs=options.num_epochs, seed=options.seed,
    )  # fmt: skip
    return setup.plan(
        model, tokenizer, rows=rows, usual_rows=Options.rows_per_step, batches=batches,
        has_fixed_shape=False,
        schedule=Schedule(num_steps, warmdown_share=options.warmdown_share),
    )  # fmt: skip


def training_mixture(options: Options, mixture: str, own: Sequence[Task]) -> Task:
    tasks: list[Task] = [*own]
    if mixture == "primer":  # another seed than midtraining's: other conversations
        size, seed = options.num_conversations, options.seed + 1
        tasks.append(Primer("train", stage="sft", size=size, seed=seed))
    elif mixture == "public":
        tasks += [
            ARC("ARC-Easy", "train"),
            ARC("ARC-Challenge", "train"),
            GSM8K("main", "train"),
            SmolTalk("train", stop=10_000),
            SimpleSpelling("train", size=300),
            SpellingBee("train", size=300),
        ]
    return tasks[0] if len(tasks) == 1 else TaskMixture(tasks)
