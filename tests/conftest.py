"""What every test gets: an own base directory, no tracker, one thread."""

import os
from pathlib import Path

# Before torch is imported: small tensors are fastest on one thread, and ranks share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


@pytest.fixture(autouse=True)
def base_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """NANOCHAT_BASE_DIR of this test, not created; nothing else of the environment gets in."""
    path = tmp_path / "base"
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(path))
    for name in ("WANDB_RUN", "NANOCHAT_DTYPE", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return path
