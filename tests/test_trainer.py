import dataclasses
import gc
import math
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanochat.data.batch import Batch
from nanochat.errors import UserError
from nanochat.metrics import RunLog
from nanochat.runtime import Runtime
from nanochat.training import micro_batch, trainer
from nanochat.training.async_checkpoint import TrainState
from nanochat.training.schedule import Schedule
from nanochat.training.stop_requests import STOP_SIGNALS, stop_requests
from nanochat.training.trainer import Every, RunContext

VOCAB, ROWS, TIME = 11, 6, 5
ONE_RANK = Runtime(torch.device("cpu"), 0, 1, torch.float32)


class TinyModel(nn.Module):
    """Predicts the next token from the current one; returns the weighted sum of losses like GPT."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCAB, VOCAB)
        nn.init.normal_(self.table.weight, generator=torch.Generator().manual_seed(0))

    def forward(self, inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        logits = self.table(inputs).transpose(1, 2)
        nll = nn.functional.cross_entropy(logits, targets, ignore_index=-1, reduction="none")
        return (nll * weights).sum()


class PlainSGD:
    def __init__(self, model: nn.Module, rate: float = 0.5) -> None:
        parameters = list(model.parameters())
        self.param_groups = [{"params": parameters, "lr": 0.0, "initial_lr": rate}]

    def reduce_gradients(self) -> Tensor:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        return nn.utils.get_total_norm(gradients).square()

    def finish_step(self) -> None:
        pass

    def start_step(self, gradient_scale: float = 1.0) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.sub_(parameter.grad, alpha=group["lr"] * gradient_scale)


class RecordingSaver:
    """Records the steps that are saved."""

    def __init__(self, is_always_due: bool = False) -> None:
        self.steps: list[int] = []
        self.is_always_due = is_always_due

    @property
    def last(self) -> str:
        return f"step {self.steps[-1]}" if self.steps else "none"

    def is_due(self) -> bool:
        return self.is_always_due

    def begin(self, state: TrainState) -> dict[str, float]:
        self.steps.append(state.step)
        return {}

    def wait(self) -> str:
        return ""


def batch(step: int, weights: bool = False, num_steps: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCAB, (ROWS, TIME + 1), generator=generator)
    targets = tokens[:, 1:].clone()
    targets[step % ROWS, 2:] = -1
    return Batch(
        inputs=tokens[:, :-1],
        targets=targets,
        weights=torch.randn(ROWS, TIME, generator=generator) if weights else None,
        norm=float((targets >= 0).sum()),
        progress=(step + 1) / num_steps,
        resume={"step": step + 1},
        metrics={"answer_tokens": float(step)},
    )


def run(
    tmp_path: Path,
    batches: Iterator[Batch],
    *,
    model: nn.Module | None = None,
    num_steps: int = 8,
    saver: Any = None,
    **changes: Any,
) -> tuple[nn.Module, TrainState]:
    model = model or TinyModel()
    schedule = Schedule(num_steps, warmdown_share=0.0)
    settings = {"device_batch_size": ROWS, **changes}
    with stop_requests() as stop, stop.deferred():
        context = RunContext(ONE_RANK, saver or RecordingSaver(), stop, log(tmp_path), "test", 1e6)
        state = trainer.train(
            model, [PlainSGD(model)], batches, schedule, TrainState(), context, **settings
        )
    return model, state


def log(tmp_path: Path) -> RunLog:
    return RunLog(tmp_path, "test", {}, is_main=True)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("device_batch_size", [1, 2, 4, 5])
def test_parameters_do_not_depend_on_the_micro_batch_size(
    tmp_path: Path, device_batch_size: int, weights: bool
) -> None:
    def batches() -> Iterator[Batch]:
        return (batch(step, weights) for step in range(8))

    whole, *_ = run(tmp_path, batches())
    cut, *_ = run(tmp_path, batches(), device_batch_size=device_batch_size)
    torch.testing.assert_close(cut.table.weight, whole.table.weight, atol=1e-6, rtol=1e-6)


def test_the_first_loss_is_that_of_the_formula(tmp_path: Path) -> None:
    model, first = TinyModel(), batch(0)
    ones = torch.ones(ROWS, TIME)
    expected = model(first.inputs, first.targets, ones).item() / first.norm
    losses: list[float] = []
    see = Every(1, lambda state: losses.append(state.loss))
    run(tmp_path, (batch(step) for step in range(8)), every=[see], device_batch_size=4)
    assert losses[0] == pytest.approx(expected, rel=1e-6)


def test_a_batch_without_targets_changes_no_weight(tmp_path: Path) -> None:
    empty = dataclasses.replace(batch(0), targets=torch.full((ROWS, TIME), -1), norm=1.0)
    model, state = run(tmp_path, iter([empty]), num_steps=1)
    assert state.loss == 0.0
    assert torch.equal(model.table.weight, TinyModel().table.weight)


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path: Path) -> None:
    poisoned = dataclasses.replace(batch(3), norm=0.0)
    batches = iter([batch(0), batch(1), poisoned])
    model, saver = TinyModel(), RecordingSaver()
    every = [Every(2, saver.begin)]
    words = r"loss of step 3 is not finite.*last good checkpoint: step 2"
    with pytest.raises(trainer.NonFiniteError, match=words) as caught:
        run(tmp_path, batches, model=model, saver=saver, every=every)
    assert caught.value.step == 3
    straight, *_ = run(tmp_path, iter([batch(0), batch(1)]), num_steps=2)
    assert torch.equal(model.table.weight, straight.table.weight)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_gradient_that_is_not_finite_stops_before_the_update(
    tmp_path: Path, value: float
) -> None:
    model, before = TinyModel(), TinyModel().table.weight
    model.table.weight.register_hook(
        lambda gradient: gradient.index_fill(0, gradient.new_tensor([3], dtype=torch.long), value)
    )
    with pytest.raises(trainer.NonFiniteError, match="gradient of step 1 is not finite"):
        run(tmp_path, iter([batch(0)]), model=model)
    assert torch.equal(model.table.weight, before)


def test_a_weight_that_is_not_finite_stops_the_run_also_if_no_loss_depends_on_it(
    tmp_path: Path,
) -> None:
    model = TinyModel()
    model.table.weight.data[-1] = math.nan
    words = "parameter norm of step 1 is not finite: stopped before the update"
    with pytest.raises(trainer.NonFiniteError, match=words):
        run(tmp_path, iter([batch(0)]), model=model)


def test_a_skipped_step_consumes_its_batch_without_an_update(tmp_path: Path) -> None:
    poisoned = dataclasses.replace(batch(1), norm=0.0)
    skipped, *_ = run(tmp_path, iter([batch(0), poisoned, batch(2)]), num_steps=3, skip_steps={2})
    without, *_ = run(tmp_path, iter([batch(0), batch(2)]), num_steps=2)
    assert torch.equal(skipped.table.weight, without.table.weight)


def test_gradients_of_a_failed_run_are_not_used_by_the_next(tmp_path: Path) -> None:
    model = TinyModel()
    with pytest.raises(trainer.NonFiniteError):
        run(tmp_path, iter([dataclasses.replace(batch(1), norm=0.0)]), model=model)
    run(tmp_path, iter([batch(0)]), model=model, num_steps=1)
    straight, *_ = run(tmp_path, iter([batch(0)]), num_steps=1)
    assert torch.equal(model.table.weight, straight.table.weight)


def test_a_checkpoint_is_saved_when_one_is_due_by_the_clock(tmp_path: Path) -> None:
    saver = RecordingSaver(is_always_due=True)
    run(tmp_path, (batch(step) for step in range(8)), saver=saver)
    assert saver.steps == list(range(1, 9))


def test_hooks_are_called_every_n_steps_but_not_after_the_last(tmp_path: Path) -> None:
    called: dict[str, list[int]] = {"two": [], "three": [], "never": []}
    every = [
        Every(2, lambda state: called["two"].append(state.step)),
        Every(3, lambda state: called["three"].append(state.step)),
        Every(0, lambda state: called["never"].append(state.step)),
    ]
    run(tmp_path, (batch(step) for step in range(8)), every=every)
    assert called == {"two": [2, 4, 6], "three": [3, 6], "never": []}


def test_metrics_of_each_step_and_its_batch_are_logged(tmp_path: Path) -> None:
    every = [Every(3, lambda state: {"bpb": state.step / 3})]
    run(tmp_path, (batch(step) for step in range(8)), every=every)
    history = log(tmp_path).history()
    assert [line["step"] for line in history if "loss" in line] == list(range(1, 9))
    assert [line["bpb"] for line in history if "bpb" in line] == [1.0, 2.0]
    assert [line["answer_tokens"] for line in history if "loss" in line] == list(range(8))
    last = next(line for line in history if line["step"] == 8)
    assert last["tokens"] == sum(trainer.tokens_in_use(batch(step).targets) for step in range(8))
    assert last["mfu"] == pytest.approx(last["tokens_per_second"] / 1e6)
    model, one = TinyModel(), batch(0)
    assert history[0]["parameter_norm"] == pytest.approx(float(model.table.weight.detach().norm()))
    (model(one.inputs, one.targets, torch.ones(ROWS, TIME)) / one.norm).backward()
    assert model.table.weight.grad is not None
    assert history[0]["gradient_norm"] == pytest.approx(float(model.table.weight.grad.norm()))


def test_a_step_is_logged_before_it_is_saved(tmp_path: Path) -> None:
    logged: list[int] = []

    def save(state: TrainState) -> None:
        logged.append(log(tmp_path).history()[-1]["step"])

    run(tmp_path, (batch(step) for step in range(8)), every=[Every(2, save)])
    assert logged == [2, 4, 6]


def test_garbage_collection_is_off_within_the_loop(tmp_path: Path) -> None:
    seen: list[bool] = []
    see = Every(1, lambda _: seen.append(gc.isenabled()))
    run(tmp_path, (batch(step) for step in range(3)), num_steps=3, every=[see])
    assert seen == [False] * 2 and gc.isenabled()


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_saves_and_exits_after_the_step(tmp_path: Path, number: int) -> None:
    saver = RecordingSaver()

    def kick(state: TrainState) -> None:
        if state.step == 3:
            signal.raise_signal(number)

    with pytest.raises(SystemExit) as caught:
        run(tmp_path, (batch(step) for step in range(8)), every=[Every(1, kick)], saver=saver)
    assert caught.value.code == 128 + number and saver.steps == [4]


def test_a_run_under_nohup_survives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as requests:
            signal.raise_signal(signal.SIGHUP)
            assert requests.name is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_prefetched_batches_are_the_same_and_their_errors_are_raised(tmp_path: Path) -> None:
    plain, *_ = run(tmp_path, (batch(step) for step in range(8)), prefetch=False)
    ahead, *_ = run(tmp_path, (batch(step) for step in range(8)), prefetch=True)
    assert torch.equal(plain.table.weight, ahead.table.weight)

    def broken() -> Iterator[Batch]:
        yield batch(0)
        raise UserError("shard_00003.parquet is damaged")

    with pytest.raises(UserError, match="shard_00003"):
        run(tmp_path, broken())


def test_no_batch_is_being_prepared_after_the_loop(tmp_path: Path) -> None:
    making = threading.Event()

    def slow() -> Iterator[Batch]:
        yield dataclasses.replace(batch(0), norm=0.0)
        making.set()
        time.sleep(0.2)
        making.clear()
        yield batch(1)

    with pytest.raises(trainer.NonFiniteError):
        run(tmp_path, slow())
    assert not making.is_set()


def test_padding_does_not_count_as_tokens() -> None:
    targets = torch.tensor([[5, 6, 7, 8], [-1, 3, -1, -1], [-1, -1, -1, -1]])
    assert trainer.tokens_in_use(targets) == 4 + 2 + 0


# ---- out of memory, float16


class FailingModel(TinyModel):
    """Raises an error in chosen forward passes, or in the middle of the backward pass."""

    def __init__(self, max_rows: int) -> None:
        super().__init__()
        self.max_rows, self.num_failures = max_rows, 0
        self.of_failure: Callable[[], Tensor | None] = lambda: None  # the tensor, while it exists

    def forward(self, inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        assert self.of_failure() is None
        loss = super().forward(inputs, targets, weights)
        if len(inputs) > self.max_rows:
            self.num_failures += 1
            if self.num_failures == 1:
                self.of_failure = weakref.ref(loss)
                error = torch.OutOfMemoryError("CUDA out of memory.")
                raise error  # which this frame refers to, and the error to the frame
            loss.register_hook(self.fail)
        return loss

    def fail(self, _: Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain, before = run(tmp_path, (batch(step) for step in range(8)))
    model = FailingModel(max_rows=2)
    found, state = run(tmp_path, (batch(step) for step in range(8)), model=model)
    assert model.num_failures == 2  # with 6 and with 3 rows: all later steps take 2 at a time
    torch.testing.assert_close(found.table.weight, plain.table.weight, atol=1e-6, rtol=1e-6)
    assert state.loss == pytest.approx(before.loss, rel=1e-6)
    words = [record.message for record in caplog.records if "out of memory" in record.message]
    assert words == [f"out of memory: micro-batches of {n} rows from here on" for n in (3, 2)]


def test_out_of_memory_with_one_row_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"one row at a time; use --activation_checkpointing"):
        run(tmp_path, iter([batch(0)]), model=FailingModel(max_rows=0))


FLOAT16 = dataclasses.replace(ONE_RANK, compute_dtype=torch.float16)


class ScaledSGD(PlainSGD):
    def reduce_gradients(self, scale: float = 1.0) -> Tensor:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad /= scale
        return super().reduce_gradients()


class NarrowModel(TinyModel):
    """Its gradients overflow above a limit, as those of float16 do."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.num_passes, self.scales = 0, list[float]()
        self.table.weight.register_hook(lambda g: torch.where(g.abs() > limit, torch.inf, g))

    def forward(self, inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        self.num_passes += 1
        self.scales.append(float(weights.max()))
        return super().forward(inputs, targets, weights)


def run_scaled(
    tmp_path: Path, model: nn.Module, batches: Iterator[Batch], start: TrainState, num_steps: int
) -> TrainState:
    with stop_requests() as stop, stop.deferred():
        context = RunContext(
            FLOAT16, RecordingSaver(), stop, log(tmp_path), "test", 1e6
        )  # fmt: skip
        schedule = Schedule(num_steps, warmdown_share=0.0)
        return trainer.train(
            model, [ScaledSGD(model)], batches, schedule, start, context, device_batch_size=ROWS
        )


def test_an_overflow_in_float16_computes_the_step_again_and_loses_nothing(tmp_path: Path) -> None:
    plain, before = run(tmp_path, (batch(step) for step in range(8)))
    model = NarrowModel(limit=1000.0)
    state = run_scaled(tmp_path, model, (batch(step) for step in range(8)), TrainState(), 8)
    assert model.num_passes > 8 and 1 < state.loss_scale < 65_536
    torch.testing.assert_close(model.table.weight, plain.table.weight, atol=1e-6, rtol=1e-6)
    assert state.loss == pytest.approx(before.loss, rel=1e-6)
    assert state.tokens == before.tokens and state.loader == before.loader


def test_a_resumed_run_keeps_the_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, halves = NarrowModel(1000.0), NarrowModel(1000.0)
    monkeypatch.setattr(trainer, "SCALE_STEPS", 3)  # it grows again within the run
    end = run_scaled(tmp_path, whole, (batch(step) for step in range(8)), TrainState(), 8)
    middle = run_scaled(tmp_path, halves, (batch(step) for step in range(4)), TrainState(), 4)
    start = TrainState.from_meta({**middle.to_meta()})
    resumed = run_scaled(tmp_path, halves, (batch(step) for step in range(4, 8)), start, 8)
    assert (resumed.loss_scale, resumed.scale_since) == (end.loss_scale, end.scale_since)
    assert whole.scales == halves.scales and len(set(whole.scales)) > 2
    assert torch.equal(whole.table.weight, halves.table.weight)


def test_a_loss_that_is_never_finite_stops_in_float16_too(tmp_path: Path) -> None:
    poisoned = dataclasses.replace(batch(0), norm=math.nan)
    with pytest.raises(trainer.NonFiniteError):
        run_scaled(tmp_path, TinyModel(), iter([poisoned]), TrainState(), 1)


@pytest.mark.parametrize("context", [1, 2, 37, 250, 256])
def test_a_micro_batch_is_never_wider_than_its_batch(context: int) -> None:
    targets = torch.full((2, context), -1)
    assert 1 <= micro_batch.width_in_use(targets) <= context
    targets[1, -1] = 5
    assert micro_batch.width_in_use(targets) == context
