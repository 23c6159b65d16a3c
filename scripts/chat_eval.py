"""Evaluate a chat model, by task or by family of questions about the primer world.

python -m scripts.chat_eval -i sft
python -m scripts.chat_eval -i sft -a GSM8K
python -m scripts.chat_eval -i sft -a HumanEval --temperature=0.8 --num_samples=20 --pass_at=1,10
torchrun --standalone --nproc_per_node=8 -m scripts.chat_eval -- -i rl
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from nanochat.configurator import Short, at_least, parse, run_command
from scripts.options import EvalOptions, SamplingOptions, ToolOptions


@dataclass(frozen=True)
class Options(EvalOptions, ToolOptions, SamplingOptions):
    """Evaluate a chat model, by task or by family of questions about the primer world. Every
    prompt, answer and verdict is written to chat_eval/{source}_{task}.jsonl in the base directory,
    one JSON object per problem."""

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
    pass_at: str = ""
    """Sizes k, separated by commas, up to --num_samples: also estimate the share of problems that
    one of k answers solves (pass@k), without bias."""
    batch_size: Annotated[int, at_least(1)] = 64
    """Answers generated at a time. Does not change results."""


if __name__ == "__main__":
    run_command(Options)  # before the slow imports

import difflib
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from typing import Any

from nanochat import chat_eval, dataset, paths, report
from nanochat.chat_eval import Estimate, Tally, proportion
from nanochat.core_eval import centered
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.execution import describe_sandbox
from nanochat.runtime import Runtime, on_main_first
from nanochat.training import stage
from scripts.inference import find_checkpoint, load_checkpoint, tool_from
from tasks.arc import ARC
from tasks.common import Task
from tasks.gsm8k import GSM8K
from tasks.humaneval import HumanEval
from tasks.mmlu import MMLU
from tasks.primer import TYPED, Primer, TypedByAPerson
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
ALL_FAMILIES, CHATCORE = "all families", "ChatCORE"
# Settings of published ChatCORE values; with others the label names them.
CHATCORE_SETTINGS = {
    "max_problems": -1, "num_samples": 1, "temperature": 0.0, "max_new_tokens": 512,
    "tool": "calculator",
}  # fmt: skip

Results = dict[str, Tally]  # by label
TaskFactories = dict[str, Callable[[], Task]]  # by label, what creates the task


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv)
    if options.num_samples > 1 and options.temperature <= 0:
        raise UserError(
            f"--num_samples={options.num_samples} at temperature 0 gives the same answer each time;"
            " add --temperature=1"
        )
    sizes = pass_at_sizes(options)
    with stage.command_runtime(options.device_type) as runtime:
        evaluate(options, sizes, runtime)


def pass_at_sizes(options: Options) -> list[int]:
    """The numbers of --pass_at. Raises UserError if one is none or exceeds --num_samples."""
    words = [word.strip() for word in options.pass_at.split(",") if word.strip()]
    for word in words:
        if not word.isdecimal() or not 1 <= int(word) <= options.num_samples:
            raise UserError(
                f"--pass_at={word} must be from 1 to --num_samples={options.num_samples}"
            )
    return [int(word) for word in words]


def evaluate(options: Options, sizes: list[int], runtime: Runtime) -> None:
    meta, settings = find_checkpoint(options, options.source)
    settings |= {name: getattr(options, name) for name in (
        "max_problems", "primer_problems", "num_samples", "temperature", "top_k", "max_new_tokens",
        "tool",
    )}  # fmt: skip
    families: TaskFactories = {
        family: partial(Primer, "test", family=family, size=options.primer_problems)
        for family in (*Primer.families, *Primer.probes)
    }
    factories = families | {TYPED: TypedByAPerson}
    factories |= {label: create for label, (create, _) in CHAT_TASKS.items()}
    factories["HumanEval"] = partial(HumanEval, sandbox=options.sandbox)
    labels = on_main_first(lambda: choose_tasks(options, factories))  # one rank downloads the files
    name = f"chat_eval_{options.source}"
    section = on_main_first(lambda: earlier_section(name, settings)) or {
        "title": f"Evaluation of the {options.source.upper()} model",
        "column": options.source.upper(),
        # After the stages (0 to 3), bits per byte (10) and base_eval (15).
        "order": 20 + report.COLUMNS.index(options.source.upper()),
        "settings": dict(settings),
        "results": {},
        "seconds": 0.0,
    }
    results = {label: saved_tally(tally) for label, tally in section["results"].items()}
    # Results of other tasks stay in the section, also with --fresh.
    missing = [label for label in labels if options.fresh or label not in results]
    if missing:
        tool = tool_from(options)
        engine = Engine(*load_checkpoint(options.source, meta, runtime), tool)
    else:
        report.log_reuse(section)
    for label in missing:
        began = time.perf_counter()
        results[label] = measure(label, factories[label](), engine, options, runtime)
        section["seconds"] += time.perf_counter() - began
        if label == "HumanEval" or options.tool == "python":
            section["settings"]["sandbox"] = describe_sandbox(options.sandbox)
        if runtime.is_main:  # after each task: a killed command resumes with the next
            write_results(name, section, results, settings, sizes)
    if runtime.is_main and sizes and not missing:  # of answers that are there
        write_results(name, section, results, settings, sizes)
    log_results({label: results[label] for label in labels}, results, settings, sizes)


def write_results(
    name: str, section: report.Section, results: Results, settings: dict[str, Any], sizes: list[int]
) -> None:
    """Write the section with what another command has meanwhile added to it; adds to `results`."""
    with paths.locked(paths.report_dir() / name):
        saved = (earlier_section(name, settings) or section)["results"]
        for label, tally in saved.items():
            results.setdefault(label, saved_tally(tally))
        report.write_section(name, section | rendered(results, settings, sizes))


def saved_tally(values: dict[str, Any]) -> Tally:
    """A tally of a section, which an earlier version with more fields may have written."""
    known = {field.name for field in fields(Tally)}
    return Tally(**{name: value for name, value in values.items() if name in known})


def earlier_section(name: str, settings: dict[str, Any]) -> report.Section | None:
    """The section of an earlier run with these settings, at whatever level of the sandbox."""
    section = report.read_section(name) or {}
    known = {key: value for key, value in section.get("settings", {}).items() if key != "sandbox"}
    return section if known == settings else None


def choose_tasks(options: Options, factories: TaskFactories) -> list[str]:
    """Labels of the tasks asked for, with their files downloaded.

    Raises UserError if a task asked for by name is unknown or not available.
    """
    wanted = options.task or ("primer" if dataset.current_source() == "primer" else "all")
    groups = {"primer": [*Primer.families, *Primer.probes, TYPED], "all": list(CHAT_TASKS)}
    available = []
    for label in groups.get(wanted) or map(str.strip, wanted.split(",")):
        try:
            if label not in factories:
                near = difflib.get_close_matches(label, factories, n=1)
                remedy = f"did you mean {near[0]}?" if near else f"use {', '.join(factories)}"
                raise UserError(f"-a {label} is not a task, nor primer or all; {remedy}")
            factories[label]()  # downloads its files, before anything is measured
            available.append(label)
        except UserError as error:
            if wanted not in groups:
                raise
            logger.warning("%s is left out: %s", label, error)
    return available


def measure(label: str, task: Task, engine: Engine, options: Options, runtime: Runtime) -> Tally:
    """The tally over all ranks, whose answers the main one writes; every rank calls it."""
    num_problems = len(task) if options.max_problems < 0 else min(options.max_problems, len(task))
    evaluate_share = partial(
        chat_eval.evaluate_task, task, engine,
        num_samples=options.num_samples, max_new_tokens=options.max_new_tokens,
        temperature=options.temperature, top_k=options.top_k or None,
        batch_size=options.batch_size,
    )  # fmt: skip
    shares = stage.evaluate_on_ranks(label, num_problems, runtime, evaluate_share)
    answered = sorted((one for share in shares for one in share), key=lambda one: one.index)
    if runtime.is_main:
        lines = [json.dumps({"task": label, **asdict(one)}, ensure_ascii=False) for one in answered]
        path = paths.base_dir() / "chat_eval" / f"{options.source}_{label}.jsonl"
        paths.write_atomic(path, "".join(f"{line}\n" for line in lines))
    return chat_eval.tally(answered)


# ---- the report


def estimates(results: Results, sizes: list[int]) -> dict[str, Estimate]:
    """The accuracy of each task and, where answers were sampled, pass@k."""
    found = {}
    for label, tally in results.items():
        found[label] = tally.accuracy
        if tally.num_samples > 1:  # not a choice
            found |= {f"{label} pass@{k}": tally.pass_at(k) for k in sizes}
    return found


def summary(results: Results, settings: dict[str, Any]) -> dict[str, Estimate]:
    """Scores over all families and over all six chat tasks, where these are complete."""
    scores = {}
    if all(family in results for family in Primer.families):
        tallies = [results[family] for family in Primer.families]
        num_total = sum(tally.num_total for tally in tallies)
        num_passed = sum(tally.num_passed for tally in tallies)
        scores[ALL_FAMILIES] = proportion(num_passed / max(1, num_total), num_total)
    if all(name in results for name in CHAT_TASKS):
        changed = [f"{k}={settings[k]}" for k, v in CHATCORE_SETTINGS.items() if settings[k] != v]
        label = CHATCORE + (f" with {', '.join(changed)}" if changed else "")
        scores[label] = chatcore({name: results[name].accuracy for name in CHAT_TASKS})
    return scores


def chatcore(accuracies: dict[str, Estimate]) -> Estimate:
    """The mean centered accuracy of the six tasks, whose errors are independent."""
    value = squares = 0.0
    for name, (_, chance) in CHAT_TASKS.items():
        value += centered(accuracies[name].value, chance) / len(CHAT_TASKS)
        squares += (accuracies[name].error / (1 - chance) / len(CHAT_TASKS)) ** 2
    reach = chat_eval.Z95 * math.sqrt(squares)
    return Estimate(value, math.sqrt(squares), value - reach, value + reach)


def log_results(
    chosen: Results, results: Results, settings: dict[str, Any], sizes: list[int]
) -> None:
    """Log the scores of the chosen tasks and the summary of all, with intervals of 95 %."""
    for label, one in (estimates(chosen, sizes) | summary(results, settings)).items():
        unit, scale = ("", 1) if label.startswith(CHATCORE) else (" %", 100)
        digits = 4 if scale == 1 else 2
        value, low, high = (f"{scale * x:.{digits}f}" for x in (one.value, one.low, one.high))
        cut = ""
        if label in chosen:
            tally = chosen[label]
            cut = f", of {tally.num_total}"
            if tally.num_cut:
                cut += f", {tally.num_cut} prompts longer than the context"
        logger.info("  %-28s %6s%s  (95 %%: %s to %s)%s", label, value, unit, low, high, cut)


def rendered(results: Results, settings: dict[str, Any], sizes: list[int]) -> dict[str, Any]:
    num_cut = sum(tally.num_cut for tally in results.values())
    note = f"{num_cut} prompts exceeded the context; the model saw their end."
    scores = estimates(results, sizes) | summary(results, settings)
    return {
        "metrics": {f"{name}, right of {t.num_total}": t.num_passed for name, t in results.items()},
        "notes": [note] if num_cut else [],
        "table": {label: one.value for label, one in scores.items()},
        "errors": {label: one.error for label, one in scores.items()},
        "intervals": {label: [one.low, one.high] for label, one in scores.items()},
        "samples": [
            {"prompt": s["prompt"], "answer": s["answer"] + ("" if s["passed"] else "  (wrong)")}
            for tally in results.values()
            for s in tally.samples
        ],
        "results": {label: vars(tally) for label, tally in results.items()},
    }
