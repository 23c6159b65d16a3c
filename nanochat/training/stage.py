"""What surrounds the training loop in every stage: set-up, resuming, evaluation, the report.

A script describes its stage as a `Plan`; `run` trains it to its end, from its newest checkpoint.
"""

import gc
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch.profiler import profile, schedule

from nanochat import checkpoint_manager, loss_eval, report
from nanochat.chat import decode_answer, render_for_completion
from nanochat.checkpoint_manager import Checkpoint, Meta
from nanochat.checkpoint_manager.tensor_files import check_finite
from nanochat.engine import Engine
from nanochat.errors import UserError, one_line
from nanochat.metrics import ProgressLine, RunLog
from nanochat.runtime import (
    Runtime,
    all_reduce_max,
    barrier,
    close_runtime,
    gather_objects,
    init_runtime,
    launchers,
    on_main_first,
    restart_count,
)
from nanochat.training import autotune, memory_estimate, param_groups, run_summary, trainer
from nanochat.training.async_checkpoint import CheckpointSaver, TrainState
from nanochat.training.config import COLUMNS, TITLES, Plan
from nanochat.training.stop_requests import stop_requests
from nanochat.training.trainer import Every, RunContext

logger = logging.getLogger(__name__)

MAX_SKIPPED_STEPS = 10  # more steps that are not finite are no accident
GC_STEPS = 1000  # between garbage collections; within the loop Python makes none by itself
SAMPLE_TOKENS = 64  # of each answer in the report
# For the lock of a run: a process that was killed may still be ending, after a restart by torchrun
# on another machine, whose file server notices that late.
START_WAIT_SECONDS, RESTART_WAIT_SECONDS = 1.0, 120.0
BITS_PER_BYTE = "bits per byte"  # begins the labels of the rows in the report's table

Result = TypeVar("Result")


@contextmanager
def command_runtime(device_type: str) -> Iterator[Runtime]:
    """The runtime of a command; the main rank logs to stderr, the others only warnings."""
    runtime = init_runtime(device_type)
    level = logging.INFO if runtime.is_main else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr, force=True)
    try:
        yield runtime
    finally:
        close_runtime()


@contextmanager
def run_lock(stage: str, tag: str) -> Iterator[None]:
    """The main rank holds the lock of a run; every rank calls it.

    Raises UserError naming the holder, on every rank, when another job has it.
    """
    [count] = all_reduce_max([restart_count()])  # the main rank's host may be a new one
    seconds = RESTART_WAIT_SECONDS if count else START_WAIT_SECONDS
    with ExitStack() as stack:
        lock = checkpoint_manager.lock_run(stage, tag, seconds)
        on_main_first(lambda: stack.enter_context(lock))
        yield


def evaluate_on_ranks(
    label: str, num_items: int, runtime: Runtime, evaluate_share: Callable[..., Result]
) -> list[Result]:
    """The results of all ranks, each for its share of the items; every rank calls it.

    evaluate_share: takes `indices` and `on_progress`.
    """
    share = range(runtime.rank, num_items, runtime.world_size)  # a rank without items gathers, too
    with ProgressLine(len(share), label, runtime.is_main) as line:
        result = evaluate_share(indices=share, on_progress=line.update)
    return gather_objects(result)


def run(plan: Plan, runtime: Runtime, starts_over: bool = False) -> None:
    """Train a stage to its end, evaluate it, and write its section of the report.

    starts_over: an existing run is moved out of the way.
    To be called within `run_lock`, unless it is a dry run.
    """
    began = time.perf_counter()
    model, directory = plan.model, plan.directory
    model.keeps_activations = not plan.activation_checkpointing
    log_summary(plan, runtime)
    if plan.dry_run:
        return
    if starts_over:
        on_main_first(lambda: checkpoint_manager.move_to_replaced(directory))
    on_main_first(lambda: checkpoint_manager.prepare(directory))
    on_main_first(lambda: plan.tokenizer.save(directory))  # the model is of no use without it
    if next(model.parameters()).is_meta:
        model.to_empty(device=runtime.device)
        model.init_weights(plan.seed)
    optimizers = param_groups.build_optimizers(model, **plan.rates)
    log = RunLog(directory, f"{plan.stage}-{directory.name}", plan.settings, runtime.is_main)
    # Of earlier processes of this run only the time in steps is known.
    began -= max((line.get("train_seconds", 0.0) for line in log.history()), default=0.0)
    saver = CheckpointSaver(
        directory, model, optimizers, runtime, keep=plan.keep_checkpoints, minutes=plan.save_minutes
    )
    peak = autotune.peak_tokens_per_second(model, runtime)
    try:
        with stop_requests() as stop:
            context = RunContext(runtime, saver, stop, log, TITLES[plan.stage], peak)
            state = _train(plan, optimizers, saver, context)
            losses = evaluate(plan, runtime, plan.final_eval_tokens)
            if runtime.is_main:
                log.log(state.step, **losses)
                section = _section(plan, state, losses, context)
                section["seconds"] = time.perf_counter() - began
                report.write_section(plan.stage, section)
                # Last, so that a stop before it repeats the evaluation and not the training.
                checkpoint_manager.update_meta(directory, state.step, finished=True)
            barrier()
    except SystemExit:
        logger.warning(
            "%s received: %s is saved; run the same command again to resume", stop.name, saver.last
        )
        raise
    finally:
        saver.close()
        log.close()


def log_summary(plan: Plan, runtime: Runtime) -> None:
    """Log the run's size, steps, learning rates and estimated memory, before any is allocated."""
    model, rows = plan.model, autotune.expected_rows(plan, runtime)
    memory = memory_estimate.of(model, rows, runtime)
    times = f"{plan.eval_tokens:,} every {plan.eval_every} steps, " if plan.eval_every else ""
    table = [
        *run_summary.of_model(model),
        *run_summary.of_steps(model, plan.schedule, plan.rows, runtime.world_size),
        *plan.summary,
        *run_summary.of_time(model, plan.schedule, plan.rows, runtime),
        *run_summary.of_rates(plan.schedule, param_groups.scaled_rates(model.config, **plan.rates)),
        ("validation tokens", f"{times}{plan.final_eval_tokens:,} at the end"),
        *run_summary.of_memory(rows, plan.rank_rows(runtime.world_size), memory),
        *run_summary.of_attention(model.config, runtime.device, runtime.compute_dtype),
    ]
    lines = "\n".join(run_summary.as_lines(table))
    title = f"{TITLES[plan.stage]} on {runtime.device.type} x {runtime.world_size}"
    logger.info("%s\n%s", title, lines)


def _require_saved(failure: str) -> None:
    if failure:
        raise UserError(f"{failure}; run the same command again to resume from the last checkpoint")


def _train(
    plan: Plan, optimizers: list[Any], saver: CheckpointSaver, context: RunContext
) -> TrainState:
    """Train to the last step, which is saved; a skipped step restarts from the last checkpoint."""
    runtime, device_batch_size, skip_steps = context.runtime, 0, set[int]()
    model = autotune.compiled(plan, context.peak_tokens_per_second, runtime)

    def evaluate_saved(state: TrainState) -> dict[str, float]:
        saver.complete(state)  # before an evaluation that could fail
        with context.stop.immediate():  # nothing is lost by a signal now
            return evaluate(plan, runtime, plan.eval_tokens)

    hooks = [
        Every(GC_STEPS, lambda _: gc.collect()),
        Every(plan.save_every, saver.begin),
        Every(plan.eval_every, evaluate_saved),
    ]
    with _profiler(plan, runtime.rank) if plan.profile else nullcontext() as profiler:
        if profiler is not None:
            hooks.append(Every(1, lambda _: profiler.step()))
        while True:
            start, meta = _resume(plan, optimizers, runtime)
            skip_steps |= set(meta.get("skipped_steps", []))
            device_batch_size = device_batch_size or autotune.micro_batch_rows(
                plan, context.peak_tokens_per_second, runtime, meta
            )
            run_meta = {
                "stage": plan.stage,
                "model": plan.model.config.to_dict(),
                "tokenizer": plan.tokenizer.content_hash,
                "settings": plan.settings,
                "skipped_steps": sorted(skip_steps),
                "launchers": launchers(),
                "micro_batch": [*autotune.hardware_key(runtime), device_batch_size],
            }
            saver.start_from(start.step if meta else -1, run_meta)
            context.log.truncate_after(start.step)
            if plan.skips_nonfinite and not meta:
                _require_saved(saver.complete(start))  # a checkpoint to return to
            logger.info("from step %d, micro-batches of %d rows", start.step + 1, device_batch_size)
            try:
                with context.stop.deferred():
                    state = trainer.train(
                        model, optimizers, plan.batches(resume=start.loader or None), plan.schedule,
                        start, context, device_batch_size=device_batch_size, every=hooks,
                        prefetch=plan.prefetch, skip_steps=skip_steps,
                        joined_length=autotune.joined_length(plan, runtime),
                        sampled_softmax=plan.sampled_softmax,
                    )  # fmt: skip
                    _require_saved(saver.complete(state))
                return state
            except trainer.NonFiniteError as error:
                if not plan.skips_nonfinite or len(skip_steps) == MAX_SKIPPED_STEPS:
                    raise
                logger.error("%s; returning to it, step %d is skipped", error, error.step)
                skip_steps.add(error.step)


def _profiler(plan: Plan, rank: int) -> profile:
    """Traces a few of the first steps to a file for ui.perfetto.dev."""
    plan.directory.mkdir(parents=True, exist_ok=True)
    path = plan.directory / f"trace_rank{rank}.json"
    return profile(
        schedule=schedule(wait=2, warmup=1, active=2, repeat=1),  # the first steps compile
        on_trace_ready=lambda profiler: profiler.export_chrome_trace(str(path)),
        record_shapes=True,
    )


def _resume(plan: Plan, optimizers: list[Any], runtime: Runtime) -> tuple[TrainState, Meta]:
    """The state and meta restored from the newest complete checkpoint, else of step 0 and {}."""

    def restore(checkpoint: Checkpoint) -> tuple[TrainState, Meta]:
        start = TrainState.from_meta(checkpoint.meta)
        if start.step > plan.schedule.num_steps:
            raise UserError(f"it is after the last step, {plan.schedule.num_steps}")
        checkpoint.load_weights(plan.model)
        try:
            states = checkpoint.load_optimizer_states()
            for optimizer, of_ranks in zip(optimizers, states, strict=True):
                if not 0 <= dict(of_ranks[0])["num_steps"] <= start.step:
                    raise ValueError(f"step {of_ranks[0]['num_steps']}")
                optimizer.load_merged(of_ranks)  # saved by any number of ranks
                check_finite(optimizer.state_dict(), "optimizer state")
        except torch.OutOfMemoryError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            problem = one_line(error)[:100]
            raise UserError(f"its optimizer state belongs to another model ({problem})") from None
        return start, checkpoint.meta

    found = checkpoint_manager.load_newest(plan.directory, restore, verifies=runtime.is_main)
    if found is None:
        if checkpoint_manager.saved_steps(plan.directory):
            raise checkpoint_manager.nothing_to_load(plan.directory)
        return TrainState(), {}
    logger.info("resuming from step %d in %s", found[0].step, plan.directory)
    return found


def evaluate(plan: Plan, runtime: Runtime, num_tokens: int) -> dict[str, float]:
    """Loss of the plan's model on held-out text and answers, and its scores, by label; logged.

    Collective.
    """
    model, tokenizer = plan.model, plan.tokenizer
    text = loss_eval.text_loss(model, tokenizer, runtime, plan.validation_texts, num_tokens)
    found = {"text": text}
    if plan.held_out is not None:
        found["answers"] = loss_eval.chat_loss(model, tokenizer, runtime, plan.held_out)
    bits = {f"{BITS_PER_BYTE}, {of}": loss.bits_per_byte for of, loss in found.items()}
    bits |= plan.scores()
    logger.info("  %s", "  ".join(f"{label}: {value:.4f}" for label, value in bits.items()))
    return bits | {f"validation loss, {of}": loss.nats_per_token for of, loss in found.items()}


def greedy_samples(engine: Engine, texts: Sequence[str], is_chat: bool) -> list[dict[str, str]]:
    """Samples for the report: greedy answers to user messages, or continuations of plain text."""
    tokenizer = engine.tokenizer
    if is_chat:
        chats = [{"messages": [{"role": "user", "content": text}]} for text in texts]
        prompts = [render_for_completion(chat, tokenizer) for chat in chats]
    else:
        bos = tokenizer.get_bos_token_id()
        prompts = [tokenizer.encode(text, prepend=bos) for text in texts]
    context = engine.model.config.sequence_len
    fitting = [(t, ids) for t, ids in zip(texts, prompts, strict=True) if len(ids) < context]
    completions = engine.complete([ids for _, ids in fitting], max_tokens=SAMPLE_TOKENS)
    return [
        {"prompt": text, "answer": decode_answer(completion.tokens, tokenizer)}
        for (text, _), completion in zip(fitting, completions, strict=True)
    ]


def _section(
    plan: Plan, state: TrainState, losses: dict[str, float], context: RunContext
) -> dict[str, Any]:
    history, runtime = context.log.history(), context.runtime
    rollouts = ("reward", "answer_tokens", "entropy")  # only reinforcement learning logs them
    names = {name: name for name in ("tokens", "loss", *losses, *rollouts)}
    names["learning rate"] = "lr_multiplier"
    skipped = [line["skipped_steps"] for line in history if "skipped_steps" in line]
    curves = {
        label: [[line["step"], line[name]] for line in history if name in line]
        for label, name in names.items()
    }
    device = runtime.device
    is_gpu = device.type == "cuda"
    rate = state.tokens / state.train_seconds if state.train_seconds else math.nan
    return {
        "title": TITLES[plan.stage],
        "column": COLUMNS[plan.stage],
        "order": list(COLUMNS).index(plan.stage),
        "settings": plan.settings,
        "metrics": {
            "parameters": plan.model.num_parameters()["total"],
            "steps": state.step,
            "tokens": state.tokens,
            "last loss": state.loss,
            "tok/s": rate,
            "MFU, share of the peak": rate / context.peak_tokens_per_second,
            **{label: score for label, score in losses.items() if label.startswith("pass@")},
            **({"steps without a signal": skipped[-1]} if skipped else {}),
        },
        "table": {row: value for row, value in losses.items() if row.startswith(BITS_PER_BYTE)},
        "curves": {name: points for name, points in curves.items() if points},
        "samples": plan.samples(),
        "device": torch.cuda.get_device_name(device) if is_gpu else device.type,
        "num_devices": runtime.world_size,
    }
