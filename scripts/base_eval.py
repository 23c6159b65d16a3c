"""Evaluate a base model: the CORE metric, and completions of a few fixed prompts.

python -m scripts.base_eval
python -m scripts.base_eval --max_per_task=100        quick, but that is not CORE
python -m scripts.base_eval --hf_path=openai-community/gpt2
torchrun --standalone --nproc_per_node=8 -m scripts.base_eval

Results are also written to base_eval/ in the base directory, as CSV in the layout of published
results, and as JSON with standard errors.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from nanochat.configurator import at_least, parse, run_command
from scripts.options import EvalOptions


@dataclass(frozen=True)
class Options(EvalOptions):
    """Evaluate a base model: the CORE metric, and completions of a few fixed prompts."""

    hf_path: str = ""
    """Evaluate this Hugging Face model instead, a folder or a name on the hub, with its own
    tokenizer."""
    bundle: str = ""
    """Folder with the files of CORE in eval_data/; empty means eval_bundle in the base directory,
    downloaded if it is missing, but not beside the primer, which needs no network."""
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

import json
import logging
import re
import time
from functools import partial
from pathlib import Path
from typing import Any

from nanochat import core_eval, dataset, paths, report
from nanochat.checkpoint_manager import Meta
from nanochat.core_eval import CoreTask, Counts, Encode, LogitsAt
from nanochat.data.eval_bundle import fetch_bundle, read_definitions
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.runtime import Runtime, barrier, on_main_first
from nanochat.training import stage
from scripts.huggingface import huggingface_identity, load_huggingface
from scripts.inference import find_checkpoint, load_checkpoint
from tasks.primer import plain_choices

logger = logging.getLogger(__name__)

TOKENS_PER_BATCH = {"cuda": 16_384, "mps": 8_192, "cpu": 2_048}
# Scored as a task of CORE is, but not part of it.
PLAIN_CHOICE = CoreTask("multiple choice, plain text", "multiple_choice", 0, " ", 0.25)
SECTION = "base_eval"  # name of the report's section, and of the folder with results
HEADER = ["task", "items", "accuracy, %", "chance, %", "centered", "standard error"]
PRIMER_BEGINNINGS = ("The fox", "One day", "Question: Who lives in Oakham? Answer:", "Monday,")
TEXT_BEGINNINGS = (
    "The capital of France is", "The chemical symbol of gold is", "If yesterday was Friday, then",
    "The opposite of hot is", "The planets of the solar system are:", "One day",
)  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """The model that is evaluated."""

    encode: Encode
    logits_at: LogitsAt
    limit: int  # context length
    engine: Engine | None = None  # for samples, if it is a model of ours


@dataclass(frozen=True)
class Bundle:
    """The tasks of CORE and the folder of their files; no tasks if it is not available."""

    folder: Path
    tasks: tuple[CoreTask, ...] = ()
    missing: str = ""  # why CORE is not measured


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv)
    with stage.command_runtime(options.device_type) as runtime:
        evaluate(options, runtime)


def evaluate(options: Options, runtime: Runtime) -> None:
    meta: Meta = {}
    if options.hf_path:
        settings: dict[str, Any] = {"model": huggingface_identity(options.hf_path)}
        file_name = re.sub(r"[^A-Za-z0-9._-]+", "-", options.hf_path).strip("-")
    else:
        meta, settings = find_checkpoint(options, "base")
        file_name = f"{meta['settings']['model_tag']}_{meta['step']:06d}"
    is_primer = not options.hf_path and dataset.current_source() == "primer"
    bundle = find_bundle(options, is_primer)
    settings |= {
        "bundle": "missing" if bundle.missing else str(bundle.folder),  # once there, it is measured
        "max_per_task": options.max_per_task,
        "baselines": options.baselines,
        "primer_problems": options.primer_problems if is_primer else 0,  # else unused
    }
    name = f"{SECTION}_{file_name}" if options.hf_path else SECTION
    section = on_main_first(lambda: report.already_measured(name, settings, options.fresh)) or {
        "title": f"Evaluation of {options.hf_path or 'the BASE model'} on plain text",
        "column": "" if options.hf_path else "BASE",
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
    if bundle.missing:
        logger.warning("%s", bundle.missing)
    subject = load_subject(options, meta, runtime)
    for task in [*bundle.tasks, *([PLAIN_CHOICE] if is_primer else [])]:
        if task.label not in section["results"]:
            measure(task, subject, bundle, options, runtime, section)
            if runtime.is_main:  # after each task: a killed command resumes with the next
                logger.info("%s", _line(section["rows"][-1]))
                report.write_section(name, section)
    if runtime.is_main:
        section |= summary(options, bundle, section["results"], file_name) | {"complete": True}
        logger.info("%s", "\n".join(section["notes"]))
        if subject.engine is not None:
            beginnings = PRIMER_BEGINNINGS if is_primer else TEXT_BEGINNINGS
            section["samples"] = stage.greedy_samples(subject.engine, beginnings, is_chat=False)
        report.write_section(name, section)
    barrier()  # no rank leaves the group while the main one still generates samples


def find_bundle(options: Options, is_primer: bool) -> Bundle:
    """The bundle asked for, downloaded if need be; UserError when it is not usable."""
    folder = Path(options.bundle).expanduser() if options.bundle else paths.eval_dir()
    if not options.bundle and not folder.is_dir():
        if is_primer:
            return Bundle(folder, missing=(
                "CORE is not measured, since the primer is used without a network; to download its"
                " bundle (162 MB), run python -m nanochat.dataset -n 0 --prefetch=eval, then this"
                " command again"
            ))  # fmt: skip
        try:
            on_main_first(lambda: str(fetch_bundle()))
            fetch_bundle()  # on other machines
        except UserError as error:
            if options.hf_path:
                raise  # there is nothing else to measure
            return Bundle(folder, missing=f"CORE is not measured: {error}")
    if missing := core_eval.missing_files(folder):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"the bundle {folder} lacks {', '.join(missing[:3])}{more}; name another with"
            " --bundle=PATH, or remove it to download it again"
        )
    if differences := core_eval.definition_differences(read_definitions(folder)):
        raise UserError(
            f"the bundle {folder} does not define CORE: {'; '.join(differences[:3])}; restore its"
            " files, or remove core.yaml to use its data by the published definitions"
        )
    return Bundle(folder, core_eval.core_tasks(options.baselines))


def load_subject(options: Options, meta: Meta, runtime: Runtime) -> Subject:
    """The model of Hugging Face, or that of a checkpoint's meta."""
    if options.hf_path:
        other = load_huggingface(options.hf_path, runtime, _batch_tokens(options, runtime))
        return Subject(other.encode, other.logits_at, other.limit)
    model, tokenizer = load_checkpoint("base", meta, runtime)
    engine = Engine(model, tokenizer)
    return Subject(
        lambda texts: tokenizer.encode(texts, prepend="<|bos|>"),
        engine.logits_at, model.config.sequence_len, engine,
    )  # fmt: skip


def _batch_tokens(options: Options, runtime: Runtime) -> int:
    size = options.tokens_per_batch
    return size if size > 0 else TOKENS_PER_BATCH[runtime.device.type]


def measure(
    task: CoreTask,
    subject: Subject,
    bundle: Bundle,
    options: Options,
    runtime: Runtime,
    section: dict[str, Any],
) -> None:
    """Add the results of a task to the section. Collective."""
    began = time.perf_counter()
    if task is PLAIN_CHOICE:
        items = plain_choices(options.primer_problems)
    else:
        items = core_eval.read_items(bundle.folder, task, options.max_per_task)
    evaluate_share = partial(
        core_eval.evaluate_task, task, items, encode=subject.encode, logits_at=subject.logits_at,
        limit=subject.limit, tokens_per_batch=_batch_tokens(options, runtime),
    )  # fmt: skip
    counts = sum(stage.evaluate_on_ranks(task.label, len(items), runtime, evaluate_share), Counts())
    section["results"][task.label] = vars(counts)
    section["rows"] = [*(section["rows"] or [HEADER]), _row(task, counts)]
    section["seconds"] += time.perf_counter() - began


# ---- results


def summary(
    options: Options, bundle: Bundle, results: dict[str, Any], file_name: str
) -> dict[str, Any]:
    """Table, standard errors and notes of the report; CORE only if it was measured as published.

    The results of the tasks are also written to files.
    """
    table, errors, notes = {}, {}, [bundle.missing] if bundle.missing else []
    counts = {label: Counts(**result) for label, result in results.items()}
    if PLAIN_CHOICE.label in counts:
        plain = counts.pop(PLAIN_CHOICE.label)
        table[PLAIN_CHOICE.label], errors[PLAIN_CHOICE.label] = plain.accuracy, plain.standard_error
    if not bundle.tasks:
        return {"table": table, "errors": errors, "notes": notes}
    mean, error = core_eval.mean_centered([(task, counts[task.label]) for task in bundle.tasks])
    differences = []
    if options.max_per_task > 0:
        differences.append(f"at most {options.max_per_task} items per task")
    if unpublished := core_eval.unpublished_files(bundle.folder):
        differences.append(f"other files than the published ones for {', '.join(unpublished)}")
    score = f"{mean:.4f} (baselines {options.baselines}, standard error {error:.4f})"
    if differences:
        notes.append(f"Mean centered accuracy {score}, not CORE: {'; '.join(differences)}.")
    else:
        table, errors = {"CORE": mean, **table}, {"CORE": error, **errors}
        notes.append(f"CORE is {score}.")
    total = sum(counts.values(), Counts())
    notes.append(
        f"Irregular items: {total.num_empty} with a choice that adds no token (the first choice is"
        f" taken), {total.num_not_extension} whose continuation changes earlier tokens,"
        f" {total.num_cropped} longer than the context (the end is kept)."
    )
    content = {
        "model": file_name, "baselines": options.baselines, "is_core": not differences,
        "not_core_because": differences, "mean_centered": mean, "standard_error": error,
        "tasks": {task.label: _task_results(task, counts[task.label]) for task in bundle.tasks},
    }  # fmt: skip
    path = paths.base_dir() / SECTION / file_name
    paths.write_atomic(path.with_name(f"{file_name}.json"), json.dumps(content, indent=1) + "\n")
    paths.write_atomic(path.with_name(f"{file_name}.csv"), as_csv(content))
    notes.append(f"Results by task: {path}.csv and .json")
    return {"table": table, "errors": errors, "notes": notes}


def _task_results(task: CoreTask, counts: Counts) -> dict[str, Any]:
    return {
        "kind": task.kind, "num_shots": task.num_shots, "baseline": task.baseline,
        "accuracy": counts.accuracy, "standard_error": counts.standard_error,
        "centered": core_eval.centered(counts.accuracy, task.baseline),
        **vars(counts),
    }  # fmt: skip


def as_csv(content: dict[str, Any]) -> str:
    """The layout of published results: task, accuracy, centered; the last row is the mean."""
    rows = [("Task", "Accuracy", "Centered")]
    for label, task in content["tasks"].items():
        rows.append((label, f"{task['accuracy']:.6f}", f"{task['centered']:.6f}"))
    last = "CORE" if content["is_core"] else "not CORE"
    rows.append((last, "", f"{content['mean_centered']:.6f}"))
    return "".join(f"{label:<35}, {first:<10}, {second:<10}\n" for label, first, second in rows)


def _row(task: CoreTask, counts: Counts) -> list[Any]:
    """As HEADER says; the standard error is that of the centered value."""
    accuracy, baseline = round(100 * counts.accuracy, 2), round(100 * task.baseline, 2)
    value = round(core_eval.centered(counts.accuracy, task.baseline), 4)
    error = round(counts.standard_error / (1 - task.baseline), 4)
    return [task.label, counts.num_items, accuracy, baseline, value, error]


def _line(row: list[Any]) -> str:
    label, items, accuracy, chance, value, error = row
    return (
        f"  {label:34s} {accuracy:6.2f} %  of {items:6d}  chance {chance:4.1f} %"
        f"  {value:+.4f} +- {error:.4f}"
    )
