"""How well a model answers: task by task, or family by family of the primer world.

    python -m scripts.chat_eval -i sft
    python -m scripts.chat_eval -i sft -a GSM8K
    torchrun --standalone --nproc_per_node=8 -m scripts.chat_eval -- -i rl
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from nanochat import chat_eval, checkpoint_manager, dataset, report, runtime, stage
from nanochat.chat_eval import Judged
from nanochat.configurator import parse, run, short
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.primer import FAMILIES
from nanochat.runtime import Runtime
from tasks.arc import ARC
from tasks.common import Task
from tasks.gsm8k import GSM8K
from tasks.humaneval import HumanEval
from tasks.mmlu import MMLU
from tasks.primer import Primer
from tasks.spellingbee import SpellingBee

logger = logging.getLogger(__name__)

# The six tasks of ChatCORE with the accuracy of chance.
CHAT_TASKS: dict[str, tuple[Callable[[], Task], float]] = {
    "ARC-Easy": (lambda: ARC("ARC-Easy", "test"), 0.25),
    "ARC-Challenge": (lambda: ARC("ARC-Challenge", "test"), 0.25),
    "MMLU": (lambda: MMLU("all", "test"), 0.25),
    "GSM8K": (lambda: GSM8K("main", "test"), 0.0),
    "HumanEval": (HumanEval, 0.0),
    "SpellingBee": (lambda: SpellingBee("test", size=256), 0.0),
}
NEEDS_SANDBOX = "HumanEval"


@dataclass(frozen=True)
class Options:
    """How well a model answers: task by task, or family by family of the primer world."""

    source: Annotated[Literal["base", "mid", "sft", "rl"], short("-i")] = "sft"
    """Stage whose model is asked."""
    task: Annotated[str, short("-a")] = ""
    """A task, a family of the primer world, "primer" or "all"; empty means what suits the text."""
    max_problems: int = -1
    """Problems of each task; -1 means all."""
    primer_problems: int = 100
    """Held-out questions of each family of the primer world."""
    batch_size: int = 64
    """Answers in the making at once; does not change results."""
    max_new_tokens: int = 512
    """Tokens of an answer at most."""
    temperature: float = 0.0
    """0 takes the likeliest token."""
    model_tag: str = ""
    """Folder of the checkpoint; empty means the newest."""
    step: int = -1
    """Step of the checkpoint; -1 means the newest."""
    device_type: str = ""
    """cuda, mps or cpu; empty means the fastest that is there."""
    fresh: bool = False
    """Ask again what has been asked."""


def main(argv: list[str] | None = None) -> None:
    """Ask, judge, print a table and write the report's section."""
    options = parse(Options, argv)
    with stage.opened(options.device_type) as place:
        evaluate(options, place)


def evaluate(options: Options, place: Runtime) -> None:
    """Everything between the options and the report."""
    step = None if options.step == -1 else options.step
    meta = checkpoint_manager.read_meta(options.source, options.model_tag or None, step)
    tasks = choose_tasks(options)
    settings = {
        "model": checkpoint_manager.model_identity(meta),
        "tasks": list(tasks),
        "problems": options.max_problems,
        "primer_problems": options.primer_problems,
        "temperature": options.temperature,
        "max_new_tokens": options.max_new_tokens,
    }
    name = f"chat_eval_{options.source}"
    done = report.read_section(name)
    if done is not None and done["settings"] == settings and not options.fresh:
        logger.info("%s is evaluated already:", options.source)
        for label, value in done["table"].items():
            logger.info("  %-28s %5.1f %%", label, 100 * value)
        return
    tag = meta["settings"]["model_tag"]
    model, tokenizer, _ = checkpoint_manager.load_model(options.source, place, tag, step)
    engine = Engine(model, tokenizer)
    began = time.perf_counter()
    results = {}
    for label, make in tasks.items():
        results[label] = ask(make(), engine, options, place)
        if place.is_main:
            value = chat_eval.accuracy(results[label])
            logger.info("  %-28s %5.1f %%  of %d", label, 100 * value, len(results[label]))
    if place.is_main:
        table = table_of(results)
        section = {
            "title": f"Questions to the {options.source.upper()} model",
            "column": stage.COLUMNS[options.source],
            "order": 20 + list(stage.COLUMNS).index(options.source),
            "settings": settings,
            "table": table,
            "samples": [s for judged in results.values() for s in chat_eval.sample_of(judged, 1)],
            "seconds": time.perf_counter() - began,
        }
        report.write_section(name, section)
        for label in table.keys() - results.keys():
            logger.info("  %-28s %5.1f %%", label, 100 * table[label])


def choose_tasks(options: Options) -> dict[str, Callable[[], Task]]:
    """Makers of the tasks asked for, by label. Raises UserError on an unknown one."""
    families = {family: primer_family(family, options.primer_problems) for family in FAMILIES}
    public = {name: make for name, (make, _) in CHAT_TASKS.items() if name != NEEDS_SANDBOX}
    wanted = options.task or ("primer" if dataset.current_source() == "primer" else "all")
    if wanted == "primer":
        return families
    if wanted == "all":
        logger.info("%s is left out: it runs programs, which needs a sandbox", NEEDS_SANDBOX)
        return public
    known = {**families, **{name: make for name, (make, _) in CHAT_TASKS.items()}}
    if wanted not in known:
        raise UserError(f"-a {wanted} is not one of primer, all, {', '.join(known)}")
    return {wanted: known[wanted]}


def primer_family(family: str, size: int) -> Callable[[], Task]:
    """A maker of one family's held-out questions."""
    return lambda: Primer("test", family=family, size=size)


def ask(task: Task, engine: Engine, options: Options, place: Runtime) -> list[Judged]:
    """All ranks' judged problems, in the order of the task."""
    own = chat_eval.judge(
        task,
        engine,
        rank=place.rank,
        world_size=place.world_size,
        max_problems=options.max_problems,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        batch_size=options.batch_size,
    )
    everyone = [one for judged in runtime.gather_objects(own) for one in judged]
    return sorted(everyone, key=lambda one: one.index)


def table_of(results: dict[str, list[Judged]]) -> dict[str, float]:
    """Accuracy by task, and what can be said of all of them together."""
    table = {label: chat_eval.accuracy(judged) for label, judged in results.items()}
    if set(table) == set(FAMILIES):
        everything = [one for judged in results.values() for one in judged]
        unseen = [one for one in everything if one.conversation["unseen_wording"]]
        table["all families"] = chat_eval.accuracy(everything)
        table["worded as never in training"] = chat_eval.accuracy(unseen)
    if set(table) == set(CHAT_TASKS):
        chance = {name: baseline for name, (_, baseline) in CHAT_TASKS.items()}
        values = [chat_eval.centred(table[name], chance[name]) for name in CHAT_TASKS]
        table["ChatCORE"] = sum(values) / len(values)
    return table


if __name__ == "__main__":
    run(main)
