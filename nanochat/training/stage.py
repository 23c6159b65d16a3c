"""What every training script does around the loop.

A script says what its stage is (`Plan`); `run` finds out whether it is done already, resumes or
begins, trains, saves, evaluates and writes the stage's section of the report.
"""

import gc
import logging
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from nanochat import (
    checkpoint_manager,
    dataloader,
    loss_eval,
    paths,
    report,
)
from nanochat.checkpoint_manager import Checkpoint
from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.metrics import RunLog
from nanochat.runtime import (
    Runtime,
    StopRequests,
    barrier,
    close_runtime,
    init_runtime,
    on_main_first,
    stop_requests,
)
from nanochat.tokenizer import RustBPETokenizer
from nanochat.training import (
    autotune,
    memory_estimate,
    micro_batch,
    param_groups,
    run_summary,
    trace,
    trainer,
)
from nanochat.training.async_checkpoint import Saver
from nanochat.training.config import COLUMNS, TITLES, LoopOptions, Plan, refuse_other_settings
from nanochat.training.schedule import scaled_weight_decay
from nanochat.training.trainer import Every, State

logger = logging.getLogger(__name__)

MAX_JUMPS = 10  # steps that a run leaves out; more of them are no accident
COLLECT_EVERY = 1000  # steps between collections of garbage, of which the loop makes none


@dataclass(frozen=True)
class Parent:
    """The finished stage that another one starts from."""

    stage: str
    tag: str
    step: int
    identity: str

    def load(self, runtime: Runtime) -> tuple[GPT, RustBPETokenizer]:
        """Its model, in training mode, and the tokenizer."""
        model, tokenizer, _ = checkpoint_manager.load_model(
            self.stage, runtime, self.tag, self.step
        )
        return model.train(), tokenizer


def find_parent(stage: str, tag: str) -> Parent:
    """The newest run of a stage (or the one of `tag`). Raises UserError when it is not done."""
    meta = checkpoint_manager.read_meta(stage, tag)
    tag = meta["settings"]["model_tag"]
    if not meta["finished"]:
        command = checkpoint_manager.TRAINING_COMMANDS[stage]
        raise UserError(
            f"{TITLES[stage]} of {tag} stands at step {meta['step']} and is not done;"
            f" run python -m {command} again to go on"
        )
    return Parent(stage, tag, meta["step"], checkpoint_manager.model_identity(meta))


@contextmanager
def opened(device_type: str) -> Iterator[Runtime]:
    """The runtime of a command, with words on stderr from the main rank; left again at the end."""
    runtime = init_runtime(device_type)
    level = logging.INFO if runtime.is_main else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr, force=True)
    try:
        yield runtime
    finally:
        close_runtime()


def finished(stage: str, tag: str, settings: dict[str, Any], options: LoopOptions) -> bool:
    """True, and said so, when this very run is done. Raises UserError when another one is there."""
    meta = None if options.dry_run else _found(stage, tag, options)
    if meta is None:
        return False
    directory = paths.checkpoints_dir(stage) / tag
    refuse_other_settings(directory, meta["settings"], settings, options)
    if meta["finished"]:
        logger.info("%s is done already: step %d in %s", TITLES[stage], meta["step"], directory)
    return bool(meta["finished"])


def unnoted_step_tokens(stage: str, tag: str, options: LoopOptions) -> int:
    """Tokens of a step of a run that noted -1, as runs once did, by its loader's state; else 0."""
    meta = _found(stage, tag, options)
    if meta is None or meta["settings"].get("total_batch_size") != -1:
        return 0
    return len(meta["loader"].get("lanes", {})) * int(meta["model"]["sequence_len"])


def _found(stage: str, tag: str, options: LoopOptions) -> checkpoint_manager.Meta | None:
    """The newest meta of the run that is there, unless the options leave it aside."""
    directory = paths.checkpoints_dir(stage) / tag
    if options.starts_over or not checkpoint_manager.saved_steps(directory):
        return None
    return checkpoint_manager.read_meta(stage, tag)


def run(plan: Plan, runtime: Runtime) -> None:
    """Train the stage to its end, from where it was left."""
    directory = paths.checkpoints_dir(plan.stage) / plan.tag
    options = plan.options
    plan.model.keeps_activations = not options.activation_checkpointing
    _announce(plan, runtime)
    if options.dry_run:
        return
    on_main_first(lambda: _make_way(directory, options.starts_over))
    if next(plan.model.parameters()).is_meta:
        plan.model.to_empty(device=runtime.device)
        plan.model.init_weights(options.seed)
    optimizers = param_groups.build_optimizers(plan.model, **_rates(plan))
    log = RunLog(directory, f"{plan.stage}-{plan.tag}", plan.settings, runtime.is_main)
    speed = autotune.measure_speed(plan.model, runtime)
    saver = Saver(
        directory, plan.model, optimizers, runtime,
        keep=options.keep_checkpoints, minutes=options.save_minutes,
    )  # fmt: skip
    try:
        with stop_requests() as stop:
            state = _Loop(plan, optimizers, saver, stop, log, speed, runtime).run()
            table = evaluate(plan, runtime)
            if runtime.is_main:
                log.log(state.step, **table)
                report.write_section(plan.stage, _section(plan, state, table, log, speed, runtime))
                checkpoint_manager.update_meta(directory, state.step, finished=True)
            barrier()
    except SystemExit:
        logger.warning(
            "%s received: %s is saved; run the same command again to go on", stop.name, saver.last
        )
        raise
    finally:
        saver.close()
        log.close()


def _rates(plan: Plan) -> dict[str, float]:
    """Learning rates at the plateau and the decay, as `optim.build_optimizers` takes them."""
    options, scale = plan.options, plan.rate_scale
    return {
        "matrix_lr": options.matrix_lr * scale,
        "embedding_lr": options.embedding_lr * scale,
        "unembedding_lr": options.unembedding_lr * scale,
        "weight_decay": scaled_weight_decay(options.weight_decay, plan.model.config.n_embd),
    }


def _announce(plan: Plan, runtime: Runtime) -> None:
    """The table of the run, before memory is taken."""
    model, rank_rows = plan.model, plan.rank_rows(runtime.world_size)
    rows = min(plan.options.device_batch_size, rank_rows)
    if rows < 1:
        rows = micro_batch.likely(model, rank_rows, runtime)
    table = [
        *run_summary.of_model(model),
        *run_summary.of_steps(model, plan.schedule, plan.rows, runtime.world_size),
        *run_summary.of_rates(
            plan.schedule, param_groups.scaled_rates(model.config, **_rates(plan))
        ),
        *run_summary.of_memory(rows, rank_rows, memory_estimate.of(model, rows, runtime)),
        *run_summary.of_attention(model.config, runtime.device, runtime.compute_dtype),
    ]
    lines = "\n".join(run_summary.as_lines(table))
    logger.info(
        "%s on %s x %d\n%s", TITLES[plan.stage], runtime.device.type, runtime.world_size, lines
    )


def _make_way(directory: Path, starts_over: bool) -> None:
    """What earlier runs have left in the folder is put aside or cleared of what a kill left."""
    if starts_over:
        checkpoint_manager.move_to_replaced(directory)
    checkpoint_manager.remove_leftovers(directory)


def _demand(failure: str) -> None:
    if failure:
        raise UserError(f"{failure}; run the command again to go on from the last good one")


class _Loop:
    """The loop of one stage, begun again from the last checkpoint where a step is left out."""

    def __init__(
        self,
        plan: Plan,
        optimizers: list[Any],
        saver: Saver,
        stop: StopRequests,
        log: RunLog,
        speed: trainer.Speed,
        runtime: Runtime,
    ) -> None:
        self.plan, self.optimizers, self.saver, self.stop = plan, optimizers, saver, stop
        self.log, self.speed, self.runtime = log, speed, runtime
        self.jump: set[int] = set()
        self.micro_rows = 0
        self.traced: Callable[[], object] = lambda: None

    def run(self) -> State:
        """The state after the last step, which is saved."""
        model = autotune.compiled(self.plan, self.speed, self.runtime)
        if not self.plan.options.profile:
            return self._run(model)
        path = self.saver.directory / f"trace_rank{self.runtime.rank}.json"
        with trace.traced_steps(path) as self.traced:
            return self._run(model)

    def _run(self, model: nn.Module) -> State:
        while True:
            start, loader = self._begin()
            try:
                return self._train(model, start, loader)
            except trainer.NotFinite as error:
                if self.plan.options.on_nonfinite == "stop" or len(self.jump) == MAX_JUMPS:
                    raise
                logger.error("%s; going back, step %d is left out", error, error.step)
                self.jump.add(error.step)

    def _begin(self) -> tuple[State, dict[str, Any] | None]:
        """The state before the next step and the loader's state, weights and moments restored."""
        plan, saver = self.plan, self.saver
        found = on_main_first(lambda: _find(saver.directory, plan))
        start, loader = State(0, 0.0, math.nan, 0.0, 0, {}, is_last=False), None
        if found is not None:
            start, loader = self._restore(Checkpoint(saver.directory, found["step"], found))
            self.jump |= set(found.get("jumped", []))
        if not self.micro_rows:
            self.micro_rows = autotune.micro_rows(plan, self.speed, self.runtime, found or {})
        saver.start_from(start.step if found else -1, self._facts())
        self.log.truncate_after(start.step)
        if found is None and plan.options.on_nonfinite == "skip":
            _demand(saver.complete(start))  # so that there is something to go back to
        logger.info("from step %d, micro-batches of %d rows", start.step + 1, self.micro_rows)
        return start, loader

    def _facts(self) -> dict[str, Any]:
        """What every checkpoint of the run notes."""
        return {
            "stage": self.plan.stage,
            "model": self.plan.model.config.to_dict(),
            "tokenizer": self.plan.tokenizer.content_hash,
            "settings": self.plan.settings,
            "jumped": sorted(self.jump),
            "micro_batch": [*autotune.hardware_key(self.runtime), self.micro_rows],
        }

    def _restore(self, checkpoint: Checkpoint) -> tuple[State, dict[str, Any]]:
        meta, step = checkpoint.meta, checkpoint.step
        self.plan.model.load_state_dict(checkpoint.load_model_state(self.runtime.device))
        states = checkpoint.load_optimizer_states()
        for optimizer, of_ranks in zip(self.optimizers, states, strict=True):
            optimizer.load_merged(of_ranks)
        logger.info("going on from step %d in %s", step, checkpoint.directory)
        start = State(
            step=step,
            progress=meta["progress"],
            loss=math.nan if meta["loss"] is None else meta["loss"],
            seconds=meta["train_seconds"],
            tokens=meta["tokens"],
            resume=meta["loader"],
            is_last=step == self.plan.schedule.num_steps,
        )
        return start, meta["loader"]

    def _train(self, model: nn.Module, start: State, loader: dict[str, Any] | None) -> State:
        with self.stop.deferred():
            state = self._steps(model, start, loader)
            _demand(self.saver.complete(state))
        return state

    def _steps(self, model: nn.Module, start: State, loader: dict[str, Any] | None) -> State:
        plan, options, saver = self.plan, self.plan.options, self.saver

        def save_first(state: State) -> None:
            saver.complete(state)  # before an evaluation that could fail

        return trainer.train(
            model,
            self.optimizers,
            plan.batches(loader),
            plan.schedule,
            start,
            device_batch_size=self.micro_rows,
            every=[
                Every(COLLECT_EVERY, _collect_garbage),
                Every(options.save_every, saver.begin),
                Every(options.eval_every, save_first),
                Every(options.eval_every, lambda _: evaluate(plan, self.runtime), can_be_left=True),
            ],
            saver=saver,
            runtime=self.runtime,
            stop=self.stop,
            log=self.log,
            speed=self.speed,
            label=TITLES[plan.stage],
            prefetch=plan.prefetch,
            jump=self.jump,
            observed=self._observe,
        )

    def _observe(self, state: State) -> dict[str, float]:
        """Numbers of a step that the loop does not know."""
        self.traced()
        numbers = {"memory_bytes": float(self.runtime.peak_bytes()), **self.plan.observed()}
        if "lanes" in state.resume:
            numbers["epoch"] = dataloader.epoch(state.resume)
        return numbers


def _collect_garbage(_: State) -> None:
    gc.collect()


def _find(directory: Path, plan: Plan) -> checkpoint_manager.Meta | None:
    """The meta of the newest whole checkpoint. Raises UserError when it is of another run."""
    checkpoint = checkpoint_manager.newest_complete(directory)
    if checkpoint is None:
        return None
    refuse_other_settings(directory, checkpoint.meta["settings"], plan.settings, plan.options)
    return checkpoint.meta


def evaluate(plan: Plan, runtime: Runtime) -> dict[str, float]:
    """Bits per byte of the plan's model by row of the report's table, printed as well."""
    model, tokenizer = plan.model, plan.tokenizer
    num_tokens = plan.options.eval_tokens
    text = loss_eval.text_bpb(model, tokenizer, runtime, plan.source, num_tokens)
    table = {"bits per byte, text": text}
    if plan.held_out is not None:
        chat = loss_eval.chat_bpb(model, tokenizer, runtime, plan.held_out)
        table["bits per byte, answers"] = chat
    logger.info("  %s", "  ".join(f"{label}: {value:.4f}" for label, value in table.items()))
    return table


def _section(
    plan: Plan, state: State, table: dict[str, float], log: RunLog, speed: trainer.Speed,
    runtime: Runtime,
) -> dict[str, Any]:  # fmt: skip
    history = log.history()
    rate = state.tokens / state.seconds if state.seconds else math.nan
    curves = {name: _curve(history, name) for name in ["loss", *table, *plan.observed()]}
    share = speed.share_of_peak(rate, runtime.world_size)
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
            "tokens per second": rate,
            "share of the device's peak": "n/a" if share is None else share,
        },
        "table": table,
        "curves": {name: points for name, points in curves.items() if points},
        "samples": plan.samples(),
        "seconds": state.seconds,
    }


def _curve(history: list[dict[str, Any]], name: str) -> list[list[float]]:
    return [[line["step"], line[name]] for line in history if name in line]
