"""Mistakes of users: each is an error of one line with the remedy, and nothing is lost."""

import hashlib
import importlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat import checkpoint_manager, dataset, paths
from nanochat.configurator import run
from nanochat.runtime import init_runtime
from nanochat.tokenizer import get_tokenizer
from nanochat.training import autotune, stage
from tests.small_model import small_tokenizer

ROOT = Path(__file__).parents[1]
TRAIN = (
    "scripts.base_train --depth=1 --head_dim=32 --max_seq_len=64 --total_batch_size=256"
    " --num_iterations=6 --save_every=2 --eval_every=0 --eval_tokens=1 --compile=off"
    " --device_type=cpu"
)


def make_small(patch: pytest.MonkeyPatch) -> None:
    """Little text, short samples, a given matmul peak: none of these is tested here."""
    patch.setattr(dataset, "PRIMER_SHARD_DOCUMENTS", 200)
    patch.setattr(dataset, "PRIMER_VAL_DOCUMENTS", 50)
    patch.setattr(stage, "SAMPLE_TOKENS", 2)
    patch.setattr(autotune, "measure_matmul_peak", lambda *_: 1e11)


@pytest.fixture(autouse=True)
def small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base directory with text and a tokenizer."""
    folder = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        patch.setenv("NANOCHAT_BASE_DIR", str(folder))
        dataset.make("primer", 1)
        small_tokenizer().save(paths.tokenizer_dir())
    return folder


@pytest.fixture
def ready(template: Path, base_dir: Path) -> Path:
    """The base directory of this test, with text and a tokenizer."""
    shutil.copytree(template, base_dir)
    return base_dir


def outcome(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Exit code and lines on stderr of a command, run in this process with its guard."""
    module, *argv = shlex.split(line)
    main: Callable[[list[str]], None] = importlib.import_module(module).main
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run(lambda: main(argv))
    assert isinstance(caught.value.code, int)
    return caught.value.code, capsys.readouterr().err.splitlines()


def error_of(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The error of a rejected command, its last line."""
    code, lines = outcome(line, capsys)
    errors = [words for words in lines if words.startswith("error: ")]
    assert code != 0 and errors == lines[-1:], lines
    return errors[0]


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


# ---- missing files


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("scripts.tok_train", "no text in {base}/data; run python -m nanochat.dataset first"),
        ("scripts.tok_eval", "no tokenizer in {base}/tokenizer; run python -m scripts.tok_train"),
        (TRAIN, "no tokenizer in {base}/tokenizer; run python -m scripts.tok_train first"),
        (
            "scripts.base_loss",
            "no checkpoint in {base}/base_checkpoints; run python -m scripts.base",
        ),
        (
            "scripts.base_eval",
            "no checkpoint in {base}/base_checkpoints; run python -m scripts.base",
        ),
        (
            "scripts.mid_train",
            "no checkpoint in {base}/base_checkpoints; run python -m scripts.base",
        ),
        ("scripts.chat_sft", "no checkpoint in {base}/mid_checkpoints; run python -m scripts.mid"),
        (
            "scripts.chat_rl",
            "no checkpoint in {base}/chatsft_checkpoints; run python -m scripts.ch",
        ),
        (
            "scripts.chat_eval -i mid",
            "no checkpoint in {base}/mid_checkpoints; run python -m script",
        ),
        ("scripts.chat_cli -p hello", "no model in {base}; run bash speedrun.sh"),
        ("scripts.export --out=here", "no checkpoint in {base}/chatsft_checkpoints; run python"),
        ("nanochat.report generate", "no section in {base}/report; run a stage first"),
    ],
)
def test_a_missing_file_is_named_with_the_command_that_creates_it(
    base_dir: Path, capsys: pytest.CaptureFixture[str], line: str, words: str
) -> None:
    assert words.replace("{base}", str(base_dir)) in error_of(line, capsys)
    assert not base_dir.exists() or contents(base_dir) == {}


def test_training_needs_both_text_and_a_tokenizer(
    ready: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (ready / "tokenizer" / "tokenizer.json").unlink()
    assert "no tokenizer" in error_of(TRAIN, capsys)
    small_tokenizer().save(paths.tokenizer_dir())
    (ready / "data" / "source.json").unlink()
    assert "no text in" in error_of(TRAIN, capsys)


# ---- options


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"{TRAIN} --depth=0", "--depth=0 must be 1 or more"),
        (f"{TRAIN} --depth=1001 --dry_run", "--depth=1001 is more than 1000"),
        (f"{TRAIN} --depht=4", "--depht is not an option of this command; did you mean --depth?"),
        (f"{TRAIN} --device_batch_size=abc", "--device_batch_size=abc is not a whole number"),
        (f"{TRAIN} --device_batch_size=0", "--device_batch_size=0 must be 1 or more, or -1"),
        (
            f"{TRAIN} --total_batch_size=100",
            "--total_batch_size=100 is not a positive multiple of 64",
        ),
        (f"{TRAIN} --total_batch_size=0", "--total_batch_size=0 is not a positive multiple"),
        (f"{TRAIN} --matrix_lr=-0.1", "--matrix_lr=-0.1 must be 0 or more"),
        (f"{TRAIN} --embedding_lr=nan", "--embedding_lr=nan is not a finite number"),
        (f"{TRAIN} --unembedding_lr=inf", "--unembedding_lr=inf is not a finite number"),
        (f"{TRAIN} --weight_decay=-1", "--weight_decay=-1 must be 0 or more"),
        (f"{TRAIN} --num_iterations=0", "--num_iterations=0 must be 1 or more, or -1"),
        (f"{TRAIN} --num_iterations=-5", "--num_iterations=-5 must be 1 or more, or -1"),
        (f"{TRAIN} --num_iterations=-1 --tokens_per_parameter=-2", "--tokens_per_parameter=-2"),
        (f"{TRAIN} --max_seq_len=0", "--max_seq_len=0 must be 1 or more"),
        (f"{TRAIN} --warmup_steps=-1", "--warmup_steps=-1 must be 0 or more"),
        (f"{TRAIN} --warmdown_share=1.5", "--warmdown_share=1.5 must be between 0 and 1"),
        (f"{TRAIN} --final_lr=-1", "--final_lr=-1 must be between 0 and 1"),
        (f"{TRAIN} --eval_tokens=0", "--eval_tokens=0 must be 1 or more"),
        (f"{TRAIN} --save_every=-1", "--save_every=-1 must be 0 or more"),
        (f"{TRAIN} --keep_checkpoints=0", "--keep_checkpoints=0 must be 1 or more"),
        (f"{TRAIN} --value_embeddings=-1", "--value_embeddings=-1 must be 0 or more"),
        (f"{TRAIN} --window_pattern=M", "window_pattern=M must be letters L"),
        (f"{TRAIN} --head_dim=0", "--head_dim=0 must be 2 or more"),
        (f"{TRAIN} --model_tag=../../x", "--model_tag=../../x is not the plain name of a folder"),
        (f"{TRAIN} --model_tag=a/b", "--model_tag=a/b is not the plain name of a folder"),
        (f"{TRAIN} --model_tag=..", "--model_tag=.. is not the plain name of a folder"),
        (f"{TRAIN} --model_tag={'a' * 101}", "use up to 100 letters"),
        (f"{TRAIN} --model_tag=replaced", "is the name of a folder with another purpose"),
        (f"{TRAIN} --device_type=tpu", "--device_type=tpu is not known; use cuda, mps or cpu"),
        (f"{TRAIN} --source=primmer", "did you mean primer?"),
        (f"{TRAIN} --source=fineweb-edu", "no text of source fineweb-edu; run python -m nanochat"),
        (f"{TRAIN} nowhere.conf", "nowhere.conf is neither an option"),
        ("scripts.tok_train --vocab_size=100", "--vocab_size=100 is not between 265"),
        ("scripts.tok_train --max_chars=0", "--max_chars=0 must be 1 or more, or -1"),
        ("scripts.mid_train --num_conversations=0", "--num_conversations=0 must be 1 or more"),
        ("scripts.chat_sft --rows_per_step=0", "--rows_per_step=0 must be 1 or more"),
        ("scripts.chat_sft --num_epochs=-1", "--num_epochs=-1 must be 1 or more"),
        ("scripts.chat_rl --num_samples=1", "--num_samples=1 must be 2 or more"),
        ("scripts.chat_rl --temperature=-1", "--temperature=-1 must be 0.01 or more"),
        ("scripts.chat_eval --max_problems=0", "--max_problems=0 must be 1 or more, or -1"),
        ("scripts.chat_cli --max_tokens=0", "--max_tokens=0 must be 1 or more"),
        ("nanochat.dataset --source primer -n 0", "-n 0 is below 1; use 1 or more"),
        ("nanochat.dataset --source no/where", "--source=no/where is neither a known source nor"),
        ("nanochat.dataset -n 2000000", "-n 2000000 is not between 1 and 1822"),
    ],
)
def test_an_invalid_option_is_named_with_its_bounds_and_nothing_changes(
    ready: Path, capsys: pytest.CaptureFixture[str], line: str, words: str
) -> None:
    before = contents(ready)
    assert words in error_of(line, capsys)
    assert contents(ready) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_an_error(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = TRAIN.replace("--device_type=cpu", "--device_type=cuda")
    assert "--device_type=cuda: there is no usable NVIDIA GPU" in error_of(line, capsys)


@pytest.mark.parametrize(
    "name", ["NANOCHAT_DTYPE", "HF_ENDPOINT", "RANK", "LOCAL_RANK", "WORLD_SIZE"]
)
def test_an_invalid_environment_variable_is_named(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "float17")
    line = "nanochat.dataset -n 1" if name == "HF_ENDPOINT" else TRAIN
    assert f"{name}=float17" in error_of(line, capsys)


SRUN = {"SLURM_PROCID": "0", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "8"}, "srun started 8 processes"),
        ({**SRUN, "SLURM_NTASKS": "2", "ENVIRONMENT": "BATCH"}, "srun started 2 processes"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, "srun --ntasks-per-node=1 torchrun"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "mpirun started 4 processes"),
    ],
)
def test_ranks_without_torchrun_are_refused(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str], words: str,
) -> None:  # fmt: skip
    before = contents(ready)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    error = error_of(TRAIN, capsys)
    assert words in error and "torchrun" in error and contents(ready) == before


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "ENVIRONMENT": "BATCH"},  # a batch script
        {**SRUN, "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"},  # an interactive step
        {"SLURM_NTASKS": "8"},  # salloc
    ],
)
def test_one_process_in_a_job_of_slurm_is_accepted(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert init_runtime("cpu").world_size == 1


def test_a_run_is_not_continued_on_changed_text_of_as_many_documents(
    ready: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "texts.jsonl"
    lines = [f'{{"text": "Document {n} is about the rain."}}' for n in range(200)]
    path.write_text("\n".join(lines))
    dataset.make(str(path), 1)
    assert outcome(f"{TRAIN} --num_iterations=2", capsys)[0] == 0
    source = dataset.current_source()
    saved = contents(paths.checkpoints_dir("base"))
    path.write_text("\n".join(lines).replace("rain", "snow"))
    dataset.make(str(path), 1)
    assert dataset.current_source() == source
    error = error_of(f"{TRAIN} --num_iterations=2", capsys)
    assert "other settings (text: saved " in error and "--fresh" in error
    assert contents(paths.checkpoints_dir("base")) == saved
    path.write_text("\n".join(lines))
    dataset.make(str(path), 1)
    assert outcome(f"{TRAIN} --num_iterations=2", capsys)[0] == 0


def test_a_trained_model_is_usable_after_another_tokenizer_was_trained(
    ready: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(f"{TRAIN} --num_iterations=2", capsys)[0] == 0
    assert outcome(f"{TOKENIZE} --fresh", capsys)[0] == 0
    assert (ready / "replaced" / "tokenizer-1" / "tokenizer.json").is_file()
    assert outcome("scripts.base_loss --eval_tokens=64 --device_type=cpu", capsys)[0] == 0


def test_a_context_too_short_for_the_samples_still_trains(
    ready: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"{TRAIN} --max_seq_len=2 --total_batch_size=8 --num_iterations=2 --eval_tokens=64"
    assert outcome(line, capsys)[0] == 0


# ---- text


def test_unusable_text_is_rejected_and_the_current_source_stays(
    ready: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(ready)
    folder = tmp_path / "texts"
    folder.mkdir()
    assert "holds no .parquet" in error_of(f"nanochat.dataset --source {folder}", capsys)
    (folder / "a.parquet").write_bytes(b"PAR1 and then nothing")
    assert "a.parquet is damaged" in error_of(f"nanochat.dataset --source {folder}", capsys)
    (folder / "a.parquet").unlink()
    (folder / "a.txt").write_bytes(b"gr\xfcn")
    assert "a.txt is not UTF-8" in error_of(f"nanochat.dataset --source {folder}", capsys)
    (folder / "a.txt").write_bytes(b"")
    assert "holds too little text" in error_of(f"nanochat.dataset --source {folder}", capsys)
    assert contents(ready) == before


TOKENIZE = "scripts.tok_train --vocab_size=300 --max_chars=20000 --fresh"


@pytest.mark.parametrize(
    ("line", "damage"),
    [(TRAIN, "cut"), (TRAIN, "flipped"), (TOKENIZE, "flipped"), (TOKENIZE, "gone")],
)
def test_a_damaged_shard_is_named_and_restored_by_the_named_command(
    ready: Path, capsys: pytest.CaptureFixture[str], line: str, damage: str
) -> None:
    shard = ready / "data" / "primer" / "train_00000.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.unlink()
    if damage != "gone":
        shard.write_bytes(content if damage == "flipped" else content[:1000])
    error = error_of(line, capsys)
    assert "train_00000.parquet is" in error and "nanochat.dataset" in error
    assert outcome("nanochat.dataset --source primer -n 1", capsys)[0] == 0
    assert outcome(TOKENIZE, capsys)[0] == 0


def test_an_unreachable_hub_is_an_error_that_suggests_offline_text(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    error = error_of("nanochat.dataset -n 1", capsys)
    assert "Connection refused" in error and "--source primer" in error
    assert dataset.current_source() == "primer"


# ---- the disk


def test_a_file_in_place_of_the_base_directory_is_named(
    base_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base_dir.write_text("not a folder")
    error = error_of("nanochat.dataset --source primer -n 1", capsys)
    assert str(base_dir) in error and "set NANOCHAT_BASE_DIR" in error
    assert base_dir.read_text() == "not a folder"


class Disk:
    """A small mounted disk."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.filler = folder, folder / "filler"

    def fill(self) -> None:
        """Use all space."""
        with self.filler.open("wb", buffering=0) as file:
            try:
                while file.write(b"x" * 4096) == 4096:
                    pass
            except OSError:
                pass

    def free(self) -> None:
        """Free the space again."""
        self.filler.unlink()

    def forbid_writing(self) -> None:
        """Remount it read-only."""
        subprocess.run(["mount", "-o", "remount,ro", self.folder], check=True)


@pytest.fixture
def disk(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """A disk of 8 MB as the base directory, with text and a tokenizer."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs permission to mount a disk")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(folder))
    try:
        shutil.copytree(template, folder, dirs_exist_ok=True)
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_while_text_is_generated_loses_nothing(
    disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(disk.folder)
    disk.fill()
    error = error_of("nanochat.dataset --source primer -n 3", capsys)
    assert "the disk is full" in error and "train_00001.parquet" in error
    disk.free()
    assert contents(disk.folder) == before
    assert outcome("nanochat.dataset --source primer -n 3", capsys)[0] == 0


def test_a_full_disk_keeps_the_existing_tokenizer(
    disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    disk.fill()
    error = error_of("scripts.tok_train --vocab_size=500 --max_chars=20000 --fresh", capsys)
    assert "the disk is full" in error and "tokenizer.json" in error
    assert get_tokenizer().content_hash == small_tokenizer().content_hash
    disk.free()
    assert outcome("scripts.tok_train --vocab_size=500 --max_chars=20000 --fresh", capsys)[0] == 0
    assert get_tokenizer().get_vocab_size() == 500


def weights(tag: str) -> dict[str, Any]:
    checkpoint = checkpoint_manager.newest_complete(paths.checkpoints_dir("base") / tag)
    assert checkpoint is not None
    return checkpoint.load_model_state(torch.device("cpu"))


def fill_while_saving(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, step: int, freed_at: int
) -> None:
    """The disk is full while the checkpoint of `step` is written, until that of `freed_at`."""
    original = checkpoint_manager.save

    def filling(directory: Path, at: int, *arguments: Any, **more: Any) -> None:
        if at == step:
            disk.fill()
        if at == freed_at:
            disk.free()
        original(directory, at, *arguments, **more)

    monkeypatch.setattr(checkpoint_manager, "save", filling)


@pytest.mark.parametrize("step", [2, 4])
def test_a_temporarily_full_disk_costs_a_checkpoint_but_not_the_run(
    disk: Disk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    assert outcome(f"{TRAIN} --model_tag=uninterrupted", capsys)[0] == 0
    fill_while_saving(disk, monkeypatch, step, freed_at=step + 2)
    code, lines = outcome(f"{TRAIN} --model_tag=full", capsys)
    assert code == 0
    [failure] = [line for line in lines if f"checkpoint of step {step} was not saved" in line]
    assert "the disk is full" in failure and "last checkpoint: " in failure
    uninterrupted, full = weights("uninterrupted"), weights("full")
    assert all(torch.equal(uninterrupted[name], full[name]) for name in uninterrupted)


@pytest.mark.parametrize("step", [2, 4])
def test_a_run_resumes_from_the_last_checkpoint_before_the_disk_was_full(
    disk: Disk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    assert outcome(f"{TRAIN} --model_tag=uninterrupted", capsys)[0] == 0
    with monkeypatch.context() as patched:
        fill_while_saving(disk, patched, step, freed_at=-1)
        error = error_of(f"{TRAIN} --model_tag=full", capsys)
    assert "checkpoint of step 6 was not saved" in error and "the disk is full" in error
    left = checkpoint_manager.newest_complete(paths.checkpoints_dir("base") / "full")
    assert (left.step if left else 0) == step - 2
    disk.free()
    assert outcome(f"{TRAIN} --model_tag=full", capsys)[0] == 0
    uninterrupted, resumed = weights("uninterrupted"), weights("full")
    assert all(torch.equal(uninterrupted[name], resumed[name]) for name in uninterrupted)


@pytest.mark.parametrize(
    "line",
    ["nanochat.dataset --source primer -n 2", TOKENIZE, TRAIN],
)
def test_a_read_only_disk_is_named_with_the_variable_for_another(
    disk: Disk, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    before = contents(disk.folder)
    disk.forbid_writing()
    error = error_of(line, capsys)
    assert "no permission" in error and "NANOCHAT_BASE_DIR" in error
    assert contents(disk.folder) == before


# ---- as processes


def run_command(base: Path, line: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m"]
    if ranks > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"]
    environment = {**os.environ, "NANOCHAT_BASE_DIR": str(base)}
    return subprocess.run(
        [*launcher, *shlex.split(line)],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "scripts.base_train --depht=4",
            "error: --depht is not an option of this command; did you",
        ),
        ("scripts.base_train --depth=4", "error: no tokenizer in "),
        ("nanochat.dataset --source=nowhere", "error: --source=nowhere is neither a known source"),
    ],
)
def test_an_error_is_one_line_without_traceback(base_dir: Path, line: str, words: str) -> None:
    done = run_command(base_dir, line)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(words) and done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("scripts.base_train -- --depht=4", "error: --depht is not an option of this command"),
        (TRAIN.replace("_train", "_train --", 1), "error: no tokenizer in "),
    ],
)
def test_under_torchrun_the_error_has_no_traceback_of_this_code(
    base_dir: Path, line: str, words: str
) -> None:
    done = run_command(base_dir, line, ranks=2)
    assert done.returncode != 0
    assert words in done.stderr
    ours = [f'File "{ROOT / package}' for package in ("nanochat", "scripts")]
    assert not any(place in done.stderr for place in ours)
