"""Commands in processes of their own, forked from one that has imported torch: they start quickly.

Processes and signals are real. The primer world is small, and the peak FLOP/s are not measured.
"""

import importlib
import itertools
import multiprocessing
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PRELOADED = [
    "nanochat.dataset", "nanochat.report", "scripts.tok_train", "scripts.base_train",
    "scripts.mid_train", "scripts.chat_sft", "scripts.chat_rl", "scripts.chat_eval",
]  # fmt: skip
LIMIT_SECONDS = 200.0


def context() -> ForkServerContext:
    """Starts processes that have already imported the commands."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    return server


class Running:
    """A running command, on one rank or several."""

    def __init__(self, ranks: list[ForkServerProcess], path: Path, port: socket.socket) -> None:
        """port: kept open, so that the ranks' port is given to no other program."""
        self.ranks, self.path, self._port = ranks, path, port

    def is_alive(self) -> bool:
        """True while any rank is running."""
        return any(process.is_alive() for process in self.ranks)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to every rank that is running, as a launcher does."""
        for process in self.ranks:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, number)

    def wait(self, seconds: float = LIMIT_SECONDS) -> list[int]:
        """The ranks' exit codes; -N for a rank ended by signal N."""
        until = time.monotonic() + seconds
        for process in self.ranks:
            process.join(max(0.0, until - time.monotonic()))
        if self.is_alive():
            self.send(signal.SIGKILL)
            raise TimeoutError(f"still running after {seconds} s: {self.output()}")
        return [process.exitcode or 0 for process in self.ranks]

    def output(self) -> str:
        """What the ranks have printed so far."""
        return self.path.read_text(encoding="utf-8", errors="replace")


def start(
    base: Path, line: str, ranks: int = 1, before: Callable[[], object] | None = None
) -> Running:
    """Start `module --option=...` with this base directory; `before` is called in each rank."""
    output = base / "output" / f"{time.monotonic_ns()}.txt"
    module, *argv = shlex.split(line)
    port = _reserved_port()
    processes = []
    for rank in range(ranks):
        environment = {**os.environ, "NANOCHAT_BASE_DIR": str(base)}
        if ranks > 1:
            environment |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port.getsockname()[1]),
            }  # fmt: skip
        arguments = (module, argv, environment, output, before)
        processes.append(context().Process(target=_main, args=arguments))
        processes[-1].start()
    return Running(processes, output, port)


def run(base: Path, line: str, ranks: int = 1, ok: bool = True) -> str:
    """Run a command to its end; returns what it printed. ok: whether it must succeed."""
    running = start(base, line, ranks)
    codes = running.wait()
    assert (set(codes) == {0}) == ok, f"{line}: {codes}\n{running.output()[-3000:]}"
    return running.output()


def _reserved_port() -> socket.socket:
    """A socket on a free port, on which rank 0 can listen as long as this one does not."""
    port = socket.socket()
    port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    port.bind(("127.0.0.1", 0))
    return port


def _main(
    module: str,
    argv: list[str],
    environment: dict[str, str],
    output: Path,
    before: Callable[[], object] | None,
) -> None:
    """The process: one rank of the command, with the exit codes of the command line."""
    from nanochat import configurator

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    output.parent.mkdir(parents=True, exist_ok=True)
    written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(written, 1)
    os.dup2(written, 2)
    shrink()
    if before is not None:
        before()
    main: Callable[[list[str]], None] = importlib.import_module(module).main
    configurator.run(lambda: main(argv))


def shrink() -> None:
    """In the process of a command: a small primer world, and peak FLOP/s that are not measured."""
    from nanochat import dataset
    from nanochat.training import autotune

    dataset.PRIMER_SHARD_DOCUMENTS, dataset.PRIMER_VAL_DOCUMENTS = 1000, 200
    autotune.measure_matmul_peak = lambda *_: 1e11


def torchrun(base: Path, line: str, kill: str) -> subprocess.CompletedProcess[str]:
    """Run a command on two ranks under torchrun, which starts it again when it fails, once.

    kill: a statement, executed before the command when it is started for the first time.
    """
    module, *argv = shlex.split(line)
    program = base / "program.py"
    program.write_text(f"""
import os
from nanochat.configurator import run
from {module} import main
from tests import processes

processes.shrink()
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    {kill}
run(main)
""")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.run(
        [*launcher, "--max-restarts=1", program, *argv],
        env={**os.environ, "NANOCHAT_BASE_DIR": str(base), "PYTHONPATH": str(ROOT)},
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def program(module: str, before_pass: str, setup: str = "") -> str:
    """A program that runs a command; before_pass: a statement, executed before each pass of GPT.

    It may take `numbers` from 0 on.
    """
    return f"""
import itertools, time, torch
from pathlib import Path
from nanochat.configurator import run
from nanochat.gpt import GPT
from {module} import main
{setup}
numbers = itertools.count()

def hook(module, _):
    if isinstance(module, GPT):
        {before_pass}

torch.nn.modules.module.register_module_forward_pre_hook(hook)
run(main)
"""


def die_when_saved() -> None:
    """In the process of a command: kill it when the first checkpoint is complete."""
    from nanochat import checkpoint_manager

    original = checkpoint_manager.save

    def save(*arguments: Any, **more: Any) -> None:
        original(*arguments, **more)
        os.kill(os.getpid(), signal.SIGKILL)

    checkpoint_manager.save = save


def die_in(function: str, call: int) -> None:
    """In the process of a command: kill the main rank in that call of `nanochat.{function}`."""
    module_name, name = function.rsplit(".", 1)
    module = importlib.import_module(f"nanochat.{module_name}")
    original, calls = getattr(module, name), itertools.count(1)

    def counted(*arguments: Any, **more: Any) -> Any:
        if next(calls) == call and os.environ.get("RANK", "0") == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **more)

    setattr(module, name, counted)


def signal_within(function: str, number: signal.Signals) -> None:
    """In the process of a command: send it a signal when `nanochat.{function}` is called."""
    module_name, name = function.rsplit(".", 1)
    module = importlib.import_module(f"nanochat.{module_name}")
    original = getattr(module, name)

    def signaled(*arguments: Any, **more: Any) -> Any:
        os.kill(os.getpid(), number)
        return original(*arguments, **more)

    setattr(module, name, signaled)


def make_world(base: Path) -> None:
    """Create text of the primer world and a tokenizer of it."""
    run(base, "nanochat.dataset --source=primer -n 1")
    run(base, "scripts.tok_train --vocab_size=600 --max_chars=200000")
