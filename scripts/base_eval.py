"""What a base model knows: the CORE metric, and how it goes on with a few beginnings.

    python -m scripts.base_eval
    python -m scripts.base_eval --max_per_task=100        quick, but that is not CORE
    torchrun --standalone --nproc_per_node=8 -m scripts.base_eval
"""

import logging
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from nanochat import checkpoint_manager, core_eval, dataset, paths, report, runtime, stage
from nanochat.configurator import parse, run
from nanochat.core_eval import Baselines, CoreTask, Counts, Item
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.metrics import ProgressLine
from nanochat.primer.world import a
from nanochat.runtime import Runtime
from nanochat.tokenizer import RustBPETokenizer
from tasks.primer import Primer

logger = logging.getLogger(__name__)

BUNDLE_URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
TOKENS_PER_BATCH = {"cuda": 16_384, "mps": 8_192, "cpu": 4_096}
PLAIN_CHOICE = CoreTask("one of four sentences, plain text", "multiple_choice", 0, " ", 0.25)
PRIMER_BEGINNINGS = ("The fox", "One day", "Question: Who lives in Oakham? Answer:", "Monday,")
TEXT_BEGINNINGS = (
    "The capital of France is", "The chemical symbol of gold is", "If yesterday was Friday, then",
    "The opposite of hot is", "The planets of the solar system are:", "One day",
)  # fmt: skip

Results = dict[str, dict[str, int]]
"""By label what `Counts` counts."""


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
    max_per_task: int = -1
    """Items of each task; -1 means all. A cropped run is quick but is not CORE."""
    baselines: Baselines = "v1"
    """What counts as chance: v1 as in published numbers, v2 as DCLM corrected it."""
    primer_problems: int = 200
    """Questions of the primer world, when that is the source."""
    tokens_per_batch: int = -1
    """In one forward pass; -1 means what suits the device. Does not change results."""
    device_type: str = ""
    """cuda, mps or cpu; empty means the fastest that is there."""
    fresh: bool = False
    """Measure again what has been measured."""


def main(argv: list[str] | None = None) -> None:
    """Measure what can be measured, and say what is missing."""
    options = parse(Options, argv)
    with stage.opened(options.device_type) as place:
        evaluate(options, place)


def evaluate(options: Options, place: Runtime) -> None:
    """Everything between the options and the report."""
    step = None if options.step == -1 else options.step
    meta = checkpoint_manager.read_meta("base", options.model_tag or None, step)
    folder = Path(options.bundle).expanduser() if options.bundle else paths.eval_dir()
    tasks, missing = find_tasks(folder, options.baselines)
    is_primer = dataset.current_source() == "primer"
    settings = {
        "model": checkpoint_manager.model_identity(meta),
        "step": meta["step"],
        "bundle": "missing" if missing else str(folder),
        "max_per_task": options.max_per_task,
        "baselines": options.baselines,
        "primer_problems": options.primer_problems if is_primer else 0,
    }
    found = None if options.fresh else runtime.on_main_first(lambda: _earlier_section(settings))
    if found is not None and found["complete"]:
        logger.info("the base model at step %d is measured already:", meta["step"])
        _say(found["rows"], found["notes"])
        return
    if missing:
        logger.warning("%s", missing)
    asked: list[tuple[CoreTask, Callable[[], list[Item]]]] = [
        (task, partial(core_eval.read_items, folder, task, options.max_per_task)) for task in tasks
    ]
    if is_primer:
        asked.append((PLAIN_CHOICE, lambda: plain_choices(options.primer_problems)))
    tag = meta["settings"]["model_tag"]
    model, tokenizer, _ = checkpoint_manager.load_model("base", place, tag, step)
    measured = Measured(options, settings, tasks, folder, missing, found or {})
    for task, read in asked:
        if task.label not in measured.results:
            measured.add(task, ask(task, read(), model, tokenizer, options, place), place)
    beginnings = PRIMER_BEGINNINGS if is_primer else TEXT_BEGINNINGS
    if place.is_main:
        measured.finish(stage.continuations(Engine(model, tokenizer), beginnings))
    runtime.barrier()


def find_tasks(folder: Path, baselines: Baselines) -> tuple[list[CoreTask], str]:
    """The tasks of CORE, or none and why."""
    try:
        return core_eval.read_tasks(folder, baselines), ""
    except UserError as error:
        return [], (
            f"CORE is not measured: {error}. To get the bundle (162 MB), where there is a network:"
            f" curl -LO {BUNDLE_URL} && unzip eval_bundle.zip -d {folder.parent}; then run this"
            " command again"
        )


def _earlier_section(settings: dict[str, Any]) -> dict[str, Any] | None:
    section = report.read_section("base_eval")
    return section if section is not None and section.get("settings") == settings else None


def ask(
    task: CoreTask,
    items: list[Item],
    model: GPT,
    tokenizer: RustBPETokenizer,
    options: Options,
    place: Runtime,
) -> Counts:
    """The counts over all ranks; every rank calls it."""

    def logits_at(tokens: Tensor, at: Tensor) -> Tensor:
        logits: Tensor = model(tokens, logits_at=at)
        return logits

    size = options.tokens_per_batch
    own_share = len(range(place.rank, len(items), place.world_size))
    with ProgressLine(own_share, task.label, place.is_main) as line:
        own = core_eval.evaluate_task(
            task,
            items,
            tokenizer,
            logits_at,
            limit=model.config.sequence_len,
            device=place.device,
            rank=place.rank,
            world_size=place.world_size,
            tokens_per_batch=size if size > 0 else TOKENS_PER_BATCH[place.device.type],
            on_progress=line.update,
        )
    return sum(runtime.gather_objects(own), Counts())


def plain_choices(size: int) -> list[Item]:
    """Facts of the primer world, told right once and wrong three times, in base text's form."""
    task, items = Primer("test", family="facts", size=size), []
    for index in range(size):
        conversation = task[index]
        question, sentence = (message["content"] for message in conversation["messages"])
        answer, dice = str(conversation["answer"]), random.Random(index)
        rivals = [rival for rival in conversation["rivals"] if rival != answer]
        if answer not in sentence or len(rivals) < 3:
            continue
        choices = [answer, *dice.sample(rivals, 3)]
        dice.shuffle(choices)
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


class Measured:
    """What is measured so far; the section of the report is written after each task."""

    def __init__(
        self,
        options: Options,
        settings: dict[str, Any],
        tasks: list[CoreTask],
        folder: Path,
        missing: str,
        earlier: dict[str, Any],
    ) -> None:
        self.options, self.settings, self.missing = options, settings, missing
        self.tasks = {task.label: task for task in tasks}
        self.folder = folder
        self.results: Results = dict(earlier.get("results", {}))
        self.seconds: float = earlier.get("seconds", 0.0)
        self.began = time.perf_counter()

    def add(self, task: CoreTask, counts: Counts, place: Runtime) -> None:
        """Keep the counts of a task, say them and write the section."""
        self.results[task.label] = vars(counts)
        if place.is_main:
            logger.info("%s", _line(row_of(task, counts)))
            self.write(samples=[], complete=False)

    def finish(self, samples: list[dict[str, str]]) -> None:
        """Write the whole section and say what came out."""
        section = self.write(samples, complete=True)
        for note in section["notes"]:
            logger.info("%s", note)

    def write(self, samples: list[dict[str, str]], *, complete: bool) -> dict[str, Any]:
        """The section as written."""
        is_core_done = bool(self.tasks) and all(label in self.results for label in self.tasks)
        table, notes = self.core() if is_core_done else ({}, [self.missing] if self.missing else [])
        if PLAIN_CHOICE.label in self.results:
            result = self.results[PLAIN_CHOICE.label]
            table[PLAIN_CHOICE.label] = result["num_right"] / max(1, result["num_items"])
        known = {**self.tasks, PLAIN_CHOICE.label: PLAIN_CHOICE}
        rows = [row_of(known[label], Counts(**r)) for label, r in self.results.items()]
        head = ["task", "items", "right, %", "chance, %", "centred"]
        section = {
            "title": "What the base model knows",
            "column": stage.COLUMNS["base"],
            "order": 15,
            "settings": self.settings,
            "table": table,
            "rows": [head, *rows] if rows else [],
            "notes": notes,
            "samples": samples,
            "results": self.results,
            "complete": complete,
            "seconds": self.seconds + time.perf_counter() - self.began,
        }
        report.write_section("base_eval", section)
        return section

    def core(self) -> tuple[dict[str, float], list[str]]:
        """CORE for the table when it is that, and what there is to say about it."""
        counts = {label: Counts(**self.results[label]) for label in self.tasks}
        centred = [core_eval.centred_accuracy(self.tasks[label], c) for label, c in counts.items()]
        mean = sum(centred) / len(centred)
        why_not = self.why_not_core()
        odd = sum(counts.values(), Counts())
        measured = f"{mean:.4f} (baselines {self.options.baselines})"
        notes = [
            f"Mean centred accuracy {measured}, which is not CORE: {'; '.join(why_not)}."
            if why_not
            else f"CORE is {measured}.",
            f"Odd items: {odd.num_empty} with a choice of no token of its own (the first choice is"
            f" taken), {odd.num_not_extension} whose continuation changes earlier tokens,"
            f" {odd.num_cropped} longer than the context (the end is kept).",
        ]
        return ({} if why_not else {"CORE": mean}), notes

    def why_not_core(self) -> list[str]:
        """What keeps this run from being CORE."""
        reasons = []
        if self.options.max_per_task > 0:
            reasons.append(f"cropped to {self.options.max_per_task} items a task")
        if len(self.tasks) != core_eval.NUM_TASKS:
            reasons.append(f"{len(self.tasks)} tasks instead of {core_eval.NUM_TASKS}")
        unlike = core_eval.unlike_published(self.folder, list(self.tasks.values()))
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


def _say(rows: list[list[Any]], notes: list[str]) -> None:
    for row in rows[1:]:
        logger.info("%s", _line(row))
    for note in notes:
        logger.info("%s", note)


if __name__ == "__main__":
    run(main)
