"""What a base model knows: the CORE metric, and how it goes on with a few beginnings.

python -m scripts.base_eval
python -m scripts.base_eval --max_per_task=100        quick, but that is not CORE
torchrun --standalone --nproc_per_node=8 -m scripts.base_eval
"""

import logging
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor

from nanochat import (
    checkpoint_manager,
    core_eval,
    dataset,
    paths,
    report,
)
from nanochat.configurator import at_least, parse, run
from nanochat.core_eval import Baselines, CoreTask, Counts, Item
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.metrics import ProgressLine
from nanochat.primer.world import a
from nanochat.runtime import Runtime, barrier, gather_objects, on_main_first
from nanochat.tokenizer import RustBPETokenizer
from nanochat.training import stage
from nanochat.training.config import COLUMNS
from nanochat.training.samples import continuations
from tasks.primer import Primer

logger = logging.getLogger(__name__)

BUNDLE_URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
TOKENS_PER_BATCH = {"cuda": 16_384, "mps": 8_192, "cpu": 4_096}
PLAIN_CHOICE = CoreTask("one of four sentences, plain text", "multiple_choice", 0, " ", 0.25)
SECTION = "base_eval"
ROWS_HEAD = ["task", "items", "right, %", "chance, %", "centred"]
PRIMER_BEGINNINGS = ("The fox", "One day", "Question: Who lives in Oakham? Answer:", "Monday,")
TEXT_BEGINNINGS = (
    "The capital of France is", "The chemical symbol of gold is", "If yesterday was Friday, then",
    "The opposite of hot is", "The planets of the solar system are:", "One day",
)  # fmt: skip

Results = dict[str, Counts]
"""By label; the section of the report keeps them for the next call."""


@dataclass(frozen=True)
class Options:
    """What a base model knows: the CORE metric, and how it goes on with a few beginnings."""

    model_tag: str = ""
    """Folder of the checkpoint; empty means the newest."""
    step: int = -1
    """Step of the checkpoint; -1 means the newest."""
    bundle: str = ""
    """Folder with core.yaml, eval_meta_data.csv and eval_data/; empty means eval_bundle in the base
    directory."""
    max_per_task: Annotated[int, at_least(1, besides=-1)] = -1
    """Items of each task; -1 means all. A cropped run is quick but is not CORE."""
    baselines: Baselines = "v1"
    """What counts as chance: v1 as in published numbers, v2 as DCLM corrected it."""
    primer_problems: Annotated[int, at_least(1)] = 200
    """Questions of the primer world, when that is the source."""
    tokens_per_batch: Annotated[int, at_least(1, besides=-1)] = -1
    """In one forward pass; -1 means what suits the device. Does not change results."""
    device_type: str = ""
    """cuda, mps or cpu; empty means the fastest that is there."""
    fresh: bool = False
    """Measure again what has been measured."""


def main(argv: list[str] | None = None) -> None:
    """Measure what can be measured, and say what is missing."""
    options = parse(Options, argv)
    with stage.opened(options.device_type) as runtime:
        evaluate(options, runtime)


@dataclass(frozen=True)
class Bundle:
    """The files of CORE, or why there are none."""

    folder: Path
    tasks: tuple[CoreTask, ...]
    missing: str


def evaluate(options: Options, runtime: Runtime) -> None:
    """Everything between the options and the report."""
    meta = checkpoint_manager.read_meta("base", options.model_tag, options.step)
    bundle = find_bundle(options)
    is_primer = dataset.current_source() == "primer"
    settings = defining_settings(options, meta, bundle, is_primer)
    kept = on_main_first(lambda: report.read_section(SECTION, settings))
    section = {} if kept is None or options.fresh else kept
    if section.get("complete"):
        logger.info("the base model at step %d is measured already:", meta["step"])
        for line in [*map(_line, section["rows"][1:]), *section["notes"]]:
            logger.info("%s", line)
        return
    if bundle.missing:
        logger.warning("%s", bundle.missing)
    tag, step = meta["settings"]["model_tag"], meta["step"]
    model, tokenizer, _ = checkpoint_manager.load_model("base", runtime, tag, step)
    results = {label: Counts(**counts) for label, counts in section.get("results", {}).items()}
    seconds = section.get("seconds", 0.0)
    tasks = [*bundle.tasks, PLAIN_CHOICE] if is_primer else bundle.tasks
    for task in tasks:
        if task.label in results:
            continue
        began = time.perf_counter()
        items = read_items(task, options, bundle)
        results[task.label] = ask(task, items, model, tokenizer, options, runtime)
        seconds += time.perf_counter() - began
        if runtime.is_main:  # after each task, so that nothing is asked twice after a crash
            logger.info("%s", _line(row_of(task, results[task.label])))
            report.write_section(SECTION, make_section(settings, tasks, results, seconds))
    if runtime.is_main:
        beginnings = PRIMER_BEGINNINGS if is_primer else TEXT_BEGINNINGS
        table, notes = conclusions(options, bundle, results)
        for note in notes:
            logger.info("%s", note)
        samples = continuations(Engine(model, tokenizer), beginnings)
        whole = {"table": table, "notes": notes, "samples": samples, "complete": True}
        report.write_section(SECTION, make_section(settings, tasks, results, seconds) | whole)
    barrier()


def defining_settings(
    options: Options, meta: dict[str, Any], bundle: Bundle, is_primer: bool
) -> dict[str, Any]:
    """Of which model and in which way: results under equal settings belong together."""
    return {
        "model": checkpoint_manager.model_identity(meta),
        "step": meta["step"],
        "bundle": "missing" if bundle.missing else str(bundle.folder),
        "max_per_task": options.max_per_task,
        "baselines": options.baselines,
        "primer_problems": options.primer_problems if is_primer else 0,
    }


def find_bundle(options: Options) -> Bundle:
    """The tasks of CORE, or none and how to get them."""
    folder = Path(options.bundle).expanduser() if options.bundle else paths.eval_dir()
    try:
        return Bundle(folder, tuple(core_eval.read_tasks(folder, options.baselines)), "")
    except UserError as error:
        missing = (
            f"CORE is not measured: {error}. To get the bundle (162 MB), where there is a network:"
            f" curl -LO {BUNDLE_URL} && unzip eval_bundle.zip -d {folder.parent}; then run this"
            " command again"
        )
        return Bundle(folder, (), missing)


def read_items(task: CoreTask, options: Options, bundle: Bundle) -> list[Item]:
    """What is asked."""
    if task is PLAIN_CHOICE:
        return plain_choices(options.primer_problems)
    return core_eval.read_items(bundle.folder, task, options.max_per_task)


def ask(
    task: CoreTask,
    items: list[Item],
    model: GPT,
    tokenizer: RustBPETokenizer,
    options: Options,
    runtime: Runtime,
) -> Counts:
    """The counts over all ranks; every rank calls it."""

    def logits_at(tokens: Tensor, at: Tensor) -> Tensor:
        logits: Tensor = model(tokens, logits_at=at)
        return logits

    size = options.tokens_per_batch
    own_share = len(range(runtime.rank, len(items), runtime.world_size))
    with ProgressLine(own_share, task.label, runtime.is_main) as line:
        own = core_eval.evaluate_task(
            task,
            items,
            tokenizer,
            logits_at,
            limit=model.config.sequence_len,
            device=runtime.device,
            rank=runtime.rank,
            world_size=runtime.world_size,
            tokens_per_batch=size if size > 0 else TOKENS_PER_BATCH[runtime.device.type],
            on_progress=line.update,
        )
    return sum(gather_objects(own), Counts())


def plain_choices(size: int) -> list[Item]:
    """Facts of the primer world, told right once and wrong three times, in base text's form."""
    task, items = Primer("test", family="facts", size=size), []
    for index in range(size):
        conversation = task[index]
        question, sentence = (message["content"] for message in conversation["messages"])
        answer, rng = str(conversation["answer"]), random.Random(index)
        rivals = [rival for rival in conversation["rivals"] if rival != answer]
        if answer not in sentence or len(rivals) < 3:
            continue
        choices = [answer, *rng.sample(rivals, 3)]
        rng.shuffle(choices)
        items.append(
            {
                "query": f"Question: {question} Answer:",
                "choices": [told_otherwise(sentence, answer, choice) for choice in choices],
                "gold": choices.index(answer),
            }
        )
    return items


def told_otherwise(sentence: str, answer: str, other: str) -> str:
    """The sentence with another answer in it, `a` or `an` as that one wants it."""
    with_article = re.sub(rf"\ban? {re.escape(answer)}\b", lambda _: a(other), sentence)
    return with_article if with_article != sentence else sentence.replace(answer, other)


# ---- the report


def make_section(
    settings: dict[str, Any], tasks: Sequence[CoreTask], results: Results, seconds: float
) -> dict[str, Any]:
    """The section of the report as far as it goes, with the results that a later call adds to."""
    rows = [row_of(task, results[task.label]) for task in tasks if task.label in results]
    return {
        "title": "What the base model knows",
        "column": COLUMNS["base"],
        "order": 15,
        "settings": settings,
        "rows": [ROWS_HEAD, *rows] if rows else [],
        "results": {label: vars(counts) for label, counts in results.items()},
        "complete": False,
        "seconds": seconds,
    }


def conclusions(
    options: Options, bundle: Bundle, results: Results
) -> tuple[dict[str, float], list[str]]:
    """What goes into the table of all stages, CORE only when it is that; and what to say."""
    table, notes = core(options, bundle, results) if bundle.tasks else ({}, [bundle.missing])
    if PLAIN_CHOICE.label in results:
        counts = results[PLAIN_CHOICE.label]
        table[PLAIN_CHOICE.label] = counts.num_right / max(1, counts.num_items)
    return table, notes


def core(options: Options, bundle: Bundle, results: Results) -> tuple[dict[str, float], list[str]]:
    """CORE for the table when it is that, and what there is to say about it."""
    counts = [results[task.label] for task in bundle.tasks]
    centred = map(core_eval.centred_accuracy, bundle.tasks, counts)
    mean, odd = sum(centred) / len(counts), sum(counts, Counts())
    why_not = why_not_core(options, bundle)
    measured = f"{mean:.4f} (baselines {options.baselines})"
    notes = [
        f"Mean centred accuracy {measured}, which is not CORE: {'; '.join(why_not)}."
        if why_not
        else f"CORE is {measured}.",
        f"Odd items: {odd.num_empty} with a choice of no token of its own (the first choice is"
        f" taken), {odd.num_not_extension} whose continuation changes earlier tokens,"
        f" {odd.num_cropped} longer than the context (the end is kept).",
    ]
    return ({} if why_not else {"CORE": mean}), notes


def why_not_core(options: Options, bundle: Bundle) -> list[str]:
    """What keeps this run from being CORE."""
    reasons = []
    if options.max_per_task > 0:
        reasons.append(f"cropped to {options.max_per_task} items a task")
    if len(bundle.tasks) != core_eval.NUM_TASKS:
        reasons.append(f"{len(bundle.tasks)} tasks instead of {core_eval.NUM_TASKS}")
    unlike = core_eval.unlike_published(bundle.folder, bundle.tasks)
    if unlike:
        reasons.append(f"other files than the published ones for {', '.join(unlike)}")
    return reasons


def row_of(task: CoreTask, counts: Counts) -> list[Any]:
    """Label, items, accuracy and chance in percent, centred accuracy."""
    accuracy = 100 * counts.num_right / max(1, counts.num_items)
    centred = core_eval.centred_accuracy(task, counts)
    chance = round(100 * task.baseline, 2)
    return [task.label, counts.num_items, round(accuracy, 2), chance, round(centred, 4)]


def _line(row: list[Any]) -> str:
    label, items, accuracy, chance, centred = row
    return f"  {label:34s} {accuracy:6.2f} %  of {items:6d}  chance {chance:4.1f} %  {centred:+.4f}"


if __name__ == "__main__":
    run(main)
