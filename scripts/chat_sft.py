"""Supervised finetuning: teach the manner of answering, on the assistant's tokens only.

python -m scripts.chat_sft
torchrun --standalone --nproc_per_node=8 -m scripts.chat_sft
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from nanochat import dataset
from nanochat.configurator import at_least, between, parse, run
from nanochat.data import chat_batches
from nanochat.data.batch import Batch
from nanochat.engine import Engine
from nanochat.runtime import Runtime
from nanochat.training import stage
from nanochat.training.config import LoopOptions, Plan, defining_settings
from nanochat.training.samples import SAMPLE_QUESTIONS, answers
from nanochat.training.schedule import Schedule
from tasks.arc import ARC
from tasks.common import Task, TaskMixture
from tasks.customjson import CustomJSON
from tasks.gsm8k import GSM8K
from tasks.primer import Primer
from tasks.smoltalk import SmolTalk
from tasks.spellingbee import SimpleSpelling, SpellingBee


@dataclass(frozen=True)
class Options(LoopOptions):
    """Teach the manner of answering, on the assistant's tokens only."""

    rows_per_step: Annotated[int, at_least(1)] = 32
    """Conversations of one optimizer step over all ranks."""
    num_epochs: Annotated[int, at_least(1)] = 1
    """Passes over the conversations."""
    num_conversations: Annotated[int, at_least(1)] = 8_000
    """Conversations drawn from the primer world, when that is the source."""
    warmdown_share: Annotated[float, between(0, 1)] = 1.0
    """Share of the run, at its end, in which the learning rate falls."""
    init_lr: Annotated[float, at_least(0)] = 0.1
    """Learning rates at the start, as a share of those of the options."""
    identity_file: str = ""
    """Conversations about the model itself, one JSON list of messages a line (CustomJSON)."""
    eval_conversations: Annotated[int, at_least(1)] = 256
    """Held-out conversations of each evaluation."""


def main(argv: list[str] | None = None) -> None:
    """Train to the end, or say that it is done."""
    options = parse(Options, argv)
    with stage.opened(options.device_type) as runtime:
        finetune(options, runtime)


def finetune(options: Options, runtime: Runtime) -> None:
    """Everything between the options and the loop."""
    parent = stage.find_parent("mid", options.model_tag)
    source = dataset.current_source()
    settings = defining_settings(
        options, model_tag=parent.tag, parent=parent.identity, source=source
    )
    if stage.finished("sft", parent.tag, settings, options):
        return
    model, tokenizer = parent.load(runtime)
    conversations = training_conversations(source, options)
    num_steps = chat_batches.masked_steps(conversations, options.rows_per_step, options.num_epochs)

    def batches(resume: dict[str, Any] | None) -> Iterator[Batch]:
        return chat_batches.masked_conversations(
            conversations,
            tokenizer,
            rows=options.rows_per_step,
            sequence_len=model.config.sequence_len,
            rank=runtime.rank,
            world_size=runtime.world_size,
            num_epochs=options.num_epochs,
            seed=options.seed,
            resume=resume,
        )

    plan = Plan(
        stage="sft",
        tag=parent.tag,
        options=options,
        settings=settings,
        source=source,
        tokenizer=tokenizer,
        model=model,
        rows=options.rows_per_step,
        batches=batches,
        schedule=Schedule(num_steps, warmdown_share=options.warmdown_share),
        held_out=held_out_conversations(source, options.eval_conversations),
        rate_scale=options.init_lr,
        has_fixed_shape=False,
        samples=lambda: answers(Engine(model, tokenizer), SAMPLE_QUESTIONS),
    )
    stage.run(plan, runtime)


def training_conversations(source: str, options: Options) -> Task:
    """What the model is to learn, from the primer world or from the public sets."""
    if source == "primer":
        return Primer("train", stage="sft", size=options.num_conversations, seed=options.seed + 1)
    tasks: list[Task] = [
        ARC("ARC-Easy", "train"),
        ARC("ARC-Challenge", "train"),
        GSM8K("main", "train"),
        SmolTalk("train", stop=10_000),
        SimpleSpelling("train", size=300),
        SpellingBee("train", size=300),
    ]
    if options.identity_file:
        tasks.append(CustomJSON(options.identity_file))
    return TaskMixture(tasks)


def held_out_conversations(source: str, size: int) -> Task:
    """Conversations that are not trained on."""
    if source == "primer":
        return Primer("test", stage="sft", size=size)
    return SmolTalk("test", stop=size)


if __name__ == "__main__":
    run(main)
