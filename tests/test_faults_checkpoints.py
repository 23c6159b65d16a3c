"""Hostile checkpoints and runs that are started twice: `python -m dev.faults` with small counts."""

import shutil
from pathlib import Path

import pytest
import torch

from dev.faults import mutations, mutators, starts, trial
from nanochat import checkpoint_manager as checkpoints
from nanochat.checkpoint_manager import tensor_files
from nanochat.checkpoint_manager.meta_file import CHECKS
from nanochat.errors import UserError
from nanochat.training.async_checkpoint import TrainState
from tests.shared_data import EVAL_DATA

SEED = 3


def test_a_mutated_checkpoint_is_passed_over_in_one_line(tmp_path: Path) -> None:
    outcome = mutations.mutated_checkpoints(tmp_path, 70, SEED)
    assert outcome.harms == [] and outcome.tried == 70
    assert outcome.facts["passed over"] >= 40 and outcome.facts["kinds"] == len(mutators.MUTATORS)


def test_every_value_of_the_state_of_a_run_is_checked_when_it_is_read() -> None:
    assert TrainState().to_meta().keys() <= CHECKS.keys()
    for name, value in TrainState().to_meta().items():
        assert CHECKS[name](value), name


def test_a_value_that_is_not_finite_is_neither_saved_nor_loaded(tmp_path: Path) -> None:
    outcome = mutations.weights_not_finite(tmp_path, 8, SEED)
    assert outcome.harms == [] and outcome.tried == 8


@pytest.mark.parametrize("name", ["25e9-element_view_of_one_value", "a_list",
                                  "declares_100_GB_over_400_bytes"])  # fmt: skip
def test_model_files_that_once_ended_a_command_are_refused(tmp_path: Path, name: str) -> None:
    source = EVAL_DATA.parents[1] / "cases" / "hostile" / f"model_{name}.pt"
    if not source.is_file():
        pytest.skip(f"needs {source.name}")
    run = mutations.Run(tmp_path)
    path = run.directory / "model_000002.pt"
    shutil.copyfile(source, path)
    mutators.store(run.directory, "model", path.read_bytes())
    assert run.resume() == run.truth[1]


def test_what_torch_saves_for_us_is_read_and_executable_types_are_not(tmp_path: Path) -> None:
    content = [{"a": torch.ones(2, dtype=torch.bfloat16), "b": 1, "c": None, "d": (0.5, "x")}]
    tensor_files.write(tmp_path / "a.pt", content)
    [read] = tensor_files.read(tmp_path / "a.pt")
    assert torch.equal(read.pop("a"), torch.ones(2, dtype=torch.bfloat16))
    assert read == {"b": 1, "c": None, "d": (0.5, "x")}
    tensor_files.write(tmp_path / "b.pt", torch.Size([2]))
    with pytest.raises(UserError, match=r"b\.pt is not a file of plain tensors"):
        tensor_files.read(tmp_path / "b.pt")


def test_the_content_of_a_file_may_not_exceed_it(tmp_path: Path) -> None:
    one = torch.zeros(1000)
    tensor_files.write(tmp_path / "a.pt", {"a": one, "same": one})
    with pytest.raises(UserError, match="not a file of plain tensors"):
        tensor_files.read(tmp_path / "a.pt")


def test_weights_of_another_model_are_named_before_any_is_copied(tmp_path: Path) -> None:
    run = mutations.Run(tmp_path)
    found = checkpoints.newest_complete(run.directory)
    assert found is not None
    before = run.model.unembedding.weight.clone()
    dict(run.model.named_parameters())["blocks.0.attention.key.weight"].data = torch.zeros(3, 2)
    with pytest.raises(UserError, match=r"000002\.pt holds another model: blocks.0.attention.key"):
        found.load_weights(run.model)
    assert torch.equal(run.model.unembedding.weight, before)


@pytest.mark.slow
def test_double_starts_and_damaged_ends_do_no_harm(tmp_path: Path) -> None:
    trial.make_data(tmp_path)
    references = {ranks: trial.uninterrupted(tmp_path, ranks) for ranks in (1, 2)}
    for outcome in (
        starts.double_starts(tmp_path, references, 4, SEED),
        starts.damaged_ends(tmp_path, references[1], 4, SEED),
    ):
        assert outcome.harms == [] and outcome.tried == 4
