"""Training on machines that have disks of their own, and on two hosts."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from tests import processes

STEPS = 20
TRAINING = [
    "--depth=2", "--head_dim=32", "--max_seq_len=128", "--total_batch_size=1024", "--compile=off",
    f"--num_iterations={STEPS}", "--eval_every=0", "--save_every=4", "--eval_tokens=1024",
]  # fmt: skip
HOSTS = {f"nanochat-{os.getpid()}-{n}": f"10.73.5.{n}" for n in (1, 2)}
"""Network namespaces and their addresses."""


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


# ---- two hosts


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two namespaces that reach each other over a virtual cable, and nothing else."""
    if shutil.which("ip") is None:
        pytest.skip("there is no program ip to make network namespaces with")
    names = list(HOSTS)
    try:
        for name in names:
            ip("netns", "add", name)
        cable = ["link", "add", "cable", "netns", names[0], "type", "veth"]
        ip(*cable, "peer", "cable", "netns", names[1])
        for name, address in HOSTS.items():
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("cable", "lo"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


# The second host dies, launcher and rank, when it is about to save and a checkpoint is complete.
PROGRAM = """
import os, signal, sys
from pathlib import Path
from nanochat import checkpoint_manager, configurator
from scripts import base_train

original, death = checkpoint_manager.save, Path(sys.argv.pop(1))

def save(directory, *arguments, **more):
    if death.parent.name == "second" and not death.exists() and [*directory.glob("meta_*.json")]:
        death.touch()
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    original(directory, *arguments, **more)

checkpoint_manager.save = save
configurator.run(base_train.main)
"""


def launch(name: str, base: Path, folder: Path) -> subprocess.Popen[bytes]:
    """torchrun on a host, as dev/launch/nodes.slurm starts it; its output is in the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "program.py").write_text(PROGRAM)
    endpoint = next(iter(HOSTS.values()))
    command = [
        "ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run",
        "--nnodes=2", "--nproc_per_node=1", "--max-restarts=3", "--rdzv_backend=c10d",
        f"--rdzv_endpoint={endpoint}:29500", "--rdzv_id=test",
        # Both have the name of this machine, from which torchrun cannot tell who is the endpoint.
        f"--local_addr={HOSTS[name]}", f"--rdzv_conf=is_host={int(HOSTS[name] == endpoint)}",
        str(folder / "program.py"), str(folder / "death"), *TRAINING, "--fresh",
    ]  # fmt: skip
    environment = {
        **os.environ, "NANOCHAT_BASE_DIR": str(base), "GLOO_SOCKET_IFNAME": "cable",
        "PYTHONPATH": str(processes.ROOT), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }  # fmt: skip
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(
            command, cwd=processes.ROOT, env=environment, stdout=output, stderr=output
        )


def weights(base: Path) -> dict[str, torch.Tensor]:
    path = base / "base_checkpoints" / "d2" / f"model_{STEPS:06d}.pt"
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return state


@pytest.mark.slow
@pytest.mark.timeout(1200)  # on a busy machine; a minute on two idle cores
def test_two_hosts_of_which_one_is_killed_train_what_one_process_trains(
    hosts: list[str], tmp_path: Path
) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    processes.make_world(alone)
    shutil.copytree(alone, shared)
    processes.run(alone, f"scripts.base_train {' '.join(TRAINING)}")
    folders = [tmp_path / name for name in ("first", "second")]
    running = [launch(name, shared, folder) for name, folder in zip(hosts, folders, strict=True)]
    try:
        assert running[1].wait() == -signal.SIGKILL
        # The host is started again; torchrun of the other one restarts its own rank.
        running[1] = launch(hosts[1], shared, folders[1])
        codes = [process.wait() for process in running]
    finally:
        for name in hosts:
            for process_id in ip("netns", "pids", name).split():
                os.kill(int(process_id), signal.SIGKILL)
    log = "".join((folder / "output.txt").read_text() for folder in folders)
    assert codes == [0, 0], log[-3000:]
    resumed = re.findall(r"resuming from step (\d+)", log)
    assert resumed and 4 <= int(resumed[0]) < STEPS, log[-3000:]
    expected, found = weights(alone), weights(shared)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        difference = (tensor - found[name]).norm() / tensor.norm()
        assert difference < 1e-4, f"{name}: {difference}"
