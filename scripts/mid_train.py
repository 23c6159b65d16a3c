"""Midtraining: teach a pretrained model the form of a conversation, tools and choices.

python -m scripts.mid_train
torchrun --standalone --nproc_per_node=8 -m scripts.mid_train
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
from nanochat.training.schedule import Schedule, global_rows
from tasks.common import Task, TaskMixture
from tasks.customjson import CustomJSON
from tasks.gsm8k import GSM8K
from tasks.mmlu import MMLU
from tasks.primer import Primer
from tasks.smoltalk import SmolTalk
from tasks.spellingbee import SimpleSpelling, SpellingBee


@dataclass(frozen=True)
class Options(LoopOptions):
    """Teach a pretrained model the form of a conversation, tools and choices."""

    total_batch_size: int = 524288
    """Tokens of one optimizer step over all ranks."""
    num_iterations: Annotated[int, at_least(1, besides=-1)] = -1
    """Optimizer steps; -1 means one pass over the mixture."""
    num_conversations: Annotated[int, at_least(1)] = 20_000
    """Conversations drawn from the primer world, when that is the source."""
    warmdown_share: Annotated[float, between(0, 1)] = 0.5
    """Share of the run, at its end, in which the learning rate falls."""
    init_lr: Annotated[float, at_least(0)] = 1.0
    """Learning rates at the plateau, as a share of those of the options."""
    identity_file: str = ""
    """Conversations about the model itself, one JSON list of messages a line (CustomJSON)."""
    eval_conversations: Annotated[int, at_least(1)] = 256
    """Held-out conversations of each evaluation."""


def main(argv: list[str] | None = None) -> None:
    """Train to the end, or say that it is done."""
    options = parse(Options, argv)
    with stage.opened(options.device_type) as runtime:
        midtrain(options, runtime)


def midtrain(options: Options, runtime: Runtime) -> None:
    """Everything between the options and the loop."""
    parent = stage.find_parent("base", options.model_tag)
    source = dataset.current_source()
    settings = defining_settings(
        options, model_tag=parent.tag, parent=parent.identity, source=source
    )
    if stage.finished("mid", parent.tag, settings, options):
        return
    model, tokenizer = parent.load(runtime)
    mixture = training_mixture(source, options)
    length = model.config.sequence_len
    rows = global_rows(options.total_batch_size, length, runtime.world_size)
    num_steps = options.num_iterations
    if num_steps == -1:
        num_steps = chat_batches.packed_steps(mixture, tokenizer, rows=rows, sequence_len=length)

    def batches(resume: dict[str, Any] | None) -> Iterator[Batch]:
        return chat_batches.packed_conversations(
            mixture,
            tokenizer,
            rows=rows,
            sequence_len=length,
            rank=runtime.rank,
            world_size=runtime.world_size,
            num_steps=num_steps,
            seed=options.seed,
            resume=resume,
        )

    plan = Plan(
        stage="mid",
        tag=parent.tag,
        options=options,
        settings=settings,
        source=source,
        tokenizer=tokenizer,
        model=model,
        rows=rows,
        batches=batches,
        schedule=Schedule(num_steps, warmdown_share=options.warmdown_share),
        held_out=held_out_conversations(source, options.eval_conversations),
        rate_scale=options.init_lr,
        samples=lambda: answers(Engine(model, tokenizer), SAMPLE_QUESTIONS),
    )
    stage.run(plan, runtime)


def training_mixture(source: str, options: Options) -> Task:
    """What the model is to learn, from the primer world or from the public sets."""
    if source == "primer":
        return Primer("train", stage="mid", size=options.num_conversations, seed=options.seed)
    tasks: list[Task] = [
        SmolTalk("train"),
        MMLU("auxiliary_train", split="train"),
        GSM8K("main", "train"),
        SimpleSpelling("train", size=200_000),
        SpellingBee("train", size=80_000),
    ]
    if options.identity_file:
        tasks += [CustomJSON(options.identity_file)] * 2  # two epochs of a small set
    return TaskMixture(tasks)


def held_out_conversations(source: str, size: int) -> Task:
    """Conversations that are not trained on."""
    if source == "primer":
        return Primer("test", stage="sft", size=size)
    return SmolTalk("test", stop=size)


if __name__ == "__main__":
    run(main)
