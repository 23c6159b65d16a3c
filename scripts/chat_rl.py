"""Reinforcement learning: make frequent what the model answers correctly only sometimes.

python -m scripts.chat_rl
torchrun --standalone --nproc_per_node=8 -m scripts.chat_rl
"""

from dataclasses import dataclass
from typing import Annotated

from nanochat.configurator import Check, at_least, parse, run_command
from scripts.options import ChatOptions, SamplingOptions

NO_ADVANTAGE = "must be 0.01 or more: else all answers are equal and teach nothing; 1 is usual"


@dataclass(frozen=True)
class Options(ChatOptions, SamplingOptions):
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
    temperature: Annotated[float, Check(lambda t: "" if t >= 0.01 else NO_ADVANTAGE)] = 1.0
    """Temperature of the samples."""
    eval_every: Annotated[int, at_least(0)] = 60
    eval_problems: Annotated[int, at_least(0, besides=-1)] = -1
    """Held-out problems of each evaluation of pass@1 and pass@k; -1 means 128 of GSM8K, 16 of the
    primer world."""
    eval_samples: Annotated[int, at_least(1)] = 8
    """Answers to each of these problems: the k of pass@k."""
    init_lr: Annotated[float, at_least(0)] = 0.05


if __name__ == "__main__":
    run_command(Options)  # before the slow imports

from functools import partial

from nanochat import chat_eval
from nanochat.engine import Engine
from nanochat.runtime import Runtime
from nanochat.training import rollout, stage
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
    model, tokenizer = setup.load()
    task, held_out = prompts(options, setup.source)
    engine = Engine(model, tokenizer)
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
        usual_rows=Options.prompts_per_step * Options.num_samples,
        schedule=Schedule(num_steps, warmdown_share=1.0),  # falls from the start, as in SFT
        prefetch=False,  # on-policy: the next samples need this step's weights
        has_fixed_shape=False, engine=engine,
        scores=partial(pass_at_k, engine, held_out, options, setup.runtime),
    )  # fmt: skip


def prompts(options: Options, source: str) -> tuple[Task, Task]:
    """What to train on, and what pass@k is measured on."""
    size = options.eval_problems
    if source == "primer":  # another seed than midtraining's and finetuning's: other questions
        seed, family = options.seed + 2, options.family
        train = Primer("train", family, stage="rl", size=options.num_prompts, seed=seed)
        return train, Primer("test", family, size=16 if size < 0 else size)
    return GSM8K("main", "train"), GSM8K("main", "test", stop=128 if size < 0 else size)


def pass_at_k(
    engine: Engine, held_out: Task, options: Options, runtime: Runtime
) -> dict[str, float]:
    """pass@1 and pass@k on the held-out problems, sampled as in training; every rank calls it."""
    if not len(held_out):
        return {}
    shares = stage.evaluate_on_ranks(
        "pass@k", len(held_out), runtime,
        partial(
            chat_eval.evaluate_task, held_out, engine, num_samples=options.eval_samples,
            max_new_tokens=options.max_new_tokens, temperature=options.temperature,
            top_k=options.top_k or None,
        ),
    )  # fmt: skip
    tally = chat_eval.tally([one for share in shares for one in share])
    return {f"pass@{k}": tally.pass_at(k).value for k in sorted({1, options.eval_samples})}
