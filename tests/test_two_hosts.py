"""Training on machines that have disks of their own."""

import os
import shutil
import signal
from functools import partial
from pathlib import Path

from tests import processes

STEPS = 30
TRAINING = [
    "--depth=2", "--head_dim=32", "--max_seq_len=128", "--total_batch_size=1024", "--compile=off",
    f"--num_iterations={STEPS}", "--eval_every=0", "--save_every=5", "--eval_tokens=1024",
]  # fmt: skip


def stopped_with_own_disk(folder: Path) -> None:
    """In a process: rank 1 has another base directory, and a signal comes after the first save."""
    if os.environ["RANK"] == "1":
        os.environ["NANOCHAT_BASE_DIR"] = str(folder)
    processes.signal_within("training.stage.evaluate", signal.SIGTERM)


def test_a_machine_without_the_checkpoints_is_named_and_no_one_waits(tmp_path: Path) -> None:
    base, other = tmp_path / "base", tmp_path / "other"
    processes.make_world(base)
    shutil.copytree(base, other)
    line = f"scripts.base_train {' '.join(TRAINING)} --eval_every=1"
    before = partial(stopped_with_own_disk, other)
    # Text and tokenizer may be on each machine's own disk.
    assert processes.start(base, line, ranks=2, before=before).wait() == [143, 143]
    again = processes.start(base, line, ranks=2, before=before)
    assert again.wait() == [2, 2]
    assert "does not have the same checkpoints on all machines" in again.output()
