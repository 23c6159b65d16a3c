import hashlib
import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat import checkpoint_manager as checkpoints
from nanochat import paths
from nanochat.errors import UserError
from nanochat.gpt import GPT, GPTConfig
from nanochat.runtime import init_runtime
from nanochat.tokenizer import RustBPETokenizer
from tests.small_model import save_small_run

META = {"tokenizer": "t", "settings": {"model_tag": "d1"}, "finished": False, "loader": {"step": 1}}


class PlainOptimizer:
    """A stand-in for any optimizer: a checkpoint only needs its state."""

    def __init__(self, value: float) -> None:
        self.value = value

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"moment": torch.full((3,), self.value)}


@pytest.fixture
def model() -> GPT:
    config = GPTConfig.from_depth(1, vocab_size=32, sequence_len=8)
    model = GPT(config)
    model.init_weights(seed=1)
    return model


def save(directory: Path, step: int, model: GPT, keep: int = 5, **changes: object) -> None:
    meta = {**META, "model": model.config.to_dict(), **changes}
    content = checkpoints.snapshot(model, [PlainOptimizer(float(step))])
    checkpoints.save(directory, step, content, meta, keep=keep)


def test_weights_optimizer_state_and_config_survive_a_round_trip(
    tmp_path: Path, model: GPT
) -> None:
    save(tmp_path, 7, model)
    found = checkpoints.newest_complete(tmp_path)
    assert found is not None and found.step == 7
    state = found.load_model_state(torch.device("cpu"))
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    [[optimizer]] = found.load_optimizer_states()
    assert optimizer["moment"].tolist() == [7.0] * 3
    rebuilt = checkpoints.build_model(found.meta, torch.device("cpu"), torch.float32)
    assert rebuilt.config == model.config
    rebuilt.load_state_dict(state)
    tokens = torch.arange(8)[None]
    assert torch.equal(rebuilt(tokens), model(tokens))


def test_creating_a_model_does_not_import_the_compiler(model: GPT) -> None:
    program = (
        "import json, sys, torch; from nanochat import checkpoint_manager as checkpoints;"
        "meta = {'model': json.loads(sys.argv[1])};"
        "model = checkpoints.build_model(meta, torch.device('cpu'), torch.float32);"
        "torch.set_default_device('meta'); model = type(model)(model.config);"
        "model.to_empty(device='cpu');"
        "print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, json.dumps(model.config.to_dict())]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "[]\n"


def test_the_prefix_of_compiled_modules_is_removed_at_the_start_of_a_name_only(
    tmp_path: Path,
) -> None:
    names = ("_orig_mod.blocks.0._orig_mod.weight", "embedding.weight")
    content = {"model": {name: torch.ones(2) for name in names}, "optim": []}
    checkpoints.save(tmp_path, 3, content, META, keep=1)
    found = checkpoints.newest_complete(tmp_path)
    assert found is not None
    state = found.load_model_state(torch.device("cpu"))
    assert [*state] == ["blocks.0._orig_mod.weight", "embedding.weight"]


def test_other_files_in_the_folder_are_ignored(tmp_path: Path, model: GPT) -> None:
    save(tmp_path, 3, model)
    for name in ("meta_latest.json", "meta_12.json", "model_000999.pt", "notes.txt", "meta_x.json"):
        (tmp_path / name).write_text("{}")
    assert checkpoints.saved_steps(tmp_path) == [3]


def test_tags_need_not_look_like_a_depth(
    tmp_path: Path, model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    save(paths.checkpoints_dir("base") / "my run", 3, model)
    assert checkpoints.find_directory("base").name == "my run"
    assert checkpoints.find_stage() == "base"


def test_a_missing_checkpoint_names_the_command_that_creates_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"no checkpoint in .*scripts\.chat_sft"):
        checkpoints.find_directory("sft")


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path, model: GPT) -> None:
    for step in (1, 2, 3, 10):
        save(tmp_path, step, model, keep=2)
    assert checkpoints.saved_steps(tmp_path) == [10, 3]
    assert len(list(tmp_path.glob("*.pt"))) == 4


def test_failing_to_remove_an_old_checkpoint_does_not_undo_the_new_one(
    tmp_path: Path, model: GPT, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, model)
    (tmp_path / "meta_000001.json").unlink()
    (tmp_path / "meta_000001.json").mkdir()
    save(tmp_path, 2, model, keep=1)
    found = checkpoints.newest_complete(tmp_path)
    assert found is not None and found.step == 2
    assert "step 1 could not be removed" in caplog.text


def test_a_meta_that_is_not_an_object_is_skipped(tmp_path: Path, model: GPT) -> None:
    save(tmp_path, 1, model)
    for step, text in ((2, "[]"), (3, '{"version": 1, "files": null}')):
        (tmp_path / f"meta_00000{step}.json").write_text(text)
    found = checkpoints.newest_complete(tmp_path)
    assert found is not None and found.step == 1


def test_a_checkpoint_without_meta_does_not_exist(tmp_path: Path, model: GPT) -> None:
    save(tmp_path, 1, model)
    save(tmp_path, 2, model)
    (tmp_path / "meta_000002.json").unlink()
    found = checkpoints.newest_complete(tmp_path)
    assert found is not None and found.step == 1


@pytest.mark.parametrize("name", ["model_000002.pt", "optim_000002_rank0.pt"])
@pytest.mark.parametrize("how", ["flip", "truncate", "remove", "unreadable"])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(
    tmp_path: Path, model: GPT, name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, model)
    save(tmp_path, 2, model)
    path = tmp_path / name
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[random.Random(0).randrange(len(data))] ^= 1
        path.write_bytes(data)
    elif how == "truncate":
        path.write_bytes(data[:-1])
    else:
        path.unlink()
    if how == "unreadable":
        path.mkdir()
    found = checkpoints.newest_complete(tmp_path)
    assert found is not None and found.step == 1
    assert name in caplog.text


def test_a_failed_save_keeps_the_last_good_checkpoint_and_leaves_no_files(
    tmp_path: Path, model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, model)

    def disk_full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(UserError, match="step 2 was not saved"):
        save(tmp_path, 2, model)
    found = checkpoints.newest_complete(tmp_path)
    assert found is not None and found.step == 1
    assert {path.name for path in tmp_path.iterdir()} == {
        "meta_000001.json", "model_000001.pt", "optim_000001_rank0.pt",
    }  # fmt: skip


def test_the_meta_is_readable_and_can_be_updated(tmp_path: Path, model: GPT) -> None:
    save(tmp_path, 4, model)
    checkpoints.update_meta(tmp_path, 4, finished=True)
    meta = json.loads((tmp_path / "meta_000004.json").read_text())
    assert meta["finished"] is True and meta["step"] == 4 and meta["loader"] == {"step": 1}


def test_a_changed_digit_in_the_meta_is_detected(tmp_path: Path, model: GPT) -> None:
    save(tmp_path, 1, model)
    save(tmp_path, 2, model, loader={"step": 2, "document": 17})
    path = tmp_path / "meta_000002.json"
    path.write_text(path.read_text().replace("17", "16"))
    found = checkpoints.newest_complete(tmp_path)
    assert found is not None and found.step == 1


def test_a_meta_without_checksum_or_of_another_format_is_skipped(
    tmp_path: Path, model: GPT
) -> None:
    save(tmp_path, 1, model)
    path = tmp_path / "meta_000001.json"
    meta = json.loads(path.read_text())
    for changes in ({"sha256": None}, {"version": 3}):
        path.write_text(json.dumps({**meta, **changes}))
        assert checkpoints.newest_complete(tmp_path) is None


def test_a_damaged_later_checkpoint_does_not_displace_a_good_one(
    tmp_path: Path, model: GPT
) -> None:
    save(tmp_path, 8, model)
    (tmp_path / "model_000008.pt").unlink()
    save(tmp_path, 6, model, keep=1)
    found = checkpoints.newest_complete(tmp_path)
    assert found is not None and found.step == 6


def test_leftovers_of_killed_saves_are_removed_and_nothing_else(tmp_path: Path, model: GPT) -> None:
    save(tmp_path, 1, model)
    kept = {path.name for path in tmp_path.iterdir()} | {"notes.pt", ".other.part", "model_x.pt"}
    leftovers = [".model_000002.pt.ab12.part", "model_000002.pt", "optim_000002_rank1.pt"]
    for name in [*leftovers, "notes.pt", ".other.part", "model_x.pt"]:
        (tmp_path / name).write_bytes(b"x")
    checkpoints.remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_replaced_run_stays_loadable_and_is_no_longer_found(
    tmp_path: Path, model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    folder = paths.checkpoints_dir("base") / "d1"
    save(folder, 3, model)
    checkpoints.move_to_replaced(folder)
    [replaced] = (folder.parent / "replaced").iterdir()
    found = checkpoints.newest_complete(replaced)
    assert found is not None and found.step == 3
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoints.find_directory("base")
    checkpoints.move_to_replaced(folder)  # nothing there: does nothing


def test_another_tokenizer_is_refused(base_dir: Path) -> None:
    save_small_run("base")
    with_other_merges().save(paths.tokenizer_dir())
    with pytest.raises(UserError, match=r"trained with tokenizer \w{12}, but .* holds \w{12};"):
        checkpoints.load_model("base", init_runtime("cpu"))


@pytest.mark.parametrize("place", ["beside the checkpoints", "replaced"])
def test_a_model_keeps_its_tokenizer_when_another_is_trained(base_dir: Path, place: str) -> None:
    save_small_run("base")
    right = checkpoints.load_model("base", init_runtime("cpu"))[1].content_hash
    beside = paths.checkpoints_dir("base") / "small"
    kept = beside if place.startswith("beside") else base_dir / "replaced" / "tokenizer-1"
    RustBPETokenizer.from_directory(paths.tokenizer_dir()).save(kept)
    with_other_merges().save(paths.tokenizer_dir())
    assert checkpoints.load_model("base", init_runtime("cpu"))[1].content_hash == right
    (paths.tokenizer_dir() / "tokenizer.json").unlink()
    assert checkpoints.load_model("base", init_runtime("cpu"))[1].content_hash == right


def test_a_damaged_copy_of_the_tokenizer_is_passed_over(
    base_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_small_run("base")
    (paths.checkpoints_dir("base") / "small" / "tokenizer.json").write_text("{")
    checkpoints.load_model("base", init_runtime("cpu"))
    assert "small/tokenizer.json is not a nanochat tokenizer" in caplog.text


def with_other_merges() -> RustBPETokenizer:
    return RustBPETokenizer.train_from_iterator(["other text, and other pairs of it"], 280)


# ---- loading only the model


def test_a_damaged_optimizer_shard_stops_a_resume_but_not_a_chat() -> None:
    save_small_run("sft")
    folder = paths.checkpoints_dir("sft") / "small"
    (folder / "optim_000001_rank0.pt").write_bytes(b"damaged")
    assert checkpoints.newest_complete(folder) is None
    model, _, meta = checkpoints.load_model("sft", init_runtime("cpu"))
    assert meta["step"] == 1 and not model.training


def test_a_damaged_model_file_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    save_small_run("sft")
    path = paths.checkpoints_dir("sft") / "small" / "model_000001.pt"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"no complete checkpoint in .*\(steps there: 1\)"):
        checkpoints.load_model("sft", init_runtime("cpu"))
    assert "model_000001.pt" in caplog.text


@pytest.mark.parametrize(("local_rank", "files"), [(0, ["model_000001.pt"]), (1, [])])
def test_loading_a_model_reads_its_file_once_per_node_and_no_other(
    monkeypatch: pytest.MonkeyPatch, local_rank: int, files: list[str]
) -> None:
    save_small_run("sft")
    hashed: list[str] = []
    original = hashlib.file_digest

    def counting(file: Any, name: str) -> Any:
        hashed.append(Path(file.name).name)
        return original(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    checkpoints.load_model("sft", replace(init_runtime("cpu"), local_rank=local_rank))
    assert hashed == files


def test_damage_that_one_node_finds_is_known_to_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    save_small_run("sft")
    monkeypatch.setattr(checkpoints, "gather_objects", lambda own: [own, "the sha256 differs"])
    with pytest.raises(UserError, match="no complete checkpoint"):
        checkpoints.load_model("sft", init_runtime("cpu"))
