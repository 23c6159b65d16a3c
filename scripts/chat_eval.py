"""How well a model answers: task by task, or family by family of the primer world.

python -m scripts.chat_eval -i sft
python -m scripts.chat_eval -i sft -a GSM8K
torchrun --standalone --nproc_per_node=8 -m scripts.chat_eval -- -i rl
"""

import difflib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from nanochat import (
    chat_eval,
    checkpoint_manager,
    dataset,
    report,
)
from nanochat.chat_eval import Tally, merged
from nanochat.configurator import at_least, parse, run, short
from nanochat.core_eval import centred
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.metrics import ProgressLine
from nanochat.primer import FAMILIES
from nanochat.runtime import Runtime, gather_objects, on_main_first
from nanochat.training import stage
from nanochat.training.config import COLUMNS
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
NO_SANDBOX = "runs programs that a model wrote, which needs a sandbox that is not built yet"
ALL_FAMILIES = "all families"
UNSEEN_WORDING = "worded as never in training"
CHATCORE = "ChatCORE"
MARKS = {True: "", False: "  (wrong)"}

Makers = dict[str, Callable[[], Task]]
Results = dict[str, Tally]
"""By label; the section of the report keeps them for the next call."""


@dataclass(frozen=True)
class Options:
    """How well a model answers: task by task, or family by family of the primer world."""

    source: Annotated[Literal["base", "mid", "sft", "rl"], short("-i")] = "sft"
    """Stage whose model is asked."""
    task: Annotated[str, short("-a")] = ""
    """Tasks or families of the primer, with commas between; or "primer" or "all"; empty means what
    suits the text."""
    max_problems: Annotated[int, at_least(1, besides=-1)] = -1
    """Problems of each task; -1 means all."""
    primer_problems: Annotated[int, at_least(1)] = 100
    """Held-out questions of each family of the primer world."""
    num_samples: Annotated[int, at_least(1)] = 1
    """Answers to each question; one right one is enough. Above 1 wants a temperature."""
    temperature: Annotated[float, at_least(0)] = 0.0
    """0 takes the most likely token."""
    top_k: Annotated[int, at_least(0)] = 50
    """Draw from the k most likely tokens only, when there is a temperature; 0 means all."""
    max_new_tokens: Annotated[int, at_least(1)] = 512
    """Tokens of an answer at most."""
    batch_size: Annotated[int, at_least(1)] = 64
    """Answers in the making at once; does not change results."""
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
    _check(options)
    with stage.opened(options.device_type) as runtime:
        evaluate(options, runtime)


def _check(options: Options) -> None:
    if options.num_samples > 1 and options.temperature <= 0:
        raise UserError(
            f"--num_samples={options.num_samples} at temperature 0 gives the same answer each time;"
            " add --temperature=1"
        )


def evaluate(options: Options, runtime: Runtime) -> None:
    """Everything between the options and the report."""
    meta = checkpoint_manager.read_meta(options.source, options.model_tag, options.step)
    settings = defining_settings(options, meta)
    tasks = on_main_first(lambda: choose_tasks(options))
    name = f"chat_eval_{options.source}"
    section = on_main_first(lambda: report.read_section(name, settings)) or {}
    results = {label: Tally(**kept) for label, kept in section.get("results", {}).items()}
    seconds = section.get("seconds", 0.0)
    left = [label for label in tasks if options.fresh or label not in results]
    if not left:
        logger.info("%s at step %d has been asked already:", options.source, meta["step"])
        say_table(tasks, results, settings)
        return
    tag, step = meta["settings"]["model_tag"], meta["step"]
    model, tokenizer, _ = checkpoint_manager.load_model(options.source, runtime, tag, step)
    engine = Engine(model, tokenizer)
    for label in left:
        began = time.perf_counter()
        results[label] = ask(label, engine, options, runtime)
        seconds += time.perf_counter() - began
        if runtime.is_main:  # after each task, so that nothing is asked twice after a crash
            report.write_section(name, make_section(options.source, settings, results, seconds))
    if runtime.is_main:
        say_table(tasks, results, settings)


def defining_settings(options: Options, meta: dict[str, Any]) -> dict[str, Any]:
    """Of which model and in which way: results under equal settings belong together."""
    names = (
        "max_problems", "primer_problems", "num_samples", "temperature", "top_k", "max_new_tokens",
    )  # fmt: skip
    model = {"model": checkpoint_manager.model_identity(meta), "step": meta["step"]}
    return {**model, **{name: getattr(options, name) for name in names}}


# ---- which tasks


def makers(primer_problems: int) -> Makers:
    """A maker of every task there is, by label."""

    def family_maker(family: str) -> Callable[[], Task]:
        return lambda: Primer("test", family=family, size=primer_problems)

    families = {family: family_maker(family) for family in FAMILIES}
    return families | {name: make for name, (make, _) in CHAT_TASKS.items()}


def choose_tasks(options: Options) -> list[str]:
    """Labels of the tasks asked for, their files brought. Raises UserError on an unknown one."""
    wanted = options.task or ("primer" if dataset.current_source() == "primer" else "all")
    if wanted == "primer":
        return list(FAMILIES)
    known = makers(options.primer_problems)
    if wanted == "all":
        return available({label: known[label] for label in CHAT_TASKS})
    labels = [label.strip() for label in wanted.split(",")]
    for label in labels:
        if label not in known:
            near = difflib.get_close_matches(label, known, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"use {', '.join(known)}"
            raise UserError(f"-a {label} is not a task, nor primer or all; {remedy}")
        if label == NEEDS_SANDBOX:
            raise UserError(f"-a {label} {NO_SANDBOX}; name other tasks")
        known[label]()  # brings its files
    return labels


def available(tasks: Makers) -> list[str]:
    """Labels of the tasks whose files are there or can be brought; the others are named."""
    found = []
    for label, make in tasks.items():
        if label == NEEDS_SANDBOX:
            logger.warning("%s is left out: it %s", label, NO_SANDBOX)
            continue
        try:
            make()
            found.append(label)
        except UserError as error:
            logger.warning("%s is left out: %s", label, error)
    return found


# ---- asking


def ask(label: str, engine: Engine, options: Options, runtime: Runtime) -> Tally:
    """The tally over all ranks; every rank calls it."""
    task = makers(options.primer_problems)[label]()
    num_problems = len(task) if options.max_problems < 0 else min(options.max_problems, len(task))
    own_share = len(range(runtime.rank, num_problems, runtime.world_size))
    with ProgressLine(own_share, label, runtime.is_main) as line:
        own = chat_eval.evaluate_task(
            task,
            engine,
            rank=runtime.rank,
            world_size=runtime.world_size,
            max_problems=options.max_problems,
            num_samples=options.num_samples,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k or None,
            batch_size=options.batch_size,
            on_progress=line.update,
        )
    return merged(gather_objects(own))


# ---- the table


def summary(results: Results, settings: dict[str, Any]) -> dict[str, float]:
    """What can be said of all families, and of all six chat tasks, once they are complete."""
    found = {}
    if all(family in results for family in FAMILIES):
        total = merged([results[family] for family in FAMILIES])
        found[ALL_FAMILIES] = total.accuracy
        if total.num_unseen:
            found[UNSEEN_WORDING] = total.num_passed_unseen / total.num_unseen
    if all(name in results for name in CHAT_TASKS):
        values = [centred(results[n].accuracy, chance) for n, (_, chance) in CHAT_TASKS.items()]
        cropped = settings["max_problems"]
        label = CHATCORE if cropped < 0 else f"{CHATCORE} of {cropped} problems each"
        found[label] = sum(values) / len(values)
    return found


def make_section(
    source: str, settings: dict[str, Any], results: Results, seconds: float
) -> dict[str, Any]:
    """The section of the report, with the results that a later call adds to."""
    cut = sum(tally.num_cut for tally in results.values())
    return {
        "title": f"Questions to the {source.upper()} model",
        "column": COLUMNS[source],
        "order": 20 + list(COLUMNS).index(source),
        "settings": settings,
        "metrics": {f"{name}, right of {t.num_total}": t.num_passed for name, t in results.items()},
        "notes": [f"{cut} prompts exceeded the context; the model saw their end."] if cut else [],
        "table": {label: tally.accuracy for label, tally in results.items()}
        | summary(results, settings),
        "samples": [
            {"prompt": one["prompt"], "answer": one["answer"] + MARKS[one["passed"]]}
            for tally in results.values()
            for one in tally.samples
        ],
        "results": {label: vars(tally) for label, tally in results.items()},
        "seconds": seconds,
    }


def say_table(asked: list[str], results: Results, settings: dict[str, Any]) -> None:
    """Print what was asked, and the summary of all there is."""
    for label in asked:
        tally = results[label]
        logger.info("  %-28s %6.2f %%  of %d", label, 100 * tally.accuracy, tally.num_total)
        if tally.num_cut:
            logger.info("  %-28s %d prompts were longer than the context", "", tally.num_cut)
    for label, value in summary(results, settings).items():
        is_core = label.startswith(CHATCORE)
        logger.info("  %-28s %s", label, f"{value:.4f}" if is_core else f"{100 * value:6.2f} %")


if __name__ == "__main__":
    run(main)
