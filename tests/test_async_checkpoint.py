import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat import checkpoint_manager as checkpoints
from nanochat.gpt import GPT, GPTConfig
from nanochat.runtime import RankStore, Runtime
from nanochat.training import async_checkpoint
from nanochat.training.async_checkpoint import CheckpointSaver, TrainState
from nanochat.training.stop_requests import STOP_SIGNALS, StopRequests

ONE_RANK = Runtime(torch.device("cpu"), 0, 1, torch.float32)
RUN_META = {"tokenizer": "t", "settings": {"model_tag": "d1"}, "model": {}}


class Moments:
    """Stands in for an optimizer whose only state is one tensor."""

    def __init__(self) -> None:
        self.tensor = torch.zeros(3)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"moment": self.tensor}


def state(step: int) -> TrainState:
    resume = {"step": step, "document": step}
    return TrainState(step, 0.5, 1.0, 2.0, 3, resume)


class Run:
    """One rank with a small model whose every value is the step number."""

    def __init__(self, directory: Path, runtime: Runtime = ONE_RANK, minutes: float = 0) -> None:
        self.model = GPT(GPTConfig.from_depth(1, vocab_size=32, sequence_len=8))
        self.moments = Moments()
        self.saver = CheckpointSaver(
            directory, self.model, [self.moments], runtime, keep=2, minutes=minutes
        )
        self.saver.start_from(-1, RUN_META)

    @torch.no_grad()
    def set_to(self, step: int) -> TrainState:
        for parameter in self.model.parameters():
            parameter.fill_(step)
        self.moments.tensor.fill_(step)
        return state(step)


def content(directory: Path) -> tuple[int, set[float]]:
    """The step of the newest checkpoint and the values in it."""
    found = checkpoints.newest_complete(directory)
    assert found is not None
    tensors = list(found.load_model_state(torch.device("cpu")).values())
    tensors += [moment for [each] in found.load_optimizer_states() for moment in each.values()]
    return found.step, {float(value) for tensor in tensors for value in tensor.flatten()[:5]}


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Blocks writing until it is set."""
    event, write = threading.Event(), torch.save

    def slow(*arguments: Any, **more: Any) -> None:
        event.wait(timeout=30)
        write(*arguments, **more)

    monkeypatch.setattr(torch, "save", slow)
    return event


def test_training_continues_while_a_step_is_written(tmp_path: Path, gate: threading.Event) -> None:
    run = Run(tmp_path)
    run.saver.begin(run.set_to(1))
    run.set_to(2)
    assert not list(tmp_path.glob("meta_*")) and run.saver.last == "none"
    gate.set()
    assert run.saver.wait() == ""
    assert content(tmp_path) == (1, {1.0})
    assert run.saver.last == f"step 1 in {tmp_path}"


def test_closing_waits_for_a_save_in_progress(tmp_path: Path, gate: threading.Event) -> None:
    run = Run(tmp_path)
    run.saver.begin(run.set_to(1))
    threading.Timer(0.05, gate.set).start()
    run.saver.close()
    assert content(tmp_path) == (1, {1.0})


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    run = Run(tmp_path)
    now = run.set_to(3)
    run.saver.complete(now)
    before = (tmp_path / "model_000003.pt").stat().st_mtime_ns
    assert run.saver.begin(now) == {} and run.saver.complete(now) == ""
    assert (tmp_path / "model_000003.pt").stat().st_mtime_ns == before


def test_a_failed_save_is_logged_and_the_next_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path)
    run.saver.complete(run.set_to(1))
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
        assert "step 2 was not saved" in run.saver.complete(run.set_to(2))
    assert f"training continues, last checkpoint: step 1 in {tmp_path}" in caplog.text
    assert content(tmp_path) == (1, {1.0})
    assert run.saver.complete(run.set_to(3)) == ""
    assert content(tmp_path) == (3, {3.0})


@pytest.mark.parametrize("where", ["model", "optim"])
def test_a_value_that_is_not_finite_is_never_saved(tmp_path: Path, where: str) -> None:
    run = Run(tmp_path)
    now = run.set_to(1)
    tensor = run.moments.tensor if where == "optim" else run.model.unembedding.weight.data
    tensor.view(-1)[-1] = torch.inf
    assert "values that are not finite" in run.saver.complete(now)
    assert list(tmp_path.glob("*_000001*")) == []
    tensor.fill_(torch.finfo(torch.float32).max)  # whose sum is infinite
    run.saver.step = -1
    assert run.saver.complete(now) == ""


def test_without_memory_for_the_copy_the_save_fails_and_the_next_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    run.saver.complete(run.set_to(1))
    with monkeypatch.context() as patched:
        full = RuntimeError("you tried to allocate 9 bytes")
        patched.setattr(checkpoints, "snapshot", lambda *_: (_ for _ in ()).throw(full))
        assert "step 2 was not saved: no memory" in run.saver.complete(run.set_to(2))
    assert content(tmp_path) == (1, {1.0}) and list(tmp_path.glob("*_000002*")) == []
    assert run.saver.complete(run.set_to(3)) == ""
    assert content(tmp_path) == (3, {3.0})


def test_a_checkpoint_is_due_after_some_minutes(tmp_path: Path) -> None:
    assert not Run(tmp_path, minutes=0).saver.is_due()
    assert not Run(tmp_path, minutes=10).saver.is_due()
    hurried = Run(tmp_path, minutes=1e-9)
    assert hurried.saver.is_due()


def two_ranks(directory: Path) -> list[Run]:
    store = RankStore()
    return [
        Run(directory, dataclasses.replace(ONE_RANK, rank=rank, world_size=2, store=store))
        for rank in range(2)
    ]


def test_a_checkpoint_of_two_ranks_is_complete_when_both_have_written(tmp_path: Path) -> None:
    main, other = two_ranks(tmp_path)
    main.saver.begin(main.set_to(4))
    assert main.saver.thread is not None
    main.saver.thread.join(timeout=0.1)
    assert list(tmp_path.glob("meta_*")) == []
    other.saver.begin(other.set_to(4))
    assert main.saver.wait() == ""
    found = checkpoints.newest_complete(tmp_path)
    assert found is not None and found.meta["loader"] == {"step": 4, "document": 4}
    assert {name for name in found.meta["files"] if "optim" in name} == {
        "optim_000004_rank0.pt", "optim_000004_rank1.pt",
    }  # fmt: skip


def test_a_rank_that_cannot_write_fails_the_checkpoint_of_all_ranks(tmp_path: Path) -> None:
    main, other = two_ranks(tmp_path)
    now = other.set_to(4)
    other.moments.tensor.fill_(torch.nan)
    other.saver.begin(now)
    assert "not finite" in main.saver.complete(main.set_to(4))
    assert list(tmp_path.glob("*_000004*")) == []


def test_closing_does_not_wait_for_a_lost_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(async_checkpoint, "SHARE_TIMEOUT_LEAVING_SECONDS", 0.01)
    main, _ = two_ranks(tmp_path)
    main.saver.begin(main.set_to(4))
    main.saver.close()
    assert "rank 1 has not written its share" in main.saver.failure
    assert list(tmp_path.glob("*_000004*")) == []


def test_signals_exit_with_128_plus_their_number() -> None:
    codes = []
    for number in STOP_SIGNALS:
        with pytest.raises(SystemExit) as left:
            StopRequests().handle(number, None)
        codes.append(left.value.code)
    assert codes == [143, 130, 138, 129]
