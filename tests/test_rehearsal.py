"""The reference runs from a hub on loopback, in the smaller form of dev/rehearse.sh."""

import faulthandler
import os
import subprocess

import pytest

from tests.processes import ROOT
from tests.shared_data import needs_eval_data

SECONDS = 3600  # it takes some minutes on two idle cores


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(SECONDS)
@needs_eval_data
@pytest.mark.parametrize("script", ["speedrun.sh", "run1000.sh"])
def test_a_reference_run_ends_and_again_without_a_network(script: str) -> None:
    faulthandler.cancel_dump_traceback_later()  # which pytest set for shorter tests
    done = subprocess.run(
        ["bash", "dev/rehearse.sh"], cwd=ROOT, text=True, timeout=SECONDS,
        env={**os.environ, "SMALL": "1", "SCRIPT": script},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    assert "the weights in" in done.stdout.splitlines()[-1]
