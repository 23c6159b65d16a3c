"""Evaluate a base model: the CORE metric, and completions of a few fixed prompts.

python -m scripts.base_eval
python -m scripts.base_eval --max_per_task=100        quick, but that is not CORE
torchrun --standalone --nproc_per_node=8 -m scripts.base_eval
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from nanochat.configurator import at_least, parse, run_command
from scripts.options import EvalOptions


@dataclass(frozen=True)
class Options(EvalOptions):
    """Evaluate a base model: the CORE metric, and completions of a few fixed prompts."""

    bundle: str = ""
    """Folder with core.yaml, eval_meta_data.csv and eval_data/; empty means eval_bundle in the base
    directory."""
    max_per_task: Annotated[int, at_least(1, besides=-1)] = -1
    """Items of each task; -1 means all. With fewer the run is quick, but is not CORE."""
    baselines: Literal["v1", "v2"] = "v1"
    """Random baselines: v1 as in published numbers, v2 as corrected by DCLM."""
    primer_problems: Annotated[int, at_least(1)] = 200
    """Questions of the primer world, if that is the source."""
    tokens_per_batch: Annotated[int, at_least(1, besides=-1)] = -1
    """Tokens per forward pass; -1 means what suits the device. Does not change results."""


if __name__ == "__main__":
    run_command(Options)  # before the slow imports

import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

from nanochat import core_eval, dataset, paths, report
from nanochat.core_eval import Baselines, CoreTask, Counts
from nanochat.engine import Engine
from nanochat.runtime import Runtime, barrier, on_main_first
from nanochat.training import stage
from scripts.inference import find_checkpoint, load_checkpoint
from tasks.primer import plain_choices

logger = logging.getLogger(__name__)

BUNDLE_URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
TOKENS_PER_BATCH = {"cuda": 16_384, "mps": 8_192, "cpu": 4_096}
# Scored as a task of CORE is, but not part of it.
PLAIN_CHOICE = CoreTask("multiple choice, plain text", "multiple_choice", 0, " ", 0.25)
SECTION = "base_eval"  # name of the report's section
HEADER = ["task", "items", "accuracy, %", "chance, %", "centered"]
PRIMER_BEGINNINGS = ("The fox", "One day", "Question: Who lives in Oakham? Answer:", "Monday,")
TEXT_BEGINNINGS = (
    "The capital of France is", "The chemical symbol of gold is", "If yesterday was Friday, then",
    "The opposite of hot is", "The planets of the solar system are:", "One day",
)  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv)
    with stage.command_runtime(options.device_type) as runtime:
        evaluate(options, runtime)


def evaluate(options: Options, runtime: Runtime) -> None:
    meta, settings = find_checkpoint(options, "base")
    folder = Path(options.bundle).expanduser() if options.bundle else paths.eval_dir()
    core_tasks, missing = find_bundle(folder, options.baselines)
    is_primer = dataset.current_source() == "primer"
    settings |= {
        "bundle": "missing" if missing else str(folder),  # once downloaded, it is measured
        "max_per_task": options.max_per_task,
        "baselines": options.baselines,
        "primer_problems": options.primer_problems if is_primer else 0,  # else unused
    }
    section = on_main_first(lambda: report.already_measured(SECTION, settings, options.fresh)) or {
        "title": "Evaluation of the BASE model on plain text",
        "column": "BASE",
        "order": 15,  # after bits per byte (10), before chat tasks (20)
        "settings": settings,
        "rows": [],
        "results": {},  # from which the next call continues
        "complete": False,  # until table, notes and samples are there
        "seconds": 0.0,
    }
    if section["complete"]:
        logger.info("%s", "\n".join([*map(_line, section["rows"][1:]), *section["notes"]]))
        return
    if missing:
        logger.warning("%s", missing)
    model, tokenizer = load_checkpoint("base", meta, runtime)
    size = options.tokens_per_batch
    tasks = [*core_tasks, PLAIN_CHOICE] if is_primer else core_tasks
    for task in (task for task in tasks if task.label not in section["results"]):
        began = time.perf_counter()
        if task is PLAIN_CHOICE:
            items = plain_choices(options.primer_problems)
        else:
            items = core_eval.read_items(folder, task, options.max_per_task)
        evaluate_share = partial(
            core_eval.evaluate_task, task, items,
            encode=lambda texts: tokenizer.encode(texts, prepend="<|bos|>"),
            logits_at=lambda tokens, at: model(tokens, logits_at=at),
            limit=model.config.sequence_len, device=runtime.device,
            tokens_per_batch=size if size > 0 else TOKENS_PER_BATCH[runtime.device.type],
        )  # fmt: skip
        shares = stage.evaluate_on_ranks(task.label, len(items), runtime, evaluate_share)
        counts = sum(shares, Counts())
        section["results"][task.label] = vars(counts)
        section["rows"] = [*(section["rows"] or [HEADER]), _row(task, counts)]
        section["seconds"] += time.perf_counter() - began
        if runtime.is_main:  # after each task: a killed command resumes with the next
            logger.info("%s", _line(section["rows"][-1]))
            report.write_section(SECTION, section)
    if runtime.is_main:
        table, notes = core_score(options, folder, core_tasks, section["results"], missing)
        logger.info("%s", "\n".join(notes))
        beginnings = PRIMER_BEGINNINGS if is_primer else TEXT_BEGINNINGS
        samples = stage.greedy_samples(Engine(model, tokenizer), beginnings, is_chat=False)
        final = {"table": table, "notes": notes, "samples": samples, "complete": True}
        report.write_section(SECTION, section | final)
    barrier()  # no rank leaves the group while the main one still generates samples


def find_bundle(folder: Path, baselines: Baselines) -> tuple[list[CoreTask], str]:
    """The tasks of CORE; or none, and how to get them."""
    try:
        return core_eval.read_tasks(folder, baselines), ""
    except FileNotFoundError as error:
        return [], (
            f"CORE is not measured: {error}. To download the bundle (162 MB):"
            f" curl -LO {BUNDLE_URL} && unzip eval_bundle.zip -d {folder.parent}; then run this"
            " command again"
        )


# ---- the report


def core_score(
    options: Options, folder: Path, tasks: list[CoreTask], results: dict[str, Any], missing: str
) -> tuple[dict[str, float], list[str]]:
    """Rows for the results table, CORE only if it was measured as published; and notes."""
    table, notes = {}, [missing] if missing else []
    counts = {label: Counts(**result) for label, result in results.items()}
    if PLAIN_CHOICE.label in counts:
        table[PLAIN_CHOICE.label] = counts.pop(PLAIN_CHOICE.label).accuracy
    if not tasks:
        return table, notes
    mean = sum(_centered(task, counts[task.label]) for task in tasks) / len(tasks)
    score, total = f"{mean:.4f} (baselines {options.baselines})", sum(counts.values(), Counts())
    differences = []
    if options.max_per_task > 0:
        differences.append(f"at most {options.max_per_task} items per task")
    if len(tasks) != core_eval.NUM_TASKS:
        differences.append(f"{len(tasks)} tasks instead of {core_eval.NUM_TASKS}")
    if unpublished := core_eval.unpublished_files(folder, tasks):
        differences.append(f"other files than the published ones for {', '.join(unpublished)}")
    if differences:
        notes.append(f"Mean centered accuracy {score}, not CORE: {'; '.join(differences)}.")
    else:
        table = {"CORE": mean, **table}
        notes.append(f"CORE is {score}.")
    notes.append(
        f"Irregular items: {total.num_empty} with a choice that adds no token (the first choice is"
        f" taken), {total.num_not_extension} whose continuation changes earlier tokens,"
        f" {total.num_cropped} longer than the context (the end is kept)."
    )
    return table, notes


def _centered(task: CoreTask, counts: Counts) -> float:
    return core_eval.centered(counts.accuracy, task.baseline)


def _row(task: CoreTask, counts: Counts) -> list[Any]:
    """As HEADER says."""
    accuracy, baseline = round(100 * counts.accuracy, 2), round(100 * task.baseline, 2)
    return [task.label, counts.num_items, accuracy, baseline, round(_centered(task, counts), 4)]


def _line(row: list[Any]) -> str:
    label, items, accuracy, chance, centered = row
    return (
        f"  {label:34s} {accuracy:6.2f} %  of {items:6d}  chance {chance:4.1f} %  {centered:+.4f}"
    )
