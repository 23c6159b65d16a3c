"""Evaluate a chat model, by task or by family of questions about the primer world.

python -m scripts.chat_eval -i sft
python -m scripts.chat_eval -i sft -a GSM8K
torchrun --standalone --nproc_per_node=8 -m scripts.chat_eval -- -i rl
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from nanochat.configurator import Short, at_least, parse, run_command
from scripts.options import EvalOptions


@dataclass(frozen=True)
class Options(EvalOptions):
    """Evaluate a chat model, by task or by family of questions about the primer world."""

    source: Annotated[Literal["base", "mid", "sft", "rl"], Short("-i")] = "sft"
    """Stage whose model is evaluated."""
    task: Annotated[str, Short("-a")] = ""
    """Tasks or families of the primer, separated by commas; or "primer" or "all"; empty means
    "primer" if that is the current source, else "all"."""
    max_problems: Annotated[int, at_least(1, besides=-1)] = -1
    """Problems of each task; -1 means all."""
    primer_problems: Annotated[int, at_least(1)] = 100
    """Held-out questions of each family of the primer world."""
    num_samples: Annotated[int, at_least(1)] = 1
    """Answers to each question, of which one has to be right. More than 1 needs a temperature."""
    temperature: Annotated[float, at_least(0)] = 0.0
    """0 always takes the most likely token."""
    top_k: Annotated[int, at_least(0)] = 50
    """With a temperature, only sample from the k most likely tokens; 0 means no limit."""
    max_new_tokens: Annotated[int, at_least(1)] = 512
    """Maximum length of an answer in tokens."""
    batch_size: Annotated[int, at_least(1)] = 64
    """Answers generated at a time. Does not change results."""


if __name__ == "__main__":
    run_command(Options)  # before the slow imports

import difflib
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from nanochat import chat_eval, dataset, report
from nanochat.chat_eval import Tally, merged
from nanochat.core_eval import centered
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.runtime import Runtime, on_main_first
from nanochat.training import stage
from scripts.inference import find_checkpoint, load_checkpoint
from tasks.arc import ARC
from tasks.common import Task
from tasks.gsm8k import GSM8K
from tasks.humaneval import HumanEval
from tasks.mmlu import MMLU
from tasks.primer import Primer
from tasks.spellingbee import SpellingBee

logger = logging.getLogger(__name__)

# The six tasks of ChatCORE, each with the accuracy of random guessing.
CHAT_TASKS: dict[str, tuple[Callable[[], Task], float]] = {
    "ARC-Easy": (partial(ARC, "ARC-Easy", "test"), 0.25),
    "ARC-Challenge": (partial(ARC, "ARC-Challenge", "test"), 0.25),
    "MMLU": (partial(MMLU, "all", "test"), 0.25),
    "GSM8K": (partial(GSM8K, "main", "test"), 0.0),
    "HumanEval": (HumanEval, 0.0),
    "SpellingBee": (partial(SpellingBee, "test", size=256), 0.0),
}
ALL_FAMILIES, UNSEEN, CHATCORE = "all families", "unseen paraphrases", "ChatCORE"

Results = dict[str, Tally]  # by label
Makers = dict[str, Callable[[], Task]]  # by label, what creates the task


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv)
    if options.num_samples > 1 and options.temperature <= 0:
        raise UserError(
            f"--num_samples={options.num_samples} at temperature 0 gives the same answer each time;"
            " add --temperature=1"
        )
    with stage.command_runtime(options.device_type) as runtime:
        evaluate(options, runtime)


def evaluate(options: Options, runtime: Runtime) -> None:
    meta, settings = find_checkpoint(options, options.source)
    settings |= {name: getattr(options, name) for name in (
        "max_problems", "primer_problems", "num_samples", "temperature", "top_k", "max_new_tokens",
    )}  # fmt: skip
    families: Makers = {
        family: partial(Primer, "test", family=family, size=options.primer_problems)
        for family in Primer.families
    }
    makers = families | {label: make for label, (make, _) in CHAT_TASKS.items()}
    labels = on_main_first(lambda: choose_tasks(options, makers))  # one rank downloads their files
    name = f"chat_eval_{options.source}"
    section = on_main_first(lambda: report.read_section(name, settings)) or {
        "title": f"Evaluation of the {options.source.upper()} model",
        "column": options.source.upper(),
        # After the stages (0 to 3), bits per byte (10) and base_eval (15).
        "order": 20 + report.COLUMNS.index(options.source.upper()),
        "settings": settings,
        "results": {},
        "seconds": 0.0,
    }
    results = {label: Tally(**tally) for label, tally in section["results"].items()}
    # Results of other tasks stay in the section, also with --fresh.
    missing = [label for label in labels if options.fresh or label not in results]
    if missing:
        engine = Engine(*load_checkpoint(options.source, meta, runtime))
    else:
        report.log_reuse(section)
    for label in missing:
        began = time.perf_counter()
        results[label] = measure(label, makers[label](), engine, options, runtime)
        section["seconds"] += time.perf_counter() - began
        if runtime.is_main:  # after each task: a killed command resumes with the next
            report.write_section(name, section | rendered(results, settings))
    for label in labels:
        tally = results[label]
        cut = f", {tally.num_cut} prompts longer than the context" if tally.num_cut else ""
        logger.info("  %-28s %6.2f %%  of %d%s", label, 100 * tally.accuracy, tally.num_total, cut)
    for label, value in summary(results, settings).items():
        is_core = label.startswith(CHATCORE)
        logger.info("  %-28s %s", label, f"{value:.4f}" if is_core else f"{100 * value:6.2f} %")


def choose_tasks(options: Options, makers: Makers) -> list[str]:
    """Labels of the tasks asked for, with their files downloaded.

    Raises UserError if a task asked for by name is unknown or not available.
    """
    wanted = options.task or ("primer" if dataset.current_source() == "primer" else "all")
    groups = {"primer": list(Primer.families), "all": list(CHAT_TASKS)}
    available = []
    for label in groups.get(wanted) or map(str.strip, wanted.split(",")):
        try:
            if label not in makers:
                near = difflib.get_close_matches(label, makers, n=1)
                remedy = f"did you mean {near[0]}?" if near else f"use {', '.join(makers)}"
                raise UserError(f"-a {label} is not a task, nor primer or all; {remedy}")
            if label == "HumanEval":
                raise UserError(
                    f"{label} runs programs that a model wrote, which needs a sandbox that is not"
                    " built yet; name other tasks"
                )
            makers[label]()  # downloads its files, before anything is measured
            available.append(label)
        except UserError as error:
            if wanted != "all":
                raise
            logger.warning("%s is left out: %s", label, error)
    return available


def measure(label: str, task: Task, engine: Engine, options: Options, runtime: Runtime) -> Tally:
    """The tally over all ranks; every rank calls it."""
    num_problems = len(task) if options.max_problems < 0 else min(options.max_problems, len(task))
    evaluate_share = partial(
        chat_eval.evaluate_task, task, engine,
        num_samples=options.num_samples, max_new_tokens=options.max_new_tokens,
        temperature=options.temperature, top_k=options.top_k or None,
        batch_size=options.batch_size,
    )  # fmt: skip
    return merged(stage.evaluate_on_ranks(label, num_problems, runtime, evaluate_share))


# ---- the report


def summary(results: Results, settings: dict[str, Any]) -> dict[str, float]:
    """Scores over all families and over all six chat tasks, where these are complete."""
    scores = {}
    if all(family in results for family in Primer.families):
        total = merged([results[family] for family in Primer.families])
        scores[ALL_FAMILIES] = total.accuracy
        if total.num_unseen:
            scores[UNSEEN] = total.num_passed_unseen / total.num_unseen
    if all(name in results for name in CHAT_TASKS):
        values = [centered(results[n].accuracy, chance) for n, (_, chance) in CHAT_TASKS.items()]
        max_problems = settings["max_problems"]  # a score of fewer is not to be compared
        label = CHATCORE if max_problems < 0 else f"{CHATCORE} of {max_problems} problems each"
        scores[label] = sum(values) / len(values)
    return scores


def rendered(results: Results, settings: dict[str, Any]) -> dict[str, Any]:
    num_cut = sum(tally.num_cut for tally in results.values())
    note = f"{num_cut} prompts exceeded the context; the model saw their end."
    accuracies = {label: tally.accuracy for label, tally in results.items()}
    return {
        "metrics": {f"{name}, right of {t.num_total}": t.num_passed for name, t in results.items()},
        "notes": [note] if num_cut else [],
        "table": accuracies | summary(results, settings),
        "samples": [
            {"prompt": s["prompt"], "answer": s["answer"] + ("" if s["passed"] else "  (wrong)")}
            for tally in results.values()
            for s in tally.samples
        ],
        "results": {label: vars(tally) for label, tally in results.items()},
    }
