import subprocess
from pathlib import Path

import pytest
import torch

from nanochat.errors import UserError
from nanochat.runtime import Runtime
from nanochat.training import autotune
from scripts import select_tier
from scripts.select_tier import Options, depth_that_fits, refuse_unusable_gpus, select

DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13 16:14:05 UTC 2021\n"


@pytest.fixture
def no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "version"
    monkeypatch.setattr(select_tier, "DRIVER_VERSION", path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return path


def test_without_a_gpu_it_is_the_cpu_tier_with_times(no_driver: Path) -> None:
    selected = select(Options())
    assert selected["NANOCHAT_TIER"] == "cpu" and selected["NUM_RANKS"] == 1
    assert selected["MINUTES_SFT"] == select_tier.CPU_MINUTES["SFT"]


@pytest.mark.parametrize("tier", ["", "gpu", "node"])
def test_a_driver_that_torch_cannot_use_is_refused_with_its_version_and_the_remedy(
    no_driver: Path, tier: str
) -> None:
    no_driver.write_text(DRIVER)
    with pytest.raises(UserError, match=r"driver 470\.57\.02.*--torch-backend=auto") as caught:
        select(Options(tier=tier))  # type: ignore[arg-type]
    assert torch.__version__ in str(caught.value) and "\n" not in str(caught.value)
    refuse_unusable_gpus(Options(tier="cpu"), 0)  # asked for
    refuse_unusable_gpus(Options(tier="node", device_type="cpu"), 0)  # as a rehearsal does


def test_a_tier_of_gpus_does_not_train_on_a_cpu(no_driver: Path) -> None:
    with pytest.raises(UserError, match="NANOCHAT_TIER=node needs a GPU and there is none"):
        select(Options(tier="node"))


def test_the_reference_runs_get_enough_text(no_driver: Path) -> None:
    selected = select(Options(tier="node", device_type="cpu", num_ranks=2))
    # 20 x 560,988,160 tokens of 4.8 characters, in shards of 250 million characters, and a tenth
    assert (selected["DEPTH"], selected["NUM_RANKS"], selected["NUM_SHARDS"]) == (20, 2, 237)
    # 23.7 GB of text; 2.24 GB of weights and 2.92 GB of moments in each of eight checkpoints
    assert selected["DISK_GB"] == 75
    assert select(Options(tier="node", depth=32, device_type="cpu"))["NUM_SHARDS"] == 794
    assert select(Options(tier="node", num_shards=3, device_type="cpu"))["NUM_SHARDS"] == 3


@pytest.mark.parametrize(("peak", "hours"), [(60e12, 8), (165e12, 8), (989e12, 8), (989e12, 24)])
def test_one_gpu_gets_the_largest_depth_that_ends_in_time(
    monkeypatch: pytest.MonkeyPatch, peak: float, hours: float
) -> None:
    monkeypatch.setattr(
        autotune, "peak_tokens_per_second", lambda model, _: peak / model.flops_per_token()
    )
    runtime = Runtime(torch.device("cuda"), 0, 1, torch.bfloat16)

    def hours_at(depth: int) -> float:
        model = select_tier.untrained(depth, runtime)
        flops = 20 * model.num_parameters()["total"] * model.flops_per_token()
        return flops / (select_tier.EXPECTED_MFU * peak) / 3600

    depth = depth_that_fits(Options(hours=hours), runtime, int(80e9))
    assert hours_at(depth) <= hours
    assert depth == select_tier.MAX_DEPTH or hours_at(depth + 2) > hours
    # The smallest card decides by its memory, whatever time there is.
    small = depth_that_fits(Options(hours=10_000), runtime, int(8e9))
    assert select_tier.MIN_DEPTH < small < select_tier.MAX_DEPTH


def test_a_gpu_of_less_than_8_gb_is_refused() -> None:
    runtime = Runtime(torch.device("cuda"), 0, 1, torch.bfloat16)
    with pytest.raises(UserError, match=r"4\.0 GB of memory.*NANOCHAT_TIER=cpu"):
        depth_that_fits(Options(), runtime, int(4e9))


def test_the_assignments_are_ones_for_a_shell(
    no_driver: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    select_tier.main(["--tier=smoke"])
    lines = capsys.readouterr().out
    shell = f"set -eu\n{lines}\necho $NANOCHAT_TIER $NUM_RANKS"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert done.stdout == "smoke 1\n"
