"""Evaluate a model on tasks of EleutherAI's lm-evaluation-harness (`uv sync --extra eval`).

python -m scripts.lm_eval --tasks=arc_easy,hellaswag
python -m scripts.lm_eval -i sft --tasks=gsm8k --apply_chat_template --limit=100
torchrun --standalone --nproc_per_node=8 -m scripts.lm_eval -- --tasks=mmlu --num_fewshot=5
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from nanochat.configurator import Short, at_least, parse, run_command
from scripts.options import EvalOptions


@dataclass(frozen=True)
class Options(EvalOptions):
    """Evaluate a model on tasks of EleutherAI's lm-evaluation-harness. Results are written to
    lm_eval/{source}_{task}.json in the base directory, requests and answers to
    lm_eval/{source}_{task}.jsonl, one JSON object per item."""

    tasks: str = ""
    """Tasks, groups or tags of lm-eval, separated by commas; * matches any part of a name."""
    source: Annotated[Literal["base", "mid", "sft", "rl"], Short("-i")] = "base"
    """Stage whose model is evaluated."""
    num_fewshot: Annotated[int, at_least(0, besides=-1)] = -1
    """Examples in each prompt; -1 means as the task says."""
    limit: Annotated[int, at_least(1, besides=-1)] = -1
    """Items of each task; -1 means all."""
    include_path: str = ""
    """Folder with more tasks, as YAML files."""
    apply_chat_template: bool = False
    """Put each prompt into a conversation. Without it a chat model continues plain text, too."""
    batch_size: Annotated[int, at_least(1)] = 32
    """Sequences at a time. Does not change results."""


if __name__ == "__main__":
    run_command(Options)  # before the slow imports

import difflib
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat import paths, report
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.runtime import Runtime, barrier, on_main_first
from nanochat.training import stage
from scripts.inference import find_checkpoint, load_checkpoint
from scripts.lm_eval_model import lm_class

logger = logging.getLogger(__name__)

HEADER = ["task", "items", "shots", "metric", "value", "standard error"]
SHARES = ("acc", "acc_norm", "exact_match")  # metrics from 0 to 1: rows of the results table


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv)
    if not options.tasks:
        raise UserError("--tasks=NAME,... is required; `lm-eval ls tasks` lists the names")
    if options.include_path and not Path(options.include_path).is_dir():
        raise UserError(f"--include_path={options.include_path} is not a folder")
    lm_class()  # says what is missing before anything is loaded
    with stage.command_runtime(options.device_type) as runtime:
        logging.getLogger("lm_eval").setLevel(logging.WARNING)
        evaluate(options, runtime)


def evaluate(options: Options, runtime: Runtime) -> None:
    meta, settings = find_checkpoint(options, options.source)
    settings |= {name: getattr(options, name) for name in (
        "num_fewshot", "limit", "include_path", "apply_chat_template",
    )}  # fmt: skip
    words = [word.strip() for word in options.tasks.split(",")]
    manager = task_manager(words, options.include_path)
    names = task_names(words, manager)
    section_name = f"lm_eval_{options.source}"
    section = on_main_first(lambda: report.read_section(section_name, settings)) or {
        "title": f"lm-eval tasks, {options.source.upper()} model",
        "column": options.source.upper(),
        "order": 30 + report.COLUMNS.index(options.source.upper()),  # after chat_eval
        "settings": settings,
        "results": {},
        "seconds": 0.0,
    }
    missing = [name for name in names if options.fresh or name not in section["results"]]
    if missing:
        engine = Engine(*load_checkpoint(options.source, meta, runtime))
        model = lm_class()(engine, runtime, options.batch_size, options.apply_chat_template)
    else:
        report.log_reuse(section)
    for name in missing:
        began = time.perf_counter()
        found = run_task(name, model, manager, options)
        section["seconds"] += time.perf_counter() - began
        if found is not None:  # the main rank; after each task, so that a killed command resumes
            write_files(f"{options.source}_{name}", found)
            section["results"][name] = rows_of(found)
            report.write_section(section_name, section | rendered(section["results"], options))
        barrier()
    for name in names if runtime.is_main else ():
        for task, items, _, metric, value, error in section["results"][name]:
            known = f" (standard error {error:.4f})" if error != "" else ""
            logger.info("  %-28s %s %.4f%s, of %s", task, metric, value, known, items)


def task_manager(words: Sequence[str], include_path: str) -> Any:
    """lm-eval's index of tasks; of one folder alone if that has all tasks asked for."""
    from lm_eval.tasks import TaskManager

    if include_path:  # the thousands of files of lm-eval itself take seconds to read
        own = TaskManager(include_path=include_path, include_defaults=False)
        if set(words) <= set(own.all_tasks):
            return own
    return TaskManager(include_path=include_path or None)


def task_names(words: Sequence[str], manager: Any) -> list[str]:
    """The names that match the words. Raises UserError where none does."""
    names: dict[str, None] = {}
    for word in words:
        found = manager.match_tasks([word])
        if not found:
            near = difflib.get_close_matches(word, manager.all_tasks, n=1)
            remedy = f"did you mean {near[0]}?" if near else "`lm-eval ls tasks` lists the names"
            raise UserError(f"--tasks={word} is not a task of lm-eval; {remedy}")
        names |= dict.fromkeys(found)
    return list(names)


def run_task(name: str, model: Any, manager: Any, options: Options) -> dict[str, Any] | None:
    """lm-eval's results of a task or group; None on other ranks than the main one.

    Raises UserError when its data cannot be loaded or it would execute what the model wrote.
    """
    import lm_eval

    try:
        loaded = manager.load([name])
    except (OSError, ImportError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"--tasks={name} cannot be loaded: {first}") from error
    if any(getattr(task, "UNSAFE_CODE", False) for task in loaded["tasks"].values()):
        raise UserError(
            f"--tasks={name} executes programs of the model, for which lm-eval has no sandbox;"
            " use python -m scripts.chat_eval -a HumanEval"
        )
    group = loaded["groups"].get(name)
    found: dict[str, Any] | None = lm_eval.simple_evaluate(
        model,
        tasks=[group] if group else list(loaded["tasks"].values()),
        num_fewshot=options.num_fewshot if options.num_fewshot >= 0 else None,
        limit=options.limit if options.limit > 0 else None,
        apply_chat_template=options.apply_chat_template,
        task_manager=manager,
    )
    return found


# ---- the report


def write_files(stem: str, found: dict[str, Any]) -> None:
    """The results as JSON, and each item with its requests and answers as a JSON line."""
    folder = paths.base_dir() / "lm_eval"
    samples = found.pop("samples", {})
    paths.write_atomic(folder / f"{stem}.json", json.dumps(found, indent=1, default=str))
    lines = [
        json.dumps({"task": task, **item}, ensure_ascii=False, default=str)
        for task, items in samples.items()
        for item in items
    ]
    paths.write_atomic(folder / f"{stem}.jsonl", "".join(f"{line}\n" for line in lines))


def rows_of(found: dict[str, Any]) -> list[list[Any]]:
    """A row as HEADER says for each task and metric."""
    rows = []
    for task, values in found["results"].items():
        items = found.get("n-samples", {}).get(task, {}).get("effective", "")
        for key, value in values.items():
            metric, comma, result_filter = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue  # not a metric, or part of one
            error = values.get(f"{metric}_stderr,{result_filter}")
            error = error if isinstance(error, int | float) else ""  # "N/A" of a sum
            label = metric if result_filter == "none" else f"{metric}, {result_filter}"
            rows.append([task, items, found.get("n-shot", {}).get(task, ""), label, value, error])
    return rows


def rendered(results: dict[str, Any], options: Options) -> dict[str, Any]:
    table: dict[str, float] = {}
    errors: dict[str, float] = {}
    note = f"The first {options.limit} items of each task only."
    for name, rows in results.items():
        # Of a group only its mean; of a tag all its tasks.
        for task, _, _, metric, value, error in [r for r in rows if r[0] == name] or rows:
            if metric in SHARES:
                label = f"{task}, {metric} (lm-eval)"
                table[label] = value
                errors |= {label: error} if error != "" else {}
    return {
        "rows": [HEADER, *(row for rows in results.values() for row in rows)],
        "notes": [note] if options.limit > 0 else [],
        "table": table,
        "errors": errors,
    }
