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

from nanochat import chat_eval, checkpoint_manager, dataset, report, runtime, stage
from nanochat.chat_eval import Tally
from nanochat.configurator import parse, run, short
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.metrics import ProgressLine
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
ALL_FAMILIES = "all families"
UNSEEN_WORDING = "worded as never in training"
CHATCORE = "ChatCORE"
MARKS = {True: "", False: "  (wrong)"}

Makers = dict[str, Callable[[], Task]]
Results = dict[str, dict[str, Any]]
"""By label what `Tally` counts; the section of the report keeps them for the next call."""


@dataclass(frozen=True)
class Options:
    """How well a model answers: task by task, or family by family of the primer world."""

    source: Annotated[Literal["base", "mid", "sft", "rl"], short("-i")] = "sft"
    """Stage whose model is asked."""
    task: Annotated[str, short("-a")] = ""
    """Tasks or families of the primer, with commas between; or "primer" or "all"; empty means what
    suits the text."""
    max_problems: int = -1
    """Problems of each task; -1 means all."""
    primer_problems: int = 100
    """Held-out questions of each family of the primer world."""
    num_samples: int = 1
    """Answers to each question; one right one is enough. Above 1 wants a temperature."""
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_k: int = 50
    """Draw from the k likeliest tokens only, when there is a temperature; 0 means all."""
    max_new_tokens: int = 512
    """Tokens of an answer at most."""
    batch_size: int = 64
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
    with stage.opened(options.device_type) as place:
        evaluate(options, place)


def _check(options: Options) -> None:
    for name in ("num_samples", "max_new_tokens", "batch_size"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}={getattr(options, name)} must be 1 or more")
    if options.num_samples > 1 and options.temperature <= 0:
        raise UserError(
            f"--num_samples={options.num_samples} at temperature 0 gives the same answer each time;"
            " add --temperature=1"
        )


def evaluate(options: Options, place: Runtime) -> None:
    """Everything between the options and the report."""
    step = None if options.step == -1 else options.step
    meta = checkpoint_manager.read_meta(options.source, options.model_tag or None, step)
    settings = defining_settings(options, meta)
    tasks = runtime.on_main_first(lambda: choose_tasks(options))
    name = f"chat_eval_{options.source}"
    section = runtime.on_main_first(lambda: earlier_section(name, settings))
    results: Results = {} if section is None else dict(section["results"])
    left = [label for label in tasks if options.fresh or label not in results]
    if not left:
        logger.info("%s at step %d has been asked already:", options.source, meta["step"])
        say_table({label: results[label] for label in tasks}, results, settings)
        return
    tag = meta["settings"]["model_tag"]
    model, tokenizer, _ = checkpoint_manager.load_model(options.source, place, tag, step)
    engine = Engine(model, tokenizer)
    seconds = section["seconds"] if section is not None else 0.0
    for label in left:
        began = time.perf_counter()
        tally = ask(label, engine, options, place)
        seconds += time.perf_counter() - began
        results[label] = vars(tally) | {"samples": list(tally.samples)}
        if place.is_main:  # after each task, so that nothing is asked twice after a crash
            report.write_section(name, make_section(options.source, settings, results, seconds))
    if place.is_main:
        say_table({label: results[label] for label in tasks}, results, settings)


def defining_settings(options: Options, meta: dict[str, Any]) -> dict[str, Any]:
    """Of which model and in which way: results under equal settings belong together."""
    names = (
        "max_problems", "primer_problems", "num_samples", "temperature", "top_k", "max_new_tokens",
    )  # fmt: skip
    model = {"model": checkpoint_manager.model_identity(meta), "step": meta["step"]}
    return {**model, **{name: getattr(options, name) for name in names}}


def earlier_section(name: str, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The section that an earlier call wrote under the same settings."""
    section = report.read_section(name)
    return section if section is not None and section.get("settings") == settings else None


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


NO_SANDBOX = "runs programs that a model wrote, which needs a sandbox that is not built yet"


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


def ask(label: str, engine: Engine, options: Options, place: Runtime) -> Tally:
    """The tally over all ranks; every rank calls it."""
    task = makers(options.primer_problems)[label]()
    num_problems = len(task) if options.max_problems < 0 else min(options.max_problems, len(task))
    own_share = len(range(place.rank, num_problems, place.world_size))
    with ProgressLine(own_share, label, place.is_main) as line:
        own = chat_eval.evaluate_task(
            task,
            engine,
            rank=place.rank,
            world_size=place.world_size,
            max_problems=options.max_problems,
            num_samples=options.num_samples,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k or None,
            batch_size=options.batch_size,
            on_progress=line.update,
        )
    return chat_eval.merged(runtime.gather_objects(own))


# ---- the table


def share(result: dict[str, Any]) -> float:
    """Accuracy of a task."""
    return result["num_passed"] / result["num_total"] if result["num_total"] else 0.0


def summary(results: Results, settings: dict[str, Any]) -> dict[str, float]:
    """What can be said of all families, and of all six chat tasks, once they are complete."""
    found = {}
    if all(family in results for family in FAMILIES):
        families = [results[family] for family in FAMILIES]
        found[ALL_FAMILIES] = _ratio(families, "num_passed", "num_total")
        if any(result["num_unseen"] for result in families):
            found[UNSEEN_WORDING] = _ratio(families, "num_passed_unseen", "num_unseen")
    if all(name in results for name in CHAT_TASKS):
        values = [chat_eval.centred(share(results[n]), b) for n, (_, b) in CHAT_TASKS.items()]
        cropped = settings["max_problems"]
        label = CHATCORE if cropped < 0 else f"{CHATCORE} of {cropped} problems each"
        found[label] = sum(values) / len(values)
    return found


def _ratio(results: list[dict[str, Any]], passed: str, total: str) -> float:
    return sum(one[passed] for one in results) / max(1, sum(one[total] for one in results))


def make_section(
    source: str, settings: dict[str, Any], results: Results, seconds: float
) -> dict[str, Any]:
    """The section of the report, with the results that a later call adds to."""
    cut = sum(result["num_cut"] for result in results.values())
    return {
        "title": f"Questions to the {source.upper()} model",
        "column": stage.COLUMNS[source],
        "order": 20 + list(stage.COLUMNS).index(source),
        "settings": settings,
        "metrics": {
            f"{label}, right of {r['num_total']}": r["num_passed"] for label, r in results.items()
        },
        "notes": [f"{cut} prompts exceeded the context; the model saw their end."] if cut else [],
        "table": {label: share(r) for label, r in results.items()} | summary(results, settings),
        "samples": [
            {"prompt": one["prompt"], "answer": one["answer"] + MARKS[one["passed"]]}
            for result in results.values()
            for one in result["samples"]
        ],
        "results": results,
        "seconds": seconds,
    }


def say_table(asked: Results, results: Results, settings: dict[str, Any]) -> None:
    """Print what was asked, and the summary of all there is."""
    for label, result in asked.items():
        logger.info("  %-28s %6.2f %%  of %d", label, 100 * share(result), result["num_total"])
        if result["num_cut"]:
            logger.info("  %-28s %d prompts were longer than the context", "", result["num_cut"])
    for label, value in summary(results, settings).items():
        is_core = label.startswith(CHATCORE)
        logger.info("  %-28s %s", label, f"{value:.4f}" if is_core else f"{100 * value:6.2f} %")


if __name__ == "__main__":
    run(main)
