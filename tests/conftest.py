"""What every test gets: an own base directory, no tracker, one thread, the same examples."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Before torch is imported: small tensors are fastest on one thread, and ranks share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from nanochat.engine import Engine

# The same examples in every run, however long a busy machine takes for one.
settings.register_profile(
    "nanochat", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("nanochat")


def pytest_configure() -> None:
    """Let Ctrl-C reach the processes of tests: a shell ignores it in its background jobs."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def base_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """NANOCHAT_BASE_DIR of this test, not created; nothing else of the environment gets in."""
    path = tmp_path / "base"
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(path))
    for name in ("WANDB_RUN", "NANOCHAT_DTYPE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return path


@pytest.fixture(autouse=True)
def console() -> Iterator[None]:
    """What a command writes its log to is closed with its test; no other test's log goes there."""
    level = logging.root.level
    yield
    for handler in logging.root.handlers[:]:
        if type(handler) is logging.StreamHandler:
            logging.root.removeHandler(handler)
    logging.root.setLevel(level)


@pytest.fixture(scope="session")
def engine() -> "Engine":
    """An engine with a model that has memorized a few conversations."""
    from nanochat.engine import Engine
    from tests.memorized_model import model_and_tokenizer

    return Engine(*model_and_tokenizer())


@pytest.fixture(scope="module")
def address(engine: "Engine") -> Iterator[str]:
    """Of a server around that engine."""
    from tests.served import serving

    with serving(engine, max_tokens=100) as url:
        yield url
