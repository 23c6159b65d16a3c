import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.runtime import RankStore, Runtime
from nanochat.training import rank_watchdog
from nanochat.training.rank_watchdog import HeartbeatMonitor


class Store:
    """Stands in for torch's key-value store; can be made unreachable."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.is_reachable = True

    def set(self, key: str, value: str) -> None:
        self.check([key])
        self.values[key] = value.encode()

    def get(self, key: str) -> bytes:
        self.check([key])
        return self.values[key]

    def check(self, keys: list[str]) -> bool:
        if not self.is_reachable:
            raise RuntimeError("timed out")
        return all(key in self.values for key in keys)

    def delete_key(self, key: str) -> bool:
        return self.values.pop(key, None) is not None


def runtime_of(store: RankStore, rank: int) -> Runtime:
    return Runtime(torch.device("cpu"), rank, 2, torch.float32, store=store)


@pytest.mark.parametrize("store", [None, Store()])
def test_a_value_is_read_unchanged_and_popped_once(store: Any) -> None:
    store = RankStore(store)
    assert store.get("a") is None
    store.set("a", "first")
    store.set("a", "ü")
    assert store.get("a") == "ü"
    assert store.pop("a") == "ü" and store.pop("a") is None


def test_ranks_with_heartbeats_are_not_lost_and_all_learn_of_one_without() -> None:
    store = RankStore(Store())
    monitors = [HeartbeatMonitor(store, rank, 3) for rank in range(3)]
    for _ in range(20):
        assert [monitor.check(1.0, 5.0) for monitor in monitors] == ["", "", ""]
    reasons = [[monitors[rank].check(1.0, 5.0) for rank in (0, 1)] for _ in range(8)]
    assert reasons[0] == ["", ""]
    assert reasons[-1] == ["no heartbeat of rank 2 for 5 s"] * 2


def test_an_unreachable_store_counts_as_a_lost_rank() -> None:
    store = Store()
    monitors = [HeartbeatMonitor(RankStore(store), rank, 2) for rank in range(2)]
    for _ in range(2):
        assert [monitor.check(1.0, 3.0) for monitor in monitors] == ["", ""]
    store.is_reachable = False
    assert [bool(monitors[1].check(1.0, 3.0)) for _ in range(3)] == [False, False, True]


def test_a_rank_that_has_not_started_is_not_lost() -> None:
    monitor = HeartbeatMonitor(RankStore(Store()), 0, 2)
    assert [monitor.check(10.0, 3.0) for _ in range(9)] == [""] * 9


def test_a_rank_that_ends_before_the_others_is_not_lost() -> None:
    store = RankStore(Store())
    monitor = HeartbeatMonitor(store, 0, 2)
    with rank_watchdog.watchdog(runtime_of(store, 1), is_leaving=lambda: False):
        while monitor.last_received is None:
            assert monitor.check(1.0, 3.0) == ""
    while monitor.last_received != rank_watchdog.LEFT:
        monitor.check(0.0, 3.0)
    assert [monitor.check(1.0, 3.0) for _ in range(9)] == [""] * 9


def test_a_job_that_was_suspended_as_a_whole_continues() -> None:
    store = RankStore(Store())
    monitors = [HeartbeatMonitor(store, rank, 2) for rank in range(2)]
    for seconds in (1.0, 1.0, 9000.0, 1.0):
        assert [monitor.check(seconds, rank_watchdog.LOST_SECONDS) for monitor in monitors] == [
            "",
            "",
        ]


def test_a_lost_rank_ends_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    left: list[int] = []
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr(rank_watchdog, "HEARTBEAT_SECONDS", 0.001)
    monkeypatch.setattr(rank_watchdog, "LOST_SECONDS", 0.01)
    store = RankStore(Store())
    store.set("alive/1", "7")
    with rank_watchdog.watchdog(runtime_of(store, 0), is_leaving=lambda: False):
        [thread] = [thread for thread in threading.enumerate() if thread.name == "rank-watchdog"]
        while not left:
            time.sleep(0.001)
    thread.join()  # or it would end this process once os._exit is what it was
    assert set(left) == {75}
