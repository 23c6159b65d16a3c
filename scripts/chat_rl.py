"""Reinforcement learning: raise what the model gets right only sometimes.

python -m scripts.chat_rl
torchrun --standalone --nproc_per_node=8 -m scripts.chat_rl
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from nanochat import dataset
from nanochat.configurator import at_least, parse, run
from nanochat.data.batch import Batch
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.runtime import Runtime
from nanochat.training import rollout, stage
from nanochat.training.config import LoopOptions, Plan, defining_settings
from nanochat.training.samples import SAMPLE_QUESTIONS, answers
from nanochat.training.schedule import Schedule
from tasks.common import Task
from tasks.gsm8k import GSM8K
from tasks.primer import Primer


@dataclass(frozen=True)
class Options(LoopOptions):
    """Raise what the model gets right only sometimes."""

    num_iterations: Annotated[int, at_least(1, besides=-1)] = -1
    """Optimizer steps; -1 means --num_epochs passes over the prompts."""
    num_epochs: Annotated[int, at_least(1)] = 1
    """Passes over the prompts."""
    num_prompts: Annotated[int, at_least(1)] = 2_000
    """Prompts drawn from the primer world, when that is the source."""
    family: str = "word_problems"
    """Family of the primer world that is trained."""
    prompts_per_step: Annotated[int, at_least(1)] = 16
    """Prompts of one optimizer step over all ranks."""
    num_samples: Annotated[int, at_least(2)] = 16
    """Answers drawn for each prompt."""
    max_new_tokens: Annotated[int, at_least(1)] = 256
    """Tokens of an answer at most."""
    temperature: Annotated[float, at_least(0)] = 1.0
    """Of the samples."""
    top_k: Annotated[int, at_least(0)] = 50
    """Likeliest tokens that are drawn from; 0 means all."""
    init_lr: Annotated[float, at_least(0)] = 0.05
    """Learning rates at the start, as a share of those of the options."""
    eval_conversations: Annotated[int, at_least(1)] = 256
    """Held-out conversations of each evaluation."""


def main(argv: list[str] | None = None) -> None:
    """Train to the end, or say that it is done."""
    options = parse(Options, argv)
    with stage.opened(options.device_type) as runtime:
        reinforce(options, runtime)


def reinforce(options: Options, runtime: Runtime) -> None:
    """Everything between the options and the loop."""
    if options.prompts_per_step % runtime.world_size:
        raise UserError(
            f"--prompts_per_step={options.prompts_per_step} is not a multiple of the"
            f" {runtime.world_size} ranks; try {runtime.world_size * 4}"
        )
    parent = stage.find_parent("sft", options.model_tag)
    source = dataset.current_source()
    settings = defining_settings(
        options, model_tag=parent.tag, parent=parent.identity, source=source
    )
    if stage.finished("rl", parent.tag, settings, options):
        return
    model, tokenizer = parent.load(runtime)
    task = training_prompts(source, options)
    num_steps = options.num_iterations
    if num_steps == -1:
        num_steps = max(1, options.num_epochs * len(task) // options.prompts_per_step)
    engine = Engine(model, tokenizer)
    plan_of_rollouts = rollout.RolloutPlan(
        prompts_per_step=options.prompts_per_step,
        num_samples=options.num_samples,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        seed=options.seed,
    )
    seen: dict[str, float] = {}

    def batches(resume: dict[str, Any] | None) -> Iterator[Batch]:
        return rollout.rollout_batches(
            engine,
            tokenizer,
            task,
            plan_of_rollouts,
            num_steps=num_steps,
            rank=runtime.rank,
            first_step=resume["step"] if resume else 0,
            observe=lambda reward, length: seen.update(reward=reward, answer_tokens=length),
        )

    plan = Plan(
        stage="rl",
        tag=parent.tag,
        options=options,
        settings=settings,
        source=source,
        tokenizer=tokenizer,
        model=model,
        rows=options.prompts_per_step * options.num_samples,
        batches=batches,
        schedule=Schedule(num_steps, warmdown_share=1.0),
        held_out=held_out_conversations(source, options.eval_conversations),
        rate_scale=options.init_lr,
        prefetch=False,  # on-policy: the next samples need this step's weights
        observed=lambda: dict(seen),
        has_fixed_shape=False,
        samples=lambda: answers(engine, SAMPLE_QUESTIONS),
    )
    stage.run(plan, runtime)


def training_prompts(source: str, options: Options) -> Task:
    """What is practised, with answers that can be checked."""
    if source == "primer":
        return Primer(
            "train",
            family=options.family,
            stage="rl",
            size=options.num_prompts,
            seed=options.seed + 2,
        )
    return GSM8K("main", "train")


def held_out_conversations(source: str, size: int) -> Task:
    """Conversations that are not trained on."""
    if source == "primer":
        return Primer("test", stage="sft", size=size)
    return GSM8K("main", "test", stop=size)


if __name__ == "__main__":
    run(main)
