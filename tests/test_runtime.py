import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanochat import runtime
from nanochat.errors import UserError
from nanochat.runtime import init_runtime, replicas
from nanochat.training.stop_requests import stop_requests


@pytest.fixture
def precisions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A fake H100; the float32 precisions that were set."""
    found: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch, "set_float32_matmul_precision", found.append)
    return found


@pytest.mark.parametrize(
    ("name", "dtype", "precision"),
    [
        ("float32", torch.float32, "highest"),
        ("bfloat16", torch.bfloat16, "high"),
        (None, torch.bfloat16, "high"),
    ],
)
def test_float32_on_a_gpu_is_full_float32_and_not_tf32(
    name: str | None,
    dtype: torch.dtype,
    precision: str,
    precisions: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name:
        monkeypatch.setenv("NANOCHAT_DTYPE", name)
    place = init_runtime()
    assert (place.device, place.compute_dtype) == (torch.device("cuda", 0), dtype)
    assert precisions == [precision]


@pytest.mark.parametrize(
    ("generation", "hip", "dtype", "precision"),
    [
        ((7, 5), None, torch.float16, "high"),  # T4, RTX 20
        ((7, 0), None, torch.float16, "high"),  # V100
        ((6, 1), None, torch.float32, "highest"),
        ((7, 5), "7.2", torch.bfloat16, "high"),
    ],
)
def test_older_gpus_compute_in_float16_or_in_full_float32(
    generation: tuple[int, int], hip: str | None, dtype: torch.dtype, precision: str,
    precisions: list[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: generation)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert init_runtime("cuda").compute_dtype == dtype
    assert precisions == [precision]


def test_compiled_code_is_kept_unless_its_place_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", "/chosen")
    runtime.keep_compiled_code(tmp_path)
    assert os.environ.pop("TORCHINDUCTOR_CACHE_DIR") == str(tmp_path / "inductor")
    assert os.environ["TRITON_CACHE_DIR"] == "/chosen"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("NANOCHAT_DTYPE", "float8", "NANOCHAT_DTYPE=float8 is not known; use float32 or"),
        ("RANK", "one", "RANK=one in the environment is not an integer of at least 0; unset it"),
        (
            "WORLD_SIZE",
            "0",
            "WORLD_SIZE=0 in the environment is not an integer of at least 1;",
        ),
    ],
)
def test_an_invalid_variable_is_an_error_with_its_value(
    variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=message):
        init_runtime("cpu")


def test_replicas_have_a_gpu_each_and_more_than_there_are_is_an_error(
    precisions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    base = init_runtime()
    assert [copy.device.index for copy in replicas(base, 2)] == [0, 1]
    assert len(replicas(base, 0)) == 3
    with pytest.raises(UserError, match=r"4 replicas .* there are 3"):
        replicas(base, 4)


def test_a_signal_waits_for_a_deferred_part_but_not_for_an_immediate_one_within() -> None:
    number = signal.SIGUSR1
    reached = []
    with stop_requests() as stop:
        with pytest.raises(SystemExit) as exit_request, stop.deferred():
            signal.raise_signal(number)
            reached.append("deferred")
            with stop.immediate():
                reached.append("immediate")
        assert exit_request.value.code == 128 + number
        with pytest.raises(SystemExit), stop.deferred():
            reached.append("again")
    assert reached == ["deferred", "again"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_importing_a_module_starts_no_device_and_reads_no_processor_file() -> None:
    program = (
        "import sys; seen = []\n"
        "sys.addaudithook(lambda event, args: event == 'open' and seen.append(str(args[0])))\n"
        "import torch; seen.clear()\n"
        "import nanochat.training.run_summary, nanochat.metrics, nanochat.muon\n"
        "assert not [path for path in seen if path.startswith('/proc')], seen\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)


def test_a_user_without_a_name_gets_one_for_the_compilers_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # raises KeyError, as for an unknown user
    runtime.init_runtime("cpu")
    assert os.environ.pop("USER") == str(os.getuid())
